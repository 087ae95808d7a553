"""Layers on the CPU: every cell and shape of a grid, in inference and in training."""

from collections.abc import Iterator
from functools import partial

import torch

from bench.calls import calls, timed
from bench.check import check_stacks
from bench.contestants import CONTESTANTS, torch_stack, versions
from bench.grid import Shape
from bench.plan import DTYPES, MODES, Job, Plan
from bench.results import BASELINE, Row


def jobs(plan: Plan) -> list[Job]:
    """Cells and shapes in the order in which they are run."""
    layers = [(cell, shape) for cell in plan.cells for shape in plan.shapes]
    return [Job(f"{cell} {shape}", len(MODES), partial(measure, cell, shape, plan)) for cell, shape in layers]


def measure(cell: str, shape: Shape, plan: Plan) -> Iterator[Row]:
    """Check the contestants on one layer, then time them in each mode.

    Raises:
        MismatchError: fastrnn computes something else than torch.nn; nothing is timed then. Others are left out.
    """
    torch.manual_seed(0)
    dtype = DTYPES[plan.dtype]
    baseline = torch_stack(cell, shape, dtype)
    x = torch.randn(shape.steps, shape.batch, shape.input, dtype=dtype)
    stacks = {name: CONTESTANTS[name](baseline) for name in plan.contestants}
    others = {name: stack for name, stack in stacks.items() if name != BASELINE}
    left_out: dict[str, str] = {}
    error_ratio = check_stacks(others, baseline, x, left_out=left_out)
    detail = {"error_ratio": error_ratio, "left_out": left_out, "versions": versions(plan.contestants)}
    stacks = {name: stack for name, stack in stacks.items() if name not in left_out}
    for mode in MODES:
        yield timed("layer", (cell, shape, mode), plan, calls(stacks, x, mode), detail)
