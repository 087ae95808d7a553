"""A layer on a GPU: the operators of :mod:`fastrnn._ops` by the kernels of this package, following a plan.

The recurrence is a strategy's kernel; the products over all steps (input, dx, dW) and sums are torch's. Where memory
asks for it both are cut in chunks of time, so that pre-activations and their gradients exist for a chunk only. Nothing
waits for the device. What torch's own products do with float32 (tf32 or not) is torch's setting for them,
``torch.backends.cuda.matmul``; the recurrence follows the plan.

The full tape holds the gates that :mod:`fastrnn.kernels.gates` keeps, in its order; ``pre`` is computed into it first.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrnn._ops import LEAN_CHUNK, Gradients, TapedOutputs
from fastrnn.kernels import grid, grid_backward, launcher, resident, states, stepwise
from fastrnn.kernels.call import Call
from fastrnn.kernels.plan import Plan
from fastrnn.kernels.tiles import cdiv, multiply

WORKSPACE = 256 * 2**20  # bytes that the buffers of a chunk of time may take, about
PARTIAL = 32 * 2**20  # bytes that partial sums of a weight's gradient may take, if one has room

FORWARD = {"resident": resident.forward, "grid": grid.forward, "stepwise": stepwise.forward}
BACKWARD = {"resident": resident.backward, "grid": grid_backward.backward, "stepwise": stepwise.backward}


def forward(
    plan: Plan,
    cell: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    bidirectional: bool,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    tape: str,
    cells: bool,
) -> TapedOutputs:
    """``fastrnn::layer_forward``; arguments and results as described in :mod:`fastrnn._ops`, after the plan.

    Where ``tape`` is ``"none"``, it is ``fastrnn::layer``, with a tape that is empty.
    """
    if tape not in ("none", "full", "lean"):
        raise RuntimeError(f"tape: expected none, full or lean, got {tape}")
    call = Call.of(cell, x, h0, c0, weights, bidirectional, batch_sizes, lengths, reset)
    has_c, gated = call.cell.has_c, call.width > 1
    features = call.directions * call.hidden
    y = x.new_empty((*call.rows_shape, features))
    h, c = call.carried_both(call.h0, call.c0)
    nothing = x.new_empty((0,), dtype=call.compute)
    all_cells = y.new_empty(y.shape, dtype=call.compute) if has_c and (cells or tape == "full") else None
    whole = tape == "full" and gated
    steps = call.steps if whole else _chunk_steps(call, call.width * call.compute.itemsize)
    rows = call.rows if whole else call.most_rows(steps)
    pre = x.new_empty((call.directions, rows, call.width * call.hidden), dtype=call.compute)
    borders = None
    if tape == "lean" and has_c:
        shape = (call.directions, cdiv(call.steps, LEAN_CHUNK), call.batch, call.hidden)
        borders = x.new_empty(shape, dtype=call.compute)
    for s0 in range(0, call.steps, steps):
        s1 = min(s0 + steps, call.steps)
        if call.batch > 0:
            _input_product(call, pre, s0, s1, whole)
            FORWARD[plan.strategy](plan, call, pre, h, c, y, all_cells, borders, s0, s1, whole)
    kept = pre if whole else nothing if borders is None else borders
    return (
        y,
        h.to(x.dtype),
        x.new_empty((0,)) if c is None else c.to(x.dtype),
        nothing if all_cells is None else all_cells,
        kept,
    )


def backward(
    plan: Plan,
    cell: str,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    dcells: Tensor | None,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    bidirectional: bool,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    y: Tensor,
    cells: Tensor,
    tape: Tensor,
    tape_kind: str,
    need_x: bool,
    need_h0: bool,
    need_c0: bool,
    need_weights: bool,
) -> Gradients:
    """``fastrnn::layer_backward``; arguments and results as described in :mod:`fastrnn._ops`, after the plan."""
    if tape_kind not in ("full", "lean"):
        raise RuntimeError(f"tape: expected full or lean in backward, got {tape_kind}")
    call = Call.of(cell, x, h0, c0, weights, bidirectional, batch_sizes, lengths, reset)
    has_c, gated = call.cell.has_c, call.width > 1
    again = tape_kind == "lean" and gated
    _check_saved(call, dy, dh_n, dc_n, dcells, y, cells, tape, tape_kind)
    dy, dcells = (None if g is None else g.to(t).contiguous() for g, t in ((dy, x.dtype), (dcells, call.compute)))
    y, cells, tape = y.contiguous(), cells.contiguous(), tape.contiguous()
    dh, dc = call.carried_both(dh_n, dc_n)

    # Per row and unit: dpre and, where they are needed, the states before, and gates with their products again.
    per_unit = (call.width + 1) * x.element_size() + has_c * call.compute.itemsize
    if again:
        per_unit += (call.width + call.gates + has_c) * call.compute.itemsize
    steps = _chunk_steps(call, per_unit, LEAN_CHUNK if again and has_c else 1)
    rows = call.most_rows(steps)

    def local(columns: int, dtype: torch.dtype) -> Tensor:
        return x.new_empty((call.directions, rows, columns), dtype=dtype)

    dpre = local(call.width * call.hidden, x.dtype)
    # The product with W_hh' finds them in y where a row's is a row of y: all but those of the first step.
    shifted = call.lengths is None and call.reset is None and not again and (has_c or not gated)
    h_before = None if shifted else local(call.hidden, x.dtype)
    c_before = local(call.hidden, call.compute) if has_c else None
    gates: Tensor | None = tape if gated else None
    recurrent = None
    state: Tensor = cells if has_c else y if h_before is None or not gated else h_before
    if again:
        gates, recurrent = local(call.width * call.hidden, call.compute), local(call.gates * call.hidden, call.compute)
        state = local(call.hidden, call.compute) if has_c or h_before is None else h_before
    # Two directions add up in dx: the second to the first or, where chunks of them meet, to nothing.
    meet = bidirectional and (steps < call.steps or call.batch == 0)
    dx = x.new_empty((0,)) if not need_x else (x.new_zeros if meet else x.new_empty)(call.x.shape)
    sums = [_WeightGradients(call) for _ in range(call.directions)] if need_weights else []
    for s0 in reversed(range(0, call.steps, steps)):
        s1 = min(s0 + steps, call.steps)
        if call.batch == 0:
            break
        if h_before is not None:
            _states_before(call, y, call.h0, h_before, s0, s1)
        if gates is not None and recurrent is not None and h_before is not None:
            _gates_again(call, gates, recurrent, h_before, tape, state, c_before, s0, s1)
        elif c_before is not None:
            _states_before(call, cells, call.c0, c_before, s0, s1)
        BACKWARD[plan.strategy](plan, call, gates, state, c_before, dy, dcells, dpre, dh, dc, s0, s1, whole=not again)
        for d in range(call.directions):
            lo, hi = call.span(d, s0, s1)
            sent = _rows(dpre[d], 0, hi - lo)
            if need_x:
                products = _columns(sent, call.gates * call.hidden)
                multiply(products, call.w_ih[d], _rows(dx, lo, hi), add=meet or d > 0)
            if need_weights:
                before = (
                    [(sent, h_before[d, : hi - lo])] if h_before is not None else _shifted(call, d, sent, y, lo, hi)
                )
                sums[d].add(sent, before, _alive_rows(call, lo, hi))
    dweights = _results(sums)
    return (
        dx.view(x.shape) if need_x else dx,
        dh.to(x.dtype) if need_h0 and h0 is not None else x.new_empty((0,)),
        dc.to(x.dtype) if dc is not None and need_c0 and c0 is not None else x.new_empty((0,)),
        *dweights,
        *(x.new_empty((0,)) for _ in range(4 - len(dweights))),
    )


def _check_saved(
    call: Call,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    dcells: Tensor | None,
    y: Tensor,
    cells: Tensor,
    tape: Tensor,
    tape_kind: str,
) -> None:
    """What autograd hands back must be what forward gave."""
    all_steps, one = (*call.rows_shape, call.directions * call.hidden), (call.directions, call.batch, call.hidden)
    expected: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        *(("dy", dy, all_steps), ("dcells", dcells, all_steps), ("dh_n", dh_n, one), ("dc_n", dc_n, one)),
        ("y", y, all_steps),
    ]
    if tape_kind == "full" and call.cell.has_c:
        expected.append(("cells", cells, all_steps))
    if tape_kind == "full" and call.width > 1:
        expected.append(("tape", tape, (call.directions, call.rows, call.width * call.hidden)))
    if tape_kind == "lean" and call.cell.has_c:
        expected.append(("tape", tape, (call.directions, cdiv(call.steps, LEAN_CHUNK), call.batch, call.hidden)))
    for name, t, shape in expected:
        if t is not None and t.shape != shape:
            raise RuntimeError(f"{name}: expected size {list(shape)}, got {list(t.shape)}")


def _rows(t: Tensor, start: int, stop: int) -> Tensor:
    """``t[start:stop]``, without an operator where that is all of it."""
    return t if stop - start == t.shape[0] else t[start:stop]


def _columns(t: Tensor, count: int) -> Tensor:
    """``t[:, :count]``, likewise."""
    return t if count == t.shape[1] else t[:, :count]


def _chunk_steps(call: Call, per_unit: int, multiple: int = 1) -> int:
    """As many steps, a multiple of ``multiple``, as have room at ``per_unit`` bytes per row, unit and direction."""
    fit = WORKSPACE // max(call.directions * call.batch * call.hidden * per_unit * multiple, 1)
    return min(max(fit, 1) * multiple, cdiv(call.steps, multiple) * multiple)


def _input_product(call: Call, pre: Tensor, s0: int, s1: int, whole: bool) -> None:
    """``x W_ih'`` of a chunk into ``pre``."""
    for d in range(call.directions):
        lo, hi = call.span(d, s0, s1)
        start = lo if whole else 0
        out = _columns(_rows(pre[d], start, start + hi - lo), call.gates * call.hidden)
        multiply(_rows(call.x, lo, hi), call.w_ih[d].t(), out)


