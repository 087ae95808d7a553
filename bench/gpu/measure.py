"""The check and the rows of a case on a GPU."""

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch

import fastrnn
from bench import roofline, timing
from bench.calls import calls
from bench.check import check_stacks
from bench.gpu import clock, contestants, memory
from bench.gpu.cases import Task
from bench.gpu.contestants import Prepared
from bench.plan import DTYPES
from bench.results import BASELINE, Device, Provenance, Row

PRODUCT = 4096  # of square matrices that tell the rate
PRODUCT_SECONDS = 0.1
LEAST_TURNS = 5


def measure(
    task: Task,
    seconds: float,
    graphs: bool = False,
    with_strategies: bool = True,
    left_out: Mapping[str, str] | None = None,
) -> Iterator[Row]:
    """Check the contestants, then time them in each mode of the task.

    A contestant that cannot run, or computes something else, is left out, and the rows say why; of fastrnn as it plans
    by itself, and of torch.nn, that ends the case.

    Args:
        task: the case.
        seconds: for each row, all contestants together.
        graphs: whether to time replays of CUDA graphs; a task may ask for that itself.
        with_strategies: whether fastrnn's strategies take part one by one.
        left_out: those that do not, with the reasons (:mod:`bench.gpu.strategies`).

    Raises:
        MismatchError: fastrnn computes something else than torch.nn.
        RuntimeError: fastrnn would compute it by a strategy that is left out.
    """
    graphs = graphs or task.graphs
    with nullcontext() if task.tf32 is None else clock.tf32(task.tf32):
        made = contestants.prepare(task, with_strategies, left_out)
        training = "training" in task.modes
        failed = _not_able(made, training)
        others = {name: stack for name, stack in made.stacks.items() if name != BASELINE and name not in failed}
        error_ratio = check_stacks(others, made.stacks[BASELINE], made.x, made.reference, training, failed, made.under)
        with torch.no_grad():
            explained = fastrnn.explain(made.stacks["fastrnn"], made.x)
        detail = {
            **made.detail,
            "error_ratio": error_ratio,
            "tf32": task.tf32,
            "clock": "graphs" if graphs else "events",
            "plan": [{"engine": e.engine, "kernel": e.kernel, "reason": e.reason} for e in explained.layers],
        }
        if left_out:
            detail["strategies_left_out"] = dict(left_out)
        stacks = {name: stack for name, stack in made.stacks.items() if name not in failed}
        made.reference = torch.nn.Identity()  # its memory is wanted
        for mode in task.modes:
            own = dict(failed)
            contenders = {
                name: clock.Call(run, made.under.get(name, nullcontext))
                for name, run in calls(stacks, made.x, mode).items()
            }
            sizes: dict[str, Any] = {}
            if task.benchmark == "lean":
                shape = task.shape
                y_numbers = shape.steps * shape.batch * shape.hidden * shape.directions
                runs = {name: call.run for name, call in contenders.items()}
                sizes = memory.of_training(made, runs, y_numbers * made.x.element_size())
            if graphs:
                contenders = _captured(contenders, own)
            times = timing.measure(contenders, seconds, LEAST_TURNS, clock=clock.by_events)
            yield _row(task, mode, times, {**detail, **sizes, "left_out": own}, made.batch_sizes)


def not_measured(task: Task, mode: str, reason: str) -> Row:
    """The row of a case that was not measured."""
    return _row(task, mode, {}, {"tf32": task.tf32, "not_measured": reason}, None)


def device() -> Device:
    """What it is measured on."""
    return Device.here()


@cache
def gemm_rate(dtype: str, tf32: bool | None) -> float:
    """Operations per second of torch.mm, under the setting of TF32 that there is."""
    matrix = torch.randn(PRODUCT, PRODUCT, device=contestants.DEVICE).to(DTYPES[dtype])
    product = clock.Call(lambda: torch.mm(matrix, matrix))
    return 2 * PRODUCT**3 / timing.measure({"mm": product}, PRODUCT_SECONDS, clock=clock.by_events)["mm"].median


def _row(task: Task, mode: str, times: dict[str, timing.Times], detail: dict[str, Any], sizes: list[int] | None) -> Row:
    if times:
        rate = gemm_rate(task.dtype, task.tf32)
        work = roofline.work(task.cell, task.shape, task.dtype, mode, roofline.Rates(rate, {0: math.inf}), sizes)
        fractions = {name: work.flops / t.median / rate for name, t in times.items()}
        detail = {**detail, "flops": work.flops, "gemm": rate, "gemm_fraction": fractions}
    return Row(
        benchmark=task.benchmark,
        case=task.case(mode),
        threads=torch.get_num_threads(),
        times=times,
        provenance=Provenance.here_and_now(device()),
        detail=detail,
    )


def _not_able(made: Prepared, training: bool) -> dict[str, str]:
    """The strategies that cannot do the case, with the reason: whatever a compiler or a launch raises."""
    reasons = {}
    for name in made.under:
        try:
            with contestants.context(made, name):
                call = calls({name: made.stacks[name]}, made.x, "training" if training else "inference")[name]
                call()
                if made.x.is_cuda:
                    torch.cuda.synchronize()
        except Exception as error:
            reasons[name] = first_line(error)
    return reasons


def _captured(contenders: dict[str, clock.Call], left_out: dict[str, str]) -> dict[str, clock.Call]:
    replays = {}
    for name, call in contenders.items():
        try:
            replays[name] = clock.captured(call)
        except Exception as error:
            left_out[name] = f"not captured: {first_line(error)}"
    return replays


def first_line(error: Exception) -> str:
    """Its kind and the beginning of what it says."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
