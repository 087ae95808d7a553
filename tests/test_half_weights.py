"""float32 layers with bfloat16 weights: what float32 computes of the widened weights, and nothing that trains."""

import copy
import os
from functools import partial

import pytest
import torch
from accuracy import assert_accurate, assert_same, flatten
from layers import LAYOUTS, PARTS, Problem, draw, fast, readable, yardstick
from test_engine import other_process
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn import _ops, functional
from fastrnn.reference import CELLS

ALL = pytest.mark.parametrize("cell", CELLS)
DIRECTIONS = pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "both"])
LAYERS = pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell])


def halved(problem: Problem) -> Problem:
    """The problem with weights of bfloat16."""
    return problem.put({name: t.bfloat16() for name, t in problem.tensors().items() if name.startswith("w")})


def check(problem: Problem) -> None:
    half = halved(problem)
    wide = half.to(torch.float32)
    ours, same, theirs, true = (
        {name: t for name, t in zip(PARTS, found, strict=False) if t is not None and t.shape != (0,)}
        for found in (fast()(half), fast()(wide), yardstick(wide)(wide), readable(wide.to(torch.float64)))
    )
    ours, true = ({name: found[name] for name in theirs} for found in (ours, true))
    assert_accurate(ours, theirs, true)
    assert_same(ours, {name: same[name] for name in ours})
    assert ours["y"].numel() == 1 or not torch.equal(ours["y"], fast()(problem)[0]), "the weights were rounded"


def converted(layer: nn.Module) -> nn.Module:
    return fastrnn.convert(copy.deepcopy(layer), weight_dtype=torch.bfloat16)


def widened(layer: nn.Module) -> nn.Module:
    """The same layer in float32, its weights rounded."""
    wide = fastrnn.convert(copy.deepcopy(layer))
    for name, p in wide.named_parameters():
        if "weight" in name:
            p.data = p.data.bfloat16().float()
    return wide


def example(layer: nn.Module, batch: int = 3) -> Tensor:
    return torch.randn(batch, 7) if isinstance(layer, nn.RNNCellBase) else torch.randn(5, batch, 7)


@pytest.mark.parametrize("reset", [False, True], ids=["", "reset"])
@pytest.mark.parametrize("layout", LAYOUTS)
@DIRECTIONS
@ALL
def test_every_kind_of_layer(cell: str, bidirectional: bool, layout: str, reset: bool) -> None:
    check(draw(cell, bidirectional=bidirectional, layout=layout, reset=reset, cells=True))


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1, 1),
        (1, 3, 7, 19),
        (1, 33, 3, 16),
        (2, 1, 5, 17),
        (2, 7, 1, 130),
        (3, 25, 129, 65),
        (4, 2, 512, 512),
        (130, 1, 8, 33),
        (193, 2, 65, 17),
    ],
    ids=str,
)
@ALL
def test_sizes(cell: str, sizes: tuple[int, int, int, int]) -> None:
    """``T, B, I, H``: a step that reads the weights as they lie, odd rows of weights, tiles whole and not."""
    check(draw(cell, *sizes))
    check(draw(cell, *sizes, bidirectional=True, layout="lengths", bias=False, state=False))


@ALL
def test_weights_that_lie_anywhere(cell: str) -> None:
    """Rows that begin in the middle of a pair, rows with gaps, and transposed ones."""
    for steps in (1, 4):
        half = halved(draw(cell, steps, inputs=8))
        expected = fast()(half)[0]
        ways = (
            lambda w: torch.cat([w.new_zeros(1), w.flatten()])[1:].view(w.shape),
            lambda w: torch.stack([w, w * torch.nan], 1)[:, 0],
            lambda w: w.t().contiguous().t(),
        )
        for lay in ways:
            laid = {name: lay(t) for name, t in half.tensors().items() if name.startswith("w")}
            assert torch.equal(fast()(half.put(laid))[0], expected)


@pytest.mark.skipif(bool(os.environ.get("FASTRNN_CPU_ISA")), reason="this is such a process, or the user's choice")
@pytest.mark.parametrize("isa", _ops.cpu_isas()[1:])
def test_other_instruction_sets(isa: str) -> None:
    chosen = ["-k", "kind_of_layer or sizes or anywhere", "-q", "-p", "no:cacheprovider"]
    tests = other_process(["-m", "pytest", "tests/test_half_weights.py", *chosen], isa)
    assert tests.returncode == 0, tests.stdout + tests.stderr
    assert " passed" in tests.stdout


