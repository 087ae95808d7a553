"""Host time: what a layer's call on a GPU takes on the CPU, before the GPU has anything to wait for.

Measured without a GPU, at the desk (:mod:`bench.gpu.desk`): Triton's launches go all their way to a driver that runs
nothing. torch's operators are computed by the CPU, of sizes so small that it is calling them that takes the time; a
GPU's host has to launch a kernel for most of them instead. Python does the same whatever the sizes are, but for the
steps of a strategy that launches a kernel for each.

What is told is the CPU time of the process, of the fastest of many turns of a few calls: other work on the machine is
in the way of most of them. Times of different machines do not compare, nor do those of different loads.
"""

import argparse
import gc
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench import results, timing
from bench.grid import GATES, Shape
from bench.results import Case, Provenance, Row
from fastrnn._arguments import positive_float

CALLS = 5  # of a turn
GRID = {"tile": 16, "units": 8, "depth": 32, "split": 8, "held": "registers", "warps": 8, "stages": 2}
OPERATORS = ("layer", "layer_forward", "layer_backward")


class What(NamedTuple):
    """A plan, as it is forced, and a number of steps."""

    strategy: str
    steps: int
    choices: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.strategy}, T={self.steps}"


WHATS = (What("grid", 16, GRID), What("stepwise", 32, {}), What("stepwise", 128, {}))
SHAPE = Shape(batch=1, steps=0, input=16, hidden=16)
MODES = ("inference", "training")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``host`` to the command line."""
    parser = commands.add_parser("host", help="measure what calls for a GPU take on the CPU, without a GPU")
    parser.set_defaults(run=run)
    parser.add_argument("--strategy", nargs="+", choices=[*dict.fromkeys(what.strategy for what in WHATS)])
    parser.add_argument("--cell", nargs="+", choices=list(GATES), default=["lstm"], metavar="CELL")
    parser.add_argument("--seconds", type=positive_float, default=2.0, help="per row (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/host.jsonl"), help="results (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Measure, print a line for each row, and write the rows."""
    if torch.cuda.is_available():
        print("bench host: this measures without a GPU, and there is one", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # the others would only spin
    enter()
    print(f"{'':26}{'microseconds':>14}{'launches':>10}{'operators':>11}")
    results.write(options.out, _printed(rows(options.strategy, options.cell, options.seconds)))
    print(f"results: {options.out}")
    return 0


def enter() -> None:
    """Take this machine for one with a GPU, and have fastrnn's operators for CUDA called with CPU tensors, for good."""
    from bench.gpu import desk
    from fastrnn import _autograd, _cuda

    desk.enter(tensors=False)
    _autograd._directly = lambda *args: None  # as of tensors on a GPU, which are left to the dispatcher
    library = torch.library.Library("fastrnn", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that others' operators are overridden
        for name in OPERATORS:
            library.impl(name, _counting(getattr(_cuda, name)), "CPU", allow_override=True)
    _kept.append(library)  # or the operators are what they were again


def rows(strategies: Sequence[str] | None, cells: Sequence[str], seconds: float) -> Iterator[Row]:
    """A row for each plan, cell and mode."""
    from fastrnn.kernels.plan import forced

    for what in WHATS:
        for cell in cells:
            for mode in MODES if strategies is None or what.strategy in strategies else ():
                with forced(strategy=what.strategy, **what.choices):
                    yield row(what, cell, mode, seconds)


def row(what: What, cell: str, mode: str, seconds: float) -> Row:
    """Measure a call; ``detail`` has how many launches and operators of torch's there are in it."""
    from bench.gpu import desk

    call = calls(what, cell)[mode]
    call()  # compiles
    before = desk.launches()
    with _counted() as operators:
        call()
    detail = {"plan": str(what), "launches": desk.launches() - before, "operators": len(operators)}
    times, least = timed(call, seconds)
    shape = Shape(SHAPE.batch, what.steps, SHAPE.input, SHAPE.hidden)
    return Row(
        benchmark="host",
        case=Case.of(cell, shape, "bfloat16", mode),
        threads=torch.get_num_threads(),
        times={"fastrnn": times},
        provenance=Provenance.here_and_now(),
        detail={**detail, "least": least},
    )


def calls(what: What, cell: str) -> dict[str, Callable[[], object]]:
    """A layer's calls by mode."""
    from fastrnn import _autograd

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes).mul_(0.1).bfloat16()

    gates, hidden = GATES[cell] * SHAPE.hidden, SHAPE.hidden
    x, dy = random(what.steps, SHAPE.batch, SHAPE.input), random(what.steps, SHAPE.batch, hidden)
    inputs = [x, random(gates, SHAPE.input), random(gates, hidden), random(gates), random(gates)]
    for t in inputs:
        t.requires_grad_()
    layout = _autograd.Layout(cell, False, "full", False)

    def layer() -> Tensor:
        return _autograd.layer(layout, x, None, None, inputs[1:], None, None, None)[0]

    def inference() -> None:
        with torch.no_grad():
            layer()

    def training() -> None:
        torch.autograd.grad(layer(), inputs, dy)

    return {"inference": inference, "training": training}


def timed(call: Callable[[], object], seconds: float) -> tuple[timing.Times, float]:
    """CPU seconds of a call, over turns that last so long together, and of the fastest turn."""
    taken: list[float] = []
    gc.collect()
    with timing.no_collection():
        end = time.perf_counter() + seconds
        while not taken or time.perf_counter() < end:
            begin = time.process_time()
            for _ in range(CALLS):
                call()
            taken.append((time.process_time() - begin) / CALLS)
    return timing.Times.of(taken), min(taken)


def _printed(measured: Iterator[Row]) -> Iterator[Row]:
    for one in measured:
        detail, name = one.detail, f"{one.detail['plan']}, {one.case.cell} {one.case.mode}"
        print(f"{name:32}{1e6 * detail['least']:>8.0f}{detail['launches']:>10}{detail['operators']:>11}", flush=True)
        yield one


# ---- Operators within fastrnn's ----

_kept: list[object] = []
_counts: list[list[str]] = []  # the innermost of those who count


class _Count(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _counts[-1].append(str(func))
        return func(*args, **(kwargs or {}))


def _counting(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The operator; while somebody counts, what it calls is counted, and what calls it takes its usual way."""

    def count(*args: Any) -> Any:
        if not _counts:
            return operator(*args)
        with _Count():
            return operator(*args)

    return count


@contextmanager
def _counted() -> Iterator[list[str]]:
    found: list[str] = []
    _counts.append(found)
    try:
        yield found
    finally:
        _counts.pop()
