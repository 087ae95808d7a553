"""What backward needs beside the tape, element by element, for Triton: the states before each step, and gates again.

Layouts as in :mod:`fastrnn.kernels.resident`. Grids run over time on their first axis, the only one that is long
enough.
"""

import triton
import triton.language as tl

from fastrnn._ops import LEAN_CHUNK
from fastrnn.kernels import gates
from fastrnn.kernels.call import width
from fastrnn.kernels.sequence import base_row, is_cut, length_of, row_of, time_of
from fastrnn.kernels.tiles import padded
from fastrnn.reference import Cell

BATCH_TILE, UNIT_TILE = 8, 64
WARPS, STAGES = 4, 2


@triton.jit(do_not_specialize=["T", "B", "M", "s0", "s1"])
def states_before(
    after_ptr, initial_ptr, before_ptr, lengths_ptr, first_ptr, reset_ptr, T, B, M, s0, s1,
    H: tl.constexpr, HP: tl.constexpr, BB: tl.constexpr,
):  # fmt: skip
    """From the states after every step, ``after (N, D*H)``, those before steps s0 … s1 - 1, ``before (D, M, H)``.

    That is the state after the step before, ``initial (D, B, H)`` (or None for zeros) where the sequence begins, and
    zero where a reset cut it, or behind the sequence's end. Grid: (steps, batch tiles, directions).
    """
    s, b0, d, D = s0 + tl.program_id(0), tl.program_id(1) * BB, tl.program_id(2), tl.num_programs(2)
    b = b0 + tl.arange(0, BB)
    in_batch = b < B
    length = length_of(b, in_batch, lengths_ptr, T)
    t = time_of(s, d, T)
    previous = t - 1 + 2 * d
    alive, begins = t < length, previous >= length
    begins = begins | (previous < 0)
    if reset_ptr is not None:
        alive_uncut = alive & (is_cut(t, d, b, length, reset_ptr, T, B) == 0)
    else:
        alive_uncut = alive
    row = row_of(t, first_ptr, B) + b
    stored = in_batch
    if first_ptr is not None:
        stored = alive
    after_row = row_of(tl.minimum(tl.maximum(previous, 0), T - 1), first_ptr, B) + b
    before_row = d.to(tl.int64) * M - base_row(s0, s1, d, T, first_ptr, B, False) + row
    for u0 in range(0, H, HP):
        u = u0 + tl.arange(0, HP)
        unit = (u < H)[None, :]
        state = tl.load(
            after_ptr + after_row[:, None] * (D * H) + d * H + u[None, :],
            mask=(alive_uncut & (begins == 0))[:, None] & unit,
            other=0.0,
        )
        if initial_ptr is not None:
            initial = tl.load(
                initial_ptr + (d.to(tl.int64) * B + b)[:, None] * H + u[None, :],
                mask=(alive_uncut & begins)[:, None] & unit,
                other=0.0,
            )
            state = tl.where(begins[:, None], initial, state)
        tl.store(before_ptr + before_row[:, None] * H + u[None, :], state, mask=stored[:, None] & unit)


@triton.jit(do_not_specialize=["T", "B", "M", "s0", "s1", "chunks"])
def gates_again(
    pre_ptr, recurrent_ptr, bias_ptr, borders_ptr, cells_ptr, c_prev_ptr, lengths_ptr, first_ptr, reset_ptr,
    T, B, M, s0, s1, chunks,
    CELL: tl.constexpr, H: tl.constexpr, W: tl.constexpr, G: tl.constexpr, BB: tl.constexpr, HP: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Steps s0 … s1 - 1 again, of whose products both are known: ``pre (D, M, W*H)`` and ``recurrent (D, M, G*H)``.

    The gates take the place of ``pre``; an LSTM's cell states after and before each step go to ``cells, c_prev (D, M,
    H)``, from the one kept at step s0, a multiple of CHUNK. Grid: (batch tiles, unit tiles, directions).
    """
    b0, u0, d = tl.program_id(0).to(tl.int64) * BB, tl.program_id(1) * HP, tl.program_id(2)
    i, u = tl.arange(0, BB), u0 + tl.arange(0, HP)
    in_batch, unit = b0 + i < B, (u < H)[None, :]
    length = length_of(b0 + i, in_batch, lengths_ptr, T)
    mask = in_batch[:, None] & unit
    flat = i[:, None] * H + u[None, :]
    local = d.to(tl.int64) * M - base_row(s0, s1, d, T, first_ptr, B, False) + b0
    c = tl.zeros((BB, HP), pre_ptr.dtype.element_ty)
    if CELL == "lstm":
        c = tl.load(borders_ptr + ((d * chunks + s0 // CHUNK).to(tl.int64) * B + b0) * H + flat, mask=mask, other=0.0)
    for s in range(s0, s1):
        t = time_of(s, d, T)
        row = local + row_of(t, first_ptr, B)
        alive = (t < length)[:, None] & unit
        if reset_ptr is not None:
            c = tl.where(is_cut(t, d, b0 + i, length, reset_ptr, T, B)[:, None], 0.0, c)
        sums = ()
        at = row * (W * H) + (i[:, None] * (W * H) + u[None, :])
        for k in tl.static_range(W):
            bias = tl.load(bias_ptr + d * (W * H) + k * H + u, mask=u < H, other=0.0)[None, :]
            # A GRU's n is made of two sums: the third gate's product belongs to the second of them.
            product = tl.zeros((BB, HP), pre_ptr.dtype.element_ty)
            if CELL != "gru" or k != 2:
                gate = (k - 1 if k == 3 else k) if CELL == "gru" else k
                product = tl.load(
                    recurrent_ptr + row * (G * H) + gate * H + (i[:, None] * (G * H) + u[None, :]),
                    mask=alive,
                    other=0.0,
                )
            if CELL != "gru" or k != 3:
                product += tl.load(pre_ptr + at + k * H, mask=alive, other=0.0)
            sums = sums + (product + bias,)
        kept, _, c_new = gates.forward(sums, c, c, CELL)
        for k in tl.static_range(W):
            tl.store(pre_ptr + at + k * H, kept[k], mask=alive)
        if CELL == "lstm":
            tl.store(c_prev_ptr + row * H + flat, c, mask=alive)
            tl.store(cells_ptr + row * H + flat, c_new, mask=alive)
            c = tl.where(alive, c_new, c)


def before_constants(hidden: int) -> dict[str, object]:
    """The constants of :func:`states_before`."""
    return {"H": hidden, "HP": min(padded(hidden), 256), "BB": BATCH_TILE}


def again_constants(cell: Cell, hidden: int) -> dict[str, object]:
    """The constants of :func:`gates_again`."""
    return {
        "CELL": cell.name,
        "CHUNK": LEAN_CHUNK,
        "H": hidden,
        "W": width(cell),
        "G": cell.gates,
        "BB": BATCH_TILE,
        "HP": UNIT_TILE,
    }
