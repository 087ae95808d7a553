"""How programs of the grid strategy hand states to each other: at a barrier, or by polling the data themselves.

At a ``"barrier"`` a program stores, arrives, waits for the others, and reads: three or four times to the second-level
cache and back, one after the other. With ``"data"`` it stores, and the others read again and again until all is there:
about once. For that, every place of the exchange is written once in a launch, and filled with a flag before: all bits
one, which is a NaN. No program stores the flag, since a NaN that looks like it is stored as another one. As each number
is its own flag, nothing depends on the order in which stores to different places arrive. As each step has a place of
its own, nobody can read too late: this takes as much memory as the states of all steps. (With two places each number
would have to carry its step, and there would be twice as much to read at every step.) That is to stay in the
second-level cache, flags included, so there are as many launches, each of some steps, as it takes (:func:`launches`).
Whoever waits reads all of the state again and again, which may be in the way of what it waits for: what that costs, no
GPU has shown yet.

What is polled is loaded as ``volatile``: every time anew, and past the first-level cache. By PTX's model of memory it
races with the store, which is an ordinary one. That a number of up to 8 bytes arrives whole, and at last, is what
NVIDIA's GPUs are known to do; that they do here has to be shown on each (``python -m bench gpu --part barrier``).

A program that has polled in vain for too long gives up as in :mod:`fastrnn.kernels.barrier`; the step that is named is
the one for which it polled.
"""

import sys

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastrnn.kernels import barrier
from fastrnn.kernels.plan import device_facts

# For the host alone. Kernels have literals: of one that calls a function that reads a global constant, Triton's key
# depends on which of the two was used first, and processes miss what others have left in the cache.
FLAG = -1  # the bits of a number that is not there yet, as an integer
OTHER_NAN = -2  # and those of what is stored instead: a NaN in every format as well
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


@triton.jit
def place_of(step, EXCHANGE: tl.constexpr):
    """Which place of the exchange has the state before a step, counted from the first of the launch."""
    if EXCHANGE == "barrier":
        step = step % 2
    return step


@triton.constexpr_function
def packed(dtype, width, exchange):
    """How many numbers are polled as one word: two of 16 bits, where rows of ``width`` of them consist of pairs.

    So two are tested at once; one by one, that takes three times the instructions.
    """
    return 2 if exchange == "data" and dtype.primitive_bitwidth == 16 and width % 2 == 0 else 1


@triton.constexpr_function
def integers(dtype, pack=1):
    """The integers that are as wide as so many numbers."""
    return tl.core.get_int_dtype(pack * dtype.primitive_bitwidth, True)


@triton.jit
def put(ptrs, values, mask, EXCHANGE: tl.constexpr):
    """Store what others are to read."""
    values = values.to(ptrs.dtype.element_ty)
    if EXCHANGE == "data":
        bits = values.to(integers(values.dtype), bitcast=True)
        values = tl.where(bits == -1, -2, bits).to(values.dtype, bitcast=True)
    tl.store(ptrs, values, mask=mask)


@triton.jit
def arrive(counter_ptr, EXCHANGE: tl.constexpr):
    """After all is stored: as :func:`fastrnn.kernels.barrier.arrive`, or nothing."""
    if EXCHANGE == "barrier":
        barrier.arrive(counter_ptr)


@triton.jit
def wait(counter_ptr, arrivals, patience, error_ptr, s, EXCHANGE: tl.constexpr):
    """Before others' numbers are asked for: as :func:`fastrnn.kernels.barrier.wait`, or nothing."""
    if EXCHANGE == "barrier":
        patience = barrier.wait(counter_ptr, arrivals, patience, error_ptr, s)
    return patience


@triton.jit
def words(ptr, PACK: tl.constexpr, EXCHANGE: tl.constexpr):
    """A pointer to what is loaded: to numbers, or to the bits of PACK of them."""
    if EXCHANGE == "data":
        ptr = ptr.to(tl.pointer_type(integers(ptr.dtype.element_ty, PACK)), bitcast=True)
    return ptr


