"""Calls without gradients take a route of their own: the same bits; everything unusual takes the usual one."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from accuracy import assert_same, flatten, run
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode

import fastrnn
from fastrnn import _C, _shortcut
from fastrnn.engine import SINGLE_ROWS

LAYERS = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn": fastrnn.RNN}
CELLS = {"lstm": fastrnn.LSTMCell, "gru": fastrnn.GRUCell, "rnn": fastrnn.RNNCell}
KIND = pytest.mark.parametrize("kind", LAYERS)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The calls that the engine computed straight away."""
    made: list[tuple[object, ...]] = []
    shortcut = _C.shortcut

    def counted(*args: object) -> object:
        found = shortcut(*args)  # type: ignore[arg-type]
        if found is not None and not isinstance(found, int):
            made.append(args)
        return found

    monkeypatch.setattr(_C, "shortcut", counted)
    return made


def both_routes(
    call: Callable[[], object], calls: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Tensor], list[Tensor], int]:
    """What a call gives, what the operator gives in its place, and how many calls went past the operator."""
    before = len(calls)
    found = flatten(call())
    count = len(calls) - before
    with monkeypatch.context() as patch:
        patch.setattr(_shortcut, "nobody_looks_on", lambda: False)
        usual = flatten(call())
    return found, usual, count


