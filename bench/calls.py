"""What is timed: a call of a stack in inference or in training, and the row that its times become."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench import roofline, timing
from bench.contestants import OWN_THREADS
from bench.grid import Shape
from bench.plan import Plan
from bench.results import Case, Provenance, Row

Calls = dict[str, Callable[[], object]]


def calls(stacks: Mapping[str, nn.Module], x: Tensor, mode: str) -> Calls:
    """A call of each stack that can do it: some only infer."""
    if mode == "inference":
        return {name: _inference(stack, x) for name, stack in stacks.items()}
    able = {name: stack for name, stack in stacks.items() if not getattr(stack, "inference_only", False)}
    return {name: _training(stack, x) for name, stack in able.items()}


def timed(
    benchmark: str,
    case: tuple[str, Shape, str],
    plan: Plan,
    contestants: Calls,
    detail: Mapping[str, Any],
    batch_sizes: Sequence[int] | None = None,
) -> Row:
    """Time calls that were checked.

    Args:
        benchmark: its name.
        case: cell, shape and mode.
        plan: the dtype and how long.
        contestants: their calls by name.
        detail: what the benchmark has to say beside the machine's limit, which is added here.
        batch_sizes: the rows that are alive at each step, where not all are.
    """
    cell, shape, mode = case
    threads = torch.get_num_threads()
    rates = roofline.measured(plan.dtype, threads)
    work = roofline.work(cell, shape, plan.dtype, mode, rates, batch_sizes)
    times = timing.measure(contestants, plan.seconds, apart=OWN_THREADS)
    limits = {
        "limit": work.limit,
        "fraction": {name: work.limit / t.median for name, t in times.items()},
        "gemm_fraction": {name: work.flops / t.median / rates.gemm for name, t in times.items()},
        "rates": rates.detail(),
    }
    return Row(
        benchmark=benchmark,
        case=Case.of(cell, shape, plan.dtype, mode),
        threads=threads,
        times=times,
        provenance=Provenance.here_and_now(),
        detail={**detail, **limits},
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
