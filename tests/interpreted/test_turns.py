"""Groups of programs of the grid strategy that take batch tiles in turns: right in every order of programs."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from accuracy import assert_accurate, assert_same
from layers import Problem, draw, fast, readable, run, yardstick
from rig.interpreter import schedule
from rig.mutants import assert_wrong_in_some_order, mutant
from rig.operators import computed_by

from fastrnn.kernels import barrier, grid, grid_backward, layer
from fastrnn.kernels.plan import Plan

SHARED = Plan("grid", "a test", units=8, depth=16, groups=2)
REGISTERS = Plan("grid", "a test", units=8, depth=16, split=2, groups=1, held="registers")
SPLIT = Plan("grid", "a test", units=16, depth=16, split=2, groups=1)
CPU = torch.device("cpu")
# Three batch tiles, the last of which is not full; in two groups, one of which has more to do than the other.
BATCH = 37

Use = Callable[[Plan], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    def use(plan: Plan) -> None:
        computed_by(monkeypatch, partial(layer.forward, plan), partial(layer.backward, plan))

    return use


@pytest.fixture(autouse=True)
def no_error_left() -> Iterator[None]:
    yield
    barrier.check(CPU)


def found_in(problem: Problem, seed: int, everywhere: bool = True, tape: str = "full") -> dict[str, torch.Tensor]:
    with schedule(seed, everywhere=everywhere, patience=3000):
        return run(fast(tape), problem)


KINDS = {
    "lstm": (SHARED, {"bidirectional": True, "layout": "lengths", "reset": True, "cells": True}),
    "gru": (REGISTERS, {"layout": "packed", "dtype": torch.bfloat16}),
    "rnn_tanh": (SPLIT, {"hidden": 21, "bidirectional": True, "layout": "lengths", "dtype": torch.float16}),
    "rnn_relu": (SHARED, {"layout": "packed", "reset": True, "dtype": torch.float64}),
}


@pytest.mark.parametrize("exchange", ["barrier", "data"])
@pytest.mark.parametrize("cell", KINDS)
def test_turns_change_no_bit(use: Use, cell: str, exchange: str) -> None:
    """Of what programs compute that have a batch tile each, in whatever order they come."""
    plan, options = KINDS[cell]
    problem = draw(cell, 2, **{"batch": BATCH, "inputs": 2, "hidden": 20} | options)
    tape = "lean" if cell == "lstm" else "full"
    use(replace(plan, groups=0))
    apart = found_in(problem, 0, everywhere=False, tape=tape)
    if exchange == "barrier":
        assert_accurate(apart, run(yardstick(problem), problem), run(readable, problem.to(torch.float64)))
    use(replace(plan, exchange=exchange))
    for seed in range(2 if exchange == "barrier" else 1):
        everywhere = exchange == "barrier" and seed % 2 == 0
        assert_same(found_in(problem, seed, everywhere=everywhere, tape=tape), apart)


def test_tiles_end_and_begin_at_different_steps(use: Use) -> None:
    """Steps at which a tile is idle are no arrivals, and the tiles before and after it have others."""
    use(replace(SHARED, groups=1))
    problem = draw("lstm", 5, BATCH, 2, 3, bidirectional=True, layout="lengths", cells=True)
    lengths = torch.full((BATCH,), 2)
    lengths[20], lengths[32:] = 5, 1
    problem = replace(problem, lengths=lengths)
    true, theirs = run(readable, problem.to(torch.float64)), run(yardstick(problem), problem)
    for tape in ("full", "lean"):
        assert_accurate(found_in(problem, 3, everywhere=False, tape=tape), theirs, true)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_chunks_of_time_are_launches_of_all_turns(use: Use, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a step each, and from given states: what one leaves of a tile, the next one begins with."""
    use(replace(SPLIT, groups=1))
    problem = draw(cell, 3, BATCH, 2, 20, layout="lengths", reset=True)
    true, theirs = run(readable, problem.to(torch.float64)), run(yardstick(problem), problem)
    monkeypatch.setattr(layer, "WORKSPACE", 0)
    assert_accurate(found_in(problem, 1, everywhere=False, tape="lean"), theirs, true)


