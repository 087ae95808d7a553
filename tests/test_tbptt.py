"""tbptt: which steps are learned from, how far back the gradient goes, and what state is carried."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import fastrnn

CELLS = [fastrnn.RNN, fastrnn.LSTM, fastrnn.GRU, nn.GRU]
T = 11


def detached(state: Tensor | tuple[Tensor, ...] | None) -> Tensor | tuple[Tensor, ...] | None:
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else None if state is None else state.detach()


def beginning(new: slice, k1: int, k2: int) -> int:
    """The first step that a window's gradient goes back to."""
    return new.start if k2 == k1 else max(0, new.stop - k2)


def by_definition(net: nn.Module, x: Tensor, dy: Tensor, new: slice, begin: int) -> list[Tensor]:
    """The gradients of sum(dy * y) over the new steps, by single steps, detached where they begin."""
    state, outputs = None, []
    for t in range(new.stop):
        if t == begin:
            state = detached(state)
        y, state = net(x[t : t + 1], state)
        outputs.append(y)
    loss = (torch.cat(outputs)[new.start :] * dy[new.start : new.stop]).sum()
    return list(torch.autograd.grad(loss, list(net.parameters())))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (3, 3), (3, 4), (2, 7), (4, 6), (1, 5), (4, 11), (3, 50), (20, 20)])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_go_back_k2_steps(cell: type, k1: int, k2: int, batch_first: bool) -> None:
    net = cell(3, 4, num_layers=2, batch_first=batch_first, dtype=torch.float64)
    stepped = cell(3, 4, num_layers=2, dtype=torch.float64)
    stepped.load_state_dict(net.state_dict())
    x, dy = torch.randn(T, 2, 3, dtype=torch.float64), torch.randn(T, 2, 4, dtype=torch.float64)
    whole = net(x.transpose(0, 1) if batch_first else x)[0]
    begin = 0
    for output, steps in fastrnn.tbptt(
        net, x.transpose(0, 1) if batch_first else x, k1=k1, k2=k2, batch_first=batch_first
    ):
        assert (steps.start, steps.stop, steps.step) == (begin, min(begin + k1, T), None)
        torch.testing.assert_close(output, whole[:, steps] if batch_first else whole[steps])
        y = output.transpose(0, 1) if batch_first else output
        gradients = torch.autograd.grad((y * dy[steps]).sum(), list(net.parameters()))
        expected = by_definition(stepped, x, dy, steps, beginning(steps, k1, k2))
        for gradient, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient, other)
        begin = steps.stop
    assert begin == T


@pytest.mark.parametrize(
    ("k1", "k2"), [(k1, k2) for k1 in (1, 2, 3, 5, 20) for k2 in (k1, k1 + 1, 2 * k1 + 1, 50)], ids=str
)
@pytest.mark.parametrize("total", [1, 4, 6, 11, 16, 23])
def test_no_step_is_computed_more_often_than_gradients_need_it(total: int, k1: int, k2: int) -> None:
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = torch.randn(total, dtype=torch.float64, requires_grad=True)
    calls: list[range] = []

    def fading(x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        calls.append(range(x.storage_offset(), x.storage_offset() + len(x)))
        outputs = []
        for each in x:
            h = each if h is None else a * h + each
            outputs.append(h)
        return torch.stack(outputs), h

    # h_t is the sum of a^(t-s) x_s over all s up to t, so a's own gradient is that of a^(t-s) h_{s-1}
    t = torch.arange(total, dtype=torch.float64)
    powers = (0.7 ** (t[:, None] - t)).tril()
    h = powers @ x.detach()
    before = torch.cat([torch.zeros(1, dtype=torch.float64), h[:-1]])
    for output, new in fastrnn.tbptt(fading, x, k1=k1, k2=k2):
        begin = beginning(new, k1, k2)
        assert [step for call in calls for step in call] == list(range(begin, new.stop))
        assert len(calls) == 1 or k2 > k1
        calls.clear()
        torch.testing.assert_close(output.detach(), h[new])
        expected = powers[new] * (t >= begin)
        dx, da = torch.autograd.grad(output.sum(), (x, a), materialize_grads=True)
        torch.testing.assert_close(dx, expected.sum(0))
        torch.testing.assert_close(da, (expected @ before).sum())


def test_the_last_of_windows_that_reach_the_beginning_has_the_whole_gradient() -> None:
    net = fastrnn.GRU(3, 4, dtype=torch.float64)
    x, h0 = torch.randn(T, 2, 3, dtype=torch.float64), torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)
    inputs = [h0, *net.parameters()]
    *_, (output, steps) = fastrnn.tbptt(net, x, h0, k1=4, k2=T)
    gradients = torch.autograd.grad(output.sum(), inputs)
    expected = torch.autograd.grad(net(x, h0)[0][steps].sum(), inputs)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("k2", [3, 5, 20])