def assert_equal(found: list[Tensor], usual: list[Tensor]) -> None:
    assert [t.shape for t in found] == [t.shape for t in usual]
    assert [t.is_contiguous() for t in found] == [t.is_contiguous() for t in usual]
    assert [t.dtype for t in found] == [t.dtype for t in usual]
    assert all(torch.equal(a, b) for a, b in zip(found, usual, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
@KIND
def test_layers(
    kind: str,
    num_layers: int,
    bias: bool,
    dtype: torch.dtype,
    calls: list[tuple[object, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for (batch, batch_first), hidden in itertools.product(((1, False), (5, True), (5, False), (0, False)), (3, 67)):
        net = LAYERS[kind](7, hidden, num_layers, bias=bias, batch_first=batch_first, dtype=dtype)
        size = (batch,) if batch else ()  # no batch: one sequence
        x = torch.randn((*size, 1, 7) if batch_first else (1, *size, 7), dtype=dtype)
        h, c = torch.randn(2, num_layers, *size, hidden, dtype=dtype)
        for state in (None, (h, c) if kind == "lstm" else h):
            with torch.no_grad():
                found, usual, count = both_routes(partial(net, x, state), calls, monkeypatch)
            assert count == 1
            assert_equal(found, usual)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@KIND
def test_sequences(
    kind: str,
    num_layers: int,
    bidirectional: bool,
    calls: list[tuple[object, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layouts = ((1, False), (5, True), (40, False), (0, False), (0, True))
    for (batch, batch_first), bias, dtype in itertools.product(layouts, (True, False), (torch.float32, torch.float64)):
        options = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional, "dtype": dtype}
        net = LAYERS[kind](7, 67, num_layers, **options)
        size = (batch,) if batch else ()  # no batch: one sequence
        x = torch.randn((*size, 9, 7) if batch_first else (9, *size, 7), dtype=dtype)
        h, c = torch.randn(2, num_layers * (2 if bidirectional else 1), *size, 67, dtype=dtype)
        for state in (None, (h, c) if kind == "lstm" else h):
            with torch.no_grad():
                found, usual, count = both_routes(partial(net, x, state), calls, monkeypatch)
            assert count == 1
            assert_equal(found, usual)


@KIND
def test_sequences_on_many_threads(kind: str, calls: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Split by rows, by units and by directions, with weights large enough for each to be the plan's choice."""
    before = torch.get_num_threads()
    try:
        for hidden, batch, bidirectional in ((300, 1, False), (40, 64, False), (200, 3, True)):
            net, x = LAYERS[kind](50, hidden, bidirectional=bidirectional), torch.randn(20, batch, 50)
            results = []
            for threads in (1, 2, 4):
                torch.set_num_threads(threads)
                with torch.no_grad():
                    found, usual, count = both_routes(partial(net, x), calls, monkeypatch)
                assert count == 1
                assert_equal(found, usual)
                results.append(found)
            assert_equal(results[1], results[0])
            assert_equal(results[2], results[0])
    finally:
        torch.set_num_threads(before)


@KIND
def test_what_the_usual_route_computes(kind: str, calls: list[tuple[object, ...]]) -> None:
    """Packed, with lengths, reset, dropout in training; with gradients; where a profiler looks on."""
    net, x = LAYERS[kind](7, 9, 2), torch.randn(4, 3, 7)
    packed = nn.utils.rnn.pack_sequence([x[:, 0], x[:2, 1]])
    with torch.no_grad():
        net(packed)
        net(x, lengths=[4, 2, 3])
        net(x, reset=torch.zeros(4, 3, dtype=torch.bool))
        LAYERS[kind](7, 9, 2, dropout=0.5)(x)
        if kind == "lstm":
            net(x, return_cells=True)
        net(torch.randn(4, 3, 14)[..., ::2])
        with torch.profiler.profile() as profile:
            net(x)
        assert any(event.key == "fastrnn::layer" for event in profile.key_averages())
        assert not calls
        LAYERS[kind](7, 9, 2, dropout=0.5).eval()(x)
        assert len(calls) == 1
    assert net(x)[0].requires_grad
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@KIND
def test_cells(
    kind: str, bias: bool, dtype: torch.dtype, calls: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for size, hidden in itertools.product(((), (1,), (SINGLE_ROWS,), (300,)), (3, 67)):
        cell = CELLS[kind](7, hidden, bias=bias, dtype=dtype)
        x, (h, c) = torch.randn(*size, 7, dtype=dtype), torch.randn(2, *size, hidden, dtype=dtype)
        for state in (None, (h, c) if kind == "lstm" else h):
            with torch.inference_mode():
                found, usual, count = both_routes(partial(cell, x, state), calls, monkeypatch)
            assert count == (size != (300,))  # torch's own, for so many rows
            assert_equal(found, usual)


@KIND
def test_large_layers_are_split_over_threads(
    kind: str, calls: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = LAYERS[kind](900, 1000), torch.randn(1, 2, 900)
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with torch.no_grad():
                found, usual, steps = both_routes(partial(net, x), calls, monkeypatch)
            assert steps == 1
            assert_equal(found, usual)
            results.append(found)
        assert_equal(results[1], results[0])
        assert_equal(results[2], results[0])
    finally:
        torch.set_num_threads(before)


class Subclass(Tensor):
    pass


@pytest.mark.parametrize(
    "unusual",
    [
        pytest.param(lambda t: torch._neg_view(-t), id="negated"),
        pytest.param(lambda t: t.as_subclass(Subclass), id="subclass"),
        pytest.param(lambda t: t.repeat_interleave(2, -1)[..., ::2], id="strided"),
    ],
)
@KIND
def test_unusual_tensors(
    kind: str, unusual: Callable[[Tensor], Tensor], calls: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right numbers by whichever route, for input, state and weights."""
    cell = CELLS[kind](8, 16)
    x, (h, c) = torch.randn(4, 8), torch.randn(2, 4, 16)
    forms = {"x": x, "h": h, "c": c}
    for name in (*forms, "weight_hh"):
        given = {n: unusual(t) if n == name else t for n, t in forms.items()}
        parameters = dict(cell.named_parameters())
        if name == "weight_hh":
            parameters[name] = unusual(parameters[name].detach())
        state = (given["h"], given["c"]) if kind == "lstm" else given["h"]
        with torch.no_grad():
            found, usual, _ = both_routes(
                partial(torch.func.functional_call, cell, parameters, (given["x"], state)), calls, monkeypatch
            )
        assert_equal([t.as_subclass(Tensor) for t in found], [t.as_subclass(Tensor) for t in usual])


@pytest.mark.parametrize("change", ["dtype", "batch", "features", "state", "device"])
@KIND
def test_mistakes_are_reported_as_ever(kind: str, change: str) -> None:
    net, stock = LAYERS[kind](7, 9), getattr(nn, LAYERS[kind].__name__)(7, 9)
    x, state = torch.randn(1, 2, 7), torch.zeros(1, 2, 9)
    x = {"dtype": x.double(), "features": x[..., :-1], "device": x.to("meta")}.get(change, x)
    state = {"batch": state[:, :1], "state": state[..., :-1]}.get(change, state)
    hx = (state, state) if kind == "lstm" else state
    with torch.no_grad():
        with pytest.raises(Exception) as theirs:  # noqa: PT011 - whatever it is, ours is the same
            stock(x, hx)
        with pytest.raises(theirs.type):
            net(x, hx)


@KIND
def test_mistakes_in_a_layer_are_reported_as_ever(kind: str) -> None:
    net, x = LAYERS[kind](7, 9), torch.randn(1, 2, 7)
    params = [p.detach() for p in net.parameters()]
    with torch.no_grad():
        net.tape = "short"
        with pytest.raises(ValueError, match="tape: expected one of"):
            net(x)
        with pytest.raises(TypeError, match="expected Tensor as element 3"):
            getattr(fastrnn.functional, kind)(x, None, [*params[:3], None])


@KIND
def test_whoever_looks_on_sees_the_operator(kind: str, calls: list[tuple[object, ...]]) -> None:
    """Gradients, autocast, tracing, transforms and modes: none of them would see a step that goes past the operator."""
    cell = CELLS[kind](7, 9)
    x = torch.randn(2, 7)
    with torch.enable_grad():
        assert flatten(cell(x))[0].requires_grad
    with torch.no_grad():
        with torch.autocast("cpu"):
            cell(x)
        torch.func.vmap(lambda row: flatten(cell(row))[0])(x)
        with BaseTorchFunctionMode():
            cell(x)
        with torch.profiler.profile():
            torch.compile(cell, backend="eager", fullgraph=True)(x)
    assert not calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_layers", [0, 1, 3])
@KIND
def test_steps_with_gradients(
    kind: str, num_layers: int, bias: bool, calls: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go to torch's operators, an LSTM layer's to ours: the same numbers and gradients by the usual route."""
    for (batch, batch_first), given in itertools.product(((2, False), (5, True), (300, False), (0, False)), (0, 1)):
        size, lead = (batch,) if batch else (), (num_layers,) if num_layers else ()
        net = (
            LAYERS[kind](7, 9, num_layers, bias=bias, batch_first=batch_first)
            if num_layers
            else CELLS[kind](7, 9, bias)
        )
        time = () if not num_layers else (1,)
        x = torch.randn(*((*size, *time, 7) if batch_first else (*time, *size, 7)))
        h, c = torch.randn(2, *lead, *size, 9)
        inputs = (x, (h, c) if kind == "lstm" else h) if given else (x,)
        results = []
        for direct in (True, False):
            with monkeypatch.context() as patch:
                if not direct:
                    patch.setattr(_shortcut, "nobody_looks_on", lambda: False)
                results.append(run(net, *inputs))
        assert_same(*results)
    assert not calls


def test_a_step_of_frozen_layers_needs_no_gradients(calls: list[tuple[object, ...]]) -> None:
    net = fastrnn.LSTM(7, 9).requires_grad_(False)
    x = torch.randn(1, 1, 7)
    assert not net(x)[0].requires_grad
    assert len(calls) == 1
    assert net(x.requires_grad_())[0].requires_grad
    assert len(calls) == 1


def test_a_torch_without_the_exchange_takes_the_usual_route() -> None:
    """As a torch of another major version of DLPack would."""
    code = """
import torch
capsule = torch.Tensor.__dlpack_c_exchange_api__
del torch.Tensor.__dlpack_c_exchange_api__
import fastrnn
net, x = fastrnn.GRU(3, 4), torch.randn(1, 1, 3)
with torch.no_grad():
    assert fastrnn._C.shortcut("gru", x, None, net._flat_weights, 1, False, False, 9, True) is None
    print(net(x)[0].shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "torch.Size([1, 1, 4])", done.stderr


def test_the_engine_counts_its_arguments() -> None:
    with pytest.raises(TypeError, match="expected 9 arguments, got 1"):
        _C.shortcut("lstm")  # type: ignore[call-arg]
    with pytest.raises(RuntimeError, match="expected rnn_tanh, rnn_relu, lstm or gru, got elman"):
        _C.shortcut("elman", None, None, [], 0, False, False, 1, True)
    x, w = torch.randn(1, 3), torch.randn(4, 3)
    for params in ((), (w,), (w, None), (w, w, w), 5, [w, w], (w, torch.randn(4))):
        assert _C.shortcut("rnn_tanh", x, None, params, 0, False, False, 9, True) is None  # type: ignore[arg-type]
    for given in (None, 5, torch.randn(3, 0), x.bool(), x.double()):
        assert _C.shortcut("rnn_tanh", given, None, (w, torch.randn(4, 4)), 0, False, False, 9, True) is None
    assert _C.shortcut("rnn_tanh", x, None, (w, torch.randn(4, 4)), 0, False, False, 9, True) is not None
