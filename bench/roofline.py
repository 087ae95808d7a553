"""The machine's limit for a layer's work: how long it would take if only arithmetic and reading weights took time.

Two kinds of rates are measured, once per process, dtype and number of threads: floating-point operations per second of
``torch.mm``, and bytes per second of reading matrices of several sizes, which is where caches show. The input product
and the weight gradients are as fast as ``torch.mm``; a step of the recurrence is as fast as its arithmetic or the
reading of its weights, whichever takes longer. These are the rates that torch reaches here, not those of a data sheet:
where its calls slow its reading of small matrices, a layer may come out above 1. A limit is of a machine that is left
in peace: of the times, it is the 20 % quantile that counts.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from bench import timing
from bench.grid import GATES, Shape
from bench.plan import DTYPES

PRODUCTS = (512, 1024, 2048)  # square matrices: large enough for the full rate, small enough for a second
READ = tuple(2**k for k in range(14, 27))  # bytes: 16 KiB to 64 MiB
SECONDS = 1.0  # for each of the two kinds of rates, about


@dataclass(frozen=True)
class Rates:
    """What the machine does: ``gemm`` in operations per second, ``reading`` in bytes per second by size in bytes."""

    gemm: float
    reading: dict[int, float]

    def bandwidth(self, size: int) -> float:
        """Bytes per second of reading ``size`` bytes again and again.

        The best of the next smaller measured size and all larger ones, which is a bound from above: what is smaller is
        no further away, and where it seems slower, it is the cost of a call.
        """
        smaller = max((measured for measured in self.reading if measured <= size), default=0)
        return max(rate for measured, rate in self.reading.items() if measured >= smaller)

    def detail(self) -> dict[str, Any]:
        """For a row of results."""
        return {"gemm": self.gemm, "reading": [list(item) for item in self.reading.items()]}


@dataclass(frozen=True)
class Work:
    """What a layer's call has to do: operations in all, and the seconds that the rates allow for them."""

    flops: float
    limit: float


def work(
    cell: str, shape: Shape, dtype: str, mode: str, rates: Rates, batch_sizes: Sequence[int] | None = None
) -> Work:
    """The work of a call and its limit.

    Args:
        cell, shape, dtype, mode: the case.
        rates: of the machine.
        batch_sizes: the rows that are alive at each step, where not all are.

    Returns:
        Its operations and seconds. Training is three times the arithmetic: forward, the gradients of what was
        multiplied by the weights, which is a recurrence again, and those of the weights.
    """
    steps = Counter(batch_sizes if batch_sizes is not None else [shape.batch] * shape.steps)
    rows = sum(batch * times for batch, times in steps.items())
    gates = GATES[cell] * shape.hidden
    size = gates * shape.hidden * DTYPES[dtype].itemsize
    per_row = 2.0 * shape.hidden * gates
    recurrence = sum(
        times * max(batch * per_row / rates.gemm, size / rates.bandwidth(size)) for batch, times in steps.items()
    )
    flops = limit = 0.0
    for layer in range(shape.layers):
        features = shape.input if layer == 0 else shape.hidden * shape.directions
        products, recurrent = 2.0 * rows * features * gates, rows * per_row
        if mode == "training":
            flops += shape.directions * 3 * (products + recurrent)
            limit += shape.directions * ((3 * products + recurrent) / rates.gemm + 2 * recurrence)
        else:
            flops += shape.directions * (products + recurrent)
            limit += shape.directions * (products / rates.gemm + recurrence)
    return Work(flops, limit)


@cache
def measured(dtype: str, threads: int) -> Rates:
    """The rates of this machine with torch's present number of threads, which is ``threads``."""
    if threads != torch.get_num_threads():
        raise ValueError(f"torch has {torch.get_num_threads()} threads, not {threads}")
    with torch.inference_mode():
        return Rates(_gemm(DTYPES[dtype]), _reading())


def _gemm(dtype: torch.dtype) -> float:
    matrices = {n: torch.randn(n, n).to(dtype) for n in PRODUCTS}
    times = timing.measure({str(n): lambda m=m: torch.mm(m, m) for n, m in matrices.items()}, SECONDS)
    return max(2 * n**3 / times[str(n)].p20 for n in PRODUCTS)


def _reading() -> dict[int, float]:
    """By ``mv`` or by ``sum``, whichever reads faster; a call with a single number tells what calling takes."""
    calls = {}
    for size in (4, *READ):
        numbers = size // 4  # bytes are bytes: float32 is what torch reads fastest
        rows = 2 ** (int(math.log2(numbers)) // 2)
        matrix, vector = torch.randn(rows, numbers // rows), torch.randn(numbers // rows)
        calls[f"mv {size}"] = lambda matrix=matrix, vector=vector: torch.mv(matrix, vector)
        calls[f"sum {size}"] = lambda matrix=matrix: matrix.sum()
    times = {name: t.p20 for name, t in timing.measure(calls, SECONDS).items()}

    def rate(way: str, size: int) -> float:
        return size / max(times[f"{way} {size}"] - times[f"{way} 4"], 1e-9)

    return {size: max(rate("mv", size), rate("sum", size)) for size in READ}