@LAYERS
def test_convert_and_revert(cls: type[nn.Module]) -> None:
    layer = cls(7, 11)
    half = converted(layer)
    assert converted(half) is not half
    for name, p in half.named_parameters():
        weight = "weight" in name
        assert p.dtype == (torch.bfloat16 if weight else torch.float32)
        assert p.requires_grad != weight
    x, wide = example(layer), widened(layer)
    with torch.no_grad():
        for ours, theirs in zip(flatten(half(x)), flatten(wide(x)), strict=True):
            assert torch.equal(ours, theirs)
        back = fastrnn.revert(half)
        assert type(back) is cls
        assert_same(back.state_dict(), wide.state_dict())
        for ours, theirs in zip(flatten(fastrnn.convert(back)(x)), flatten(wide(x)), strict=True):
            assert torch.equal(ours, theirs)


@LAYERS
def test_state_dicts_both_ways(cls: type[nn.Module]) -> None:
    one, other = cls(7, 11), cls(7, 11)
    half = converted(one)
    half.load_state_dict(other.state_dict())
    assert_same(half.state_dict(), converted(other).state_dict())
    one.load_state_dict(half.state_dict())
    assert_same(one.state_dict(), widened(other).state_dict())


def test_stacks_of_every_option() -> None:
    layer = nn.LSTM(7, 11, num_layers=3, bidirectional=True, batch_first=True, bias=False, dropout=0.5).eval()
    half, wide = converted(layer), widened(layer)
    x, reset = torch.randn(5, 9, 7), torch.rand(5, 9) < 0.3
    packed = pack_sequence([x[0], x[1, :4], x[2, :6]], enforce_sorted=False)
    with torch.no_grad():
        for given, options in (
            (x, {"lengths": [9, 1, 3, 9, 5], "reset": reset, "return_cells": True}),
            (packed, {"return_cells": True}),
            (x[0], {}),
        ):
            for ours, theirs in zip(flatten(half(given, **options)), flatten(wide(given, **options)), strict=True):
                assert torch.equal(ours, theirs)
    back = fastrnn.revert(half)
    assert {p.dtype for p in back.parameters()} == {torch.float32}


def test_shared_weights_stay_shared_and_others_are_left() -> None:
    model = nn.ModuleList([nn.GRU(11, 11), nn.GRU(11, 11), nn.Linear(11, 11)])
    model[1].weight_hh_l0 = model[0].weight_hh_l0
    half = converted(model)
    assert half[0].weight_hh_l0 is half[1].weight_hh_l0
    assert half[2].weight.dtype == torch.float32
    assert fastrnn.convert(copy.deepcopy(model))[0].weight_hh_l0.dtype == torch.float32


def test_the_error_that_is_documented() -> None:
    layer, x = nn.LSTM(64, 64), torch.randn(100, 8, 64)
    with torch.no_grad():
        exact, rounded = fastrnn.convert(layer)(x)[0], converted(layer)(x)[0]
        assert 5e-4 < (rounded - exact).norm() / exact.norm() < 4e-3
        for p, q in zip(layer.parameters(), converted(layer).parameters(), strict=True):
            assert ((q - p).abs() <= p.abs() * 2**-8).all()


@pytest.mark.parametrize("wanted", ["input", "state", "bias"])
@LAYERS
def test_gradients_are_refused(cls: type[nn.Module], wanted: str) -> None:
    half = converted(cls(7, 11)).requires_grad_(False)
    x = example(half)
    h = torch.randn(*x.shape[:-2], 3, 11)[:1] if x.dim() == 3 else torch.randn(3, 11)
    hx = (h, h) if "LSTM" in cls.__name__ else h
    half(x, hx)
    if wanted == "bias":
        next(p for name, p in half.named_parameters() if "bias" in name).requires_grad_()
    else:
        (x if wanted == "input" else h).requires_grad_()
    with pytest.raises(
        NotImplementedError, match=r"bfloat16 weights with float32 activations are for inference.*no_grad"
    ):
        half(x, hx)
    with torch.no_grad():
        half(x, hx)


def test_backward_refuses_half_weights() -> None:
    half = halved(draw("gru"))
    y, _, _, cells, tape = _ops.layer_forward(
        "gru", half.x, half.h0, None, list(half.weights), *[False, *[None] * 3], "full", False
    )
    with pytest.raises(RuntimeError, match="w_ih: expected Float in backward, got BFloat16"):
        _ops.layer_backward(
            *("gru", y, None, None, None, half.x, half.h0, None, list(half.weights), False, None, None, None),
            *(y, cells, tape, "full", True, True, False, True),
        )


