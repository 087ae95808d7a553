"""The first that a GPU is to do: a layer of each gated cell, forward and backward, by one strategy of the kernels.

``python -m bench.gpu.smoke "grid, registers, barrier"``, a process for each strategy, since a fault costs the process.
Right is what the tests call so (:mod:`bench.check`), and what is the same in a second call. The sizes are those of the
rows that are measured next, but for the steps.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from bench.check import MismatchError, check_stacks
from bench.gpu import contestants, measure
from bench.gpu.cases import Task
from bench.gpu.strategies import STRATEGIES
from bench.grid import Shape
from bench.results import BASELINE

CELLS = ("lstm", "gru")  # GRU's products by torch go into rows of a larger matrix
SHAPES = {"resident": Shape(16, 64, 96, 128)}
SHAPE = Shape(16, 64, 512, 512)  # of the others, for which layers have to be larger
DTYPE = "bfloat16"


def main(arguments: list[str] | None = None) -> int:
    """Run one strategy; 0 is success, 1 a wrong result or whatever was raised, 2 that there is nothing to run on."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.smoke", description="Layers by one strategy.")
    parser.add_argument("strategy", choices=list(STRATEGIES))
    strategy = parser.parse_args(arguments).strategy
    if contestants.DEVICE == "cuda" and not torch.cuda.is_available():
        print("bench.gpu.smoke: there is no CUDA device here", file=sys.stderr)
        return 2
    begin, cell = time.monotonic(), ""
    try:
        for cell, worst in computed(strategy):
            took = time.monotonic() - begin
            print(f"smoke: {strategy}, {cell}: right, {worst:.2f} times torch's error; {took:.1f} s", flush=True)
    except Exception as error:  # whatever a compiler, a launch or a check raises
        where = f"after {cell}" if cell else CELLS[0]
        print(f"smoke: {strategy}, {where}: {measure.first_line(error)}", flush=True)
        raise
    return 0


def computed(strategy: str) -> Iterator[tuple[str, float]]:
    """Each cell that the strategy has computed right, and its largest error as a multiple of torch's own.

    Raises:
        MismatchError: a result is wrong, or another one in a second call.
    """
    from fastrnn.kernels import barrier

    for cell in CELLS:
        task = Task("layer", cell, SHAPES.get(strategy, SHAPE), DTYPE, None)
        plan = contestants.best_plan(task, [strategy])
        if plan is None:
            raise LookupError(f"no plan of it fits {task}")
        print(f"smoke: {strategy}, {cell}: {plan}", flush=True)
        made = contestants.prepare(task, with_strategies=False)
        ours, under = made.stacks["fastrnn"], partial(contestants.forced, plan)
        with under():
            once, again = (_trained(ours, made.x) for _ in range(2))
        ratios = check_stacks(
            {"fastrnn": ours}, made.stacks[BASELINE], made.x, made.reference, under={"fastrnn": under}
        )
        if made.x.is_cuda:
            barrier.check(made.x.device)
        if not all(torch.equal(a, b) for a, b in zip(once, again, strict=True)):
            raise MismatchError(f"{cell}: another result in a second call")
        yield cell, ratios["fastrnn"]


def _trained(stack: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, last states and gradients."""
    x = x.clone().requires_grad_()
    y, state = stack(x)
    outputs = [y, *(state if isinstance(state, tuple) else (state,))]
    gradients = torch.autograd.grad(outputs, [x, *stack.parameters()], [torch.ones_like(v) for v in outputs])
    return [*outputs, *gradients]


if __name__ == "__main__":
    from bench.gpu import smoke  # by its name, under which a dry run has changed the sizes

    sys.exit(smoke.main())