@pytest.mark.parametrize("cell", CELLS)
def test_the_state_goes_on(cell: type, k2: int) -> None:
    net = cell(3, 4)
    x = torch.randn(T, 2, 3)
    windows = fastrnn.tbptt(net, x[:7], k1=3, k2=k2)
    assert windows.state is None
    for _, steps in windows:
        expected = net(x[: steps.stop])[1]
        torch.testing.assert_close(windows.state, detached(expected))
        assert not any(s.requires_grad for s in (windows.state if cell is fastrnn.LSTM else [windows.state]))
    with pytest.raises(StopIteration):
        next(windows)
    *_, (output, _) = fastrnn.tbptt(net, x[7:], windows.state, k1=3, k2=k2)
    torch.testing.assert_close(output, net(x)[0][-1:])


def test_weights_may_change_between_windows() -> None:
    net = fastrnn.LSTM(3, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x = torch.randn(T, 2, 3)
    losses = []
    for output, _ in fastrnn.tbptt(net, x.repeat(20, 1, 1), k1=T, k2=2 * T):
        loss = (output - 0.5).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    with torch.no_grad():  # the steps before the new ones are computed again, with the weights as they are
        windows = fastrnn.tbptt(net, x, k1=5, k2=10)
        next(windows)
        for weight in net.parameters():
            weight.zero_()
        output, _ = next(windows)
    assert torch.all(output == 0)


def test_sequences_may_end_within_the_input() -> None:
    net = fastrnn.LSTM(3, 4, batch_first=True)
    x, reset = torch.randn(2, T, 3), torch.rand(2, T) < 0.3
    windows = fastrnn.tbptt(net, x, k1=2, k2=5, batch_first=True, reset=reset)
    found = torch.cat([output for output, _ in windows], 1)
    torch.testing.assert_close(found, net(x, reset=reset)[0])


class Pair(NamedTuple):
    a: Tensor
    b: list[dict[str, Tensor] | None]


def test_any_function_with_any_state_on_any_symbols() -> None:
    def count(symbols: Tensor, state: Pair | None) -> tuple[Tensor, Pair]:
        before = torch.zeros((), requires_grad=True) if state is None else state.a
        sums = before + symbols.cumsum(0)
        return sums, Pair(sums[-1], [{"last": sums[-1]}, None])

    symbols = torch.arange(10)
    windows = fastrnn.tbptt(count, symbols, k1=3, k2=4)
    torch.testing.assert_close(torch.cat([output for output, _ in windows]), symbols.cumsum(0).float())
    assert isinstance(windows.state, Pair)
    assert not windows.state.b[0]["last"].requires_grad
    assert windows.state.b[1] is None


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"input": [[1.0]]}, TypeError, "input: expected a Tensor, got list"),
        ({"input": torch.zeros(())}, ValueError, "at least 1 dimensions, got 0"),
        ({"input": torch.zeros(3), "batch_first": True}, ValueError, "at least 2 dimensions, got 1"),
        ({"input": torch.zeros(0, 2, 3)}, RuntimeError, "sequence length to be larger than 0"),
        ({"k1": 0}, ValueError, "k1: expected a number of steps, at least 1, got 0"),
        ({"k1": 2.0}, ValueError, "k1: expected a number of steps, at least 1, got 2.0"),
        ({"k1": 3, "k2": -1}, ValueError, "k2: expected a number of steps, at least 1, got -1"),
        ({"k1": 3, "k2": 2}, ValueError, "k2: expected at least k1 = 3, got 2"),
        ({"reset": torch.zeros(5, 3, dtype=torch.bool)}, ValueError, r"expected shape \(5, 2\), got \(5, 3\)"),
        ({"module": lambda x, h: x}, TypeError, "an output and a state, got Tensor"),
        ({"module": lambda x, h: (x[1:], h)}, RuntimeError, r"expected an output with 2 steps in dimension 0, got sh"),
    ],
)
def test_mistakes(changes: dict[str, object], error: type[Exception], words: str) -> None:
    arguments = {"module": fastrnn.GRU(3, 4), "input": torch.zeros(5, 2, 3), "k1": 2} | changes
    module, input = arguments.pop("module"), arguments.pop("input")
    with pytest.raises(error, match=words):
        next(fastrnn.tbptt(module, input, **arguments))
