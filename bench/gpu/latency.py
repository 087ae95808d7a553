"""What a GPU takes for the least there is to do: launches, a step's product, and its rates of products and of reading.

A layer has T steps one after the other: with a kernel for each, T times a launch is what it takes at least.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from bench import timing
from bench.gpu import clock, contestants, measure
from bench.grid import Shape
from bench.plan import DTYPES
from bench.results import Case, Provenance, Row

CHAIN = 100  # calls that a graph has, one after the other
COPIED = 2**28  # bytes
STEPS = ((1, 256), (64, 256), (1, 1024), (64, 1024))  # B and H of an LSTM's step


def rows(numbers: Sequence[tuple[str, bool | None]], seconds: float) -> Iterator[Row]:
    """Launches first, then products of each kind of numbers, then reading."""
    x = torch.zeros(1, device=contestants.DEVICE)
    yield row("launch: torch", lambda: x.add_(1), seconds)
    if find_spec("triton") is not None and x.is_cuda:
        from bench.gpu.launched import touch

        yield row("launch: Triton", lambda: touch(x), seconds)
    yield row("launch: in a graph", lambda: x.add_(1), seconds, chain=True)
    for dtype, tf32 in numbers:
        with clock.tf32(bool(tf32)):
            detail = {"tf32": tf32, "dtype": dtype}
            kind = dtype + {None: "", True: ", TF32", False: ", no TF32"}[tf32]
            rate = measure.gemm_rate(dtype, tf32)
            n = measure.PRODUCT
            matrix = torch.randn(n, n, device=contestants.DEVICE).to(DTYPES[dtype])
            run: Callable[[], object] = partial(torch.mm, matrix, matrix)
            yield row(f"product, {n} square, {kind}", run, seconds, detail | {"rate": f"{rate / 1e12:.0f} TFlop/s"})
            for batch, hidden in STEPS:
                h = torch.randn(batch, hidden, device=contestants.DEVICE).to(DTYPES[dtype])
                w = torch.randn(hidden, 4 * hidden, device=contestants.DEVICE).to(DTYPES[dtype])
                out = h.new_empty(batch, 4 * hidden)
                run = partial(torch.mm, h, w, out=out)
                yield row(f"step's product in a graph, B{batch} H{hidden}, {kind}", run, seconds, detail, chain=True)
    source = torch.zeros(COPIED, dtype=torch.uint8, device=contestants.DEVICE)
    target = torch.empty_like(source)
    copied = row(f"copy of {COPIED >> 20} MiB", lambda: target.copy_(source), seconds)
    copied.detail["rate"] = f"{2 * COPIED / copied.times['torch'].median / 1e12:.2f} TB/s"
    yield copied


def row(
    what: str,
    run: Callable[[], object],
    seconds: float,
    detail: dict[str, Any] | None = None,
    chain: bool = False,
    calls: int = 1,
) -> Row:
    """The time of one of the ``calls`` that a call makes; in a chain, of one of many in a graph."""
    call = clock.Call(run)
    if chain:
        call, calls = clock.captured(clock.Call(partial(_repeated, run))), CHAIN
    took = timing.measure({"torch": call}, seconds, clock=clock.by_events)["torch"]
    times = timing.Times(took.median / calls, took.p20 / calls, took.p80 / calls, took.turns)
    return of_times(what, {"torch": times}, dict(detail or {}))


def of_times(what: str, times: dict[str, timing.Times], detail: dict[str, Any]) -> Row:
    """A row of the times that there are, or of none."""
    return Row(
        benchmark="latency",
        case=Case.of("none", Shape(0, 0, 0, 0), detail.pop("dtype", "float32"), "inference"),
        threads=torch.get_num_threads(),
        times=times,
        provenance=Provenance.here_and_now(measure.device()),
        detail={"what": what, **detail},
    )


def _repeated(run: Callable[[], object]) -> None:
    for _ in range(CHAIN):
        run()
