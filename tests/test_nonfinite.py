"""NaN and infinities go where torch.nn lets them go, and nowhere else."""

from dataclasses import replace

import pytest
import torch
from accuracy import assert_alike, assert_same
from layers import DTYPES, Problem, draw, fast, readable, run
from torch import Tensor, nn

from fastrnn.reference import CELLS

ALL = pytest.mark.parametrize("cell", CELLS)
TAPES = pytest.mark.parametrize("tape", ["full", "lean"])
VALUES = pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
PLACES = {"x": (2, 1, 3), "h0": (0, 1, 4), "c0": (0, 1, 4), "w_ih": (8, 2), "w_hh": (8, 3), "b_ih": 8, "b_hh": 8}


def spoilt(problem: Problem, name: str, value: float) -> Problem:
    """The problem with one number of one tensor replaced."""
    tensor = problem.tensors()[name].clone()
    tensor[PLACES[name]] = value
    return problem.put({name: tensor})


def stepping(p: Problem) -> tuple[Tensor, ...]:
    """torch.nn's cells, a step a call."""
    kinds = {"rnn_tanh": "RNNCell", "rnn_relu": "RNNCell", "lstm": "LSTMCell", "gru": "GRUCell"}
    options = {"nonlinearity": "relu"} if p.cell == "rnn_relu" else {}
    inputs, hidden = p.weights[0].shape[1], p.weights[1].shape[1]
    module = getattr(nn, kinds[p.cell])(inputs, hidden, dtype=p.x.dtype, **options)
    weights = dict(zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), p.weights, strict=True))
    state, states = (p.h0[0], p.c0[0]) if p.cell == "lstm" else p.h0[0], []
    for x in p.x:
        state = torch.func.functional_call(module, weights, (x, state))
        states.append(state if p.cell == "lstm" else (state,))
    y, *cells = (torch.stack(parts) for parts in zip(*states, strict=True))
    return y, y[-1:], *((cells[0][-1:], cells[0]) if cells else ())


@VALUES
@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@ALL
def test_outputs(cell: str, dtype: torch.dtype, name: str, value: float) -> None:
    if name == "c0" and cell != "lstm":
        pytest.skip("has no cell state")
    problem = spoilt(draw(cell, cells=True, dtype=dtype), name, value)
    parts = ("y", "h_n", "c_n", "cells")[: 4 if cell == "lstm" else 2]
    found, theirs, truth = (
        dict(zip(parts, layer(p), strict=False))
        for layer, p in ((fast(), problem), (stepping, problem), (stepping, problem.to(torch.float64)))
    )
    assert_alike(found, theirs, truth)
    assert not all(t.isfinite().all() for t in found.values()) or value != torch.nan
    if name in ("x", "h0", "c0"):
        assert found["y"][:, [0, 2, 3, 4]].isfinite().all(), "other rows have nothing to do with it"
    if name == "x":
        assert found["y"][:2].isfinite().all(), "nor do earlier steps"


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@TAPES
@ALL
def test_gradients_of_nan(cell: str, tape: str, dtype: torch.dtype, name: str) -> None:
    """Where it comes in, as through the reference: in both directions, with resets that it cannot cross."""
    if name == "c0" and cell != "lstm":
        pytest.skip("has no cell state")
    state = name in ("x", "h0", "c0")
    # The reference computes what lies beyond the lengths, and then drops it: zero times a weight that is NaN.
    layout = "lengths" if state else "dense"
    problem = draw(cell, bidirectional=True, layout=layout, reset=True, cells=True, dtype=dtype)
    problem.reset[0, 1], problem.reset[5, 1] = False, True
    if state:
        problem.lengths[1] = 9
    problem = spoilt(problem, name, torch.nan)
    found, theirs = (run(layer, problem) for layer in (fast(tape), readable))
    for key, expected in theirs.items():
        assert torch.equal(found[key].isnan(), expected.isnan()), key
    if state:
        for key in ("y", "dx", "dh0"):
            assert found[key][:, [0, 2, 3, 4]].isfinite().all(), key
            assert not found[key][:, 1].isnan().all(), "a reset stops it"
        assert found["y"][:, 1].isnan().any()


@TAPES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@ALL
def test_a_reset_drops_what_was_there(cell: str, dtype: torch.dtype, tape: str) -> None:
    """A state is replaced by zero, not multiplied by it."""
    problem = draw(cell, dtype=dtype, cells=True)
    problem = replace(problem, reset=torch.zeros(9, 5, dtype=torch.bool))
    problem.reset[0] = True
    expected = run(fast(tape), problem)
    for value in (torch.nan, torch.inf):
        states = {name: torch.full_like(t, value) for name, t in problem.tensors().items() if name in ("h0", "c0")}
        assert_same(run(fast(tape), problem.put(states)), expected)
    assert not expected["dh0"].any()


@TAPES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e4], ids=str)
@ALL
def test_what_lies_beyond_the_lengths_is_not_looked_at(cell: str, value: float, dtype: torch.dtype, tape: str) -> None:
    """Not in x, not in the resets, not in the gradients that arrive there."""
    problem = draw(cell, bidirectional=True, layout="lengths", reset=True, cells=True, dtype=dtype)
    padding = (torch.arange(9)[:, None] >= problem.lengths)[..., None]
    given = {name: torch.randn(9, 5, 22) for name in ("y", "cells")} | {"h_n": torch.randn(2, 5, 11)}
    given = {name: t.to(dtype) if name != "cells" else t for name, t in given.items()}
    expected = run(fast(tape), problem, given)
    problem = problem.put({"x": torch.where(padding, value, problem.x)})
    problem = replace(problem, reset=problem.reset | padding[..., 0])
    for name in ("y", "cells"):
        given[name] = torch.where(padding, value, given[name])
    assert_same(run(fast(tape), problem, given), expected)
    for name in ("y", "dx"):
        assert not expected[name][padding[..., 0]].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@ALL
def test_storage_of_sixteen_bits_keeps_what_is_special(cell: str, dtype: torch.dtype) -> None:
    """Through ReLU and the states NaN, infinities, zeros, subnormal and largest numbers go in and come out."""
    info = torch.finfo(dtype)
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, info.tiny, info.tiny / 4, info.max, -info.max])
    problem = replace(draw(cell, 1, 9, 1, 1, dtype=dtype), h0=values.to(dtype)[None, :, None])
    ours, theirs = fast()(problem)[0], readable(problem)[0]
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.isinf(), theirs.isinf())
