"""The grid strategy, backward: as :mod:`fastrnn.kernels.grid`, with the columns of W_hh of a program's units on chip.

At every step, from the last to the first, a program computes what its units send to their pre-activations, stores that
where ``dpre`` has it anyway, meets the others, and multiplies what all of them have stored by its columns: the gradient
that its units' state before the step gets. There are as many numbers to be read as gates times units, several times
those of the forward pass, and the next gate's are on their way while one's are multiplied. The tape of the next step is
read while the program waits. Every step has a place of its own in ``dpre``, as polling needs it.
"""

from dataclasses import replace

import triton
import triton.language as tl
from torch import Tensor

from fastrnn.kernels import exchange, gates, model, tf32
from fastrnn.kernels.call import Call
from fastrnn.kernels.grid import (
    add_products,
    all_sums,
    constants,
    depth_at,
    factors_at,
    last_of,
    launch,
    lively_steps,
    no_sums,
    rows_behind,
    rows_from,
    total,
)
from fastrnn.kernels.plan import Plan
from fastrnn.kernels.resident import saved_of_step, state_is_whole
from fastrnn.kernels.sequence import base_row, is_cut, length_of, row_of, time_of
from fastrnn.reference import Cell


@triton.jit
def column_weights(
    w_ptr, u0, G: tl.constexpr, H: tl.constexpr, BU: tl.constexpr, SPLIT: tl.constexpr, BK: tl.constexpr
):
    """The rows of the transpose of W_hh for BU units, gate by gate, cut along the sum."""
    u = u0 + tl.arange(0, BU)
    at, inside = last_of(u * (G * H), SPLIT), last_of(u < H, SPLIT)
    ws = ()
    for g in tl.static_range(G):
        for j in tl.static_range((H + SPLIT * BK - 1) // (SPLIT * BK)):
            k = depth_at(j, SPLIT, BK, 1)
            ws = ws + (tl.load(w_ptr + (at + g * H + k), mask=inside & (k < H), other=0.0),)
    return ws


@triton.jit
def product_ptr(step_ptr, CELL: tl.constexpr, g: tl.constexpr, H: tl.constexpr):
    """Where the gradients are that a gate's product with W_hh gets: of a GRU's third, the fourth."""
    return step_ptr + (3 if CELL == "gru" and g == 2 else g) * H


@triton.jit
def idle_backward(dpre_ptr, zeros, from_s, to_s, d, T, B, local, at, mask, H: tl.constexpr, W: tl.constexpr):
    """Steps of a padded layout at which no sequence of the tile is alive send nothing."""
    for s in range(from_s, to_s):
        row = local + row_of(time_of(s, d, T), None, B)
        for k in tl.static_range(W):
            tl.store(dpre_ptr + row * (W * H) + k * H + at, zeros, mask=mask)


@triton.constexpr_function
def chains(gates, rows, units, split, ordinary):
    """How many sums the products are added to in turns, so that few of them wait for the one before.

    As many as leave matrix units little time, and spill no register. Ordinary units have a product at hand in any case,
    and of one gate there are few.
    """
    if ordinary or gates == 1:
        return 1
    if split == 1 and rows * units <= 512:  # each warp has one product, or a part of it, at a time
        return 4
    return 2 if rows * units <= 128 else 1


@triton.jit
def multiply_shared(
    step_ptr, ws, in_tile, compute, patience, error_ptr, s, CELL: tl.constexpr, BB: tl.constexpr,
    BU: tl.constexpr, W: tl.constexpr, H: tl.constexpr, SPLIT: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, EXCHANGE: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The products of a step's gradients at ``step_ptr`` with weights, summed over gates, for ``in_tile`` rows.

    And the patience that is left after step ``s`` has been waited for.
    """
    G: tl.constexpr = 3 if CELL == "gru" else W
    PARTS: tl.constexpr = (H + SPLIT * BK - 1) // (SPLIT * BK)
    dtype: tl.constexpr = step_ptr.dtype.element_ty
    CHAINS: tl.constexpr = chains(G, BB, BU, SPLIT, dtype.primitive_bitwidth > 16 and PRECISION == "ieee")
    sums = (no_sums(BB, BU, SPLIT, compute),) * CHAINS
    PACK: tl.constexpr = exchange.packed(dtype, H, EXCHANGE)
    HP: tl.constexpr = H // PACK
    step_ptr = exchange.words(step_ptr, PACK, EXCHANGE)
    places = factors_at(step_ptr, in_tile, BB, HP, W * HP, SPLIT, BK // PACK)
    WHOLE: tl.constexpr = H // (SPLIT * BK)
    found = exchange.ask(places, WHOLE, EXCHANGE)
    for g in tl.static_range(G):
        factors, patience = exchange.receive(found, places, patience, error_ptr, s, dtype, PACK, WHOLE, EXCHANGE)
        if g + 1 < G:
            places = factors_at(product_ptr(step_ptr, CELL, g + 1, HP), in_tile, BB, HP, W * HP, SPLIT, BK // PACK)
            if AHEAD:
                found = exchange.ask(places, WHOLE, EXCHANGE)
        sums = add_products(sums, factors, ws, g * PARTS, PRECISION)
        if g + 1 < G and not AHEAD:
            found = exchange.ask(places, WHOLE, EXCHANGE)
    return total(all_sums(sums), SPLIT), patience


@triton.jit
def recur_backward(
    MULTIPLY: tl.constexpr, held, i, u, tile, d,
    gates_ptr, state_ptr, c_prev_ptr, dy_ptr, dcells_ptr, dpre_ptr, dh_ptr, dc_ptr,
    lengths_ptr, first_ptr, reset_ptr, T, B, N, M, s0, s1, counter_ptr, error_ptr, patience,
    CELL: tl.constexpr, H: tl.constexpr, W: tl.constexpr, BB: tl.constexpr, BU: tl.constexpr,
    SPLIT: tl.constexpr, BK: tl.constexpr, WHOLE: tl.constexpr, STATE_WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    APART: tl.constexpr, EXCHANGE: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """As :func:`fastrnn.kernels.grid.recur_forward`."""
    UNIT_TILES: tl.constexpr = (H + BU - 1) // BU
    D, b0 = tl.num_programs(1), tile.to(tl.int64) * BB
    counter_ptr += (tile * D + d) * APART
    in_tile = tl.minimum(B - b0, BB).to(tl.int32)
    in_batch, unit = i < in_tile, (u < H)[None, :]
    length = length_of(b0 + i, in_batch, lengths_ptr, T)
    carry_at = (d.to(tl.int64) * B + b0) * H + (i[:, None] * H + u[None, :])
    carry_mask = in_batch[:, None] & unit
    dh = tl.load(dh_ptr + carry_at, mask=carry_mask, other=0.0)
    dc = dh
    if dc_ptr is not None:
        dc = tl.load(dc_ptr + carry_at, mask=carry_mask, other=0.0)
    local = d.to(tl.int64) * M - base_row(s0, s1, d, T, first_ptr, B, False) + b0
    tape = local
    if WHOLE:
        tape = d.to(tl.int64) * N + b0
    dpre_at = i[:, None] * (W * H) + u[None, :]
    begin, end = s0, s1
    if lengths_ptr is not None:
        begin, end = lively_steps(length, d, T, s0, s1)
        if first_ptr is None:
            zeros = gates.zeros_like(dh).to(dpre_ptr.dtype.element_ty)
            idle_backward(dpre_ptr, zeros, s0, begin, d, T, B, local, dpre_at, carry_mask, H, W)
            idle_backward(dpre_ptr, zeros, end, s1, d, T, B, local, dpre_at, carry_mask, H, W)

    t = time_of(tl.maximum(end - 1, s0), d, T)
    row = row_of(t, first_ptr, B)
    alive = t < length
    saved, arrives = saved_of_step(
        gates_ptr, state_ptr, c_prev_ptr, dy_ptr, dcells_ptr, tape + row, local + row, local + row, row + b0,
        d, D, i, u, alive[:, None] & unit, CELL, H, W, STATE_WHOLE,
    )  # fmt: skip
    for back in range(end - begin):
        dh_all, dc_all = dh, dc
        if dy_ptr is not None:
            dh_all = dh_all + arrives[0].to(dh.dtype)
        if dcells_ptr is not None:
            dc_all = dc_all + arrives[-1]
        given = ()
        for k in tl.static_range(len(saved)):
            given = given + (saved[k].to(dh.dtype),)
        dpre, dh_around, dc_new = gates.backward(given, dh_all, dc_all, CELL)
        stored_mask = carry_mask
        if first_ptr is not None:
            stored_mask = alive[:, None] & unit
        step_ptr = dpre_ptr + (local + row) * (W * H)
        for k in tl.static_range(W):
            value = dpre[k]
            if lengths_ptr is not None:
                value = tl.where(alive[:, None], value, 0.0)
            exchange.put(step_ptr + k * H + dpre_at, value, stored_mask, EXCHANGE)
        exchange.arrive(counter_ptr, EXCHANGE)

        next_t = time_of(tl.maximum(end - 2 - back, s0), d, T)
        next_row = row_of(next_t, first_ptr, B)
        next_alive = next_t < length
        saved, arrives = saved_of_step(
            gates_ptr, state_ptr, c_prev_ptr, dy_ptr, dcells_ptr, tape + next_row, local + next_row,
            local + next_row, next_row + b0, d, D, i, u, next_alive[:, None] & unit, CELL, H, W, STATE_WHOLE,
        )  # fmt: skip
        s = end - 1 - back
        patience = exchange.wait(counter_ptr, (back + 1) * UNIT_TILES, patience, error_ptr, s, EXCHANGE)

        if first_ptr is not None:  # the rows of a later step come next
            in_tile = tl.sum(alive.to(tl.int32), 0)
        product, patience = MULTIPLY(
            step_ptr, held, in_tile, dh.dtype, patience, error_ptr, s,
            CELL, BB, BU, W, H, SPLIT, BK, PRECISION, EXCHANGE, AHEAD,
        )  # fmt: skip
        dh_new = dh_around + tf32.restored(product, PRECISION)
        if lengths_ptr is not None:
            dh, dc = tl.where(alive[:, None], dh_new, dh), tl.where(alive[:, None], dc_new, dc)
        else:
            dh, dc = dh_new, dc_new
        if reset_ptr is not None:
            cut = is_cut(t, d, b0 + i, length, reset_ptr, T, B)[:, None]
            dh, dc = tl.where(cut, 0.0, dh), tl.where(cut, 0.0, dc)
        t, row, alive = next_t, next_row, next_alive
    tl.store(dh_ptr + carry_at, dh, mask=carry_mask)
    if dc_ptr is not None:
        tl.store(dc_ptr + carry_at, dc, mask=carry_mask)
    return patience


@triton.jit(do_not_specialize=["T", "B", "N", "M", "s0", "s1", "patience"])
def grid_backward(
    gates_ptr, state_ptr, c_prev_ptr, w_ptr, dy_ptr, dcells_ptr, dpre_ptr, dh_ptr, dc_ptr,
    lengths_ptr, first_ptr, reset_ptr, T, B, N, M, s0, s1, counter_ptr, error_ptr, patience,
    CELL: tl.constexpr, H: tl.constexpr, W: tl.constexpr, BB: tl.constexpr, BU: tl.constexpr,
    SPLIT: tl.constexpr, BK: tl.constexpr, WHOLE: tl.constexpr, STATE_WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    APART: tl.constexpr, EXCHANGE: tl.constexpr, TURNS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Steps s1 - 1 … s0 of processing order; ``w (D, H, G*H)``, others as in :func:`resident.resident_backward`."""
    UNIT_TILES: tl.constexpr = (H + BU - 1) // BU
    G: tl.constexpr = 3 if CELL == "gru" else W
    group, u0, d = tl.program_id(0) // UNIT_TILES, tl.program_id(0) % UNIT_TILES * BU, tl.program_id(1)
    ws = tf32.all_rounded(column_weights(w_ptr + d * (G * H * H), u0, G, H, BU, SPLIT, BK), PRECISION)
    i, u = tl.arange(0, BB), u0 + tl.arange(0, BU)
    if TURNS:
        groups, tiles = tl.num_programs(0) // UNIT_TILES, (B + BB - 1) // BB
        for turn in range((tiles - group + groups - 1) // groups):
            patience = recur_backward(
                multiply_shared, ws, i, u, group + turn * groups, d,
                gates_ptr, state_ptr, c_prev_ptr, dy_ptr, dcells_ptr, dpre_ptr, dh_ptr, dc_ptr,
                lengths_ptr, first_ptr, reset_ptr, T, B, N, M, s0, s1, counter_ptr, error_ptr, patience,
                CELL, H, W, BB, BU, SPLIT, BK, WHOLE, STATE_WHOLE, PRECISION, APART, EXCHANGE, AHEAD,
            )  # fmt: skip
    else:
        recur_backward(
            multiply_shared, ws, i, u, group, d,
            gates_ptr, state_ptr, c_prev_ptr, dy_ptr, dcells_ptr, dpre_ptr, dh_ptr, dc_ptr,
            lengths_ptr, first_ptr, reset_ptr, T, B, N, M, s0, s1, counter_ptr, error_ptr, patience,
            CELL, H, W, BB, BU, SPLIT, BK, WHOLE, STATE_WHOLE, PRECISION, APART, EXCHANGE, AHEAD,
        )  # fmt: skip


def backward_plan(plan: Plan) -> Plan:
    """The plan of a program backward: it may have more units than one forward."""
    return replace(plan, units=model.backward_units(plan.units, plan.held))


def backward_constants(plan: Plan, cell: Cell, hidden: int, whole: bool) -> dict[str, object]:
    """The constants of :func:`grid_backward`, of a plan by :func:`backward_plan`."""
    return constants(plan, cell, hidden) | {
        "WHOLE": whole,
        "STATE_WHOLE": state_is_whole(cell, whole),
        "AHEAD": plan.stages > 1,
    }


def takes_all_registers(plan: Plan, gates: int, hidden: int, itemsize: int) -> bool:
    """Whether the assembler is to know that it may use them all (see :func:`barrier.options`).

    Known from compilation: those for which it must not would spill if they did, and some of the others if they did not,
    to have room for a second program on a multiprocessor; among these are those of ordinary products in turns.
    """
    if plan.held == "registers":
        return plan.tile * plan.units <= 256 or gates * hidden <= model.FEW_WEIGHTS
    ordinary = itemsize == 4 and plan.precision == "ieee" and (gates > 1 or plan.units <= 8)
    if plan.split == 1 or (ordinary and gates * hidden <= 3072):
        return plan.split > 1 and plan.groups > 0
    return itemsize == 2 or plan.units <= 8 or plan.stages > 1


def backward(
    plan: Plan,
    call: Call,
    kept: Tensor | None,
    state: Tensor,
    c_before: Tensor | None,
    dy: Tensor | None,
    dcells: Tensor | None,
    dpre: Tensor,
    dh: Tensor,
    dc: Tensor | None,
    s0: int,
    s1: int,
    whole: bool,
) -> None:
    """As :func:`fastrnn.kernels.resident.backward`."""
    plan = backward_plan(plan)
    columns = call.w_hh.transpose(1, 2).contiguous()  # sums along memory: the way that matrix units want factors
    step_bytes = call.directions * call.batch * dpre.shape[2] * dpre.element_size()
    for a, b in reversed(exchange.launches(plan.exchange, s0, s1, step_bytes, dpre.device)):
        start, rows = rows_from(call, a, b, s0, s1, dpre.shape[1])
        own = rows_behind(dpre, start)
        for d in range(call.directions if plan.exchange == "data" else 0):
            lo, hi = call.span(d, a, b)
            exchange.prepare(plan.exchange, own.view(-1, dpre.shape[2])[d * rows :][: hi - lo])
        launch(
            plan,
            call,
            grid_backward,
            kept if kept is None or whole else rows_behind(kept, start),
            state if state_is_whole(call.cell, whole) else rows_behind(state, start),
            None if c_before is None else rows_behind(c_before, start),
            *(columns, dy, dcells, own, dh, dc, call.lengths, call.first_row, call.reset),
            *(call.steps, call.batch, call.rows, rows, a, b),
            **backward_constants(plan, call.cell, call.hidden, whole),
            all_registers=takes_all_registers(plan, call.cell.gates, call.hidden, dpre.element_size()),
        )
