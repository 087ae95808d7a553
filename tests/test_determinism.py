"""The same bits every time: from run to run, on any number of threads, and for a row whatever the rows around it."""

import itertools
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from accuracy import assert_same
from layers import DTYPES, LAYOUTS, Problem, draw, fast, run
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastrnn import _C
from fastrnn.reference import CELLS

ALL = pytest.mark.parametrize("cell", CELLS)
TAPES = pytest.mark.parametrize("tape", ["full", "lean"])
THREADS = (1, 2, 3, 4)
# steps, batch, inputs, hidden: rows are split for the first, alone or together; units for rows of the second alone.
SMALL, LARGE = (150, 37, 5, 40), (40, 33, 5, 256)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The number of threads is as it was, whatever a test sets it to."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def gradients(problem: Problem) -> dict[str, Tensor]:
    """What arrives at the outputs: of every row its own, so that a row can be followed into another batch."""
    rows, steps = (2 if problem.bidirectional else 1, problem.x.shape[1], problem.weights[1].shape[1]), len(problem.x)
    shapes = {"y": (steps, rows[1], rows[0] * rows[2]), "h_n": rows, "c_n": rows}
    return {name: torch.randn(shape).to(problem.x.dtype) for name, shape in shapes.items()} | (
        {"cells": torch.randn(shapes["y"])} if problem.cells else {}
    )


def by_row(found: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    """Those rows of everything that has rows; the weights' gradients have none."""
    return {name: t[:, rows] for name, t in found.items() if not name.startswith(("dw", "db"))}


@TAPES
@pytest.mark.parametrize("sizes", [SMALL, LARGE], ids=["small", "large"])
@ALL
def test_from_run_to_run(cell: str, sizes: tuple[int, ...], tape: str) -> None:
    problem = draw(cell, *sizes, bidirectional=True, layout="lengths", cells=True)
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        first = run(fast(tape), problem)
        for _ in range(3):
            assert_same(run(fast(tape), problem), first)


@TAPES
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "both"])
@pytest.mark.parametrize("sizes", [SMALL, LARGE], ids=["small", "large"])
@ALL
def test_a_row_in_any_batch_on_any_threads(cell: str, sizes: tuple[int, ...], bidirectional: bool, tape: str) -> None:
    """Outputs and gradients of a row: alone, with some of the others, in another order, among rows that are NaN."""
    problem = draw(cell, *sizes, bidirectional=bidirectional, layout="lengths", reset=True, cells=True)
    given, batch = gradients(problem), sizes[1]
    torch.set_num_threads(1)
    expected = run(fast(tape), problem, given)
    strangers = replace(problem, x=torch.where(torch.arange(batch)[:, None] < 3, problem.x, torch.nan))
    for count in THREADS:
        torch.set_num_threads(count)
        assert_same(by_row(run(fast(tape), problem, given), range(batch)), by_row(expected, range(batch)))
        assert_same(by_row(run(fast(tape), strangers, given), range(3)), by_row(expected, range(3)))
        for rows in ([0], [batch - 1], [5, 2], list(range(batch - 1, -1, -2)), list(range(7))):
            found = run(fast(tape), problem.row(*rows), {name: t[:, rows] for name, t in given.items()})
            assert_same(by_row(found, range(len(rows))), by_row(expected, rows))


@TAPES
@pytest.mark.parametrize("steps", [1, 70])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@ALL
def test_a_row_of_every_dtype(cell: str, dtype: torch.dtype, steps: int, tape: str) -> None:
    """A single step is computed in a way of its own, and keeps the promise as well."""
    problem = draw(cell, steps, 9, 37, 67, bidirectional=True, cells=True, dtype=dtype)
    given = gradients(problem)
    expected = run(fast(tape), problem, given)
    for count in THREADS:
        torch.set_num_threads(count)
        for rows in ([4], [8, 0, 3], range(9)):
            found = run(fast(tape), problem.row(*rows), {name: t[:, list(rows)] for name, t in given.items()})
            assert_same(by_row(found, range(len(rows))), by_row(expected, list(rows)))


