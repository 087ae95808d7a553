"""The exchange of states of the grid strategy: right in every order of its programs, and shown to be needed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from accuracy import assert_accurate, assert_alike, assert_same
from layers import Problem, draw, fast, readable, run, yardstick
from rig.interpreter import schedule
from rig.mutants import SEEDS, assert_wrong_in_some_order, mutant
from rig.operators import computed_by

from fastrnn.kernels import barrier, exchange, grid, grid_backward, layer
from fastrnn.kernels.call import Call
from fastrnn.kernels.plan import DeviceFacts, Plan
from fastrnn.reference import CELLS

SPLIT = Plan("grid", "a test", units=16, depth=16, split=2)
WHOLE = Plan("grid", "a test", units=8, depth=16)
REGISTERS = Plan("grid", "a test", units=8, depth=16, split=2, held="registers")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Plan], None]:
    def use(plan: Plan) -> None:
        computed_by(monkeypatch, partial(layer.forward, plan), partial(layer.backward, plan))

    use(WHOLE)
    return use


@pytest.fixture(autouse=True)
def no_error_left() -> Iterator[None]:
    yield
    barrier.check(CPU)


def found_in(problem: Problem, seed: int, everywhere: bool = True, tape: str = "full") -> dict[str, torch.Tensor]:
    with schedule(seed, everywhere=everywhere, patience=3000):
        return run(fast(tape), problem)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_the_order_of_programs_changes_no_bit(cell: str) -> None:
    problem = draw(cell, 3, 17 if cell == "rnn_tanh" else 3, 2, 20, bidirectional=True, layout="lengths", reset=True)
    first = found_in(problem, 0)
    assert_accurate(first, run(yardstick(problem), problem), run(readable, problem.to(torch.float64)))
    for seed in SEEDS[1:5]:
        assert_same(found_in(problem, seed, everywhere=seed % 2 == 0), first)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_order_of_programs_changes_no_bit_of_kernels_in_gluon(use: Callable[[Plan], None], cell: str) -> None:
    use(REGISTERS)
    problem = draw(cell, 3, 3, 2, 20, bidirectional=True, layout="packed", dtype=torch.bfloat16)
    first = found_in(problem, 0)
    for seed in SEEDS[1:4]:
        assert_same(found_in(problem, seed, everywhere=seed % 2 == 0), first)


def test_kernels_in_gluon_need_their_barrier(use: Callable[[Plan], None], monkeypatch: pytest.MonkeyPatch) -> None:
    use(REGISTERS)
    problem = draw("lstm", 4, 3, 2, 20, bidirectional=True, dtype=torch.bfloat16)
    with schedule(0):
        right = fast()(problem)[0]
        monkeypatch.setattr(barrier, "wait", do_not_wait)
        wrong = fast()(problem)[0]
    assert not torch.equal(right, wrong)


@triton.jit
def do_not_wait(counter_ptr, arrivals, patience, error_ptr, s):
    return patience


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_sums_in_parts(use: Callable[[Plan], None], cell: str, dtype: torch.dtype) -> None:
    """H is no multiple of the parts, and has several of them."""
    use(SPLIT)
    problem = draw(cell, 3, 5, 4, 37, layout="packed", reset=True, dtype=dtype)
    true, theirs = run(readable, problem.to(torch.float64)), run(yardstick(problem), problem)
    assert_accurate(found_in(problem, 1, everywhere=False), theirs, true)


def test_batch_tiles_that_end_early_and_begin_late() -> None:
    """Steps at which a whole tile is idle: after its sequences' ends and, backwards in time, before them."""
    problem = draw("lstm", 5, 33, 2, 3, bidirectional=True, layout="lengths", cells=True)
    lengths = torch.full((33,), 2)
    lengths[20], lengths[32] = 5, 1
    problem = replace(problem, lengths=lengths)
    true, theirs = run(readable, problem.to(torch.float64)), run(yardstick(problem), problem)
    for tape in ("full", "lean"):
        assert_accurate(found_in(problem, 3, everywhere=False, tape=tape), theirs, true)


