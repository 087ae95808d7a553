"""Which rows a step of a sequence has, for Triton: directions, padding, packing and resets, alike for all strategies.

A kernel walks over processing steps ``s``; direction 1 runs backwards in time. Buffers of all steps are matrices with a
row per step and sequence: step t begins at row ``t * B``, or at ``first[t]`` where sequences are packed (``first`` is
int64; row numbers are, throughout). ``lengths (B,)``, of packed sequences too, and ``reset (T, B)`` are int32. What is
absent is None, which costs nothing: it is a constant to the compiler.
"""

import triton
import triton.language as tl


@triton.jit
def time_of(s, d, T):
    """The step of time that processing step ``s`` of direction ``d`` is."""
    return s + d * (T - 1 - 2 * s)


@triton.jit
def row_of(t, first_ptr, B):
    """The first row of step t."""
    if first_ptr is not None:
        row = tl.load(first_ptr + t)
    else:
        row = t.to(tl.int64) * B
    return row


@triton.jit
def base_row(s0, s1, d, T, first_ptr, B, WHOLE: tl.constexpr):
    """The row that a buffer begins with: 0 if it is WHOLE, else that of the earliest step among s0 … s1 - 1."""
    if WHOLE:
        row = (s0 * 0).to(tl.int64)  # tl.zeros is none of Gluon's
    else:
        row = row_of(s0 + d * (T - s1 - s0), first_ptr, B)
    return row


@triton.jit
def length_of(b, in_batch, lengths_ptr, T):
    """Steps of each of the sequences ``b``; 0 outside the batch."""
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + b, mask=in_batch, other=0)
    else:
        length = tl.where(in_batch, T, 0)
    return length


@triton.jit
def is_cut(t, d, b, length, reset_ptr, T, B):
    """Whether a sequence's state is made zero before it is used at step t.

    Forwards a reset at t does it. Backwards in time, a reset at t + 1 lets nothing through to t.
    """
    at = t + d
    inside = (at < length) & (at < T)
    return tl.load(reset_ptr + at.to(tl.int64) * B + b, mask=inside, other=0) != 0
