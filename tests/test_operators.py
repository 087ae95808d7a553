"""The operators by themselves: what torch asks of a custom operator, and what they refuse."""

from collections.abc import Callable

import pytest
import torch
from accuracy import assert_same
from layers import DTYPES, LAYOUTS, Problem, draw, fast, upstream
from torch import Tensor

from fastrnn import _ops
from fastrnn.reference import CELLS

ALL = pytest.mark.parametrize("cell", CELLS)
KINDS = {
    "dense": {},
    "x and weights": {"state": False, "bias": False},
    "both directions": {"bidirectional": True, "dtype": torch.float64},
    "lengths": {"layout": "lengths", "reset": True, "cells": True, "dtype": torch.bfloat16},
    "packed": {"layout": "packed", "reset": True, "cells": True},
    "packed without state": {"layout": "packed", "state": False, "bidirectional": True},
}


def forward_args(p: Problem, tape: str) -> tuple:
    weights = list(p.weights)
    return p.cell, p.x, p.h0, p.c0, weights, p.bidirectional, p.batch_sizes, p.lengths, p.reset, tape, p.cells


def backward_args(p: Problem, tape: str, need: bool = True) -> tuple:
    y, h_n, c_n, cells, kept = _ops.layer_forward(*forward_args(p, tape))
    given = [upstream(t.shape).to(t.dtype) if t.shape != (0,) else None for t in (y, h_n, c_n, cells)]
    if not p.cells:
        given[3] = None
    _, *layer = forward_args(p, tape)[:9]
    return p.cell, *given, *layer, y, cells, kept, tape, need, need, need, need


@pytest.mark.parametrize("op", [_ops.layer, _ops.layer_forward], ids=str)
@pytest.mark.parametrize("tape", ["full", "lean"])
@pytest.mark.parametrize("kind", KINDS)
@ALL
def test_forward_is_a_proper_operator(cell: str, kind: str, tape: str, op: Callable[..., object]) -> None:
    """Schema, rule of differentiation, shapes without data, the same in a compiled graph of any sizes."""
    torch.library.opcheck(op, forward_args(draw(cell, **KINDS[kind]), tape))


@pytest.mark.parametrize("need", [True, False], ids=["all", "none"])
@pytest.mark.parametrize("tape", ["full", "lean"])
@pytest.mark.parametrize("kind", KINDS)
@ALL
def test_backward_is_a_proper_operator(cell: str, kind: str, tape: str, need: bool) -> None:
    torch.library.opcheck(_ops.layer_backward, backward_args(draw(cell, **KINDS[kind]), tape, need))


