"""Streams: step by step what a whole sequence gives, the state kept, streams that begin anew."""

import pytest
import torch
from torch import Tensor, nn

import fastrnn

LAYERS = [fastrnn.RNN, fastrnn.LSTM, fastrnn.GRU, nn.LSTM]
CELLS = [fastrnn.RNNCell, fastrnn.LSTMCell, fastrnn.GRUCell, nn.GRUCell]


class Model(nn.Module):
    """Symbols in, a distribution over symbols out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 3)
        self.layers = fastrnn.GRU(3, 4, num_layers=2, batch_first=True)

    def forward(self, symbols: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, state = self.layers(self.embedding(symbols), state)
        return y.softmax(-1), state


@pytest.mark.parametrize("lengths", [[1] * 7, [3, 1, 3], [7]])
@pytest.mark.parametrize("shape", [(7, 2, 3), (7, 3)])
@pytest.mark.parametrize("cls", LAYERS)
def test_a_layer_gives_what_the_whole_sequence_gives(cls: type, shape: tuple[int, ...], lengths: list[int]) -> None:
    net = cls(3, 4, num_layers=2)
    x = torch.randn(shape)
    expected, state = net(x)
    step = fastrnn.stream(net)
    found = torch.cat([step(part) for part in x.split(lengths)])
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(
        step.state, tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
    )
    assert not found.requires_grad


@pytest.mark.parametrize("cls", CELLS)
def test_a_cell_is_stepped(cls: type) -> None:
    cell = cls(3, 4)
    step = fastrnn.stream(cell)
    state = None
    for x in torch.randn(5, 2, 3):
        state = cell(x, state)
        h = state[0] if isinstance(state, tuple) else state
        torch.testing.assert_close(step(x), h.detach())


def test_a_model_is_stepped() -> None:
    model = Model()
    symbols = torch.randint(9, (2, 6))
    step = fastrnn.stream(model)
    torch.testing.assert_close(torch.cat([step(s) for s in symbols.split(1, 1)], 1), model(symbols)[0].detach())


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("rows", [[1], [2, 0], [], torch.tensor([True, False, True]), torch.tensor([0])])
@pytest.mark.parametrize("cls", [fastrnn.LSTM, fastrnn.GRU, fastrnn.LSTMCell])
def test_rows_begin_anew(cls: type, rows: list[int] | Tensor, given: bool) -> None:
    """As if the others had gone on by themselves, and these had just begun; and a state that was kept stays."""
    net, is_cell = cls(3, 4), cls is fastrnn.LSTMCell
    x = torch.randn(6, 3, 3)
    h0 = torch.randn(3, 4) if is_cell else torch.randn(1, 3, 4)
    hx = None if not given else h0 if cls is fastrnn.GRU else (h0, 2 * h0)
    begun, going = fastrnn.stream(net, hx), fastrnn.stream(net, hx)
    for x_t in x[:3]:
        going(x_t if is_cell else x_t[None])
    kept = going.state
    before = [s.clone() for s in (kept if isinstance(kept, tuple) else [kept])]
    unbroken = fastrnn.stream(net, kept)
    going.reset(rows)
    restarted = torch.zeros(3, dtype=torch.bool)
    restarted[rows if isinstance(rows, Tensor) else torch.tensor(rows, dtype=torch.long)] = True
    for x_t in x[3:]:
        input = x_t if is_cell else x_t[None]
        found, fresh, old = (step(input) for step in (going, begun, unbroken))
        torch.testing.assert_close(found, torch.where(restarted[:, None], fresh, old))
    assert all(torch.equal(s, b) for s, b in zip(kept if isinstance(kept, tuple) else [kept], before, strict=True))


def test_all_begin_anew() -> None:
    x, h0 = torch.randn(2, 3, 3), torch.randn(1, 3, 4)
    for hx in (None, h0):
        step = fastrnn.stream(fastrnn.GRU(3, 4), hx)
        step.reset([1])  # before the first step, where nothing is to be done
        first = step(x)
        assert not torch.equal(step(x), first)
        step.reset()
        assert torch.equal(step(x), first)


def test_the_state_may_be_kept_and_set() -> None:
    step = fastrnn.stream(fastrnn.LSTM(3, 4))
    x = torch.randn(2, 1, 1, 3)
    step(x[0])
    kept = step.state
    second = step(x[1])
    step.state = kept
    assert torch.equal(step(x[1]), second)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="expected layers of one direction, got bidirectional=True"):
        fastrnn.stream(nn.Sequential(fastrnn.GRU(3, 4, bidirectional=True)))
    with pytest.raises(TypeError, match="an output and a state, got Tensor"):
        fastrnn.stream(lambda x, h: x)(torch.zeros(3))
    step = fastrnn.stream(fastrnn.GRU(3, 4))
    step(torch.zeros(1, 3))
    with pytest.raises(RuntimeError, match="expected a batched, 3-D state, got a 2-D one"):
        step.reset([0])
    step.reset()
    step(torch.zeros(1, 2, 3))
    before = step.state
    with pytest.raises(IndexError):
        step.reset([2])
    with pytest.raises(RuntimeError, match="input"):
        step(torch.zeros(1, 2, 5))
    assert step.state is before
