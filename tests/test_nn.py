"""The modules compute what torch.nn's do; and what ``lengths``, ``reset`` and ``return_cells`` give."""

import copy
import inspect
import itertools
import pickle
import warnings

import pytest
import torch
from accuracy import assert_accurate, assert_same, flatten, in_float64, run
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import fastrnn

T, B, I, H = 9, 5, 7, 11  # noqa: E741
LAYERS = ["RNN", "LSTM", "GRU"]
CELLS = ["RNNCell", "LSTMCell", "GRUCell"]
OPTIONS = {
    "plain": {},
    "relu": {"nonlinearity": "relu"},
    "deep": {"num_layers": 3},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True},
    "two directions": {"bidirectional": True},
    "all at once": {"num_layers": 2, "bias": False, "batch_first": True, "bidirectional": True},
}
LAYER_OPTIONS = [
    pytest.param(name, options, id=f"{name}-{what}")
    for name in LAYERS
    for what, options in OPTIONS.items()
    if name == "RNN" or "nonlinearity" not in options
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def pair(name: str, *args: object, **options: object) -> tuple[nn.Module, nn.Module]:
    """A fastrnn module and torch.nn's with the same parameters."""
    ours, torchs = getattr(fastrnn, name)(*args, **options), getattr(nn, name)(*args, **options)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def hidden(module: nn.Module, batch: int | None = B) -> Tensor | tuple[Tensor, Tensor]:
    """A random initial state for a layer or cell; without a batch dimension where ``batch`` is None."""
    shape = [] if batch is None else [batch]
    if isinstance(module, nn.RNNBase):
        shape.insert(0, module.num_layers * (2 if module.bidirectional else 1))
    dtype = next(module.parameters()).dtype
    states = [torch.randn(*shape, module.hidden_size).to(dtype) for _ in range(2)]
    return tuple(states) if isinstance(module, nn.LSTM | nn.LSTMCell) else states[0]


def check(ours: nn.Module, torchs: nn.Module, *inputs: object, **beyond: object) -> None:
    """``ours`` on ``inputs`` against torch.nn's in the same dtype and in float64."""
    truth = run(copy.deepcopy(torchs).double(), *map(in_float64, inputs))
    assert_accurate(run(ours, *inputs, **beyond), run(torchs, *inputs), truth)


def sequences(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(n, I).to(dtype) for n in (4, 9, 1, 9, 6)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "options"), LAYER_OPTIONS)
def test_layer_computes_what_torch_computes(name: str, options: dict, dtype: torch.dtype) -> None:
    ours, torchs = pair(name, I, H, dtype=dtype, **options)
    x = torch.randn(B, T, I) if ours.batch_first else torch.randn(T, B, I)
    check(ours, torchs, x.to(dtype))
    check(ours, torchs, x.to(dtype), hidden(ours))


@pytest.mark.parametrize(("name", "options"), LAYER_OPTIONS)
def test_unbatched(name: str, options: dict) -> None:
    ours, torchs = pair(name, I, H, **options)
    check(ours, torchs, torch.randn(T, I))
    check(ours, torchs, torch.randn(T, I), hidden(ours, None))


