"""Threads without cores of their own: more of them than there are cores, and another program on one of the cores.

fastrnn is to be no slower than torch.nn with as many threads, and at most a tenth slower than with one thread. Each has
its number of threads for a while, and then the next one's turn comes: to set it makes and ends threads.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from bench import results, timing
from bench.calls import calls
from bench.check import check_stacks
from bench.contestants import fastrnn_stack, torch_stack
from bench.grid import CELLS, Shape
from bench.plan import MODES
from bench.results import BASELINE, Case, Provenance, Row
from fastrnn._arguments import positive_float

SHAPES = tuple(Shape(batch, 50, hidden, hidden) for batch in (1, 8) for hidden in (64, 256, 512))
ALONE = "fastrnn, one thread"
MOST = {BASELINE: 1.0, ALONE: 1.1}  # times as long as these
TURNS = 2  # long ones, for a thread that gave way tries again after a while
MANY = 4  # threads a core
NEIGHBOUR = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[2])})
while os.getppid() == int(sys.argv[1]):
    pass
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``threads`` to the command line."""
    parser = commands.add_parser("threads", help="measure with more threads than cores, and beside a busy program")
    parser.set_defaults(run=run)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=["lstm", "gru", "rnn_tanh"], metavar="CELL")
    parser.add_argument("--seconds", type=positive_float, default=3.0, help="per row (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/threads.jsonl"), help="results (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Measure, print a line for each row, and write the rows; 1 where a target is missed, which a busy machine does."""
    if not hasattr(os, "sched_setaffinity"):
        print("bench threads: this system cannot bind a program to a core", file=sys.stderr)
        return 2
    missed: list[Row] = []
    before = torch.get_num_threads()
    try:
        results.write(options.out, _printed(rows(options.cells, options.seconds), missed))
    finally:
        torch.set_num_threads(before)
    print(f"results: {options.out}; {len(missed)} rows beyond the targets")
    return 1 if missed else 0


def rows(cells: Sequence[str], seconds: float, shapes: Sequence[Shape] = SHAPES) -> Iterator[Row]:
    """A row for each way to be short of cores, cell, shape and mode."""
    cores = sorted(os.sched_getaffinity(0))
    for how, threads in (("threads", MANY * len(cores)), ("neighbour", len(cores))):
        for cell in cells:
            for shape in shapes:
                for mode in MODES:
                    with _neighbour(cores[-1] if how == "neighbour" else None):
                        yield row(how, threads, (cell, shape, mode), seconds)


def row(how: str, threads: int, case: tuple[str, Shape, str], seconds: float) -> Row:
    """Check and time one case; ``detail`` has how many times as long fastrnn takes as the others."""
    cell, shape, mode = case
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layer = torch_stack(cell, shape, torch.float32)
    x = torch.randn(shape.steps, shape.batch, shape.input)
    stacks = {BASELINE: layer, "fastrnn": fastrnn_stack(layer)}
    error_ratio = check_stacks({"fastrnn": stacks["fastrnn"]}, layer, x)
    made = calls(stacks, x, mode)
    contestants = {name: (call, threads) for name, call in made.items()} | {ALONE: (made["fastrnn"], 1)}
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    with timing.no_collection():
        for turn in range(TURNS):
            for name in timing.in_turns(list(contestants), turn):
                taken[name] += _slice(*contestants[name], seconds / TURNS / len(contestants))
    times = {name: timing.Times.of(seconds) for name, seconds in taken.items()}
    ratios = {name: times["fastrnn"].median / times[name].median for name in MOST}
    return Row(
        benchmark="threads",
        case=Case.of(cell, shape, "float32", mode),
        threads=threads,
        times=times,
        provenance=Provenance.here_and_now(),
        detail={"error_ratio": error_ratio, "short_of_cores": how, "times_as_long": ratios},
    )


def _slice(call: Callable[[], object], threads: int, seconds: float) -> list[float]:
    torch.set_num_threads(threads)
    call()
    clock = partial(timing.by_host, call, 1)
    taken, end = [clock()], time.perf_counter() + seconds
    while time.perf_counter() < end:
        taken.append(clock())
    return taken


@contextmanager
def _neighbour(core: int | None) -> Iterator[None]:
    """Another program that keeps that core busy."""
    if core is None:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", NEIGHBOUR, str(os.getpid()), str(core)]) as program:
        try:
            yield
        finally:
            program.kill()


def _printed(measured: Iterator[Row], missed: list[Row]) -> Iterator[Row]:
    print(f"{'':58}{'times as long as torch.nn':>28}{'one thread':>12}")
    for found in measured:
        ratios, how = found.detail["times_as_long"], found.detail["short_of_cores"]
        beyond = any(ratios[name] > most for name, most in MOST.items())
        if beyond:
            missed.append(found)
        what = f"{found.threads} threads" + (", a busy neighbour" if how == "neighbour" else "")
        numbers = f"{ratios[BASELINE]:>18.2f}{ratios[ALONE]:>12.2f}"
        print(
            f"{what:30}{found.case.cell:10}{found.case.mode:10}{found.case.shape!s:18}{numbers}{' !' * beyond}",
            flush=True,
        )
        yield found
