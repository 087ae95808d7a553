"""The exchange of states of the grid strategy: right in every order of its programs, and shown to be needed."""

import importlib.util
import linecache
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
import triton
import triton.language as tl
from accuracy import assert_accurate, assert_same
from layers import Problem, draw, fast, readable, run, yardstick
from rig.interpreter import Deadlock, schedule

from fastrnn import _ops
from fastrnn.kernels import barrier, grid, grid_backward, layer
from fastrnn.kernels.plan import Plan
from fastrnn.reference import CELLS

SPLIT = Plan("grid", "a test", units=16, depth=16, split=2)
WHOLE = Plan("grid", "a test", units=8, depth=16)
REGISTERS = Plan("grid", "a test", units=8, depth=16, split=2, held="registers")
SEEDS = range(8)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Plan], None]:
    def use(plan: Plan) -> None:
        monkeypatch.setattr(_ops, "layer_forward", partial(layer.forward, plan))
        monkeypatch.setattr(_ops, "layer_backward", partial(layer.backward, plan))

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


MUTANTS = {
    "no barrier": (grid, "barrier.wait(counter_ptr, (s - begin + 1) * UNIT_TILES, patience, error_ptr, s)", "patience"),
    "one too few": (grid, "(s - begin + 1) * UNIT_TILES,", "(s - begin + 1) * UNIT_TILES - 1,"),
    "one place": (grid, "(1 - here) * states", "here * states"),
    "one counter for all": (grid, "counter_ptr += (tile * D + d) * APART", "counter_ptr += 0"),
    "arrives too early": (
        grid,
        "        tl.store(there + flat, h.to(exchange_ptr.dtype.element_ty), mask=mask)\n"
        "        barrier.arrive(counter_ptr)\n",
        "        barrier.arrive(counter_ptr)\n"
        "        tl.store(there + flat, h.to(exchange_ptr.dtype.element_ty), mask=mask)\n",
    ),
    "no barrier backward": (
        grid_backward,
        "barrier.wait(counter_ptr, (back + 1) * UNIT_TILES, patience, error_ptr, end - 1 - back)",
        "patience",
    ),
    "one too few backward": (grid_backward, "(back + 1) * UNIT_TILES,", "(back + 1) * UNIT_TILES - 1,"),
}


def mutant(folder: Path, module: ModuleType, old: str, new: str) -> ModuleType:
    """The module with a part of its source changed."""
    source = Path(module.__file__).read_text()
    assert source.count(old) == 1
    path = folder / f"mutant_{module.__name__.rpartition('.')[2]}.py"
    path.write_text(source.replace(old, new))
    linecache.checkcache()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    changed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(changed)
    return changed


@pytest.mark.parametrize("name", MUTANTS)
def test_what_makes_the_exchange_right_is_needed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, old, new = MUTANTS[name]
    problem = draw("gru", 4, 3, 2, 20, bidirectional=True)
    right = found_in(problem, 0)
    changed = mutant(tmp_path, module, old, new)
    table = layer.FORWARD if module is grid else layer.BACKWARD
    monkeypatch.setitem(table, "grid", changed.forward if module is grid else changed.backward)
    for seed in SEEDS:
        try:
            wrong = not all(torch.equal(t, right[n]) for n, t in found_in(problem, seed).items())
        except Deadlock:
            wrong = True
        if wrong:
            return
    pytest.fail(f"right in {len(SEEDS)} orders")


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


def test_what_a_gpu_reports_late_is_raised_in_the_next_call() -> None:
    problem = draw("gru", 2, 3, 2, 20)
    barrier._errors_of(CPU).word("grid_forward").fill_(8)
    with pytest.raises(RuntimeError, match="grid_forward at step 7 waited in vain"):
        fast()(problem)
    fast()(problem)


def test_errors_of_a_first_call_in_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barrier, "_errors", {})
    with torch.inference_mode():
        fast("none")(draw("rnn_tanh", 2, 3, 2, 20))
    barrier._errors_of(CPU).word("grid_forward").fill_(1)
    with pytest.raises(RuntimeError, match="grid_forward at step 0"):
        barrier.check(CPU)


def test_more_programs_than_run_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barrier, "most_programs", lambda device: 5)
    with pytest.raises(RuntimeError, match="the 6 programs of grid_forward have to run at once; cpu runs 5"):
        fast()(draw("gru", 2, 3, 2, 20, bidirectional=True))
    fast()(draw("gru", 2, 3, 2, 16, bidirectional=True))


def test_what_the_benchmarks_watch_a_barrier_with(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu.launched import meet

    for seed in SEEDS:
        with schedule(seed):
            assert not meet(5, 20, CPU).any()
    monkeypatch.setattr(barrier, "wait", do_not_wait)
    with schedule(0):
        assert meet(5, 20, CPU).any()