@pytest.mark.parametrize("tape", ["full", "lean"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("state", [True, False], ids=["", "no state"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@ALL
def test_without_data(cell: str, dtype: torch.dtype, state: bool, layout: str, tape: str) -> None:
    """On the meta device: results as with data, less that. 130 steps are three chunks of the lean tape."""
    problem = draw(cell, 130, bidirectional=True, layout=layout, state=state, reset=True, cells=True, dtype=dtype)
    meta = problem.put({name: t.to("meta") for name, t in problem.tensors().items()})
    for op, args in (
        (_ops.layer, forward_args),
        (_ops.layer_forward, forward_args),
        (_ops.layer_backward, backward_args),
    ):
        results = [torch.utils._pytree.tree_leaves(op(*args(p, tape))) for p in (problem, meta)]
        for real, fake in zip(*results, strict=True):
            assert fake.is_meta
            assert (real.shape, real.dtype, real.stride()) == (fake.shape, fake.dtype, fake.stride())


FORWARD = [argument.name for argument in _ops.layer_forward._schema.arguments]
BACKWARD = [argument.name for argument in _ops.layer_backward._schema.arguments]
Change = Callable[[dict], object]
SHORTER: dict[str, Change] = {
    name: lambda a, name=name: a[name][..., :-1] for name in ("dy", "dh_n", "dc_n", "dcells", "y", "cells", "tape")
}
WRONG: dict[str, tuple[str, Change]] = {
    **{f"{name} of fewer columns": (name, change) for name, change in SHORTER.items()},
    "dy of fewer steps": ("dy", lambda a: a["dy"][:-1]),
    "dh_n of fewer rows": ("dh_n", lambda a: a["dh_n"][:, :-1]),
    "y of another dtype": ("y", lambda a: a["y"].double()),
    "tape of another dtype": ("tape", lambda a: a["tape"].double()),
    "cells of another dtype": ("cells", lambda a: a["cells"].double()),
    "no tape": ("tape_kind", lambda _: "none"),
    "another tape": ("tape_kind", lambda a: {"full": "lean", "lean": "full"}[a["tape_kind"]]),
    "x of more inputs": ("x", lambda a: torch.cat([a["x"], a["x"]], -1)),
    "x of fewer steps": ("x", lambda a: a["x"][:-1]),
    "lengths of zero": ("lengths", lambda a: a["lengths"] * 0),
    "reset turned": ("reset", lambda a: a["reset"].t()),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("tape", ["full", "lean"])
def test_wrong_calls_of_backward(tape: str, wrong: str) -> None:
    """They raise before anything is computed, and leave the arguments as they were."""
    problem = draw("lstm", 130, bidirectional=True, layout="lengths", reset=True, cells=True)
    args = dict(zip(BACKWARD, backward_args(problem, tape), strict=True))
    _ops.layer_backward(*args.values())
    name, change = WRONG[wrong]
    if (tape, wrong) in (("lean", "cells of fewer columns"), ("lean", "cells of another dtype")):
        pytest.skip("the lean tape has no use for them")
    args[name] = change(args)
    tensors = [t for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, Tensor)]
    before = [t.clone() for t in tensors]
    with pytest.raises(RuntimeError, match="expected"):
        _ops.layer_backward(*args.values())
    assert all(t.equal(b) for t, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize(
    "weights",
    [
        lambda w: [],
        lambda w: w[:1],
        lambda w: w[:3],
        lambda w: [*w, w[0]],
        lambda w: [w[0], w[1][:, 0], *w[2:]],
        lambda w: [w[0], w[1][:, :-1], *w[2:]],
        lambda w: [w[0].t(), *w[1:]],
        lambda w: [*w[:3], w[3][:-1]],
        lambda w: [*w[:3], w[3].double()],
    ],
)
def test_wrong_weights(weights: Callable[[list[Tensor]], list[Tensor]]) -> None:
    problem = draw("gru")
    args = dict(zip(FORWARD, forward_args(problem, "full"), strict=True))
    args["weights"] = weights(args["weights"])
    with pytest.raises(RuntimeError, match="expected"):
        _ops.layer_forward(*args.values())


@pytest.mark.parametrize("shape", [(), (7,), (9, 7), (9, 5, 7, 1), (0, 5, 7)], ids=str)
def test_wrong_inputs(shape: tuple[int, ...]) -> None:
    """No steps are wrong too: no state would come out that anyone wrote."""
    args = dict(zip(FORWARD, forward_args(draw("gru"), "full"), strict=True)) | {"x": torch.randn(shape)}
    with pytest.raises(RuntimeError):
        _ops.layer_forward(*args.values())


@pytest.mark.parametrize("tape", ["full", "lean"])
@pytest.mark.parametrize("layout", LAYOUTS)
@ALL
def test_arguments_stay_as_they_were(cell: str, layout: str, tape: str) -> None:
    problem = draw(cell, 70, bidirectional=True, layout=layout, reset=True, cells=True)
    args = backward_args(problem, tape)
    tensors = [t for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, Tensor)]
    before = [t.clone() for t in tensors]
    results = [t for t in torch.utils._pytree.tree_leaves(_ops.layer_backward(*args)) if t.numel() > 0]
    assert all(t.equal(b) for t, b in zip(tensors, before, strict=True))
    owned = {t.untyped_storage().data_ptr() for t in tensors if t.numel() > 0}
    own = [t.untyped_storage().data_ptr() for t in results]
    assert not owned & set(own), "a result is no view of an argument"
    assert len(own) == len(set(own)), "nor of another result"


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own doing
@pytest.mark.parametrize("tape", ["full", "lean"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_for_all_sizes(kind: str, tape: str) -> None:
    """Forward and backward, compiled with whatever describes the sequences as inputs."""

    def number(x: Tensor, weights: list[Tensor], *rest: Tensor | None) -> Tensor:
        h0, c0, batch_sizes, lengths, reset = rest
        p = Problem("lstm", x, h0, c0, weights, bidirectional, batch_sizes, lengths, reset, cells)
        return sum(t.float().square().sum() for t in fast(tape)(p) if t.requires_grad)

    compiled = torch.compile(number, fullgraph=True, dynamic=True, backend="aot_eager")
    for steps, batch in ((9, 5), (11, 6), (70, 4)):
        problem = draw("lstm", steps, batch, **KINDS[kind])
        bidirectional, cells = problem.bidirectional, problem.cells
        rest = (problem.h0, problem.c0, problem.batch_sizes, problem.lengths, problem.reset)
        found = []
        for function in (compiled, number):
            x, *weights = (t.detach().clone().requires_grad_() for t in (problem.x, *problem.weights))
            loss = function(x, weights, *rest)
            loss.backward()
            found.append({"loss": loss.detach(), "dx": x.grad} | {f"d{i}": w.grad for i, w in enumerate(weights)})
        assert_same(*found)
    torch._dynamo.reset()