@ALL
def test_a_row_padded_packed_and_alone(cell: str) -> None:
    """Padding costs nothing, not even a bit: as one of a padded batch, of a packed one, and by itself in its length.

    A call of a single step is apart: it reads the weights as they lie and sums in another order.
    """
    padded = draw(cell, 100, 6, 5, 33, bidirectional=True, layout="lengths", reset=True, cells=True)
    padded = replace(padded, lengths=torch.tensor([100, 93, 65, 64, 9, 2]))
    alive = padded.lengths > torch.arange(100)[:, None]
    given = gradients(padded)
    given |= {name: given[name] * alive[..., None] for name in ("y", "cells") if name in given}
    expected = run(fast(), padded, given)
    packed = replace(padded, x=padded.x[alive], lengths=None, batch_sizes=alive.sum(1))
    flat = {name: t[alive] if name in ("y", "cells") else t for name, t in given.items()}
    found = run(fast(), packed, flat)
    steps = ("y", "cells", "dx")
    assert_same(
        {name: t for name, t in found.items() if not name.startswith(("dw", "db"))},
        {name: t[alive] if name in steps else t for name, t in by_row(expected, range(6)).items()},
    )
    for b, length in enumerate(padded.lengths.tolist()):
        alone = replace(padded.row(b), x=padded.x[:length, [b]], reset=padded.reset[:length, [b]], lengths=None)
        mine = {name: t[:length, [b]] if name in steps else t[:, [b]] for name, t in given.items()}
        theirs = {name: t[:length] if name in steps else t for name, t in by_row(expected, [b]).items()}
        assert_same(by_row(run(fast(), alone, mine), [0]), theirs)


def plans(directions: int) -> set[str]:
    """How the passes of these tests are split, in words."""
    return {
        _C.cpu_plan(cell, steps, rows, inputs, hidden, directions, "float32", count).partition(", ")[2]
        for cell, (steps, batch, inputs, hidden), count in itertools.product(CELLS, (SMALL, LARGE), THREADS)
        for rows in (1, 2, 7, batch)
    }


def test_rows_and_units_were_split() -> None:
    assert "one thread" in plans(1)
    for count in THREADS[1:]:
        assert {f"rows split over {count} threads", f"units split over {count} threads"} <= plans(1)
    assert {f"a team of threads a direction, {kind} split over 2 threads" for kind in ("rows", "units")} <= plans(2)