PUT = "exchange.put(there + flat, tf32.rounded(h, PRECISION), mask, EXCHANGE)"
ARRIVE = "exchange.arrive(counter_ptr, EXCHANGE)"
MUTANTS = {
    "no barrier": (
        grid,
        "exchange.wait(counter_ptr, (s - begin + 1) * UNIT_TILES, patience, error_ptr, s, EXCHANGE)",
        "patience",
    ),
    "one too few": (grid, "(s - begin + 1) * UNIT_TILES,", "(s - begin + 1) * UNIT_TILES - 1,"),
    "one place": (grid, "place_of(s - begin + 1,", "place_of(s - begin,"),
    "one counter for all": (grid, "counter_ptr += (tile * D + d) * APART", "counter_ptr += 0"),
    "arrives too early": (
        grid,
        f"        {PUT}\n        {ARRIVE}\n",
        f"        {ARRIVE}\n        {PUT}\n",
    ),
    "no barrier backward": (
        grid_backward,
        "exchange.wait(counter_ptr, (back + 1) * UNIT_TILES, patience, error_ptr, s, EXCHANGE)",
        "patience",
    ),
    "one too few backward": (grid_backward, "(back + 1) * UNIT_TILES,", "(back + 1) * UNIT_TILES - 1,"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_what_makes_the_exchange_right_is_needed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, old, new = MUTANTS[name]
    problem = draw("gru", 4, 3, 2, 20, bidirectional=True)
    right = found_in(problem, 0)
    changed = mutant(tmp_path, module, old, new)
    table = layer.FORWARD if module is grid else layer.BACKWARD
    monkeypatch.setitem(table, "grid", changed.forward if module is grid else changed.backward)
    assert_wrong_in_some_order(lambda seed: all(torch.equal(t, right[n]) for n, t in found_in(problem, seed).items()))


POLLED = {
    "lstm": (WHOLE, {"layout": "lengths", "reset": True, "cells": True}),
    "gru": (REGISTERS, {"layout": "packed", "dtype": torch.bfloat16}),
    # of numbers that are no pairs
    "rnn_tanh": (SPLIT, {"hidden": 21, "bidirectional": True, "layout": "lengths", "dtype": torch.float16}),
    "rnn_relu": (WHOLE, {"batch": 17, "layout": "packed", "reset": True, "dtype": torch.float64}),
}


@pytest.mark.parametrize("cell", POLLED)
def test_polled_data_are_those_behind_a_barrier(use: Callable[[Plan], None], cell: str) -> None:
    """To the bit, in every order of programs."""
    plan, options = POLLED[cell]
    problem = draw(cell, 3, **{"batch": 3, "inputs": 2, "hidden": 20} | options)
    use(plan)
    tape = "lean" if cell == "lstm" else "full"
    right = found_in(problem, 0, everywhere=False, tape=tape)
    use(replace(plan, exchange="data"))
    for seed in SEEDS[:2]:
        assert_same(found_in(problem, seed, everywhere=seed % 2 == 0, tape=tape), right)


LAUNCHES = {
    "lstm": (WHOLE, "full", {"layout": "lengths", "reset": True, "bidirectional": True}),
    "gru": (REGISTERS, "lean", {"layout": "packed", "bidirectional": True, "dtype": torch.bfloat16}),
    "rnn_tanh": (replace(SPLIT, precision="tf32"), "full", {}),
}


@pytest.mark.parametrize("cell", LAUNCHES)
def test_places_that_have_no_room_are_those_of_several_launches(
    use: Callable[[Plan], None], cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which compute what one does, to the bit, each of as many steps as there is room for, backward in reverse."""
    plan, tape, options = LAUNCHES[cell]
    problem = draw(cell, 5, **{"batch": 3, "inputs": 2, "hidden": 20} | options)
    use(replace(plan, exchange="data"))
    right = found_in(problem, 0, everywhere=False, tape=tape)
    steps: list[tuple[int, int]] = []

    def launch(plan: Plan, call: Call, kernel: Any, *arguments: Any, **constants: Any) -> None:
        at = kernel.arg_names.index("s0")
        steps.append(arguments[at : at + 2])
        grid_launch(plan, call, kernel, *arguments, **constants)

    grid_launch = grid.launch
    for module in (grid, grid_backward):
        monkeypatch.setattr(module, "launch", launch)
    directions = 2 if problem.bidirectional else 1
    state = directions * 3 * 20 * problem.x.element_size()  # of a step, with batch and hidden units
    monkeypatch.setattr(exchange, "room", lambda device: 2 * state + 1)
    assert_same(found_in(problem, 1, everywhere=False, tape=tape), right)
    forward, each = [(0, 2), (2, 4), (4, 5)], [(s, s + 1) for s in range(5)]
    backward = forward if CELLS[cell].tape == 0 else each  # of more numbers, a step at least
    assert steps == [*forward, *reversed(backward)]


def test_places_have_half_the_second_level_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = DeviceFacts("NVIDIA H100", "nvidia", (9, 0), 132, 227 * 1024, 50 * 2**20)
    monkeypatch.setattr(exchange, "device_facts", lambda index: facts)
    state, gpu = 2 * 16 * 768, torch.device("cuda", 0)
    assert exchange.launches("data", 0, 1024, state, gpu) == [(0, 1024)]
    assert exchange.launches("data", 0, 1024, 4 * state, gpu) == [(0, 266), (266, 532), (532, 798), (798, 1024)]
    assert exchange.launches("data", 5, 8, 2**30, gpu) == [(5, 6), (6, 7), (7, 8)]
    assert exchange.launches("barrier", 5, 8, 2**30, gpu) == [(5, 8)]


@triton.jit
def never_missing(found, PACK):
    return False


@triton.jit
def missing_in_the_first_part(found, PACK):
    return tl.max(exchange.flags(found[0], PACK).to(tl.int32)) != 0


@triton.jit
def in_turns(step, EXCHANGE):
    return step % 2


def prepare_with_zeros(how: str, buffer: torch.Tensor, known: torch.Tensor | None = None) -> None:
    buffer.zero_()
    if known is not None:
        buffer[0].copy_(known)


BREAKS = {
    "not polled": ("is_missing", never_missing),
    "one part polled": ("is_missing", missing_in_the_first_part),
    "no flags": ("prepare", prepare_with_zeros),
    "two places": ("place_of", in_turns),
}


@pytest.mark.parametrize(
    ("direction", "name"),
    [(direction, name) for direction in ("forward", "backward") for name in BREAKS][:-1],  # there, no places take turns
)
def test_what_makes_polling_right_is_needed(
    use: Callable[[Plan], None], direction: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(replace(WHOLE, exchange="data"))
    problem = draw("rnn_tanh", 4, 3, 2, 20)
    leaves = problem.put({name: t.clone().requires_grad_() for name, t in problem.tensors().items()})

    def found(seed: int, broken: bool) -> torch.Tensor:
        with schedule(seed, everywhere=True), monkeypatch.context() as patch:
            y = fast()(leaves)[0] if direction == "backward" else None
            if broken:
                patch.setattr(exchange, *BREAKS[name])
            return fast()(problem)[0] if y is None else torch.autograd.grad(y.sum(), leaves.x)[0]

    right = found(0, broken=False)
    assert_wrong_in_some_order(lambda seed: torch.equal(found(seed, broken=True), right))


@triton.jit
def arrive_at_first(counter_ptr):
    """Arrive at two steps of three programs, and then no more."""
    tl.atomic_add(counter_ptr, tl.where(tl.atomic_add(counter_ptr, 0) < 6, 1, 0))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_programs_that_wait_in_vain_give_up_and_say_so(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw("lstm", 5, 3, 2, 20)
    right = run(fast(), problem)
    leaves = problem.put({name: t.clone().requires_grad_() for name, t in problem.tensors().items()})
    message = f"programs of grid_{direction} at step 2 waited in vain for the others on cpu"
    with schedule(0, patience=1000), monkeypatch.context() as patch:
        patch.setattr(barrier, "PATIENCE", 100)
        y = fast()(leaves)[0] if direction == "backward" else None
        patch.setattr(barrier, "arrive", arrive_at_first)
        with pytest.raises(RuntimeError, match=message):
            fast()(problem) if y is None else y.sum().backward()
    assert_same(run(fast(), problem), right)  # and the next call computes as ever


@triton.jit
def put_what_looks_like_a_flag(ptrs, values, mask, EXCHANGE):
    tl.store(ptrs, values.to(ptrs.dtype.element_ty), mask=mask)


def test_numbers_that_look_like_the_flag_are_nan_as_ever(
    use: Callable[[Plan], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the initial state, in what a step computes and in its gradients; stored as they are, they are waited for."""
    use(replace(WHOLE, exchange="data"))
    flag = torch.tensor(exchange.FLAG, dtype=torch.int32).view(torch.float32)
    problem = draw("rnn_relu", 3, 3, 2, 20)
    problem.h0[0, 1, 2] = flag
    problem.weights[2][5] = flag
    arriving = torch.ones(3, 3, 20)
    arriving[1, 0] = flag
    for where in ("h0", "b_ih", "dy"):
        p = problem if where == "h0" else replace(problem, h0=problem.h0.nan_to_num())
        if where != "b_ih":
            p = p.put({"b_ih": p.weights[2].nan_to_num()})
        parts = {"y": arriving if where == "dy" else arriving.nan_to_num()}
        assert_alike(run(fast(), p, parts), run(yardstick(p), p, parts), run(readable, p.to(torch.float64), parts))
        if where == "h0":
            continue
        direction = "backward" if where == "dy" else "forward"
        message = f"programs of grid_{direction} at step 1 waited in vain for the others on cpu"
        with schedule(0, patience=1000), monkeypatch.context() as patch:
            patch.setattr(exchange, "put", put_what_looks_like_a_flag)
            patch.setattr(barrier, "PATIENCE", 100)
            with pytest.raises(RuntimeError, match=message):
                run(fast(), p, parts)


def test_what_a_gpu_reports_late_is_raised_in_the_next_call() -> None:
    problem = draw("gru", 2, 3, 2, 20)
    barrier._errors_of(CPU).word("grid_forward").fill_(8)
    with pytest.raises(RuntimeError, match="grid_forward at step 7 waited in vain"):
        fast()(problem)
    fast()(problem)


def test_errors_of_a_first_call_in_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barrier, "_errors", {})
    with torch.inference_mode():
        fast()(draw("rnn_tanh", 2, 3, 2, 20))
    barrier._errors_of(CPU).word("grid_forward").fill_(1)
    with pytest.raises(RuntimeError, match="grid_forward at step 0"):
        barrier.check(CPU)


def test_a_first_call_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw("gru", 2, 3, 2, 20)
    fast()(problem)
    monkeypatch.setattr(barrier, "capturing", lambda device: True)
    fast()(problem)
    monkeypatch.setattr(barrier, "_errors", {})
    with pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph: call the layer once before"):
        fast()(problem)


def test_more_programs_than_run_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barrier, "most_programs", lambda device: 5)
    with pytest.raises(RuntimeError, match="the 6 programs of grid_forward have to run at once; cpu runs 5"):
        fast()(draw("gru", 2, 3, 2, 20, bidirectional=True))
    fast()(draw("gru", 2, 3, 2, 16, bidirectional=True))


@triton.jit
def flags_of(bits_ptr, found_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(found_ptr + at, exchange.flags(tl.load(bits_ptr + at), 2))


def test_a_pair_has_a_flag_if_either_half_is_one() -> None:
    halves = torch.arange(-(2**15), 2**15)
    for other in (-1, -2, 0, 1, 2**15 - 1, -(2**15)):
        for bits in (halves << 16 | (other & 0xFFFF), other << 16 | (halves & 0xFFFF)):
            found = torch.empty(len(bits), dtype=torch.int32)
            flags_of[(1,)](bits.to(torch.int32), found, len(bits))
            assert torch.equal(found != 0, (halves == -1) | (torch.tensor(other) == -1))


def test_an_exchange_is_for_gpus_of_nvidia(use: Callable[[Plan], None], monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw("gru", 2, 3, 2, 20)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    for plan in (WHOLE, replace(WHOLE, exchange="data")):
        use(plan)
        with pytest.raises(NotImplementedError, match="exchange states on NVIDIA's GPUs alone, not on AMD's"):
            fast()(problem)


@triton.jit
def missing_in_pairs(bits, PACK):
    return (bits == -1).to(tl.int32)


def test_what_the_benchmarks_watch_polling_with(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu.launched import meet

    for seed, (programs, numbers) in enumerate([(6, 1), (3, 2), (5, 1)]):
        with schedule(seed):
            assert not meet(programs, 10, CPU, "data", numbers).any()
    monkeypatch.setattr(exchange, "flags", missing_in_pairs)
    with schedule(0):
        assert meet(6, 10, CPU, "data").any()


def test_what_the_benchmarks_watch_a_barrier_with(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu.launched import meet

    for seed in SEEDS:
        with schedule(seed):
            assert not meet(5, 20, CPU).any()
    monkeypatch.setattr(barrier, "wait", do_not_wait)
    with schedule(0):
        assert meet(5, 20, CPU).any()
