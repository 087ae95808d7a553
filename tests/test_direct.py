"""Operators past the dispatcher: the same results, for ordinary tensors alone."""

import gc
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import fastrnn
from fastrnn import _C, _ops

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def draw(cell: str, directions: int = 2, bias: bool = True, dtype: torch.dtype = torch.float32) -> list[Any]:
    """Arguments of ``fastrnn::layer``, of 5 steps, 3 rows, 4 inputs and 6 units."""
    torch.manual_seed(0)
    rows = {"lstm": 24, "gru": 18}.get(cell, 6)
    shapes = [(rows, 4), (rows, 6), *([(rows,), (rows,)] if bias else [])] * directions
    weights = [torch.randn(shape).to(dtype) / 3 for shape in shapes]
    h0, c0 = (torch.randn(directions, 3, 6).to(dtype) for _ in range(2))
    x = torch.randn(5, 3, 4).to(dtype)
    lengths, reset = torch.tensor([5, 2, 4]), torch.rand(5, 3) < 0.3
    return [cell, x, h0, c0 if cell == "lstm" else None, weights, directions == 2, None, lengths, reset, "full", False]


def same(found: tuple[Any, ...], expected: tuple[Tensor, ...]) -> None:
    """Bit by bit; None is an empty tensor."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert b.numel() == 0 if a is None else torch.equal(a, b) and a.dtype == b.dtype


@pytest.mark.parametrize("tape", ["full", "lean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_results_are_those_of_the_operators(cell: str, directions: int, dtype: torch.dtype, tape: str) -> None:
    args = draw(cell, directions, directions == 2, dtype)
    args[-2:] = [tape, True]
    same(_C.layer(*args), _ops.layer(*args))
    kept = _ops.layer_forward(*args)
    same(_C.layer_forward(*args), kept)
    grads = [torch.randn_like(t) if t.numel() else None for t in kept[:4]]
    of_backward = (*(cell, *grads), *args[1:9], kept[0], *kept[3:], tape, True, True, True, True)
    *layers, w_ih, w_hh, b_ih, b_hh = _ops.layer_backward(*of_backward)
    found = _C.layer_backward(*of_backward)
    same(found[:3], tuple(layers))
    each = len(args[4]) // directions
    for i, whole in enumerate((w_ih, w_hh, b_ih, b_hh)[:each]):
        assert torch.equal(torch.cat(found[3 + i :: each]), whole)
    assert not any(t is not None and t._is_view() for t in found)


def negated(t: Tensor) -> Tensor:
    """The same numbers, as a view that torch negates when it is read."""
    return torch._neg_view(-t)


class Subclass(Tensor):
    """Another tensor."""


@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize(
    "other",
    [negated, lambda t: t.as_subclass(Subclass), lambda t: t.to("meta"), Tensor.to_sparse, torch._efficientzerotensor],
    ids=["negated", "subclass", "meta", "sparse", "zeros"],
)
def test_anything_else_is_left_to_the_operators(other: Any, at: int) -> None:
    """A tensor whose memory does not hold what it says, or that acts otherwise, wherever it is."""
    args = draw("lstm")
    strange = args[at][1] if at == 4 else args[at]
    strange = other(strange.shape) if other is torch._efficientzerotensor else other(strange)
    args[at] = [args[4][0], strange, *args[4][2:]] if at == 4 else strange
    assert _C.layer(*args) is None
    assert _C.layer_forward(*args) is None


def test_gradients_that_are_no_ordinary_tensors() -> None:
    net, x = fastrnn.LSTM(4, 6), torch.randn(5, 3, 4)
    given = torch.randn(5, 3, 6)
    expected = torch.autograd.grad(net(x)[0], list(net.parameters()), given)
    for strange in (negated(given), given.transpose(0, 1).contiguous().transpose(0, 1)):
        for a, b in zip(torch.autograd.grad(net(x)[0], list(net.parameters()), strange), expected, strict=True):
            assert torch.equal(a, b)


def test_wrong_arguments_are_errors() -> None:
    args = draw("lstm")
    with pytest.raises(RuntimeError, match="h0: expected size"):
        _C.layer(*args[:2], args[2][:, :2], *args[3:])
    with pytest.raises(RuntimeError, match="cell: expected"):
        _C.layer("lstn", *args[1:])
    with pytest.raises(TypeError, match="expected 11 arguments, got 2"):
        _C.layer(*args[:2])


def test_profilers_see_the_operators() -> None:
    net, x = fastrnn.GRU(4, 6), torch.randn(5, 3, 4)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        net(x)[0].sum().backward()
    names = {event.name for event in seen.events()}
    assert {"fastrnn::layer_forward", "fastrnn::layer_backward"} <= names


def test_nothing_is_left_behind() -> None:
    """Neither tensors nor references, also where the call is refused or wrong."""
    args = draw("gru")
    wrong, refused = [*args], [*args]
    wrong[2], refused[3] = args[2][:, :2], args[2].to("meta")

    def calls() -> None:
        _C.layer_forward(*args)
        assert _C.layer_forward(*refused) is None
        with pytest.raises(RuntimeError):
            _C.layer_forward(*wrong)

    def count() -> tuple[int, ...]:
        gc.collect()
        given = [t for t in (*args[1:3], *args[4], refused[3]) if t is not None]
        objects = sum(type(o) is Tensor for o in gc.get_objects())
        return (objects, *(t._use_count() for t in given), *map(sys.getrefcount, given))

    calls()
    before = count()
    for _ in range(20):
        calls()
    assert count() == before


@pytest.mark.parametrize("kind", ["dropout", "frozen first layer", "state", "batch first"])
def test_stacks_with_gradients_take_the_short_route(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are those of the usual one, dropout's draws included."""
    torch.manual_seed(0)
    net = fastrnn.LSTM(4, 6, num_layers=3, dropout=0.5 * (kind == "dropout"), batch_first=kind == "batch first")
    if kind == "frozen first layer":
        for name, p in net.named_parameters():
            p.requires_grad_(not name.endswith("l0"))
    x = torch.randn(5, 3, 4)
    batch = 5 if net.batch_first else 3
    hx = tuple(torch.randn(3, batch, 6, requires_grad=True) for _ in range(2)) if kind == "state" else None
    wanted = [t for t in (*net.parameters(), *(hx or ())) if t.requires_grad]

    def run() -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        y, (h, c) = net(x, hx)
        assert not y._is_view()
        return (y, h, c, *torch.autograd.grad(y.sum() + h.sum() + c.square().sum(), wanted))

    short = run()
    monkeypatch.setattr(fastrnn._shortcut, "nobody_looks_on", lambda: False)
    for a, b in zip(short, run(), strict=True):
        assert torch.equal(a, b)