@pytest.mark.parametrize("enforce_sorted", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize(("name", "options"), LAYER_OPTIONS)
def test_packed(name: str, options: dict, enforce_sorted: bool) -> None:
    ours, torchs = pair(name, I, H, **options)
    given = sorted(sequences(), key=len, reverse=True) if enforce_sorted else sequences()
    packed = pack_sequence(given, enforce_sorted=enforce_sorted)
    check(ours, torchs, packed)
    check(ours, torchs, packed, hidden(ours))
    mine, theirs = ours(packed)[0], torchs(packed)[0]
    assert isinstance(mine, PackedSequence)
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert mine.__getattribute__(field) is theirs.__getattribute__(field) or torch.equal(
            getattr(mine, field), getattr(theirs, field)
        )


@pytest.mark.parametrize("name", LAYERS)
def test_strided_inputs(name: str) -> None:
    ours, torchs = pair(name, I, H)
    x = torch.randn(I, 2 * T, B).permute(1, 2, 0)[::2]
    h = torch.randn(B, 1, H).transpose(0, 1)
    check(ours, torchs, x, (h, h.flip(1)) if name == "LSTM" else h)


@pytest.mark.parametrize("layout", ["dense", "packed"])
@pytest.mark.parametrize("name", LAYERS)
def test_dropout_draws_the_numbers_that_torch_draws(name: str, layout: str) -> None:
    ours, torchs = pair(name, I, H, num_layers=3, dropout=0.4, bidirectional=True)
    x = torch.randn(T, B, I) if layout == "dense" else pack_sequence(sequences(), enforce_sorted=False)

    def seeded(module: nn.Module, given: object) -> dict[str, Tensor]:
        torch.manual_seed(3)
        return run(module, given)

    truth = seeded(copy.deepcopy(torchs).double(), in_float64(x))
    assert_accurate(seeded(ours, x), seeded(torchs, x), truth)
    assert not torch.allclose(flatten(ours(x))[0], flatten(ours(x))[0])
    ours.eval()
    check(ours, torchs.eval(), x)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_works_on_when_carried_step_by_step(name: str) -> None:
    """As in streaming: one step a call, the state handed from call to call."""
    ours, torchs = pair(name, I, H, num_layers=2)
    x, state, outputs = torch.randn(T, B, I), None, []
    with torch.inference_mode():
        for step in x:
            y, state = ours(step[None], state)
            outputs.append(y)
    h_n = state[0] if name == "LSTM" else state
    found = {"y": torch.cat(outputs), "h_n": h_n}
    theirs, truth = torchs(x), torchs.double()(x.double())
    named = [{"y": y, "h_n": s[0] if name == "LSTM" else s} for y, s in (theirs, truth)]
    assert_accurate(found, *named)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_are_the_same_with_and_without_gradients(name: str, context: type) -> None:
    net = getattr(fastrnn, name)(I, H, num_layers=2, bidirectional=True)
    x = torch.randn(T, B, I)
    expected = net(x)[0]
    with context():
        assert_same({"y": net(x)[0]}, {"y": expected})


@pytest.mark.parametrize("name", LAYERS)
def test_backward_in_eval_mode(name: str) -> None:
    ours, torchs = pair(name, I, H, num_layers=2, dropout=0.5)
    check(ours.eval(), torchs.eval(), torch.randn(T, B, I))


@pytest.mark.parametrize("tape", ["full", "lean"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_both_tapes(name: str, tape: str) -> None:
    """Over more steps than the lean tape has between two of its marks."""
    ours, torchs = pair(name, I, H, num_layers=2, bidirectional=True)
    ours.tape = tape
    check(ours, torchs, torch.randn(150, B, I), hidden(ours))
    check(ours, torchs, pack_sequence([torch.randn(n, I) for n in (150, 3, 70)], enforce_sorted=False))


def test_tape_is_kept_by_copies_and_pickles() -> None:
    net = fastrnn.LSTM(I, H)
    assert net.tape == "full"
    net.tape = "lean"
    assert copy.deepcopy(net).tape == pickle.loads(pickle.dumps(net)).tape == "lean"
    assert "tape" not in net.state_dict()


def test_tape_is_checked() -> None:
    net = fastrnn.LSTM(I, H)
    net.tape = "fat"
    with pytest.raises(ValueError, match="tape: expected one of 'full', 'lean', got 'fat'"):
        net(torch.randn(T, B, I))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projections_are_torchs_to_the_last_bit(dtype: torch.dtype) -> None:
    options = {"num_layers": 2, "bidirectional": True, "proj_size": 4, "dtype": dtype}
    ours, torchs = pair("LSTM", I, H, **options)
    x = torch.randn(T, B, I, dtype=dtype)
    h, c = torch.randn(4, B, 4, dtype=dtype), torch.randn(4, B, H, dtype=dtype)
    assert_same(run(ours, x), run(torchs, x))
    assert_same(run(ours, x, (h, c)), run(torchs, x, (h, c)))
    packed = pack_sequence(sequences(dtype), enforce_sorted=False)
    assert_same(run(ours, packed), run(torchs, packed))


class Packing(nn.Module):
    """torch.nn's way to give lengths, as a module that takes the padded batch."""

    def __init__(self, layer: nn.RNNBase, lengths: list[int]) -> None:
        super().__init__()
        self.layer, self.lengths = layer, lengths

    def named_parameters(self, *args: object, **kwargs: object) -> object:
        return self.layer.named_parameters()

    def forward(self, x: Tensor, hx: object = None) -> object:
        batch_first = self.layer.batch_first
        packed = pack_padded_sequence(x, self.lengths, batch_first=batch_first, enforce_sorted=False)
        y, state = self.layer(packed, hx)
        steps = x.shape[1 if batch_first else 0]
        return pad_packed_sequence(y, batch_first=batch_first, total_length=steps)[0], state


@pytest.mark.parametrize("lengths", [[3, 9, 1, 9, 5], [2, 1, 1, 1, 1]], ids=["mixed", "all short"])
@pytest.mark.parametrize(("name", "options"), LAYER_OPTIONS)
def test_lengths_give_what_packing_gives(name: str, options: dict, lengths: list[int]) -> None:
    ours, torchs = pair(name, I, H, **options)
    x = torch.randn(B, T, I) if ours.batch_first else torch.randn(T, B, I)
    packing = Packing(torchs, lengths)
    check(ours, packing, x, lengths=lengths)
    check(ours, packing, x, hidden(ours), lengths=torch.tensor(lengths, dtype=torch.int32))
    y = ours(x, lengths=lengths)[0] if ours.batch_first else ours(x, lengths=lengths)[0].transpose(0, 1)
    for row, length in zip(y, lengths, strict=True):
        assert not row[length:].any()


def test_lengths_ignore_what_lies_beyond_them() -> None:
    net = fastrnn.LSTM(I, H, num_layers=2, bidirectional=True)
    x, lengths = torch.randn(T, B, I), torch.tensor([3, 9, 1, 9, 5])
    beyond = torch.arange(T)[:, None] >= lengths
    poisoned = x.masked_fill(beyond[..., None], float("nan"))
    assert_same(run(net, poisoned, lengths=lengths), run(net, x, lengths=lengths))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_lengths_with_projections() -> None:
    ours, torchs = pair("LSTM", I, H, proj_size=3, bidirectional=True)
    x, lengths = torch.randn(T, B, I), [3, 9, 1, 9, 5]
    assert_same(run(ours, x, lengths=lengths), run(Packing(torchs, lengths), x))
    short = [3, 4, 1, 2, 5]
    assert_same(run(ours, x, lengths=short), run(Packing(torchs, short), x))


class Splitting(nn.Module):
    """``reset`` by torch.nn's means: every stretch between two resets is a call of its own, layer by layer."""

    def __init__(self, layer: nn.RNNBase, reset: Tensor) -> None:
        super().__init__()
        self.layer, self.reset = layer, reset  # reset (T, B)

    def named_parameters(self, *args: object, **kwargs: object) -> object:
        return self.layer.named_parameters()

    def forward(self, x: Tensor, hx: object = None) -> object:
        x = x.transpose(0, 1) if self.layer.batch_first else x
        directions = 2 if self.layer.bidirectional else 1
        finals = []
        for k in range(self.layer.num_layers):
            single = self.single(k)
            rows = [self.row(single, x[:, b], self.reset[:, b], b, hx, k * directions) for b in range(x.shape[1])]
            x = torch.stack([y for y, _ in rows], 1)
            finals.append([torch.stack([final[i] for _, final in rows], 1) for i in range(len(rows[0][1]))])
        state = tuple(torch.cat(parts) for parts in zip(*finals, strict=True))
        y = x.transpose(0, 1) if self.layer.batch_first else x
        return y, state if isinstance(self.layer, nn.LSTM) else state[0]

    def single(self, k: int) -> object:
        layer = self.layer
        names = [n for n in layer._flat_weights_names if f"_l{k}" in n]
        options = {"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {}
        weights = [getattr(layer, n) for n in names]
        one = type(layer)(
            weights[0].shape[1],
            H,
            bias=layer.bias,
            bidirectional=layer.bidirectional,
            dtype=weights[0].dtype,
            **options,
        )
        given = {n.replace(f"_l{k}", "_l0"): w for n, w in zip(names, weights, strict=True)}
        return lambda *args: torch.func.functional_call(one, given, args)

    def row(self, single: object, x: Tensor, reset: Tensor, b: int, hx: object, first: int) -> tuple:
        directions = 2 if self.layer.bidirectional else 1
        starts = [0, *(t for t in reset.nonzero()[:, 0].tolist() if t > 0), len(x)]
        initial = () if hx is None else (hx,) if isinstance(hx, Tensor) else hx
        initial = [s[first : first + directions, b] for s in initial]
        if not initial:
            initial = [x.new_zeros(directions, H) for _ in range(1 + isinstance(self.layer, nn.LSTM))]
        outputs, finals = [], []
        for start, end in itertools.pairwise(starts):
            # The given state begins the first stretch forwards and the last one backwards, unless a reset cuts it off.
            forwards = start == 0 and not reset[0]
            keep = torch.tensor([forwards, end == len(x)][:directions])[:, None]
            begin = [torch.where(keep, s, torch.zeros_like(s)) for s in initial]
            y, after = single(x[start:end], tuple(begin) if len(begin) == 2 else begin[0])
            outputs.append(y)
            finals.append([after] if isinstance(after, Tensor) else list(after))
        # Forwards the last stretch's state comes out, backwards the first one's.
        ends = [torch.cat([last[:1], one[1:]]) for last, one in zip(finals[-1], finals[0], strict=True)]
        return torch.cat(outputs), ends


@pytest.mark.parametrize(("name", "options"), LAYER_OPTIONS)
def test_reset_begins_a_new_sequence(name: str, options: dict) -> None:
    ours, torchs = pair(name, I, H, **options)
    x = torch.randn(B, T, I) if ours.batch_first else torch.randn(T, B, I)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[0, 1] = reset[4, 1] = reset[8, 2] = reset[3, 3] = True
    reset[:, 4] = True
    check(ours, Splitting(torchs, reset), x, hidden(ours), reset=reset.t() if ours.batch_first else reset)
    check(ours, Splitting(torchs, reset), x, reset=reset.t() if ours.batch_first else reset)


def test_reset_for_packed_and_unbatched_input() -> None:
    net = fastrnn.LSTM(I, H, num_layers=2, bidirectional=True)
    given = sequences()
    reset = torch.rand(T, B) < 0.3
    packed = pack_sequence(given, enforce_sorted=False)
    from_packed = pad_packed_sequence(net(packed, reset=reset)[0])[0]
    padded = nn.utils.rnn.pad_sequence(given)
    expected, _ = net(padded, reset=reset, lengths=[len(s) for s in given])
    torch.testing.assert_close(from_packed, expected)
    for b, sequence in enumerate(given):
        alone, _ = net(sequence, reset=reset[: len(sequence), b])
        torch.testing.assert_close(alone, expected[: len(sequence), b])
    assert not torch.allclose(expected, net(padded, lengths=[len(s) for s in given])[0])


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"batch_first": True}], ids=str)
def test_cells_are_the_cell_states_of_all_steps(options: dict) -> None:
    ours, torchs = pair("LSTM", I, H, **options)

    class Stepping(nn.Module):
        """torch.nn's way to the cell states: one step a call."""

        def __init__(self, layer: nn.LSTM) -> None:
            super().__init__()
            self.layer = layer

        def named_parameters(self, *args: object, **kwargs: object) -> object:
            return self.layer.named_parameters()

        def forward(self, x: Tensor, state: object = None) -> object:
            dim, outputs, cells = 1 if self.layer.batch_first else 0, [], []
            for step in x.split(1, dim):
                y, state = self.layer(step, state)
                outputs.append(y)
                cells.append(state[1][-1].unsqueeze(dim))
            return torch.cat(outputs, dim), state, torch.cat(cells, dim)

    x = torch.randn(B, T, I) if ours.batch_first else torch.randn(T, B, I)
    check(ours, Stepping(torchs), x, hidden(ours), return_cells=True)


def test_cells_of_both_directions_packed_and_padded() -> None:
    net = fastrnn.LSTM(I, H, num_layers=2, bidirectional=True)
    given = sequences()
    packed, _, cells = net(pack_sequence(given, enforce_sorted=False), return_cells=True)
    assert isinstance(cells, PackedSequence)
    assert cells.data.shape == packed.data.shape
    padded, lengths = pad_packed_sequence(cells)
    y, (_, c_n), expected = net(nn.utils.rnn.pad_sequence(given), lengths=lengths, return_cells=True)
    torch.testing.assert_close(padded, expected)
    assert expected.shape == y.shape
    last = expected[lengths - 1, torch.arange(B), :H]
    torch.testing.assert_close(last, c_n[2])
    torch.testing.assert_close(expected[0, :, H:], c_n[3])
    alone, _, unbatched = net(given[0], return_cells=True)
    assert unbatched.shape == alone.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_cells_have_the_dtype_of_the_output(dtype: torch.dtype) -> None:
    y, (_, c_n), cells = fastrnn.LSTM(I, H, dtype=dtype)(torch.randn(T, B, I, dtype=dtype), return_cells=True)
    assert y.dtype == c_n.dtype == cells.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in CELLS),
        *((name, {"bias": False}) for name in CELLS),
        ("RNNCell", {"nonlinearity": "relu"}),
    ],
    ids=str,
)
def test_cell_computes_what_torch_computes(name: str, options: dict, dtype: torch.dtype) -> None:
    ours, torchs = pair(name, I, H, dtype=dtype, **options)
    for batch in (B, 1, None):
        x = torch.randn(*([I] if batch is None else [batch, I])).to(dtype)
        check(ours, torchs, x)
        check(ours, torchs, x, hidden(ours, batch))


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_second_derivatives(name: str) -> None:
    """Of a gradient penalty, against torch.nn's in float64, which has them on the CPU."""
    ours, torchs = pair(name, 3, 4, dtype=torch.float64)
    x = torch.randn(*([5] if name in LAYERS else []), 2, 3, dtype=torch.float64)

    def penalty(net: nn.Module) -> tuple[Tensor, ...]:
        leaf = x.clone().requires_grad_()
        y = net(leaf)
        y = y[0] if isinstance(y, tuple) else y
        (dx,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), [leaf, *net.parameters()])

    torch.testing.assert_close(penalty(ours), penalty(torchs))


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_state_dicts_go_both_ways(name: str) -> None:
    ours, torchs = getattr(fastrnn, name)(I, H), getattr(nn, name)(I, H)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    torchs.load_state_dict(ours.state_dict())
    assert_same(ours.state_dict(), torchs.state_dict())
    ours.load_state_dict(getattr(nn, name)(I, H).state_dict())


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_construction_is_inherited(name: str) -> None:
    """The same signature, initial values, representation and public attributes, for a class that is torch.nn's too."""
    cls, stock = getattr(fastrnn, name), getattr(nn, name)
    assert issubclass(cls, stock)
    assert inspect.signature(cls.__init__) == inspect.signature(stock.__init__)
    modules = []
    for kind in (cls, stock):
        torch.manual_seed(7)
        modules.append(kind(I, H, bias=False))
    ours, torchs = modules
    assert_same(ours.state_dict(), torchs.state_dict())
    assert repr(ours) == repr(torchs)
    public = [{k for k in vars(module) if not k.startswith("_")} for module in modules]
    assert public[0] == public[1]


