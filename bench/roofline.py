"""The machine's limit for a layer's work: how long it would take if nothing took time that a layer can do without.

Four things are measured, once per process, dtype and number of threads: floating-point operations per second of
``torch.mm``; bytes per second of reading matrices of several sizes, which is where caches show; sigmoids or tanhs per
second of torch's, on numbers that are in the cache; and what a call takes of a module that does nothing but allocate
what it returns. The input product and the weight gradients are as fast as ``torch.mm``; a step of the recurrence is as
fast as its arithmetic or the reading of its weights, whichever takes longer, and then its gates. These are the rates
that torch reaches here, not those of a data sheet: where its calls slow its reading of small matrices, or its
exponentials take longer than they need, a layer may come out above 1. A limit is of a machine that is left in peace: of
the times, it is the 20 % quantile that counts.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bench import timing
from bench.grid import GATES, Shape
from bench.plan import DTYPES

PRODUCTS = (512, 1024, 2048)  # square matrices: large enough for the full rate, small enough for a second
READ = tuple(2**k for k in range(14, 27))  # bytes: 16 KiB to 64 MiB
ACTIVATED = 2**16  # numbers: more than one thread's share, less than a second-level cache
SECONDS = 1.0  # for each of the kinds of rates, about
ACTIVATIONS = {"lstm": 5, "gru": 3, "rnn_tanh": 1, "rnn_relu": 0}  # sigmoids and tanhs of a unit's step


@dataclass(frozen=True)
class Rates:
    """What the machine does.

    Attributes:
        gemm: operations per second.
        reading: bytes per second, by size in bytes.
        activations: sigmoids or tanhs per second.
        call: seconds of a call that computes nothing, by mode.
    """

    gemm: float
    reading: dict[int, float]
    activations: float = math.inf
    call: dict[str, float] = field(default_factory=dict)

    def bandwidth(self, size: int) -> float:
        """Bytes per second of reading ``size`` bytes again and again.

        The best of the next smaller measured size and all larger ones, which is a bound from above: what is smaller is
        no further away, and where it seems slower, it is the cost of a call.
        """
        smaller = max((measured for measured in self.reading if measured <= size), default=0)
        return max(rate for measured, rate in self.reading.items() if measured >= smaller)

    def detail(self) -> dict[str, Any]:
        """For a row of results."""
        reading = [list(item) for item in self.reading.items()]
        return {"gemm": self.gemm, "reading": reading, "activations": self.activations, "call": self.call}


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
    gating = rows * shape.hidden * ACTIVATIONS[cell] / rates.activations  # forward; the derivatives have none
    flops, limit = 0.0, rates.call.get(mode, 0.0)
    for layer in range(shape.layers):
        features = shape.input if layer == 0 else shape.hidden * shape.directions
        products, recurrent = 2.0 * rows * features * gates, rows * per_row
        if mode == "training":
            flops += shape.directions * 3 * (products + recurrent)
            limit += shape.directions * ((3 * products + recurrent) / rates.gemm + 2 * recurrence + gating)
        else:
            flops += shape.directions * (products + recurrent)
            limit += shape.directions * (products / rates.gemm + recurrence + gating)
    return Work(flops, limit)


@cache
def measured(dtype: str, threads: int) -> Rates:
    """The rates of this machine with torch's present number of threads, which is ``threads``."""
    if threads != torch.get_num_threads():
        raise ValueError(f"torch has {torch.get_num_threads()} threads, not {threads}")
    with torch.inference_mode():
        rates = Rates(_gemm(DTYPES[dtype]), _reading(), _activations(), {})
    rates.call.update(_calls())
    return rates


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


def _activations() -> float:
    x = torch.randn(ACTIVATED)
    out = torch.empty_like(x)
    calls = {"sigmoid": lambda: torch.sigmoid(x, out=out), "tanh": lambda: torch.tanh(x, out=out)}
    return ACTIVATED / min(t.p20 for t in timing.measure(calls, SECONDS / 4).values())


class _Nothing(nn.Module):
    """A layer's call without the layer: two results and, in training, the gradients of an input and four parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(1) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            return _Empty.apply(x, *self.weights.parameters())
        return torch.empty_like(x), torch.empty_like(x)


class _Empty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*inputs)
        return torch.empty_like(inputs[0]), torch.empty_like(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors)


def _calls() -> dict[str, float]:
    module, x = _Nothing(), torch.zeros(1)
    wanted = [x.clone().requires_grad_(), *module.parameters()]

    def inference() -> None:
        with torch.inference_mode():
            module(x)

    def training() -> None:
        y, _ = module(wanted[0])
        torch.autograd.grad(y, wanted, x)

    times = timing.measure({"inference": inference, "training": training}, SECONDS / 4)
    return {mode: t.p20 for mode, t in times.items()}
