"""How the time grows: along the number of threads, the batch size, the steps and the hidden units, one at a time."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from bench.calls import calls, timed
from bench.check import check_stacks
from bench.contestants import fastrnn_stack, torch_stack
from bench.grid import Shape
from bench.plan import DTYPES, MODES, Job, Plan
from bench.results import BASELINE, Row

BATCHES = tuple(Shape(batch, 100, 128, 128) for batch in (1, 4, 16, 64, 256))
STEPS = tuple(Shape(1, steps, 64, 64) for steps in (10, 100, 1000, 10_000, 100_000))
HIDDEN = tuple(Shape(16, 100, hidden, hidden) for hidden in (32, 64, 128, 256, 512, 1024))
THREADS = Shape(32, 100, 256, 256)
LOOPED = 1000  # steps up to which the reference is a loop over cells, which takes long


@dataclass(frozen=True)
class Point:
    """A place on one of the axes ``threads``, ``B``, ``T``, ``H``."""

    axis: str
    value: int
    shape: Shape


def points(threads: int) -> list[Point]:
    """All of them; the numbers of threads are powers of two, up to that of this run, and that one."""
    counts = sorted({threads, *(2**k for k in range(threads.bit_length()) if 2**k <= threads)})
    return [
        *(Point("threads", count, THREADS) for count in counts),
        *(Point("B", shape.batch, shape) for shape in BATCHES),
        *(Point("T", shape.steps, shape) for shape in STEPS),
        *(Point("H", shape.hidden, shape) for shape in HIDDEN),
    ]


def jobs(plan: Plan) -> list[Job]:
    """Two rows for each point, of one cell: another would tell little more about growth."""
    pairs = [(cell, point) for cell in plan.gated[:1] for point in points(torch.get_num_threads())]
    return [Job(f"scaling {c} {p.axis}={p.value}", len(MODES), partial(measure, c, plan, p)) for c, p in pairs]


def measure(cell: str, plan: Plan, point: Point) -> Iterator[Row]:
    """Check and time one point."""
    before = torch.get_num_threads()
    try:
        if point.axis == "threads":
            torch.set_num_threads(point.value)
        rows = list(_measure(cell, plan, point))
    finally:
        torch.set_num_threads(before)
    yield from rows


def _measure(cell: str, plan: Plan, point: Point) -> Iterator[Row]:
    torch.manual_seed(0)
    dtype, shape = DTYPES[plan.dtype], point.shape
    layer = torch_stack(cell, shape, dtype)
    x = torch.randn(shape.steps, shape.batch, shape.input, dtype=dtype)
    stacks = {BASELINE: layer, "fastrnn": fastrnn_stack(layer)}
    reference = copy.deepcopy(layer) if shape.steps > LOOPED else None
    error_ratio = check_stacks({"fastrnn": stacks["fastrnn"]}, layer, x, reference)
    detail = {"error_ratio": error_ratio, "axis": point.axis, "value": point.value}
    for mode in MODES:
        yield timed("scaling", (cell, shape, mode), plan, calls(stacks, x, mode), detail)