def _alive_rows(call: Call, lo: int, hi: int) -> Tensor:
    """The rows of x; zero behind the sequences' ends, where x may hold anything, even NaN."""
    x = _rows(call.x, lo, hi)
    if call.lengths is None or call.first is not None:
        return x
    t = torch.arange(lo // call.batch, hi // call.batch, device=x.device)
    return x.masked_fill((t[:, None] >= call.lengths).reshape(-1, 1), 0.0)


def _states_before(call: Call, after: Tensor, initial: Tensor | None, before: Tensor, s0: int, s1: int) -> None:
    grid = (s1 - s0, cdiv(call.batch, states.BATCH_TILE), call.directions)
    arguments = (
        *(after, initial, before, call.lengths, call.first_row, call.reset),
        *(call.steps, call.batch, before.shape[1], s0, s1),
    )
    constants = states.before_constants(call.hidden)
    launcher.launch(states.states_before, grid, arguments, constants, states.WARPS, states.STAGES)


def _gates_again(
    call: Call,
    gates: Tensor,
    recurrent: Tensor,
    h_before: Tensor,
    borders: Tensor,
    cells: Tensor,
    c_before: Tensor | None,
    s0: int,
    s1: int,
) -> None:
    """The gates of a chunk from x, the states before each step and, for an LSTM, the cell state kept at s0."""
    _input_product(call, gates, s0, s1, whole=False)
    for d in range(call.directions):
        lo, hi = call.span(d, s0, s1)
        multiply(h_before[d, : hi - lo], call.w_hh[d].t(), recurrent[d, : hi - lo])
    grid = (cdiv(call.batch, states.BATCH_TILE), cdiv(call.hidden, states.UNIT_TILE), call.directions)
    arguments = (
        *(gates, recurrent, call.bias, borders, cells, c_before, call.lengths, call.first_row, call.reset),
        *(call.steps, call.batch, gates.shape[1], s0, s1, cdiv(call.steps, LEAN_CHUNK)),
    )
    constants = states.again_constants(call.cell, call.hidden)
    launcher.launch(states.gates_again, grid, arguments, constants, states.WARPS, states.STAGES)


def _shifted(call: Call, d: int, dpre: Tensor, y: Tensor, lo: int, hi: int) -> list[tuple[Tensor, Tensor]]:
    """Rows of direction d's ``dpre``, which begins at row ``lo``, and the states before them that may not be zero.

    Of a dense layout without resets: those of the step before in ``y``, and ``h0`` where a sequence begins.
    """
    batch, pairs = call.batch, []
    after = y.view(call.rows, -1)
    if call.directions > 1:
        after = after[:, d * call.hidden : (d + 1) * call.hidden]
    from_row, to_row = (max(lo, batch), hi) if d == 0 else (lo, min(hi, call.rows - batch))
    if from_row < to_row:
        back = batch if d == 0 else -batch
        pairs.append((dpre[from_row - lo : to_row - lo], after[from_row - back : to_row - back]))
    if call.h0 is not None and d == 0 and lo == 0:
        pairs.append((dpre[:batch], call.h0[d]))
    if call.h0 is not None and d == 1 and hi == call.rows:
        pairs.append((dpre[-batch:], call.h0[d]))
    return pairs


class _WeightGradients:
    """The gradients of one direction's weights: products of blocks of rows, whose sum is float64.

    A product of all rows is one long sum, or a few, and rounds more than torch's, which is one over steps of those over
    rows. Blocks are products of one batch, as many at a time as :data:`PARTIAL` has room for. What is rounded to 16
    bits in the end may be a long sum, of float32.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.short = call.x.dtype != call.compute
        self.sums = call.compute if self.short else torch.float64
        self.w_ih: Tensor | None = None
        self.w_hh: list[Tensor | None] = [None] if call.width == call.gates else [None, None]  # one below the other
        self.bias: Tensor | None = None

    def add(self, dpre: Tensor, before: Sequence[tuple[Tensor, Tensor]], x: Tensor) -> None:
        """A chunk: ``dpre (n, W*H), x (n, I)``, and rows of dpre with the states before: ``(m, W*H)``, ``(m, H)``."""
        self.w_ih = self._sum(_columns(dpre, self.call.gates * self.call.hidden), x, self.w_ih)
        for rows, h_before in before:
            self.w_hh = [
                self._sum(part, h_before, into) for part, into in zip(self._recurrent(rows), self.w_hh, strict=True)
            ]
        if self.call.biases[0]:
            self.bias = self._added(self.bias, dpre.sum(0, dtype=self.sums))

    def _recurrent(self, dpre: Tensor) -> tuple[Tensor, ...]:
        """What the products with W_hh get: a GRU's third gate has its own in its fourth pre-activation."""
        hidden = self.call.hidden
        return (dpre,) if len(self.w_hh) == 1 else (dpre[:, : 2 * hidden], dpre[:, 3 * hidden :])

    def _sum(self, dpre: Tensor, factor: Tensor, into: Tensor | None) -> Tensor:
        """``into``, or nothing, and the products."""
        compute, rows, shape = self.call.compute, len(dpre), (dpre.shape[1], factor.shape[1])
        block = rows if self.short else min(self._block(), rows)
        if block == rows:
            product = dpre.new_empty(shape, dtype=compute)
            multiply(dpre.t(), factor, product)
            return self._added(into, product)
        most = max(1, PARTIAL // max(shape[0] * shape[1] * compute.itemsize, 1))  # blocks at a time
        whole = rows // block * block
        for r0 in (*range(0, whole, most * block), *([whole] if whole < rows else [])):
            size = block if r0 < whole else rows - whole
            a, b = (t[r0 : min(r0 + most * block, whole) if r0 < whole else rows] for t in (dpre, factor))
            a, b = a.unflatten(0, (-1, size)), b.unflatten(0, (-1, size))
            partial = dpre.new_empty((len(a), *shape), dtype=compute)
            multiply(a.transpose(1, 2), b, partial)
            into = self._added(into, partial.sum(0, dtype=self.sums))
        assert into is not None  # there is a block at least
        return into

    def _added(self, into: Tensor | None, more: Tensor) -> Tensor:
        return more if into is None else into.to(self.sums).add_(more)

    def _block(self) -> int:
        """How many rows a product sums: torch has two sums, as long as the steps and as the batch."""
        return min(max(2 * (self.call.steps + self.call.batch), 64), 512)

    def parts(self) -> list[list[Tensor]]:
        """The gradients of ``w_ih, w_hh`` and, if there are any, ``b_ih, b_hh``, each in parts one below the other."""
        hidden, inputs = self.call.hidden, self.call.inputs
        counts = [self.call.gates] if len(self.w_hh) == 1 else [2, 1]
        w_hh = [self._found(part, (count * hidden, hidden)) for part, count in zip(self.w_hh, counts, strict=True)]
        weights = [[self._found(self.w_ih, (self.call.gates * hidden, inputs))], w_hh]
        if not self.call.biases[0]:
            return weights
        bias = self._found(self.bias, (self.call.width * hidden,))
        if len(w_hh) == 1:
            return [*weights, [bias], [bias]]
        return [*weights, [bias[: 3 * hidden]], [bias[: 2 * hidden], bias[3 * hidden :]]]

    def _found(self, found: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        return self.call.x.new_zeros(shape) if found is None else found


def _results(sums: Sequence[_WeightGradients]) -> list[Tensor]:
    """The gradients of the weights, both directions one below the other, in storage, no two in one memory."""
    joined = ([p for direction in weight for p in direction] for weight in zip(*(s.parts() for s in sums), strict=True))
    return [
        torch.cat(parts).to(sums[0].call.x.dtype) if len(parts) > 1 else parts[0].to(sums[0].call.x.dtype, copy=k > 1)
        for k, parts in enumerate(joined)
    ]