def test_other_mixes_are_errors() -> None:
    x, h = torch.randn(5, 3, 7), torch.randn(1, 3, 11)
    layer = converted(nn.GRU(7, 11)).requires_grad_(False)
    for wrong in (x.double(), x.bfloat16(), x.half()):
        with pytest.raises((ValueError, RuntimeError), match=r"dtype|Expected every parameter"):
            layer(wrong)
    for wrong in (torch.bfloat16, torch.float64):
        with pytest.raises(RuntimeError, match=f"Expected hidden dtype torch.float32, got {wrong}"):
            layer(x, h.to(wrong))
    w_ih, w_hh, b_ih, b_hh = (p.detach() for p in layer.parameters())
    for params in (
        [w_ih, w_hh.float(), b_ih, b_hh],
        [w_ih.float(), w_hh, b_ih, b_hh],
        [w_ih, w_hh, b_ih.bfloat16(), b_hh],
        [w_ih, w_hh, b_ih.bfloat16(), b_hh.bfloat16()],
        [w_ih.half(), w_hh.half(), b_ih, b_hh],
    ):
        with pytest.raises((ValueError, RuntimeError), match=r"does not match weight dtype|Expected every parameter"):
            functional.gru(x, None, params)
        with pytest.raises(RuntimeError, match=r"expected (Float|BFloat16), got"):
            _ops.layer_forward("gru", x, None, None, params, *[False, *[None] * 3], "full", False)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_what_cannot_be_rounded() -> None:
    for dtype in (torch.float16, torch.float32, "bfloat16"):
        with pytest.raises(ValueError, match=r"weight_dtype: expected torch\.bfloat16 or None"):
            fastrnn.convert(nn.LSTM(7, 11), weight_dtype=dtype)
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(ValueError, match=f"expected 1 to be torch.float32, got {dtype}"):
            fastrnn.convert(nn.Sequential(nn.Linear(7, 7), nn.GRU(7, 11, dtype=dtype)), weight_dtype=torch.bfloat16)
    with pytest.raises(NotImplementedError, match="weight_dtype is not supported together with proj_size"):
        fastrnn.convert(nn.LSTM(7, 11, proj_size=5), weight_dtype=torch.bfloat16)
    model = nn.Sequential(nn.GRU(7, 11), nn.utils.parametrizations.weight_norm(nn.GRU(11, 11), "weight_hh_l0"))
    with pytest.raises(ValueError, match="the weights of 1 are computed from other tensors"):
        fastrnn.convert(model, weight_dtype=torch.bfloat16)
    assert type(model[0]) is nn.GRU, "nothing is changed unless everything can be"
    assert parametrize.is_parametrized(model[1])
    with pytest.raises(NotImplementedError, match="TorchScript compiles"):
        torch.jit.script(converted(nn.GRU(7, 11)))


@LAYERS
def test_compiled_whole(cls: type[nn.Module]) -> None:
    half = converted(cls(7, 11))
    x = example(half)
    with torch.no_grad():
        compiled = torch.compile(half, backend="aot_eager", fullgraph=True)(x)
        for ours, theirs in zip(flatten(compiled), flatten(half(x)), strict=True):
            assert torch.equal(ours, theirs)


@LAYERS
def test_without_data(cls: type[nn.Module]) -> None:
    half = converted(cls(7, 11))
    expected = [(t.shape, t.dtype) for t in flatten(half.requires_grad_(False)(example(half)))]
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        assert [(t.shape, t.dtype) for t in flatten(half(mode.from_tensor(example(half))))] == expected
    assert [(t.shape, t.dtype) for t in flatten(half.to("meta")(example(half).to("meta")))] == expected


@pytest.mark.filterwarnings("ignore:.torch.jit.(script|trace). is deprecated", "ignore::torch.jit.TracerWarning")
def test_other_engines_widen_the_weights() -> None:
    """Forward-mode differentiation takes the reference, torch.jit.trace torch's own layers, vmap the C++ engine."""
    for cls in (nn.LSTM, nn.GRU, nn.GRUCell):
        layer = cls(7, 11)
        half, wide = converted(layer).requires_grad_(False), widened(layer).requires_grad_(False)
        x = example(layer)

        def first(x: Tensor, module: nn.Module = half) -> Tensor:
            return flatten(module(x))[0]

        ours, theirs = (torch.func.jvp(partial(first, module=m), (x,), (torch.ones_like(x),)) for m in (half, wide))
        assert_same(dict(enumerate(ours)), dict(enumerate(theirs)))
        assert torch.equal(torch.func.vmap(first)(x[None])[0], first(x, wide))
        traced = torch.jit.trace(first, (x,))
        torch.testing.assert_close(traced(x), first(x, wide))


def test_autocast_computes_in_its_own_dtype() -> None:
    for cls in (nn.LSTM, nn.GRU, nn.LSTMCell):
        layer = cls(7, 11)
        x = example(layer)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for ours, theirs in zip(flatten(converted(layer)(x)), flatten(widened(layer)(x)), strict=True):
                assert ours.dtype == theirs.dtype
                torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)


def test_explained() -> None:
    model = nn.Sequential(nn.GRU(7, 11), nn.Linear(11, 2))
    half = converted(model[:1])
    for given in ((), (torch.randn(5, 3, 7),), (torch.randn(1, 40, 7),)):
        (line,) = fastrnn.explain(half, *given).layers
        assert line.engine == "cpu"
        assert "bfloat16 weights" in line.reason
    (line,) = fastrnn.explain(fastrnn.convert(model[:1])).layers
    assert "bfloat16" not in line.reason
