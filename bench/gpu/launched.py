"""Kernels that are nobody's but the benchmarks', apart from the rest, for they need Triton to be imported."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastrnn.kernels import barrier


@triton.jit
def _touch(ptr):
    tl.store(ptr, tl.load(ptr) + 1)


def touch(x: Tensor) -> None:
    """Add 1 to the first number."""
    _touch[(1,)](x)


@triton.jit(do_not_specialize=["steps", "patience"])
def grid_meeting(
    places_ptr, wrong_ptr, steps, counter_ptr, error_ptr, patience, PROGRAMS: tl.constexpr, WIDTH: tl.constexpr
):
    """What the grid strategy does but for the layer: all programs store the step, meet, and read what all have stored.

    As a state has, a step has two places, used in turns. ``wrong (programs)`` counts the numbers that were others.
    """
    p, others = tl.program_id(0), tl.arange(0, WIDTH)
    wrong = tl.zeros((WIDTH,), tl.int32)
    for s in range(steps):
        here = places_ptr + s % 2 * PROGRAMS
        tl.store(here + p, s)
        barrier.arrive(counter_ptr)
        patience = barrier.wait(counter_ptr, (s + 1) * PROGRAMS, patience, error_ptr, s)
        found = tl.load(here + others, mask=others < PROGRAMS, other=s, cache_modifier=".cg")
        wrong += (found != s).to(tl.int32)
    tl.store(wrong_ptr + p, tl.sum(wrong, 0))


def meet(programs: int, steps: int, device: torch.device) -> Tensor:
    """Have so many programs meet so often (together less than 2³¹ times); how many wrong numbers each has read."""
    places = torch.full((2, programs), -1, dtype=torch.int32, device=device)
    wrong = torch.empty(programs, dtype=torch.int32, device=device)
    width = triton.next_power_of_2(programs)
    constants = {"PROGRAMS": programs, "WIDTH": width}
    barrier.launch(grid_meeting, (programs, 1), 1, device, places, wrong, steps, num_warps=8, **constants)
    return wrong
