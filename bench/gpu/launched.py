"""Kernels that are nobody's but the benchmarks', apart from the rest, for they need Triton to be imported."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastrnn.kernels import barrier, exchange


@triton.jit
def _touch(ptr):
    tl.store(ptr, tl.load(ptr) + 1)


def touch(x: Tensor) -> None:
    """Add 1 to the first number."""
    _touch[(1,)](x)


@triton.jit(do_not_specialize=["steps", "patience"])
def grid_meeting(
    places_ptr, wrong_ptr, steps, counter_ptr, error_ptr, patience, PROGRAMS: tl.constexpr, NUMBERS: tl.constexpr,
    PACK: tl.constexpr, WIDTH: tl.constexpr, EXCHANGE: tl.constexpr,
):  # fmt: skip
    """What the grid strategy does but for the layer: all programs store the step, meet, and read what all have stored.

    As a state has, a step has one of two places, used in turns, or one of its own. ``wrong (programs)`` counts the
    numbers that were others.
    """
    ALL: tl.constexpr = PROGRAMS * NUMBERS
    p, mine, others = tl.program_id(0), tl.arange(0, NUMBERS), tl.arange(0, WIDTH)
    dtype: tl.constexpr = places_ptr.dtype.element_ty
    inside = tl.arange(0, PACK * WIDTH) < ALL
    wrong = tl.zeros((PACK * WIDTH,), tl.int32)
    for s in range(steps):
        here = places_ptr + exchange.place_of(s, EXCHANGE) * ALL
        number = s % 32768  # which is no flag
        exchange.put(here + p * NUMBERS + mine, tl.full((NUMBERS,), number, dtype), mine >= 0, EXCHANGE)
        exchange.arrive(counter_ptr, EXCHANGE)
        patience = exchange.wait(counter_ptr, (s + 1) * PROGRAMS, patience, error_ptr, s, EXCHANGE)
        places = (exchange.words(here, PACK, EXCHANGE) + others,), others < ALL // PACK
        found = exchange.ask(places, 0, EXCHANGE)
        found, patience = exchange.receive(found, places, patience, error_ptr, s, dtype, PACK, 0, EXCHANGE)
        wrong += (inside & (found[0] != number)).to(tl.int32)
    tl.store(wrong_ptr + p, tl.sum(wrong, 0))


def meet(programs: int, steps: int, device: torch.device, how: str = "barrier", numbers: int = 1) -> Tensor:
    """Have so many programs meet so often; how many wrong numbers each has read.

    Args:
        programs, steps: how many, together less than 2³¹, also times ``numbers`` where data are polled.
        device: where.
        how: a plan's ``exchange``.
        numbers: that each program stores at a step, a power of two; of 16 bits.
    """
    places = torch.full((2 if how == "barrier" else steps, programs * numbers), -1, dtype=torch.int16, device=device)
    exchange.prepare(how, places)
    wrong = torch.empty(programs, dtype=torch.int32, device=device)
    pack = exchange.packed(tl.int16, programs * numbers, how)
    constants = {"PROGRAMS": programs, "NUMBERS": numbers, "PACK": pack, "EXCHANGE": how}
    constants["WIDTH"] = triton.next_power_of_2(programs * numbers // pack)
    barrier.launch(grid_meeting, (programs, 1), 1, device, places, wrong, steps, num_warps=8, **constants)
    return wrong


@triton.jit(do_not_specialize=["steps"])
def read_steps(x_ptr, last_ptr, steps, WIDTH: tl.constexpr):
    """At every step, read WIDTH numbers past the first-level cache, from where the sum of the former ones says.

    All are 0, so that it is always the same place; only the kernel cannot know. ``last (programs)``: the last sums.
    """
    at, start = tl.arange(0, WIDTH), 0
    for _ in range(steps):
        start = 16 * tl.sum(tl.load(x_ptr + start + at, cache_modifier=".cg"), 0)  # aligned, whatever it is
    tl.store(last_ptr + tl.program_id(0), start)


def read(zeros: Tensor, programs: int, steps: int) -> Tensor:
    """Have so many programs read all of ``zeros``, int32 and as many as a power of two, one step after the other."""
    last = torch.empty(programs, dtype=torch.int32, device=zeros.device)
    read_steps[(programs,)](zeros, last, steps, WIDTH=len(zeros), num_warps=8)
    return last


@triton.jit(do_not_specialize=["steps"])
def dot_steps(
    x_ptr, w_ptr, sums_ptr, steps, SPLIT: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, COLUMNS: tl.constexpr
):
    """Multiply the same matrices at every step, a part for each warp as the grid strategy does, and add all up.

    ``x (SPLIT, ROWS, DEPTH)``, ``w (SPLIT, DEPTH, COLUMNS)``, ``sums (SPLIT, ROWS, COLUMNS)``, none rounded to TF32.
    """
    s, k = tl.arange(0, SPLIT)[:, None, None], tl.arange(0, DEPTH)
    r, c = tl.arange(0, ROWS)[None, :, None], tl.arange(0, COLUMNS)[None, None, :]
    x = tl.load(x_ptr + (s * ROWS + r) * DEPTH + k[None, None, :])
    w = tl.load(w_ptr + (s * DEPTH + k[None, :, None]) * COLUMNS + c)
    sums = tl.zeros((SPLIT, ROWS, COLUMNS), tl.float32)
    for _ in range(steps):
        sums = tl.dot(x, w, sums, input_precision="ieee")
    tl.store(sums_ptr + (s * ROWS + r) * COLUMNS + c, sums)


def multiply(x: Tensor, w: Tensor, steps: int) -> Tensor:
    """``steps`` times the products of the matrices of float32 ``x (8, M, K)`` and ``w (8, K, N)``."""
    sums = torch.empty(*x.shape[:2], w.shape[2], device=x.device)
    sizes = {"SPLIT": len(x), "ROWS": x.shape[1], "DEPTH": x.shape[2], "COLUMNS": w.shape[2]}
    dot_steps[(1,)](x, w, sums, steps, **sizes, num_warps=8)
    return sums
