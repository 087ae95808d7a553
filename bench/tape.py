"""The lean tape: what is kept for backward and how long training takes, by the number of steps."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bench.calls import calls, timed
from bench.check import check_stacks
from bench.contestants import fastrnn_stack, torch_stack
from bench.grid import Shape
from bench.plan import DTYPES, Job, Plan
from bench.results import BASELINE, Row

LEAN = "fastrnn lean"
SHAPES = tuple(Shape(32, steps, 128, 128) for steps in (25, 100, 400, 1600))


def jobs(plan: Plan) -> list[Job]:
    """A row for each cell and number of steps."""
    pairs = [(cell, shape) for cell in plan.gated for shape in SHAPES]
    return [Job(f"tape {cell} T{shape.steps}", 1, partial(measure, cell, plan, shape)) for cell, shape in pairs]


def kept_bytes(stack: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for backward, each storage once; those of ``x`` and of the weights are not counted."""
    x = x.clone().requires_grad_()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # what is kept stays alive: no two storages have the same place

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        returned = stack(x)
    for given in (x, *stack.parameters()):
        kept.pop(given.untyped_storage().data_ptr(), None)
    del returned  # until here
    return sum(kept.values())


def measure(cell: str, plan: Plan, shape: Shape) -> Iterator[Row]:
    """Check and time training with both tapes, and count what they keep."""
    torch.manual_seed(0)
    dtype = DTYPES[plan.dtype]
    layer = torch_stack(cell, shape, dtype)
    x = torch.randn(shape.steps, shape.batch, shape.input, dtype=dtype)
    full, lean = fastrnn_stack(layer), fastrnn_stack(layer)
    lean.tape = "lean"
    others = {"fastrnn": full, LEAN: lean}
    stacks = {BASELINE: layer, **others}
    detail = {
        "error_ratio": check_stacks(others, layer, x),
        "kept_bytes": {name: kept_bytes(stack.train(), x) for name, stack in stacks.items()},
        "y_bytes": shape.steps * shape.batch * shape.hidden * dtype.itemsize,
    }
    yield timed("tape", (cell, shape, "training"), plan, calls(stacks, x, "training"), detail)
