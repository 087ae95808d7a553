"""bfloat16 weights in float32 inference: how much of the time that reading float32 weights takes."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastrnn
from bench.calls import calls, timed
from bench.check import check_stacks
from bench.contestants import fastrnn_stack, torch_stack
from bench.grid import Shape
from bench.plan import DTYPES, Job, Plan
from bench.results import BASELINE, Row

HALF = "fastrnn bfloat16 weights"
SHAPES = (Shape(1, 100, 512, 512), Shape(1, 100, 1024, 1024), Shape(1, 1, 512, 512))


class Halved(nn.Module):
    """A layer with bfloat16 weights, which only infers."""

    inference_only = True

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = fastrnn.convert(copy.deepcopy(layer), weight_dtype=torch.bfloat16)

    def to(self, *args: Any, **kwargs: Any) -> "Halved":
        """Nothing: those who check convert a contestant to the input's dtype, which it takes already."""
        return self

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


def jobs(plan: Plan) -> list[Job]:
    """A row for each cell and shape."""
    pairs = [(cell, shape) for cell in plan.gated for shape in SHAPES]
    return [Job(f"weights {cell} {shape}", 1, partial(measure, cell, plan, shape)) for cell, shape in pairs]


def measure(cell: str, plan: Plan, shape: Shape) -> Iterator[Row]:
    """Check and time inference with the same weights, which are bfloat16 numbers, stored both ways."""
    torch.manual_seed(0)
    dtype = DTYPES[plan.dtype]
    layer = torch_stack(cell, shape, dtype)
    with torch.no_grad():
        for weights in layer.parameters():
            weights.copy_(weights.bfloat16())
    x = torch.randn(shape.steps, shape.batch, shape.input, dtype=dtype)
    fast = fastrnn_stack(layer)
    others = {"fastrnn": fast, HALF: Halved(fast)}
    detail = {"error_ratio": check_stacks(others, layer, x, training=False)}
    case = (cell, shape, "inference")
    yield timed("weights", case, plan, calls({BASELINE: layer, **others}, x, "inference"), detail)
