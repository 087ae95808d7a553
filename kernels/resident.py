"""The resident strategy: a program holds all of W_hh on chip and computes a batch tile over all steps by itself.

There is nothing to wait for but one's own arithmetic, so this is the fastest strategy while W_hh fits: about H <= 128
in 16 bits, 64 in float32. Grid: (batch tiles, directions), both directions in one launch.

Layouts, rows as in :mod:`fastrnn.kernels.sequence`, W pre-activations of H units, D directions:
    ``pre, dpre (D, rows, W*H)``; ``w (D, G*H, H)``; ``bias (D, W*H)``; ``h, c, dh, dc (D, B, H)``, carried in and out;
    ``y, cells, dy, dcells (N, D*H)``; ``c_prev (D, rows, H)``; ``borders (D, chunks, B, H)``. ``rows`` are all N, or
    those of a chunk of time. States, pre-activations and cell states are in the compute dtype; w, y, dpre in storage.
The next step's inputs are asked for before the product of this one, which hides their way from memory.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastrnn._ops import LEAN_CHUNK
from fastrnn.kernels import gates, launcher, tf32
from fastrnn.kernels.call import Call, width
from fastrnn.kernels.plan import Plan
from fastrnn.kernels.sequence import base_row, is_cut, length_of, row_of, time_of
from fastrnn.kernels.tiles import cdiv, padded
from fastrnn.reference import Cell


@triton.jit
def gates_at(FIRST: tl.constexpr, ALL: tl.constexpr, TILE: tl.constexpr, H: tl.constexpr, HP: tl.constexpr):
    """Where the units of the TILE gates from FIRST on are, H apart and each padded to HP, and which there are.

    Of the last ones of ALL gates there may be fewer than TILE.
    """
    COUNT: tl.constexpr = TILE if FIRST + TILE <= ALL else ALL - FIRST
    p = tl.arange(0, COUNT * HP)
    return (FIRST + p // HP) * H + p % HP, p % HP < H


@triton.jit
def weight(
    w_ptr, FIRST: tl.constexpr, G: tl.constexpr, TILE: tl.constexpr, H: tl.constexpr, HP: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """The rows of W_hh of a tile of gates, or the columns of its transpose, padded with zeros."""
    at, inside = gates_at(FIRST, G, TILE, H, HP)
    k = tl.arange(0, HP)
    if TRANSPOSED:
        rows = tl.load(w_ptr + (at[None, :] * H + k[:, None]), mask=inside[None, :] & (k < H)[:, None], other=0.0)
    else:
        rows = tl.load(w_ptr + (at[:, None] * H + k[None, :]), mask=inside[:, None] & (k < H)[None, :], other=0.0)
    return rows


@triton.jit
def load_gates(ptr, at, rows, G: tl.constexpr, TILE: tl.constexpr, H: tl.constexpr, HP: tl.constexpr):
    """What each unit has for each gate, H apart from ``ptr + at`` on, in tiles of TILE gates."""
    tiles = ()
    for k in tl.static_range(0, G, TILE):
        column, inside = gates_at(k, G, TILE, H, HP)
        tiles = tiles + (tl.load(ptr + (at + column[None, :]), mask=rows & inside[None, :], other=0.0),)
    return tiles


@triton.jit
def store_gates(ptr, at, rows, values, G: tl.constexpr, TILE: tl.constexpr, H: tl.constexpr, HP: tl.constexpr):
    """The reverse, of values apart; those beyond the gates singly."""
    for k in tl.static_range(0, G, TILE):
        column, inside = gates_at(k, G, TILE, H, HP)
        tl.store(
            ptr + (at + column[None, :]),
            joined(values[k : k + TILE if k + TILE <= G else G]),
            mask=rows & inside[None, :],
        )
    for k in tl.static_range(G, len(values)):
        column, inside = gates_at(k, k + 1, 1, H, HP)
        tl.store(ptr + (at + column[None, :]), values[k], mask=rows & inside[None, :])


@triton.jit
def joined(parts):
    """One or two tiles side by side. A thread has in them what it had."""
    tile = parts[0]
    if len(parts) == 2:
        both = tl.permute(tl.join(parts[0], parts[1]), (0, 2, 1))
        tile = tl.reshape(both, (both.shape[0], 2 * both.shape[2]))
    return tile


@triton.jit
def parted(tile, HP: tl.constexpr):
    """The reverse."""
    parts = (tile,)
    if tile.shape[1] == 2 * HP:
        parts = tl.split(tl.permute(tl.reshape(tile, (tile.shape[0], 2, HP)), (0, 2, 1)))
    return parts


@triton.jit
def as_loaded(product, ptr, at, mask, never):
    """A product, laid out over the threads as what is loaded from ``ptr + at`` is, not as a matrix unit leaves it.

    Where values laid out differently meet, the compiler brings all to the layout of the matrix unit, each by a way
    through shared memory and two barriers. To join the product with itself and part it again moves nothing, but hides
    that layout; of others, the compiler takes that of the last load or product in the program. This is a load that is
    ``never`` done, which must be false, but not before the kernel runs.
    """
    product, _ = tl.split(tl.join(product, product))
    return product + tl.load(ptr + at, mask=mask & never, other=0.0)


@triton.jit
def columns(ptr, at, mask, H: tl.constexpr, COUNT: tl.constexpr):
    """COUNT values of each unit, H apart."""
    found = ()
    for k in tl.static_range(COUNT):
        found = found + (tl.load(ptr + k * H + at, mask=mask, other=0.0),)
    return found


@triton.jit(do_not_specialize=["T", "B", "N", "s0", "s1", "chunks"])
def resident_forward(
    pre_ptr, w_ptr, bias_ptr, h_ptr, c_ptr, y_ptr, cells_ptr, borders_ptr, lengths_ptr, first_ptr, reset_ptr,
    T, B, N, s0, s1, chunks,
    CELL: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, W: tl.constexpr, G: tl.constexpr, BB: tl.constexpr,
    TILE: tl.constexpr, WHOLE: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Steps s0 … s1 - 1 of processing order. ``pre`` has N rows; of all steps if WHOLE, and the gates take its place.

    The recurrent products have the pre-activations for their start, but that of a GRU's n, kept apart. TILE gates are
    multiplied, loaded and stored as one, so that the layout of a matrix unit is changed for another one less often:
    each change takes a way through shared memory and two barriers.
    """
    b0, d, D = tl.program_id(0).to(tl.int64) * BB, tl.program_id(1), tl.num_programs(1)
    i, u = tl.arange(0, BB), tl.arange(0, HP)
    in_batch, unit = b0 + i < B, (u < H)[None, :]
    length = length_of(b0 + i, in_batch, lengths_ptr, T)
    state_at = (d.to(tl.int64) * B + b0) * H + (i[:, None] * H + u[None, :])
    state_mask = in_batch[:, None] & unit
    h = tl.load(h_ptr + state_at, mask=state_mask, other=0.0)
    c = h
    if c_ptr is not None:
        c = tl.load(c_ptr + state_at, mask=state_mask, other=0.0)
    ws = ()
    for k in tl.static_range(0, G, TILE):
        ws = ws + (tf32.rounded(weight(w_ptr + d * (G * H * H), k, G, TILE, H, HP, True), PRECISION),)
    bias_ptr += d * (W * H)
    bias = load_gates(bias_ptr, tl.zeros((1, 1), tl.int32), tl.full((1, 1), 1, tl.int1), G, TILE, H, HP)
    bias_n = columns(bias_ptr + G * H, u[None, :], unit, H, W - G)
    pre_ptr += (d.to(tl.int64) * N - base_row(s0, s1, d, T, first_ptr, B, WHOLE)) * (W * H)
    pre_at, y_at = i[:, None] * (W * H), i[:, None] * (D * H) + u[None, :] + d * H

    t = time_of(s0, d, T)
    row = row_of(t, first_ptr, B) + b0
    alive = (t < length)[:, None]
    pre = load_gates(pre_ptr + row * (W * H), pre_at, alive, G, TILE, H, HP)
    for s in range(s0, s1):
        if borders_ptr is not None:
            border = borders_ptr + (d * chunks + s // CHUNK).to(tl.int64) * B * H + b0 * H
            tl.store(border + (i[:, None] * H + u[None, :]), c, mask=state_mask & (s % CHUNK == 0))
        if reset_ptr is not None:
            cut = is_cut(t, d, b0 + i, length, reset_ptr, T, B)[:, None]
            h, c = tl.where(cut, 0.0, h), tl.where(cut, 0.0, c)
        operand = tf32.rounded(h.to(w_ptr.dtype.element_ty), PRECISION)
        sums = ()
        for k in tl.static_range(0, G, TILE):
            start = pre[k // TILE] + bias[k // TILE]
            if CELL == "gru" and k == 2:
                product = tl.dot(operand, ws[k // TILE], input_precision=PRECISION, out_dtype=h.dtype)
                sums = sums + (start, product + bias_n[0])
            else:
                product = tl.dot(operand, ws[k // TILE], start, input_precision=PRECISION, out_dtype=h.dtype)
                sums = sums + parted(product, HP)

        next_t = time_of(tl.minimum(s + 1, s1 - 1), d, T)
        next_row = row_of(next_t, first_ptr, B) + b0
        next_alive = (next_t < length)[:, None]
        pre = load_gates(pre_ptr + next_row * (W * H), pre_at, next_alive, G, TILE, H, HP)

        kept, h_new, c_new = gates.forward(sums, h, c, CELL)
        y_mask = state_mask
        h_out, c_out = h_new, c_new
        if first_ptr is not None:
            y_mask = alive & unit
        elif lengths_ptr is not None:
            h_out, c_out = tl.where(alive, h_new, 0.0), tl.where(alive, c_new, 0.0)
        if lengths_ptr is not None:
            h, c = tl.where(alive, h_new, h), tl.where(alive, c_new, c)
        else:
            h, c = h_new, c_new
        tl.store(y_ptr + row * (D * H) + y_at, h_out.to(y_ptr.dtype.element_ty), mask=y_mask)
        if cells_ptr is not None:
            tl.store(cells_ptr + row * (D * H) + y_at, c_out, mask=y_mask)
        if WHOLE and W > 1:
            store_gates(pre_ptr + row * (W * H), pre_at, alive, kept, G, TILE, H, HP)
        t, row, alive = next_t, next_row, next_alive
    tl.store(h_ptr + state_at, h, mask=state_mask)
    if c_ptr is not None:
        tl.store(c_ptr + state_at, c, mask=state_mask)


@triton.jit
def saved_of_step(
    gates_ptr, state_ptr, c_prev_ptr, dy_ptr, dcells_ptr, gates_row, state_row, local_row, row, d, D, i, u, mask,
    CELL: tl.constexpr, H: tl.constexpr, W: tl.constexpr, STATE_WHOLE: tl.constexpr,
):  # fmt: skip
    """What :func:`gates.backward` reads of a step, and the gradients that arrive there for h and for c (or None)."""
    y_at = row * (D * H) + d * H + (i[:, None] * (D * H) + u[None, :])
    flat = i[:, None] * H + u[None, :]
    saved = ()
    if W > 1:
        saved = columns(gates_ptr + gates_row * (W * H), i[:, None] * (W * H) + u[None, :], mask, H, W)
    if STATE_WHOLE:
        state = tl.load(state_ptr + y_at, mask=mask, other=0.0)
    else:
        state = tl.load(state_ptr + state_row * H + flat, mask=mask, other=0.0)
    saved = saved + (state,)
    if CELL == "lstm":
        saved = saved + (tl.load(c_prev_ptr + local_row * H + flat, mask=mask, other=0.0),)
    arrives = ()
    if dy_ptr is not None:
        arrives = arrives + (tl.load(dy_ptr + y_at, mask=mask, other=0.0),)
    if dcells_ptr is not None:
        arrives = arrives + (tl.load(dcells_ptr + y_at, mask=mask, other=0.0),)
    return saved, arrives


@triton.jit(do_not_specialize=["T", "B", "N", "M", "s0", "s1"])
def resident_backward(
    gates_ptr, state_ptr, c_prev_ptr, w_ptr, dy_ptr, dcells_ptr, dpre_ptr, dh_ptr, dc_ptr,
    lengths_ptr, first_ptr, reset_ptr, T, B, N, M, s0, s1,
    CELL: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, W: tl.constexpr, G: tl.constexpr, BB: tl.constexpr,
    WHOLE: tl.constexpr, STATE_WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Steps s1 - 1 … s0 of processing order.

    ``gates`` are the tape of all N rows if WHOLE, else they have, like ``dpre`` and ``c_prev``, a chunk's M rows.
    ``state`` is the cell states (LSTM), the states before each step (GRU) or y (Elman), ``(N, D*H)`` if STATE_WHOLE,
    else ``(D, M, H)``. Rows behind a sequence's end have zeros in ``dpre``, and let its gradients pass.
    """
    b0, d, D = tl.program_id(0).to(tl.int64) * BB, tl.program_id(1), tl.num_programs(1)
    i, u = tl.arange(0, BB), tl.arange(0, HP)
    in_batch, unit = b0 + i < B, (u < H)[None, :]
    length = length_of(b0 + i, in_batch, lengths_ptr, T)
    carry_at = (d.to(tl.int64) * B + b0) * H + (i[:, None] * H + u[None, :])
    carry_mask = in_batch[:, None] & unit
    dh = tl.load(dh_ptr + carry_at, mask=carry_mask, other=0.0)
    dc = dh
    if dc_ptr is not None:
        dc = tl.load(dc_ptr + carry_at, mask=carry_mask, other=0.0)
    ws = ()
    for k in tl.static_range(G):
        ws = ws + (tf32.rounded(weight(w_ptr + d * (G * H * H), k, G, 1, H, HP, False), PRECISION),)
    local = d.to(tl.int64) * M - base_row(s0, s1, d, T, first_ptr, B, False)
    gates_local = local
    if WHOLE:
        gates_local = d.to(tl.int64) * N
    dpre_at = i[:, None] * (W * H) + u[None, :]

    t = time_of(s1 - 1, d, T)
    row = row_of(t, first_ptr, B) + b0
    alive = (t < length)[:, None] & unit
    saved, arrives = saved_of_step(
        gates_ptr, state_ptr, c_prev_ptr, dy_ptr, dcells_ptr, gates_local + row, local + row, local + row, row,
        d, D, i, u, alive, CELL, H, W, STATE_WHOLE,
    )  # fmt: skip
    for back in range(s1 - s0):
        if dy_ptr is not None:
            dh_all = dh + arrives[0].to(dh.dtype)
        else:
            dh_all = dh
        if dcells_ptr is not None:
            dc_all = dc + arrives[-1]
        else:
            dc_all = dc
        given = ()
        for k in tl.static_range(len(saved)):
            given = given + (saved[k].to(dh.dtype),)
        dpre, dh_around, dc_new = gates.backward(given, dh_all, dc_all, CELL)

        next_t = time_of(tl.maximum(s1 - 2 - back, s0), d, T)
        next_row = row_of(next_t, first_ptr, B) + b0
        next_alive = (next_t < length)[:, None] & unit
        saved, arrives = saved_of_step(
            gates_ptr, state_ptr, c_prev_ptr, dy_ptr, dcells_ptr, gates_local + next_row, local + next_row,
            local + next_row, next_row, d, D, i, u, next_alive, CELL, H, W, STATE_WHOLE,
        )  # fmt: skip

        stored_mask = carry_mask
        if first_ptr is not None:
            stored_mask = alive
        rounded = ()
        for k in tl.static_range(W):
            value = dpre[k]
            if lengths_ptr is not None:
                value = tl.where(alive, value, 0.0)
            rounded = rounded + (value.to(w_ptr.dtype.element_ty),)
            tl.store(dpre_ptr + (local + row) * (W * H) + k * H + dpre_at, rounded[k], mask=stored_mask)
        product = tl.zeros_like(dh)
        for k in tl.static_range(G):
            if CELL == "gru" and k == 2:
                factor = rounded[3]
            else:
                factor = rounded[k]
            product = tl.dot(factor, ws[k], product, input_precision=PRECISION, out_dtype=dh.dtype)
        product = tf32.restored(product, PRECISION)
        dh_new = dh_around + as_loaded(product, dh_ptr, carry_at, carry_mask, s0 > s1)
        if lengths_ptr is not None:
            dh, dc = tl.where(alive, dh_new, dh), tl.where(alive, dc_new, dc)
        else:
            dh, dc = dh_new, dc_new
        if reset_ptr is not None:
            cut = is_cut(t, d, b0 + i, length, reset_ptr, T, B)[:, None]
            dh, dc = tl.where(cut, 0.0, dh), tl.where(cut, 0.0, dc)
        t, row, alive = next_t, next_row, next_alive
    tl.store(dh_ptr + carry_at, dh, mask=carry_mask)
    if dc_ptr is not None:
        tl.store(dc_ptr + carry_at, dc, mask=carry_mask)


def forward_constants(plan: Plan, cell: Cell, hidden: int, whole: bool) -> dict[str, object]:
    """The constants of :func:`resident_forward`."""
    return _constants(plan, cell, hidden) | {"TILE": plan.together, "WHOLE": whole, "CHUNK": LEAN_CHUNK}


def backward_constants(plan: Plan, cell: Cell, hidden: int, whole: bool) -> dict[str, object]:
    """The constants of :func:`resident_backward`."""
    return _constants(plan, cell, hidden) | {"WHOLE": whole, "STATE_WHOLE": state_is_whole(cell, whole)}


def state_is_whole(cell: Cell, whole: bool) -> bool:
    """Whether the states that backward reads are those of all steps: y, and the cell states of a full tape."""
    return not cell.tape or (cell.has_c and whole)


def _constants(plan: Plan, cell: Cell, hidden: int) -> dict[str, object]:
    return {
        "CELL": cell.name,
        "PRECISION": plan.precision,
        "H": hidden,
        "HP": padded(hidden),
        "W": width(cell),
        "G": cell.gates,
        "BB": plan.tile,
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
    """Steps ``s0 … s1 - 1``: ``h`` and ``c`` are carried on, ``y``, ``cells`` and ``borders`` filled in.

    If ``whole``, ``pre`` is the tape of all steps and its gates are kept; else it is a chunk's and is only read.
    """
    launcher.launch(
        resident_forward,
        (cdiv(call.batch, plan.tile), call.directions),
        (
            *(pre, call.w_hh, call.bias, h, c, y, cells, borders, call.lengths, call.first_row, call.reset),
            *(call.steps, call.batch, pre.shape[1], s0, s1, cdiv(call.steps, LEAN_CHUNK)),
        ),
        forward_constants(plan, call.cell, call.hidden, whole),
        plan.warps,
        plan.stages,
    )


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
    """Steps ``s1 - 1 … s0``: ``dh`` and ``dc`` are carried on, ``dpre`` is filled in.

    ``kept`` are the gates, of all steps if ``whole``, and ``state`` what :func:`resident_backward` says.
    """
    launcher.launch(
        resident_backward,
        (cdiv(call.batch, plan.tile), call.directions),
        (
            *(kept, state, c_before, call.w_hh, dy, dcells, dpre, dh, dc, call.lengths, call.first_row, call.reset),
            *(call.steps, call.batch, call.rows, dpre.shape[1], s0, s1),
        ),
        backward_constants(plan, call.cell, call.hidden, whole),
        plan.warps,
        plan.stages,
    )