def test_positional_arguments() -> None:
    assert repr(fastrnn.LSTM(3, 4, 2, False, True, 0.1, True, 2)) == repr(nn.LSTM(3, 4, 2, False, True, 0.1, True, 2))
    assert repr(fastrnn.RNN(3, 4, 2, "relu", False)) == repr(nn.RNN(3, 4, 2, "relu", False))
    assert fastrnn.RNN(3, 4, 2, "relu").mode == "RNN_RELU"
    assert repr(fastrnn.RNNCell(3, 4, True, "relu")) == repr(nn.RNNCell(3, 4, True, "relu"))


@pytest.mark.parametrize("name", LAYERS)
def test_construction_warns_as_torch_does(name: str) -> None:
    texts = []
    for package in (fastrnn, nn):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            getattr(package, name)(I, H, dropout=0.5)
        texts.append([(w.category, str(w.message)) for w in caught])
    assert texts[0] == texts[1] != []


@pytest.mark.parametrize("name", LAYERS)
def test_a_subclass_may_wrap_forward(name: str) -> None:
    class Residual(getattr(fastrnn, name)):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x)[0]

    net, x = Residual(I, I), torch.randn(T, B, I)
    assert torch.equal(net(x) - x, net(x) - x)
    plain = getattr(fastrnn, name)(I, I)
    plain.load_state_dict(net.state_dict())
    assert torch.equal(net(x), x + plain(x)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_the_meta_device_gives_shapes(name: str) -> None:
    net = getattr(fastrnn, name)(I, H, 2, bidirectional=True, device="meta")
    y, state = net(torch.empty(T, B, I, device="meta"), lengths=[3, 9, 1, 9, 5])
    assert y.is_meta
    assert y.shape == (T, B, 2 * H)
    assert (state[0] if name == "LSTM" else state).shape == (4, B, H)


@pytest.mark.gpu
@pytest.mark.parametrize("name", LAYERS)
def test_gpu_tensors_are_computed(name: str) -> None:
    ours, torchs = (net.cuda() for net in pair(name, I, H, num_layers=2, bidirectional=True))
    x = torch.randn(T, B, I, device="cuda")
    torch.testing.assert_close(ours(x)[0], torchs(x)[0])
