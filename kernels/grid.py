"""The grid strategy, forward: W_hh is spread over the programs of a launch, which keep it on chip for all steps.

A program has a tile of the hidden units, all gates of them, and a tile of the batch. It loads its part of W_hh once.
At every step it reads the whole state of its batch tile, as the other programs have left it in the second-level cache,
multiplies, finishes the gates of its units, leaves their new state there, and meets the programs of the same batch tile
and direction at a barrier. The state has two places, used in turns: what one step reads, the next one overwrites. Where
a plan has the data polled instead (:mod:`fastrnn.kernels.exchange`), it has a place for every step.

The sum over H of the product is split over the warps of a program (SPLIT > 1), since there are fewer rows and units
than warps could share; each then has a short chain of products of its own. While a program waits, its next step's
inputs are on their way, and what nobody waits for (y, the tape) is stored after it has arrived.

Where there are more batch tiles than groups of programs that can run at once, a group takes them in turns, each through
all of its steps, with the W_hh that it holds. A tile has a counter and places of its own, as it has where its programs
have no other. So no count goes on from tile to tile, and a program that is done with one begins the next while others
still read what it has left.

Steps at which all sequences of a batch tile have ended, or, backwards in time, have not begun, do not meet: there is
only 0 to be stored. Grid: (groups x unit tiles, directions). Layouts as in :mod:`fastrnn.kernels.resident`;
``exchange (places, D, B, H)`` in storage.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastrnn._ops import LEAN_CHUNK
from fastrnn.kernels import barrier, exchange, gates, tf32
from fastrnn.kernels.call import Call, width
from fastrnn.kernels.plan import Plan, groups
from fastrnn.kernels.resident import columns
from fastrnn.kernels.sequence import base_row, is_cut, length_of, row_of, time_of
from fastrnn.kernels.tiles import cdiv
from fastrnn.reference import Cell


@triton.jit
def depth_at(PART: tl.constexpr, SPLIT: tl.constexpr, BK: tl.constexpr, AXIS: tl.constexpr):
    """Which of the summands each warp takes of a part of them: as a column or, along AXIS 2, a row, of SPLIT tiles."""
    if SPLIT > 1:
        tiles = tl.arange(0, SPLIT)[:, None, None] * BK
        if AXIS == 1:
            k = PART * SPLIT * BK + tiles + tl.arange(0, BK)[None, :, None]
        else:
            k = PART * SPLIT * BK + tiles + tl.arange(0, BK)[None, None, :]
    else:
        if AXIS == 1:
            k = PART * BK + tl.arange(0, BK)[:, None]
        else:
            k = PART * BK + tl.arange(0, BK)[None, :]
    return k


@triton.jit
def last_of(x, SPLIT: tl.constexpr):
    """A vector along the last axis of as many as the products have."""
    return x[None, None, :] if SPLIT > 1 else x[None, :]


@triton.jit
def rows_of(x, SPLIT: tl.constexpr):
    """A vector along the axis of rows of as many as the products have."""
    return x[None, :, None] if SPLIT > 1 else x[:, None]


@triton.jit
def unit_weights(
    w_ptr, u0, CELL: tl.constexpr, H: tl.constexpr, W: tl.constexpr, BU: tl.constexpr, SPLIT: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """The rows of W_hh for each pre-activation of BU units, transposed, side by side, and cut along the sum."""
    p = tl.arange(0, W * BU)
    part, u = p // BU, u0 + p % BU
    inside = u < H
    if CELL == "gru":  # the third has no product, and the fourth that of the third gate
        inside = inside & (part != 2)
        part = tl.where(part == 3, 2, part)
    at, inside = last_of(part * H + u, SPLIT), last_of(inside, SPLIT)
    ws = ()
    for j in tl.static_range((H + SPLIT * BK - 1) // (SPLIT * BK)):
        k = depth_at(j, SPLIT, BK, 1)
        ws = ws + (tl.load(w_ptr + (at * H + k), mask=inside & (k < H), other=0.0),)
    return ws


@triton.jit
def factors_at(
    x_ptr, in_tile, BB: tl.constexpr, H: tl.constexpr, STRIDE: tl.constexpr, SPLIT: tl.constexpr, BK: tl.constexpr
):
    """Where other programs store rows of H numbers, STRIDE apart, in parts along the sum: pointers, and what there is
    of the last part.

    Of BB rows ``in_tile`` are there, 1 at least. The last one stands in for the others, whose products nobody looks at:
    that takes fewer instructions than not to read.
    """
    at = x_ptr + rows_of(tl.minimum(tl.arange(0, BB), in_tile - 1) * STRIDE, SPLIT)
    ptrs = ()
    for j in tl.static_range((H + SPLIT * BK - 1) // (SPLIT * BK)):
        k = depth_at(j, SPLIT, BK, 2)
        ptrs = ptrs + (at + k,)
    return ptrs, k < H


@triton.jit
def no_sums(BB: tl.constexpr, N: tl.constexpr, SPLIT: tl.constexpr, compute):
    """Sums of products, of every warp by itself, before the first."""
    if SPLIT > 1:
        sums = tl.zeros((SPLIT, BB, N), compute)
    else:
        sums = tl.zeros((BB, N), compute)
    return sums


@triton.jit
def add_products(sums, factors, ws, FIRST: tl.constexpr, PRECISION: tl.constexpr):
    """Add those of the factors with the weights, of which the first is number FIRST, to several sums in turns."""
    for j in tl.static_range(len(factors)):
        first = sums[0]
        first = tl.dot(factors[j], ws[FIRST + j], first, input_precision=PRECISION, out_dtype=first.dtype)
        sums = sums[1:] + (first,)
    return sums


@triton.jit
def all_sums(sums):
    """Several sums, added up."""
    total = sums[0]
    for k in tl.static_range(1, len(sums)):
        total = total + sums[k]
    return total


@triton.jit
def total(sums, SPLIT: tl.constexpr):
    """The sums of all warps."""
    return tl.sum(sums, 0) if SPLIT > 1 else sums


@triton.jit
def by_gate(sums, BB: tl.constexpr, BU: tl.constexpr, W: tl.constexpr):
    """Side by side, to apart."""
    if W == 1:
        parts = (sums,)
    else:
        low, high = tl.split(tl.permute(tl.reshape(sums, (BB, 2, 2, BU)), (0, 3, 2, 1)))
        parts = tl.split(low) + tl.split(high)
    return parts


@triton.jit
def multiply_shared(
    x_ptr, ws, in_tile, compute, patience, error_ptr, s, BB: tl.constexpr, BU: tl.constexpr, W: tl.constexpr,
    H: tl.constexpr, SPLIT: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr, EXCHANGE: tl.constexpr,
):  # fmt: skip
    """The products of a tile's state at ``x_ptr`` with weights, by pre-activation, for ``in_tile`` rows.

    And the patience that is left after step ``s`` has been waited for.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    PACK: tl.constexpr = exchange.packed(dtype, H, EXCHANGE)
    x_ptr = exchange.words(x_ptr, PACK, EXCHANGE)
    places = factors_at(x_ptr, in_tile, BB, H // PACK, H // PACK, SPLIT, BK // PACK)
    WHOLE: tl.constexpr = H // (SPLIT * BK)
    found = exchange.ask(places, WHOLE, EXCHANGE)
    factors, patience = exchange.receive(found, places, patience, error_ptr, s, dtype, PACK, WHOLE, EXCHANGE)
    sums = add_products((no_sums(BB, W * BU, SPLIT, compute),), factors, ws, 0, PRECISION)
    return by_gate(total(all_sums(sums), SPLIT), BB, BU, W), patience


@triton.jit
def lively_steps(length, d, T, s0, s1):
    """From, to: the steps among s0 … s1 - 1 of processing order at which any of the sequences is alive."""
    longest = tl.max(length, 0)
    begin = tl.minimum(tl.maximum(s0, d * (T - longest)), s1)
    end = tl.maximum(tl.minimum(s1, longest + d * (T - longest)), begin)
    return begin, end


@triton.jit
def keep_border(borders_ptr, c, s, d, b0, chunks, B, at, mask, H: tl.constexpr, CHUNK: tl.constexpr):
    border = borders_ptr + ((d * chunks + s // CHUNK).to(tl.int64) * B + b0) * H
    tl.store(border + at, c, mask=mask & (s % CHUNK == 0))


@triton.jit
def idle_forward(
    y_ptr, cells_ptr, borders_ptr, first_ptr, c, from_s, to_s, d, D, b0, chunks, T, B, y_at, border_at, mask,
    H: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Steps at which no sequence of the tile is alive."""
    zeros = gates.zeros_like(c)
    for s in range(from_s, to_s):
        if borders_ptr is not None:
            keep_border(borders_ptr, c, s, d, b0, chunks, B, border_at, mask, H, CHUNK)
        if first_ptr is None:
            row = row_of(time_of(s, d, T), first_ptr, B) + b0
            tl.store(y_ptr + row * (D * H) + y_at, zeros.to(y_ptr.dtype.element_ty), mask=mask)
            if cells_ptr is not None:
                tl.store(cells_ptr + row * (D * H) + y_at, zeros, mask=mask)


@triton.jit
def recur_forward(
    MULTIPLY: tl.constexpr, held, i, u, tile, d,
    pre_ptr, bias_ptr, h_ptr, c_ptr, y_ptr, cells_ptr, borders_ptr, exchange_ptr, lengths_ptr, first_ptr,
    reset_ptr, T, B, N, s0, s1, chunks, counter_ptr, error_ptr, patience,
    CELL: tl.constexpr, H: tl.constexpr, W: tl.constexpr, BB: tl.constexpr, BU: tl.constexpr,
    SPLIT: tl.constexpr, BK: tl.constexpr, WHOLE: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
    APART: tl.constexpr, EXCHANGE: tl.constexpr,
):  # fmt: skip
    """The time loop of a program, whatever it holds its weights in: ``MULTIPLY`` knows that of ``held``.

    ``i`` numbers the rows of the tile, ``u`` the units of the program; all that is no product has their layouts.
    Returns the patience that is left for another tile.
    """
    UNIT_TILES: tl.constexpr = (H + BU - 1) // BU
    IN: tl.constexpr = 3 if CELL == "gru" else W
    D, b0 = tl.num_programs(1), tile.to(tl.int64) * BB
    counter_ptr += (tile * D + d) * APART
    in_tile = tl.minimum(B - b0, BB).to(tl.int32)
    in_batch, unit = i < in_tile, (u < H)[None, :]
    length = length_of(b0 + i, in_batch, lengths_ptr, T)
    flat = i[:, None] * H + u[None, :]
    mask = in_batch[:, None] & unit
    state_at, states = (d.to(tl.int64) * B + b0) * H, D.to(tl.int64) * B * H
    bias = columns(bias_ptr + d * (W * H), u[None, :], unit, H, W)
    h = tl.load(h_ptr + state_at + flat, mask=mask, other=0.0)
    c = h
    if c_ptr is not None:
        c = tl.load(c_ptr + state_at + flat, mask=mask, other=0.0)
    pre_ptr += (d.to(tl.int64) * N - base_row(s0, s1, d, T, first_ptr, B, WHOLE)) * (W * H)
    pre_at, y_at = i[:, None] * (W * H) + u[None, :], i[:, None] * (D * H) + u[None, :] + d * H
    begin, end = s0, s1
    if lengths_ptr is not None:
        begin, end = lively_steps(length, d, T, s0, s1)
        idle_forward(
            y_ptr, cells_ptr, borders_ptr, first_ptr, c, s0, begin, d, D, b0, chunks, T, B, y_at, flat, mask,
            H, CHUNK,
        )  # fmt: skip

    t = time_of(tl.minimum(begin, s1 - 1), d, T)
    row = row_of(t, first_ptr, B) + b0
    alive = t < length
    pre = columns(pre_ptr + row * (W * H), pre_at, alive[:, None] & unit, H, IN)
    for s in range(begin, end):
        if borders_ptr is not None:
            keep_border(borders_ptr, c, s, d, b0, chunks, B, flat, mask, H, CHUNK)
        if reset_ptr is not None:
            cut = is_cut(t, d, b0 + i, length, reset_ptr, T, B)[:, None]
            h, c = tl.where(cut, 0.0, h), tl.where(cut, 0.0, c)
        here = exchange_ptr + exchange.place_of(s - begin, EXCHANGE) * states + state_at
        products, patience = MULTIPLY(
            here, held, in_tile, h.dtype, patience, error_ptr, s,
            BB, BU, W, H, SPLIT, BK, PRECISION, EXCHANGE,
        )  # fmt: skip
        sums = ()
        for g in tl.static_range(W):
            product = products[g]
            if reset_ptr is not None:
                product = tl.where(cut, 0.0, product)
            if g < IN:
                sums = sums + (product + (pre[g] + bias[g]),)
            else:
                sums = sums + (product + bias[g],)
        kept, h_new, c_new = gates.forward(sums, h, c, CELL)
        h_out, c_out = h_new, c_new
        if lengths_ptr is not None:
            h_out, c_out = tl.where(alive[:, None], h_new, 0.0), tl.where(alive[:, None], c_new, 0.0)
            h, c = tl.where(alive[:, None], h_new, h), tl.where(alive[:, None], c_new, c)
        else:
            h, c = h_new, c_new
        there = exchange_ptr + exchange.place_of(s - begin + 1, EXCHANGE) * states + state_at
        exchange.put(there + flat, tf32.rounded(h, PRECISION), mask, EXCHANGE)
        exchange.arrive(counter_ptr, EXCHANGE)

        y_mask = mask
        if first_ptr is not None:
            y_mask = alive[:, None] & unit
        tl.store(y_ptr + row * (D * H) + y_at, h_out.to(y_ptr.dtype.element_ty), mask=y_mask)
        if cells_ptr is not None:
            tl.store(cells_ptr + row * (D * H) + y_at, c_out, mask=y_mask)
        if WHOLE and W > 1:
            for g in tl.static_range(W):
                tl.store(pre_ptr + row * (W * H) + g * H + pre_at, kept[g], mask=alive[:, None] & unit)
        t = time_of(tl.minimum(s + 1, s1 - 1), d, T)
        row = row_of(t, first_ptr, B) + b0
        alive = t < length
        pre = columns(pre_ptr + row * (W * H), pre_at, alive[:, None] & unit, H, IN)
        patience = exchange.wait(counter_ptr, (s - begin + 1) * UNIT_TILES, patience, error_ptr, s, EXCHANGE)
    if lengths_ptr is not None:
        idle_forward(
            y_ptr, cells_ptr, borders_ptr, first_ptr, c, end, s1, d, D, b0, chunks, T, B, y_at, flat, mask,
            H, CHUNK,
        )  # fmt: skip
    tl.store(h_ptr + state_at + flat, h, mask=mask)
    if c_ptr is not None:
        tl.store(c_ptr + state_at + flat, c, mask=mask)
    return patience


@triton.jit(do_not_specialize=["T", "B", "N", "s0", "s1", "chunks", "patience"])
def grid_forward(
    pre_ptr, w_ptr, bias_ptr, h_ptr, c_ptr, y_ptr, cells_ptr, borders_ptr, exchange_ptr, lengths_ptr, first_ptr,
    reset_ptr, T, B, N, s0, s1, chunks, counter_ptr, error_ptr, patience,
    CELL: tl.constexpr, H: tl.constexpr, W: tl.constexpr, BB: tl.constexpr, BU: tl.constexpr,
    SPLIT: tl.constexpr, BK: tl.constexpr, WHOLE: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
    APART: tl.constexpr, EXCHANGE: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """Steps s0 … s1 - 1 of processing order; ``pre`` as in :func:`resident.resident_forward`."""
    UNIT_TILES: tl.constexpr = (H + BU - 1) // BU
    G: tl.constexpr = 3 if CELL == "gru" else W
    group, u0, d = tl.program_id(0) // UNIT_TILES, tl.program_id(0) % UNIT_TILES * BU, tl.program_id(1)
    ws = tf32.all_rounded(unit_weights(w_ptr + d * (G * H * H), u0, CELL, H, W, BU, SPLIT, BK), PRECISION)
    i, u = tl.arange(0, BB), u0 + tl.arange(0, BU)
    if TURNS:
        groups, tiles = tl.num_programs(0) // UNIT_TILES, (B + BB - 1) // BB
        for turn in range((tiles - group + groups - 1) // groups):
            patience = recur_forward(
                multiply_shared, ws, i, u, group + turn * groups, d,
                pre_ptr, bias_ptr, h_ptr, c_ptr, y_ptr, cells_ptr, borders_ptr, exchange_ptr, lengths_ptr, first_ptr,
                reset_ptr, T, B, N, s0, s1, chunks, counter_ptr, error_ptr, patience,
                CELL, H, W, BB, BU, SPLIT, BK, WHOLE, CHUNK, PRECISION, APART, EXCHANGE,
            )  # fmt: skip
    else:
        recur_forward(
            multiply_shared, ws, i, u, group, d,
            pre_ptr, bias_ptr, h_ptr, c_ptr, y_ptr, cells_ptr, borders_ptr, exchange_ptr, lengths_ptr, first_ptr,
            reset_ptr, T, B, N, s0, s1, chunks, counter_ptr, error_ptr, patience,
            CELL, H, W, BB, BU, SPLIT, BK, WHOLE, CHUNK, PRECISION, APART, EXCHANGE,
        )  # fmt: skip


def forward_constants(plan: Plan, cell: Cell, hidden: int, whole: bool) -> dict[str, object]:
    """The constants of :func:`grid_forward`."""
    return constants(plan, cell, hidden) | {"WHOLE": whole, "CHUNK": LEAN_CHUNK}


def constants(plan: Plan, cell: Cell, hidden: int) -> dict[str, object]:
    """Those that both directions of propagation have."""
    return {
        "CELL": cell.name,
        "PRECISION": plan.precision,
        "H": hidden,
        "W": width(cell),
        "BB": plan.tile,
        "BU": plan.units,
        "SPLIT": plan.split,
        "BK": plan.depth,
        "APART": barrier.APART,
        "EXCHANGE": plan.exchange,
        "TURNS": plan.groups > 0,
    }


def programs(plan: Plan, call: Call) -> tuple[int, int]:
    """The grid of a launch."""
    return groups(plan, call.batch) * cdiv(call.hidden, plan.units), call.directions


def launch(plan: Plan, call: Call, kernel: Any, *arguments: object, **constants: Any) -> None:
    """Launch a kernel of this strategy or, where weights are to stay in registers, what it is in Gluon."""
    if plan.held == "registers":
        from fastrnn.kernels import gluon_grid

        kernel = getattr(gluon_grid, f"gluon_{kernel.__name__}")
    counters = cdiv(call.batch, plan.tile) * call.directions
    grid, device = programs(plan, call), call.w_hh.device
    barrier.launch(kernel, grid, counters, device, *arguments, num_warps=plan.warps, **constants)


def rows_from(call: Call, a: int, b: int, s0: int, s1: int, rows: int) -> tuple[int, int]:
    """Where the rows of steps a … b - 1 begin in a buffer ``(D, rows, …)`` of those of steps s0 … s1 - 1, and how many
    rows further on those of the other direction.
    """
    starts = [call.span(d, a, b)[0] - call.span(d, s0, s1)[0] for d in range(call.directions)]
    return starts[0], rows + starts[-1] - starts[0]


def rows_behind(buffer: Tensor, start: int) -> Tensor:
    """A buffer ``(D, rows, …)`` from a row of the first direction on."""
    return buffer.flatten(0, 1)[start:] if start else buffer


def forward(
    plan: Plan,
    call: Call,
    pre: Tensor,
    h: Tensor,
    c: Tensor | None,
    y: Tensor,
    cells: Tensor | None,
    borders: Tensor | None,
    s0: int,
    s1: int,
    whole: bool,
) -> None:
    """As :func:`fastrnn.kernels.resident.forward`."""
    spans = exchange.launches(plan.exchange, s0, s1, h.numel() * y.element_size(), h.device)
    from_zeros = plan.exchange == "barrier" and call.h0 is None and s0 == 0
    count = spans[0][1] - s0 + 1 if plan.exchange == "data" else 2
    places = (y.new_zeros if from_zeros else y.new_empty)((count, *h.shape))
    for a, b in spans:
        if not from_zeros:
            rounds = plan.precision == "tf32" and y.dtype == torch.float32
            exchange.prepare(plan.exchange, places, known=tf32.rounded_tensor(h) if rounds else h)
        start, rows = (0, pre.shape[1]) if whole else rows_from(call, a, b, s0, s1, pre.shape[1])
        launch(
            plan,
            call,
            grid_forward,
            *(rows_behind(pre, start), call.w_hh, call.bias, h, c, y, cells, borders, places),
            *(call.lengths, call.first_row, call.reset),
            *(call.steps, call.batch, rows, a, b, cdiv(call.steps, LEAN_CHUNK)),
            **forward_constants(plan, call.cell, call.hidden, whole),
        )
