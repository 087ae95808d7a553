"""The stepwise strategy: a kernel per step, for any size and dtype.

What a step needs of the one before lies in memory between two launches, so there is nothing to synchronise. Forward,
each program computes the gates of a batch tile and a unit tile: the recurrent product over all of H, the gate
mathematics on its sums. Backward, a launch first finishes the gradient of its tile's h, the product of the next step's
``dpre`` with W_hh. Where a plan says so, both products are torch's (cuBLAS), and the kernels do the gates only.

Buffers are allocated once a call and no launch depends on data: a call can be captured in a CUDA graph, and where a
plan says so the launches are recorded in one of their own (:mod:`fastrnn.kernels.graphs`). The state
alternates between two buffers, for a program reads units that another one writes. Grid: (batch tiles x unit tiles,
directions). Layouts as in :mod:`fastrnn.kernels.resident`; ``h_in, h_out (D, B, H)``; ``recurrent (D, B, G*H)`` or,
backward, ``(D, B, H)``, the products that torch made, or None.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastrnn._ops import LEAN_CHUNK
from fastrnn.kernels import gates, launcher, tf32
from fastrnn.kernels.call import Call, width
from fastrnn.kernels.graphs import recordings
from fastrnn.kernels.plan import Plan
from fastrnn.kernels.resident import columns, saved_of_step, state_is_whole
from fastrnn.kernels.sequence import base_row, is_cut, length_of, row_of, time_of
from fastrnn.kernels.tiles import cdiv, multiply
from fastrnn.reference import Cell

# Which arguments of the kernels are the step.
FORWARD_STEP, BACKWARD_STEP = 16, 17


@triton.jit(do_not_specialize=["T", "B", "N", "s", "s0", "s1", "chunks"])
def step_forward(
    pre_ptr, recurrent_ptr, w_ptr, bias_ptr, h_in_ptr, h_out_ptr, c_ptr, y_ptr, cells_ptr, borders_ptr,
    lengths_ptr, first_ptr, reset_ptr, T, B, N, s, s0, s1, chunks,
    CELL: tl.constexpr, H: tl.constexpr, W: tl.constexpr, G: tl.constexpr, BB: tl.constexpr, BU: tl.constexpr,
    BK: tl.constexpr, WHOLE: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Processing step s of the chunk s0 … s1 - 1; ``pre`` as in :func:`resident.resident_forward`."""
    UNIT_TILES: tl.constexpr = (H + BU - 1) // BU
    b0, u0 = (tl.program_id(0) // UNIT_TILES).to(tl.int64) * BB, tl.program_id(0) % UNIT_TILES * BU
    d, D = tl.program_id(1), tl.num_programs(1)
    i, u = tl.arange(0, BB), u0 + tl.arange(0, BU)
    in_batch, unit = b0 + i < B, (u < H)[None, :]
    length = length_of(b0 + i, in_batch, lengths_ptr, T)
    t = time_of(s, d, T)
    row = row_of(t, first_ptr, B) + b0
    state_mask, alive = in_batch[:, None] & unit, (t < length)[:, None] & unit
    state_row = d.to(tl.int64) * B + b0
    state_at = state_row * H + (i[:, None] * H + u[None, :])
    kept_rows = in_batch
    if reset_ptr is not None:
        kept_rows = in_batch & (is_cut(t, d, b0 + i, length, reset_ptr, T, B) == 0)
    passes = kept_rows[:, None]
    h_old = tl.load(h_in_ptr + state_at, mask=state_mask, other=0.0)
    c_old = h_old
    if c_ptr is not None:
        c_old = tl.load(c_ptr + state_at, mask=state_mask, other=0.0)
    if borders_ptr is not None:
        border = borders_ptr + ((d * chunks + s // CHUNK).to(tl.int64) * B + b0) * H
        tl.store(border + (i[:, None] * H + u[None, :]), c_old, mask=state_mask & (s % CHUNK == 0))
    h, c = tl.where(passes, h_old, 0.0), tl.where(passes, c_old, 0.0)

    products = ()
    if recurrent_ptr is not None:
        at = state_row * (G * H) + (i[:, None] * (G * H) + u[None, :])
        products = columns(recurrent_ptr, at, passes & unit, H, G)
    else:
        for _ in tl.static_range(G):
            products = products + (tl.zeros((BB, BU), h.dtype),)
        for k0 in range(0, H, BK):
            k = k0 + tl.arange(0, BK)
            depth = k < H
            operand = tl.load(
                h_in_ptr + state_row * H + (i[:, None] * H + k[None, :]), mask=passes & depth[None, :], other=0.0
            ).to(w_ptr.dtype.element_ty)
            sums = ()
            for g in tl.static_range(G):
                w_at = d * (G * H * H) + (g * H + u[None, :]) * H + k[:, None]
                w = tl.load(w_ptr + w_at, mask=depth[:, None] & unit, other=0.0)
                sums = sums + (tl.dot(operand, w, products[g], input_precision=PRECISION, out_dtype=h.dtype),)
            products = sums
        products = tf32.all_restored(products, PRECISION)

    IN: tl.constexpr = 3 if CELL == "gru" else W
    pre_ptr += (d.to(tl.int64) * N - base_row(s0, s1, d, T, first_ptr, B, WHOLE) + row) * (W * H)
    pre_at = i[:, None] * (W * H) + u[None, :]
    pre = columns(pre_ptr, pre_at, alive, H, IN)
    bias = columns(bias_ptr + d * (W * H), u[None, :], unit, H, W)
    sums = ()
    for g in tl.static_range(G):
        if CELL == "gru" and g == 2:
            sums = sums + (pre[2] + bias[2], products[2] + bias[3])
        else:
            sums = sums + (products[g] + (pre[g] + bias[g]),)
    kept, h_new, c_new = gates.forward(sums, h, c, CELL)

    y_mask = state_mask
    if first_ptr is not None:
        y_mask = alive
    y_at = row * (D * H) + d * H + (i[:, None] * (D * H) + u[None, :])
    tl.store(y_ptr + y_at, tl.where(alive, h_new, 0.0).to(y_ptr.dtype.element_ty), mask=y_mask)
    tl.store(h_out_ptr + state_at, tl.where(alive, h_new, h_old), mask=state_mask)
    if c_ptr is not None:
        tl.store(c_ptr + state_at, c_new, mask=alive)
    if cells_ptr is not None:
        tl.store(cells_ptr + y_at, tl.where(alive, c_new, 0.0), mask=y_mask)
    if WHOLE and W > 1:
        for g in tl.static_range(W):
            tl.store(pre_ptr + g * H + pre_at, kept[g], mask=alive)


@triton.jit(do_not_specialize=["T", "B", "N", "M", "s", "s0", "s1"])
def step_backward(
    gates_ptr, state_ptr, c_prev_ptr, recurrent_ptr, w_ptr, dy_ptr, dcells_ptr, dpre_ptr, dh_ptr, dc_ptr,
    lengths_ptr, first_ptr, reset_ptr, T, B, N, M, s, s0, s1,
    CELL: tl.constexpr, H: tl.constexpr, W: tl.constexpr, G: tl.constexpr, BB: tl.constexpr, BU: tl.constexpr,
    BK: tl.constexpr, WHOLE: tl.constexpr, STATE_WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Processing step s of the chunk s0 … s1 - 1, or with s = s0 - 1 only what step s0 sends to the state before it.

    ``dh`` holds what comes to a state by other ways than W_hh: the whole gradient at first and at last.
    Other arguments as in :func:`resident.resident_backward`.
    """
    UNIT_TILES: tl.constexpr = (H + BU - 1) // BU
    b0, u0 = (tl.program_id(0) // UNIT_TILES).to(tl.int64) * BB, tl.program_id(0) % UNIT_TILES * BU
    d, D = tl.program_id(1), tl.num_programs(1)
    i, u = tl.arange(0, BB), u0 + tl.arange(0, BU)
    in_batch, unit = b0 + i < B, (u < H)[None, :]
    length = length_of(b0 + i, in_batch, lengths_ptr, T)
    state_mask = in_batch[:, None] & unit
    state_row = d.to(tl.int64) * B + b0
    state_at = state_row * H + (i[:, None] * H + u[None, :])
    local = d.to(tl.int64) * M - base_row(s0, s1, d, T, first_ptr, B, False) + b0
    dh = tl.load(dh_ptr + state_at, mask=state_mask, other=0.0)
    if s + 1 < s1:
        after = time_of(s + 1, d, T)
        passes = after < length
        if reset_ptr is not None:
            passes = passes & (is_cut(after, d, b0 + i, length, reset_ptr, T, B) == 0)
        if recurrent_ptr is not None:
            dh += tl.load(recurrent_ptr + state_at, mask=passes[:, None] & unit, other=0.0)
        else:
            dpre_after = dpre_ptr + (local + row_of(after, first_ptr, B)) * (W * H)
            product = dh
            if PRECISION == "tf32":
                product = gates.zeros_like(dh)
            for k0 in range(0, H, BK):
                k = k0 + tl.arange(0, BK)
                depth = k < H
                for g in tl.static_range(G):
                    # A GRU's third gate has its product in the fourth pre-activation.
                    factor = tl.load(
                        dpre_after + (3 if CELL == "gru" and g == 2 else g) * H + (i[:, None] * (W * H) + k[None, :]),
                        mask=passes[:, None] & depth[None, :],
                        other=0.0,
                    )
                    w_at = d * (G * H * H) + (g * H + k[:, None]) * H + u[None, :]
                    w = tl.load(w_ptr + w_at, mask=depth[:, None] & unit, other=0.0)
                    product = tl.dot(factor, w, product, input_precision=PRECISION, out_dtype=dh.dtype)
            if PRECISION == "tf32":
                dh += tf32.restored(product, PRECISION)
            else:
                dh = product
    if s >= s0:
        t = time_of(s, d, T)
        first_row = row_of(t, first_ptr, B)
        row = first_row + b0
        alive = (t < length)[:, None] & unit
        gates_row = local + first_row
        if WHOLE:
            gates_row = d.to(tl.int64) * N + row
        saved, arrives = saved_of_step(
            gates_ptr, state_ptr, c_prev_ptr, dy_ptr, dcells_ptr, gates_row, local + first_row, local + first_row, row,
            d, D, i, u, alive, CELL, H, W, STATE_WHOLE,
        )  # fmt: skip
        dc = dh
        if dc_ptr is not None:
            dc = tl.load(dc_ptr + state_at, mask=state_mask, other=0.0)
        dh_all, dc_all = dh, dc
        if dy_ptr is not None:
            dh_all = dh_all + arrives[0].to(dh.dtype)
        if dcells_ptr is not None:
            dc_all = dc_all + arrives[-1]
        given = ()
        for k in tl.static_range(len(saved)):
            given = given + (saved[k].to(dh.dtype),)
        dpre, dh_around, dc_new = gates.backward(given, dh_all, dc_all, CELL)
        stored_mask = state_mask
        if first_ptr is not None:
            stored_mask = alive
        dpre_at = (local + first_row) * (W * H) + (i[:, None] * (W * H) + u[None, :])
        for k in tl.static_range(W):
            value = tl.where(alive, dpre[k], 0.0).to(w_ptr.dtype.element_ty)
            tl.store(dpre_ptr + dpre_at + k * H, value, mask=stored_mask)
        dh, dc = tl.where(alive, dh_around, dh), tl.where(alive, dc_new, dc)
        if reset_ptr is not None:
            cut = is_cut(t, d, b0 + i, length, reset_ptr, T, B)[:, None]
            dh, dc = tl.where(cut, 0.0, dh), tl.where(cut, 0.0, dc)
        if dc_ptr is not None:
            tl.store(dc_ptr + state_at, dc, mask=state_mask)
    tl.store(dh_ptr + state_at, dh, mask=state_mask)


def forward_constants(plan: Plan, cell: Cell, hidden: int, whole: bool) -> dict[str, object]:
    """The constants of :func:`step_forward`."""
    return _constants(plan, cell, hidden) | {"WHOLE": whole, "CHUNK": LEAN_CHUNK}


def backward_constants(plan: Plan, cell: Cell, hidden: int, whole: bool) -> dict[str, object]:
    """The constants of :func:`step_backward`."""
    return _constants(plan, cell, hidden) | {"WHOLE": whole, "STATE_WHOLE": state_is_whole(cell, whole)}


def _constants(plan: Plan, cell: Cell, hidden: int) -> dict[str, object]:
    return {
        "CELL": cell.name,
        "PRECISION": plan.precision,
        "H": hidden,
        "W": width(cell),
        "G": cell.gates,
        "BB": plan.tile,
        "BU": plan.units,
        "BK": plan.depth,
    }


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
    """As :func:`fastrnn.kernels.resident.forward`, a launch per step."""
    call = _rounded(plan, call)
    states = (h, torch.empty_like(h))
    recurrent = operand = None
    if plan.product == "torch":
        recurrent = h.new_empty((call.directions, call.batch, call.gates * call.hidden))
        operand = None if call.x.dtype == h.dtype else torch.empty_like(h, dtype=call.x.dtype)
    constants = forward_constants(plan, call.cell, call.hidden, whole)
    w_transposed = call.w_hh.transpose(1, 2)
    grid = (cdiv(call.batch, plan.tile) * cdiv(call.hidden, plan.units), call.directions)

    def launches() -> None:
        each = [
            launcher.Launch(
                step_forward,
                grid,
                (
                    *(pre, recurrent, call.w_hh, call.bias, before, after, c, y, cells, borders),
                    *(call.lengths, call.first_row, call.reset),
                    *(call.steps, call.batch, pre.shape[1], s0, s0, s1, cdiv(call.steps, LEAN_CHUNK)),
                ),
                constants,
                plan.warps,
                plan.stages,
            )
            for before, after in (states, states[::-1])
        ]
        for s in range(s0, s1):
            before = states[(s - s0) % 2]
            if recurrent is not None:
                multiply(before if operand is None else operand.copy_(before), w_transposed, recurrent)
            step = each[(s - s0) % 2]
            step.set(FORWARD_STEP, s)
            step()
        if (s1 - s0) % 2:
            h.copy_(states[1])

    tensors = (pre, call.w_hh, call.bias, *states, c, y, cells, borders)
    _run(plan, call, launches, tensors, ("forward", pre.shape[1], s0, s1, whole))


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
    """As :func:`fastrnn.kernels.resident.backward`, a launch per step, and one more."""
    call = _rounded(plan, call)
    recurrent = torch.empty_like(dh) if plan.product == "torch" else None
    grid = (cdiv(call.batch, plan.tile) * cdiv(call.hidden, plan.units), call.directions)
    constants = backward_constants(plan, call.cell, call.hidden, whole)

    def launches() -> None:
        step = launcher.Launch(
            step_backward,
            grid,
            (
                *(kept, state, c_before, recurrent, call.w_hh, dy, dcells, dpre, dh, dc),
                *(call.lengths, call.first_row, call.reset),
                *(call.steps, call.batch, call.rows, dpre.shape[1], s0, s0, s1),
            ),
            constants,
            plan.warps,
            plan.stages,
        )
        for s in range(s1 - 1, s0 - 2, -1):
            if recurrent is not None and s + 1 < s1:
                _recurrent_gradient(call, dpre, recurrent, s + 1, s0, s1)
            step.set(BACKWARD_STEP, s)
            step()

    tensors = (kept, state, c_before, call.w_hh, dy, dcells, dpre, dh, dc)
    _run(plan, call, launches, tensors, ("backward", dpre.shape[1], s0, s1, whole))


def _rounded(plan: Plan, call: Call) -> Call:
    """The call as the kernels want it: W_hh, which they load at every step, is rounded once."""
    if plan.product != "fused" or plan.precision != "tf32" or call.w_hh.dtype != torch.float32:
        return call
    return replace(call, w_hh=tf32.rounded_tensor(call.w_hh))


def _run(
    plan: Plan, call: Call, launches: Callable[[], None], tensors: Sequence[Tensor | None], options: Sequence[Hashable]
) -> None:
    """The launches of a chunk of time. Recorded are kernels only: torch's libraries have memory of their own."""
    if plan.graphs and plan.product == "fused":
        sizes = (call.cell.name, call.hidden, call.directions, call.steps, call.batch, call.rows)
        tables = (call.lengths, call.first_row, call.reset)
        recordings.run(launches, (*tensors, *tables), (plan, *sizes, *options))
    else:
        launches()


def _recurrent_gradient(call: Call, dpre: Tensor, out: Tensor, s: int, s0: int, s1: int) -> None:
    """``out = dpre W_hh`` of step s, for the rows that it has."""
    hidden, gru = call.hidden, call.width != call.gates
    for d in range(call.directions):
        start, (lo, hi) = call.span(d, s0, s1)[0], call.span(d, s, s + 1)
        rows, sums = dpre[d, lo - start : hi - start], out[d, : hi - lo]
        if not gru:
            multiply(rows, call.w_hh[d], sums)
            continue
        # A GRU's third gate has its product in the fourth pre-activation.
        multiply(rows[:, : 2 * hidden], call.w_hh[d, : 2 * hidden], sums)
        multiply(rows[:, 3 * hidden :], call.w_hh[d, 2 * hidden :], sums, add=True)