def test_as_many_programs_are_launched_as_the_plan_has(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few enough to run at once, or it is refused; and none of a group without a tile."""
    use(SHARED)
    problem = draw("rnn_tanh", 2, 5 * 16, 2, 20)
    monkeypatch.setattr(barrier, "most_programs", lambda device: 6)
    fast()(problem)
    monkeypatch.setattr(barrier, "most_programs", lambda device: 5)
    with pytest.raises(RuntimeError, match="the 6 programs of grid_forward have to run at once; cpu runs 5"):
        fast()(problem)
    monkeypatch.setattr(barrier, "most_programs", lambda device: 3)
    fast()(draw("rnn_tanh", 2, 16, 2, 20))


COUNTER = "counter_ptr += (tile * D + d) * APART"
OF_THE_GROUP = "counter_ptr += (tl.program_id(0) // UNIT_TILES * D + d) * APART"
TURNS = "range((tiles - group + groups - 1) // groups)"
MUTANTS = {
    "counts that begin anew": (COUNTER, OF_THE_GROUP),
    "the same turn again": ("group + turn * groups, d,", "group + turn // 2 * groups, d,"),
    "one turn too few": (TURNS, "range((tiles - group - 1) // groups)"),
}
IN_ONE_DIRECTION = {
    "weights of other units": (grid, "unit_weights(w_ptr + d * (G * H * H), u0,", "unit_weights(w_ptr, 0,"),
    "columns of other units": (
        grid_backward,
        "column_weights(w_ptr + d * (G * H * H), u0,",
        "column_weights(w_ptr, 0,",
    ),
    "places of the tile before": (
        grid,
        "there = exchange_ptr + exchange.place_of(s - begin + 1, EXCHANGE) * states + state_at",
        "there = exchange_ptr + exchange.place_of(s - begin + 1, EXCHANGE) * states + tl.maximum(state_at - BB * H, 0)",
    ),
}
BROKEN = {
    f"{name}, {module.__name__.rpartition('.')[2]}": (module, *change)
    for name, change in MUTANTS.items()
    for module in (grid, grid_backward)
} | IN_ONE_DIRECTION


@pytest.mark.parametrize("name", BROKEN)
def test_what_makes_turns_right_is_needed(use: Use, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, old, new = BROKEN[name]
    use(replace(SHARED, groups=1))
    problem = draw("rnn_tanh", 3, BATCH, 2, 20)
    right = found_in(problem, 0)
    changed = mutant(tmp_path, module, old, new)
    table = layer.FORWARD if module is grid else layer.BACKWARD
    monkeypatch.setitem(table, "grid", changed.forward if module is grid else changed.backward)
    assert_wrong_in_some_order(lambda seed: all(torch.equal(t, right[n]) for n, t in found_in(problem, seed).items()))


kept_wait, patiences = barrier.wait, list[int]()


@triton.jit
def never_arrive(counter_ptr):
    tl.debug_barrier()


@triton.jit
def wait_and_tell(counter_ptr, arrivals, patience, error_ptr, s):
    patiences.append(int(patience.handle.data.item()))
    return kept_wait(counter_ptr, arrivals, patience, error_ptr, s)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_who_has_given_up_waits_in_no_later_turn(use: Use, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait in vain takes seconds on a GPU: one is enough, however many tiles there are."""
    use(replace(SHARED, groups=1))
    problem = draw("rnn_tanh", 3, BATCH, 2, 8)  # of one program
    leaves = problem.put({name: t.clone().requires_grad_() for name, t in problem.tensors().items()})
    patiences.clear()
    with schedule(0, patience=1000), monkeypatch.context() as patch:
        patch.setattr(barrier, "PATIENCE", 10)
        y = fast()(leaves)[0] if direction == "backward" else None
        patch.setattr(barrier, "arrive", never_arrive)
        patch.setattr(barrier, "wait", wait_and_tell)
        with pytest.raises(RuntimeError, match=f"programs of grid_{direction} at step"):
            fast()(problem) if y is None else y.sum().backward()
    assert patiences == [10] + [0] * (3 * 3 - 1)