@pytest.mark.parametrize("sizes", [(20, 16, 5, 40), (20, 2, 5, 256)], ids=["small", "large"])
@ALL
def test_threads_that_call_at_once(cell: str, sizes: tuple[int, ...]) -> None:
    problems = [draw(cell, *sizes, bidirectional=k % 2 == 1, layout=LAYOUTS[k % 3]) for k in range(12)]
    expected = [run(fast(), problem) for problem in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, theirs in zip(pool.map(lambda p: run(fast(), p), problems), expected, strict=True):
                assert_same(found, theirs)


def in_a_process(code: str, **environment: str) -> str:
    """What a program prints, which must end: one that waits for ever is stopped, one on a slow machine is not."""
    header = """
    import os
    import torch
    from accuracy import assert_same
    from fastrnn import _C
    from fastrnn.reference import CELLS
    from layers import draw, fast, run
    from test_determinism import by_row
    _C.cpu_assume(64, False)
    torch.manual_seed(0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(header) + textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("sizes", [(50, 16, 5, 40), (20, 2, 5, 256)], ids=["small", "large"])
def test_fork_after_use(sizes: tuple[int, ...]) -> None:
    """A forked process has none of its parent's threads, and the engine does not wait for them.

    Training also takes operators of torch's own, like the product of matrices, which do wait, as all of torch does
    (and torch.nn's layers with it) until the process is told to use one thread. A DataLoader tells its workers so.
    """
    code = f"""
    torch.set_num_threads(2)
    for cell in CELLS:
        problem, rows = draw(cell, *{sizes}, layout="lengths", cells=True), range({sizes}[1])
        outputs, expected = fast()(problem), run(fast(), problem)
        child = os.fork()
        if child == 0:
            assert "one thread" in _C.cpu_plan(cell, *{sizes}, 1, "float32", 2)
            assert all(map(torch.equal, fast()(problem), outputs))
            torch.set_num_threads(1)
            found = run(fast(), problem)
            assert found.keys() == expected.keys()
            assert_same(by_row(found, rows), by_row(expected, rows))
            print(cell, "in the child", flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert_same(run(fast(), problem), expected)
        assert "split over 2" in _C.cpu_plan(cell, *{sizes}, 1, "float32", 2)
    """
    assert in_a_process(code).splitlines() == [f"{cell} in the child" for cell in CELLS]


class Layers(Dataset):
    """Data that a layer computes."""

    def __len__(self) -> int:
        return len(CELLS)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        torch.manual_seed(k)
        return run(fast(), draw(list(CELLS)[k], 20, 16, 5, 40))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than there are cores
def test_workers_of_a_data_loader() -> None:
    torch.set_num_threads(2)
    expected = list(Layers())
    loader = DataLoader(Layers(), num_workers=2, batch_size=None, timeout=600)
    for found, theirs in zip(loader, expected, strict=True):
        assert_same(by_row(found, range(16)), by_row(theirs, range(16)))


@pytest.mark.skipif(sys.platform != "linux", reason="torch's threads are another library's there")
@pytest.mark.parametrize("sizes", [(20, 16, 5, 40), (20, 2, 5, 256)], ids=["small", "large"])
def test_inside_a_parallel_region(sizes: tuple[int, ...]) -> None:
    """There a loop's shares all come to the calling thread, which must not wait for itself at a barrier."""
    code = f"""
    import ctypes
    torch.set_num_threads(2)
    problems, found = [draw(cell, *{sizes}) for cell in CELLS], []
    expected = [run(fast(), problem) for problem in problems]

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def body(_):
        found.append([run(fast(), problem) for problem in problems])

    # The threads are those of the library that torch has loaded: OpenMP's, or there is no such region.
    with open("/proc/self/maps") as maps:
        libraries = {{line.split()[-1] for line in maps if "libgomp" in line}}
    for library in libraries:
        ctypes.CDLL(library).GOMP_parallel(body, None, 2, 0)
    for results in found:
        for ours, theirs in zip(results, expected):
            assert_same(by_row(ours, range({sizes}[1])), by_row(theirs, range({sizes}[1])))
    assert len(found) == 2 * len(libraries)
    print(len(libraries))
    """
    if int(in_a_process(code)) == 0:
        pytest.skip("torch's threads are not OpenMP's")


@pytest.mark.parametrize("sizes", [(20, 16, 5, 40), (20, 2, 5, 256)], ids=["small", "large"])
def test_fewer_threads_than_planned(sizes: tuple[int, ...]) -> None:
    """Where four are planned and two come, each has two shares at the barrier."""
    code = f"""
    for cell in CELLS:
        problem = draw(cell, *{sizes}, bidirectional=True)
        torch.set_num_threads(1)
        expected = run(fast(), problem)
        torch.set_num_threads(4)
        rows = range({sizes}[1])
        assert_same(by_row(run(fast(), problem), rows), by_row(expected, rows))
        print(_C.cpu_plan(cell, *{sizes}, 1, "float32", 4).partition(", ")[2])
    """
    kind = "rows" if sizes[1] > 4 else "units"
    assert f"{kind} split over 4 threads" in in_a_process(code, OMP_THREAD_LIMIT="2")
