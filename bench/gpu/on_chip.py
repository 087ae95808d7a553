"""Kernels in Gluon that are nobody's but the benchmarks': what a multiprocessor's matrix units and shared memory give.

Triton's compiler would read the factors of every product from shared memory; here they stay in registers, as those of
the grid strategy do (:mod:`fastrnn.kernels.gluon_grid`), so that products and shared memory are measured apart.
"""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from fastrnn.kernels.gluon_grid import matrix_layout, tile_index

WARPS = 8


@gluon.constexpr_function
def whole_line(warps):
    """16 bytes a thread, one behind the other."""
    return gl.BlockedLayout([4], [32], [warps], [0])


@gluon.constexpr_function
def plain():
    """Shared memory as it is counted."""
    return gl.SwizzledSharedLayout(vec=1, per_phase=1, max_phase=1, order=[0])


@gluon.jit(do_not_specialize=["steps"])
def multiply_steps(
    x_ptr, w_ptr, sums_ptr, steps, SPLIT: gl.constexpr, ROWS: gl.constexpr, DEPTH: gl.constexpr, COLUMNS: gl.constexpr
):
    """Each warp multiplies the same two matrices, which it holds in registers, at every step, and adds all up.

    ``x (SPLIT, ROWS, DEPTH)``, ``w (SPLIT, DEPTH, COLUMNS)``, ``sums (SPLIT, ROWS, COLUMNS)``, a part for each warp.
    """
    SUMS: gl.constexpr = matrix_layout(SPLIT)
    s, r, k = tile_index(SPLIT, ROWS, DEPTH, gl.DotOperandLayout(0, SUMS, 2))
    x = gl.load(x_ptr + ((s * ROWS + r) * DEPTH + k))
    s, k, c = tile_index(SPLIT, DEPTH, COLUMNS, gl.DotOperandLayout(1, SUMS, 2))
    w = gl.load(w_ptr + ((s * DEPTH + k) * COLUMNS + c))
    sums = gl.zeros([SPLIT, ROWS, COLUMNS], gl.float32, layout=SUMS)
    for _ in range(steps):
        sums = mma_v2(x, w, sums)
    s, r, c = tile_index(SPLIT, ROWS, COLUMNS, SUMS)
    gl.store(sums_ptr + ((s * ROWS + r) * COLUMNS + c), sums)


@gluon.jit(do_not_specialize=["steps", "last"])
def read_shared_steps(x_ptr, sums_ptr, steps, last, PARTS: gl.constexpr, WIDTH: gl.constexpr, WARPS: gl.constexpr):
    """Read one part of ``x (PARTS, WIDTH)`` from shared memory at every step, and add all up; ``last`` is PARTS - 1.

    The parts are a power of two. Which of them is read the compiler does not know, and so reads it.
    """
    LINE: gl.constexpr = whole_line(WARPS)
    at = gl.arange(0, WIDTH, layout=LINE)
    memory = gl.allocate_shared_memory(gl.int32, [PARTS, WIDTH], plain())
    for part in gl.static_range(PARTS):
        memory.index(part).store(gl.load(x_ptr + (part * WIDTH + at)))
    sums = memory.index(0).load(LINE)  # before the loop, so that the barrier behind the stores is before it as well
    for s in range(1, steps):
        sums += memory.index(s & last).load(LINE)
    gl.store(sums_ptr + at, sums)


def multiply_in_registers(x: Tensor, w: Tensor, steps: int) -> Tensor:
    """``steps`` times the products of matrices of 16-bit numbers, ``x (8, M, K)`` and ``w (8, K, N)``, in float32."""
    sums = torch.empty(*x.shape[:2], w.shape[2], device=x.device)
    sizes = {"SPLIT": WARPS, "ROWS": x.shape[1], "DEPTH": x.shape[2], "COLUMNS": w.shape[2]}
    multiply_steps[(1,)](x, w, sums, steps, **sizes, num_warps=WARPS)
    return sums


def read_shared(x: Tensor, steps: int) -> Tensor:
    """The sum of as many rows of ``x``, int32, as there are steps: one after the other, and again from the first."""
    parts, width = x.shape
    sums = torch.empty_like(x[0])
    read_shared_steps[(1,)](x, sums, steps, parts - 1, PARTS=parts, WIDTH=width, WARPS=WARPS, num_warps=WARPS)
    return sums
