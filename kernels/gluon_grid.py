"""The grid strategy in Gluon, for 16-bit numbers on NVIDIA's GPUs from compute capability 8.0 on: weights in registers.

Triton's compiler keeps weights that are loaded before a loop in shared memory, and reads all of them at every step.
Gluon has layouts in the program's hands: here each warp has its part of W_hh, along the sum, in registers in the layout
that matrix units take, for all steps. Units are the rows of its products and sequences the columns. So a thread takes
the state into products as it reads it, in 16 bytes at a time, by no way through shared memory. That is for the sums of
the warps alone, which are added up by the threads that own a unit, without a shuffle.

Matrix units take 16 rows. A forward program has several gates of its units side by side, and may have 8 units; a
program backward has one gate after the other, hence 16 units (:func:`fastrnn.kernels.model.backward_units`).

Everything else is that of :mod:`fastrnn.kernels.grid` and :mod:`fastrnn.kernels.grid_backward`: their time loops,
called with products of this module's own.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from fastrnn.kernels import exchange
from fastrnn.kernels.grid import all_sums, recur_forward
from fastrnn.kernels.grid_backward import product_ptr, recur_backward


@gluon.constexpr_function
def matrix_layout(split):
    """Of sums: each warp has its own."""
    return gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[split, 1, 1], instr_shape=[1, 16, 8])


@gluon.constexpr_function
def factor_layout(split, depth):
    """Of a factor as it is read, in words: a thread has a quarter of a row's, which are neighbours."""
    return gl.BlockedLayout([1, 1, depth // 4], [1, 8, 4], [split, 1, 1], [2, 1, 0])


@gluon.constexpr_function
def sum_layout(split, rows, units):
    """Of the sums of all warps, when they are added up: a thread has those of all warps."""
    down = min(split, rows // 4)
    return gl.BlockedLayout([split, 1, 1], [1, 4, 8], [1, down, split // down], [1, 2, 0])


@gluon.constexpr_function
def padded(rows):
    """Of products, as many as matrix units take at least."""
    return max(rows, 16)


@gluon.constexpr_function
def chains(gates, hidden, rows, units):
    """How many sums the products backward are added to in turns.

    A product waits for the one before it in its sum. With 16 rows and 16 units a warp has two sums that do not wait for
    each other, half of what keeps matrix units busy, so each is in two parts. Beside the weights of a larger layer
    these have no room, known from compilation; there, a gate's products are done while the next one's gradients come.
    """
    return 2 if rows * units <= 256 and gates * hidden <= 2048 else 1


@gluon.constexpr_function
def parts_of(hidden, split, depth):
    """How many parts of the sum, of ``split * depth`` each."""
    return -(-hidden // (split * depth))


@gluon.jit
def tile_index(SPLIT: gl.constexpr, ROWS: gl.constexpr, COLUMNS: gl.constexpr, LAYOUT: gl.constexpr):
    """The three indices of a tensor of a layout, along their axes."""
    s = gl.arange(0, SPLIT, layout=gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))
    r = gl.arange(0, ROWS, layout=gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT)))
    c = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))
    return s[:, None, None], r[None, :, None], c[None, None, :]


@gluon.jit
def as_factor(x, OPERAND: gl.constexpr, SPLIT: gl.constexpr, BK: gl.constexpr):
    """A factor as it was read, in rows, for matrix units: its numbers stay in the threads where they are.

    Of 16 summands these take from a thread 0 and 1, 8 and 9, from the next 2 and 3, 10 and 11. The order of a sum is
    free, so what a thread has read counts as those.
    """
    ROWS: gl.constexpr = x.shape[1]
    x = x.reshape([SPLIT, ROWS, 4, BK // 16, 2, 2])
    if OPERAND == 0:
        x = x.permute([0, 1, 3, 4, 2, 5]).reshape([SPLIT, ROWS, BK])
    else:
        x = x.permute([0, 3, 4, 2, 5, 1]).reshape([SPLIT, BK, ROWS])
    return gl.convert_layout(x, gl.DotOperandLayout(OPERAND, matrix_layout(SPLIT), 2), assert_trivial=True)


@gluon.jit
def factors_at(x_ptr, in_tile, STRIDE: gl.constexpr, H: gl.constexpr, SPLIT: gl.constexpr, BB: gl.constexpr,
               BK: gl.constexpr):  # fmt: skip
    """As :func:`fastrnn.kernels.grid.factors_at`."""
    s, r, k = tile_index(SPLIT, BB, BK, factor_layout(SPLIT, BK))
    at = x_ptr + (gl.minimum(r, in_tile - 1) * STRIDE + s * BK + k)
    PARTS: gl.constexpr = parts_of(H, SPLIT, BK)
    ptrs = ()
    for j in gl.static_range(PARTS):
        ptrs = ptrs + (at + j * SPLIT * BK,)
    return ptrs, ((PARTS - 1) * SPLIT * BK + s * BK + k < H) & (r < BB)


@gluon.jit
def add_products(sums, factors, ws, FIRST: gl.constexpr, SPLIT: gl.constexpr, BK: gl.constexpr):
    """Add the products of factors with the weights from number FIRST on to several sums, in turns."""
    for j in gl.static_range(len(factors)):
        sums = sums[1:] + (mma_v2(ws[FIRST + j], as_factor(factors[j], 1, SPLIT, BK), sums[0]),)
    return sums


@gluon.jit
def multiply_in_registers(
    x_ptr, held, in_tile, compute, patience, error_ptr, s, BB: gl.constexpr, BU: gl.constexpr, W: gl.constexpr,
    H: gl.constexpr, SPLIT: gl.constexpr, BK: gl.constexpr, PRECISION: gl.constexpr, EXCHANGE: gl.constexpr,
):  # fmt: skip
    """As :func:`fastrnn.kernels.grid.multiply_shared`."""
    ws, red = held[0], held[1]
    MMA: gl.constexpr = matrix_layout(SPLIT)
    SUMS: gl.constexpr = sum_layout(SPLIT, BB, BU)
    dtype: gl.constexpr = x_ptr.dtype.element_ty
    PACK: gl.constexpr = exchange.packed(dtype, H, EXCHANGE)
    WHOLE: gl.constexpr = H // (SPLIT * BK)
    x_ptr = exchange.words(x_ptr, PACK, EXCHANGE)
    places = factors_at(x_ptr, in_tile, H // PACK, H // PACK, SPLIT, BB, BK // PACK)
    found = exchange.ask(places, WHOLE, EXCHANGE)
    factors, patience = exchange.receive(found, places, patience, error_ptr, s, dtype, PACK, WHOLE, EXCHANGE)
    zeros = gl.zeros([SPLIT, padded(W * BU), BB], gl.float32, layout=MMA)
    red.store(all_sums(add_products((zeros,), factors, ws, 0, SPLIT, BK)))
    products = ()
    for g in gl.static_range(W):
        products = products + (gl.sum(red.slice(g * BU, BU, dim=1).permute([0, 2, 1]).load(SUMS), axis=0),)
    return products, patience


@gluon.jit
def multiply_in_registers_backward(
    step_ptr, held, in_tile, compute, patience, error_ptr, s, CELL: gl.constexpr, BB: gl.constexpr,
    BU: gl.constexpr, W: gl.constexpr, H: gl.constexpr, SPLIT: gl.constexpr, BK: gl.constexpr,
    PRECISION: gl.constexpr, EXCHANGE: gl.constexpr, AHEAD: gl.constexpr,
):  # fmt: skip
    """As :func:`fastrnn.kernels.grid_backward.multiply_shared`."""
    ws, red = held[0], held[1]
    MMA: gl.constexpr = matrix_layout(SPLIT)
    SUMS: gl.constexpr = sum_layout(SPLIT, BB, BU)
    G: gl.constexpr = 3 if CELL == "gru" else W
    PARTS: gl.constexpr = parts_of(H, SPLIT, BK)
    CHAINS: gl.constexpr = chains(G, H, BB, BU)
    sums = (gl.zeros([SPLIT, BU, BB], gl.float32, layout=MMA),) * CHAINS
    dtype: gl.constexpr = step_ptr.dtype.element_ty
    PACK: gl.constexpr = exchange.packed(dtype, H, EXCHANGE)
    WHOLE: gl.constexpr = H // (SPLIT * BK)
    HP: gl.constexpr = H // PACK
    step_ptr = exchange.words(step_ptr, PACK, EXCHANGE)
    places = factors_at(step_ptr, in_tile, W * HP, HP, SPLIT, BB, BK // PACK)
    found = exchange.ask(places, WHOLE, EXCHANGE)
    for g in gl.static_range(G):
        factors, patience = exchange.receive(found, places, patience, error_ptr, s, dtype, PACK, WHOLE, EXCHANGE)
        if g + 1 < G:
            places = factors_at(product_ptr(step_ptr, CELL, g + 1, HP), in_tile, W * HP, HP, SPLIT, BB, BK // PACK)
            if AHEAD:
                found = exchange.ask(places, WHOLE, EXCHANGE)
        sums = add_products(sums, factors, ws, g * PARTS, SPLIT, BK)
        if g + 1 < G and not AHEAD:
            found = exchange.ask(places, WHOLE, EXCHANGE)
    red.store(all_sums(sums))
    return gl.sum(red.permute([0, 2, 1]).load(SUMS), axis=0), patience


@gluon.jit(do_not_specialize=["T", "B", "N", "s0", "s1", "chunks", "patience"])
def gluon_grid_forward(
    pre_ptr, w_ptr, bias_ptr, h_ptr, c_ptr, y_ptr, cells_ptr, borders_ptr, exchange_ptr, lengths_ptr, first_ptr,
    reset_ptr, T, B, N, s0, s1, chunks, counter_ptr, error_ptr, patience,
    CELL: gl.constexpr, H: gl.constexpr, W: gl.constexpr, BB: gl.constexpr, BU: gl.constexpr,
    SPLIT: gl.constexpr, BK: gl.constexpr, WHOLE: gl.constexpr, CHUNK: gl.constexpr, PRECISION: gl.constexpr,
    APART: gl.constexpr, EXCHANGE: gl.constexpr, TURNS: gl.constexpr,
):  # fmt: skip
    """As :func:`fastrnn.kernels.grid.grid_forward`."""
    PLACE: gl.constexpr = gl.SliceLayout(0, sum_layout(SPLIT, BB, BU))
    UNIT_TILES: gl.constexpr = (H + BU - 1) // BU
    G: gl.constexpr = 3 if CELL == "gru" else W
    group, u0, d = gl.program_id(0) // UNIT_TILES, gl.program_id(0) % UNIT_TILES * BU, gl.program_id(1)
    s, p, k = tile_index(SPLIT, padded(W * BU), BK, factor_layout(SPLIT, BK))
    part, unit = p // BU, u0 + p % BU
    inside = (unit < H) & (part < W)
    if CELL == "gru":  # the third has no product, and the fourth that of the third gate
        inside = inside & (part != 2)
        part = gl.where(part == 3, 2, part)
    ws = ()
    for j in gl.static_range(parts_of(H, SPLIT, BK)):
        at = j * SPLIT * BK + s * BK + k
        w_at = d * (G * H * H) + (part * H + unit) * H + at
        w = gl.load(w_ptr + w_at, mask=inside & (at < H), other=0.0)
        ws = ws + (as_factor(w, 0, SPLIT, BK),)
    swizzled: gl.constexpr = gl.SwizzledSharedLayout(vec=4, per_phase=2, max_phase=4, order=[2, 1, 0])
    red = gl.allocate_shared_memory(gl.float32, [SPLIT, padded(W * BU), BB], swizzled)
    i, u = gl.arange(0, BB, layout=gl.SliceLayout(1, PLACE)), gl.arange(0, BU, layout=gl.SliceLayout(0, PLACE))
    if TURNS:
        groups, tiles = gl.num_programs(0) // UNIT_TILES, (B + BB - 1) // BB
        for turn in range((tiles - group + groups - 1) // groups):
            patience = recur_forward(
                multiply_in_registers, (ws, red), i, u0 + u, group + turn * groups, d,
                pre_ptr, bias_ptr, h_ptr, c_ptr, y_ptr, cells_ptr, borders_ptr, exchange_ptr, lengths_ptr, first_ptr,
                reset_ptr, T, B, N, s0, s1, chunks, counter_ptr, error_ptr, patience,
                CELL, H, W, BB, BU, SPLIT, BK, WHOLE, CHUNK, PRECISION, APART, EXCHANGE,
            )  # fmt: skip
    else:
        recur_forward(
            multiply_in_registers, (ws, red), i, u0 + u, group, d,
            pre_ptr, bias_ptr, h_ptr, c_ptr, y_ptr, cells_ptr, borders_ptr, exchange_ptr, lengths_ptr, first_ptr,
            reset_ptr, T, B, N, s0, s1, chunks, counter_ptr, error_ptr, patience,
            CELL, H, W, BB, BU, SPLIT, BK, WHOLE, CHUNK, PRECISION, APART, EXCHANGE,
        )  # fmt: skip


@gluon.jit(do_not_specialize=["T", "B", "N", "M", "s0", "s1", "patience"])
def gluon_grid_backward(
    gates_ptr, state_ptr, c_prev_ptr, w_ptr, dy_ptr, dcells_ptr, dpre_ptr, dh_ptr, dc_ptr,
    lengths_ptr, first_ptr, reset_ptr, T, B, N, M, s0, s1, counter_ptr, error_ptr, patience,
    CELL: gl.constexpr, H: gl.constexpr, W: gl.constexpr, BB: gl.constexpr, BU: gl.constexpr,
    SPLIT: gl.constexpr, BK: gl.constexpr, WHOLE: gl.constexpr, STATE_WHOLE: gl.constexpr, PRECISION: gl.constexpr,
    APART: gl.constexpr, EXCHANGE: gl.constexpr, TURNS: gl.constexpr, AHEAD: gl.constexpr,
):  # fmt: skip
    """As :func:`fastrnn.kernels.grid_backward.grid_backward`."""
    PLACE: gl.constexpr = gl.SliceLayout(0, sum_layout(SPLIT, BB, BU))
    UNIT_TILES: gl.constexpr = (H + BU - 1) // BU
    G: gl.constexpr = 3 if CELL == "gru" else W
    group, u0, d = gl.program_id(0) // UNIT_TILES, gl.program_id(0) % UNIT_TILES * BU, gl.program_id(1)
    s, p, k = tile_index(SPLIT, BU, BK, factor_layout(SPLIT, BK))
    ws = ()
    for g in gl.static_range(G):
        for j in gl.static_range(parts_of(H, SPLIT, BK)):
            at = j * SPLIT * BK + s * BK + k
            w_at = d * (G * H * H) + (u0 + p) * (G * H) + g * H + at
            w = gl.load(w_ptr + w_at, mask=(u0 + p < H) & (at < H), other=0.0)
            ws = ws + (as_factor(w, 0, SPLIT, BK),)
    swizzled: gl.constexpr = gl.SwizzledSharedLayout(vec=4, per_phase=2, max_phase=4, order=[2, 1, 0])
    red = gl.allocate_shared_memory(gl.float32, [SPLIT, BU, BB], swizzled)
    i, u = gl.arange(0, BB, layout=gl.SliceLayout(1, PLACE)), gl.arange(0, BU, layout=gl.SliceLayout(0, PLACE))
    if TURNS:
        groups, tiles = gl.num_programs(0) // UNIT_TILES, (B + BB - 1) // BB
        for turn in range((tiles - group + groups - 1) // groups):
            patience = recur_backward(
                multiply_in_registers_backward, (ws, red), i, u0 + u, group + turn * groups, d,
                gates_ptr, state_ptr, c_prev_ptr, dy_ptr, dcells_ptr, dpre_ptr, dh_ptr, dc_ptr,
                lengths_ptr, first_ptr, reset_ptr, T, B, N, M, s0, s1, counter_ptr, error_ptr, patience,
                CELL, H, W, BB, BU, SPLIT, BK, WHOLE, STATE_WHOLE, PRECISION, APART, EXCHANGE, AHEAD,
            )  # fmt: skip
    else:
        recur_backward(
            multiply_in_registers_backward, (ws, red), i, u0 + u, group, d,
            gates_ptr, state_ptr, c_prev_ptr, dy_ptr, dcells_ptr, dpre_ptr, dh_ptr, dc_ptr,
            lengths_ptr, first_ptr, reset_ptr, T, B, N, M, s0, s1, counter_ptr, error_ptr, patience,
            CELL, H, W, BB, BU, SPLIT, BK, WHOLE, STATE_WHOLE, PRECISION, APART, EXCHANGE, AHEAD,
        )  # fmt: skip
