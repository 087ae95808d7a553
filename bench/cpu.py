"""Layers on the CPU: every cell and shape of a grid, in inference and in training."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench import timing
from bench.check import check_stacks
from bench.contestants import CONTESTANTS, torch_stack
from bench.grid import Shape
from bench.results import BASELINE, Case, Provenance, Row

MODES = ("inference", "training")
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Plan:
    """What to measure and how long: ``seconds`` is for one case, all contestants together."""

    cells: Sequence[str]
    shapes: Sequence[Shape]
    dtype: str
    contestants: Sequence[str]
    seconds: float

    def layers(self) -> list[tuple[str, Shape]]:
        """Cells and shapes in the order in which they are run."""
        return [(cell, shape) for cell in self.cells for shape in self.shapes]


def measure(cell: str, shape: Shape, plan: Plan) -> Iterator[Row]:
    """Check the contestants on one layer, then time them in each mode.

    Raises:
        MismatchError: a contestant computes something else than torch.nn; nothing is timed then.
    """
    torch.manual_seed(0)
    dtype = DTYPES[plan.dtype]
    baseline = torch_stack(cell, shape, dtype)
    x = torch.randn(shape.steps, shape.batch, shape.input, dtype=dtype)
    stacks = {name: CONTESTANTS[name](baseline) for name in plan.contestants}
    others = {name: stack for name, stack in stacks.items() if name != BASELINE}
    detail = {"error_ratio": check_stacks(others, baseline, x)}
    for mode in MODES:
        calls = {name: _inference(s, x) if mode == "inference" else _training(s, x) for name, s in stacks.items()}
        times = timing.measure(calls, plan.seconds)
        yield Row(
            benchmark="layer",
            case=Case.of(cell, shape, plan.dtype, mode),
            threads=torch.get_num_threads(),
            times=times,
            provenance=Provenance.here_and_now(),
            detail=detail,
        )


def _inference(stack: nn.Module, x: Tensor) -> Callable[[], object]:
    stack.eval()

    def call() -> None:
        with torch.inference_mode():
            stack(x)

    return call


def _training(stack: nn.Module, x: Tensor) -> Callable[[], object]:
    stack.train()
    x = x.clone().requires_grad_()
    inputs = [x, *stack.parameters()]
    dy = torch.randn_like(stack(x)[0])

    def call() -> None:
        y, _ = stack(x)
        torch.autograd.grad(y, inputs, dy)

    return call