@triton.jit
def ask(places, WHOLE: tl.constexpr, EXCHANGE: tl.constexpr):
    """Begin to read what others store at ``places``: pointers, as by :func:`words`, in parts, and a mask.

    The mask is for the part behind the first WHOLE ones, if there is one: what it leaves out is zero.
    """
    ptrs, last = places[0], places[1]
    found = ()
    for j in tl.static_range(len(ptrs)):
        if EXCHANGE == "data":
            if j < WHOLE:
                found = found + (tl.load(ptrs[j], volatile=True),)
            else:
                found = found + (tl.load(ptrs[j], mask=last, other=0, volatile=True),)
        else:  # past the first-level cache as well, where older numbers may be
            if j < WHOLE:
                found = found + (tl.load(ptrs[j], cache_modifier=".cg"),)
            else:
                found = found + (tl.load(ptrs[j], mask=last, other=0.0, cache_modifier=".cg"),)
    return found


@triton.jit
def flags(bits, PACK: tl.constexpr):
    """Integers that are not zero where a number is not there yet."""
    if PACK == 2:  # a half of the complement that is zero borrows its highest bit, and no other but above such a one
        found = (~bits - 0x00010001) & bits & -0x7FFF8000
    else:
        found = (bits == -1).to(tl.int32)
    return found


@triton.jit
def is_missing(found, PACK: tl.constexpr):
    """Whether any number is not there yet."""
    missing = flags(found[0], PACK)
    for j in tl.static_range(1, len(found)):
        missing = missing | flags(found[j], PACK)
    return tl.reduce_or(missing, None) != 0


@triton.jit
def numbers(bits, dtype: tl.constexpr, PACK: tl.constexpr):
    """What the bits stand for."""
    if PACK == 2:
        half: tl.constexpr = integers(dtype)
        pairs = tl.join(bits.to(half), (bits >> 16).to(half))
        bits = tl.reshape(pairs, bits.shape[:-1] + [2 * bits.shape[-1]])
    return bits.to(dtype, bitcast=True)


@triton.jit
def receive(
    found, places, patience, error_ptr, s, dtype: tl.constexpr, PACK: tl.constexpr, WHOLE: tl.constexpr,
    EXCHANGE: tl.constexpr,
):  # fmt: skip
    """The numbers that :func:`ask` has ``found`` or, until all are there, finds again; and the patience left."""
    if EXCHANGE == "data":
        polls = patience
        missing = is_missing(found, PACK)
        while missing & (polls > 0):
            polls -= 1
            found = ask(places, WHOLE, EXCHANGE)
            missing = is_missing(found, PACK)
        tl.store(error_ptr, s + 1, mask=missing & (patience > 0))
        patience = tl.where(missing, 0, patience)
        values = ()
        for j in tl.static_range(len(found)):
            values = values + (numbers(found[j], dtype, PACK),)
        found = values
    return found, patience


def room(device: torch.device) -> int:
    """Bytes of places that stay in the second-level cache of a GPU, half of which is for what else a step reads."""
    if device.type != "cuda":
        return sys.maxsize
    return device_facts(torch.cuda.current_device() if device.index is None else device.index).l2_bytes // 2


def launches(exchange: str, s0: int, s1: int, step_bytes: int, device: torch.device) -> list[tuple[int, int]]:
    """From, to: the steps of each launch that steps s0 … s1 - 1 take.

    One launch at a barrier, whose places take turns; else the places of a launch, ``step_bytes`` for each of its steps,
    have room.
    """
    steps = s1 - s0 if exchange == "barrier" else max(room(device) // step_bytes, 1)
    return [(s, min(s + steps, s1)) for s in range(s0, s1, max(steps, 1))]


def prepare(exchange: str, buffer: Tensor, known: Tensor | None = None) -> None:
    """Make a buffer ready for a launch.

    Args:
        exchange: a plan's.
        buffer: the places, contiguous.
        known: what the first of them has from the start.
    """
    if exchange == "data":
        bits = buffer.view(INTEGERS[buffer.element_size()])
        bits.fill_(FLAG)
    if known is not None:
        buffer[0].copy_(known)
        if exchange == "data":
            bits[0].masked_fill_(bits[0] == FLAG, OTHER_NAN)
