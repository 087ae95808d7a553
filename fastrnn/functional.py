"""The stateless forms: whole recurrent stacks and single steps as functions of tensors.

They check what the caller gave, in torch.nn's words (:mod:`fastrnn._validate`), cut the stack into layers and send each
to an engine (:mod:`fastrnn.engine`). The modules of :mod:`fastrnn.nn` are these functions with parameters attached.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import _VF, Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastrnn import _autograd, _cpu, _layers, _shortcut, _validate, _weights, reference
from fastrnn._autocast import under_autocast
from fastrnn._changes import transposed
from fastrnn._validate import Stack, autocast_enabled
from fastrnn.engine import Plan, plan
from fastrnn.reference import CELLS

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_cell"]

Hidden = Tensor | tuple[Tensor, Tensor]
Sequences = Tensor | PackedSequence


def lstm(
    input: Sequences,
    hx: tuple[Tensor, Tensor] | None,
    params: Sequence[Tensor],
    *,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    proj_size: int = 0,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    return_cells: bool = False,
    tape: str = "full",
) -> tuple[Sequences, tuple[Tensor, Tensor]] | tuple[Sequences, tuple[Tensor, Tensor], Sequences]:
    r"""A stack of LSTM layers, as :class:`torch.nn.LSTM` computes it.

    Args:
        input: ``(T, B, I)``; ``(B, T, I)`` with ``batch_first``; ``(T, I)`` for one sequence; or a
            :class:`~torch.nn.utils.rnn.PackedSequence`. float32, float64, bfloat16 or float16 (gates,
            sums and states of 16-bit layers are float32); all other tensors are of the same dtype, except that, without
            gradients, ``w_ih`` and ``w_hh`` may be bfloat16 where all else is float32.
        hx: ``(h0, c0)``, each ``(num_layers*D, B, H)`` (``(num_layers*D, H)`` for one sequence), or None for zeros.
        params: ``w_ih (4*H, I), w_hh (4*H, H)`` and, with ``bias``, ``b_ih, b_hh (4*H)``, for every layer and direction
            in the order of :class:`torch.nn.LSTM`'s state_dict; gates in the order ``i, f, g, o``.
        bias, num_layers, dropout, bidirectional, batch_first, proj_size: as in :class:`torch.nn.LSTM`.
        training: whether dropout acts.
        lengths: valid steps of each row of a right-padded batch, int64 ``(B,)`` on the CPU or ints, in any order;
            or on the device of ``input``, see :meth:`fastrnn.LSTM.forward`.
            Results are those of packing; beyond a row's length the output is zero.
        reset: bool, shaped like ``input`` without its features (padded ``(T, B)`` or ``(B, T)`` for packed input).
            True: a new sequence begins at that step of that row, so its state is zeroed before the step; in the reverse
            direction nothing flows from that step to the one before it. No gradient crosses it. It is what RL calls
            ``episode_start``, the ``done`` flag of the step before.
        return_cells: also return the last layer's cell states of all steps.
        tape: what forward keeps for backward. ``"full"``: the gates, for the fastest backward. ``"lean"``: little more
            than the output; backward recomputes the gates. The gradients are the same.

    Returns:
        ``output, (h_n, c_n)``, and with ``return_cells`` the cell states, shaped and packed like ``output``.

    Raises:
        ValueError, RuntimeError, TypeError: for what :class:`torch.nn.LSTM` raises them.

    Examples::

        >>> net = torch.nn.LSTM(10, 20)
        >>> output, (h_n, c_n) = fastrnn.functional.lstm(torch.randn(5, 3, 10), None, list(net.parameters()))
    """
    stack = Stack("lstm", bias, num_layers, dropout, training, bidirectional, batch_first, tape, proj_size)
    output, state, cells = _stack(stack, input, hx, params, lengths, reset, return_cells)
    if cells is not None:
        return output, (state[0], state[1]), cells
    return output, (state[0], state[1])


def gru(
    input: Sequences,
    hx: Tensor | None,
    params: Sequence[Tensor],
    *,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    tape: str = "full",
) -> tuple[Sequences, Tensor]:
    r"""A stack of GRU layers, as :class:`torch.nn.GRU` computes it; arguments as in :func:`lstm`.

    ``hx`` is ``h0`` or None; ``params`` have ``3*H`` rows, gates in the order ``r, z, n``; returns ``output, h_n``.

    Examples::

        >>> net = torch.nn.GRU(10, 20, bidirectional=True)
        >>> x, params = torch.randn(5, 3, 10), list(net.parameters())
        >>> output, h_n = fastrnn.functional.gru(x, None, params, bidirectional=True, lengths=[5, 2, 3])
    """
    stack = Stack("gru", bias, num_layers, dropout, training, bidirectional, batch_first, tape)
    output, state, _ = _stack(stack, input, hx, params, lengths, reset, False)
    return output, state[0]


def rnn(
    input: Sequences,
    hx: Tensor | None,
    params: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    tape: str = "full",
) -> tuple[Sequences, Tensor]:
    r"""A stack of Elman layers, as :class:`torch.nn.RNN` computes it; arguments as in :func:`lstm`.

    ``hx`` is ``h0`` or None; ``params`` have ``H`` rows; ``nonlinearity`` is ``"tanh"`` or ``"relu"``; returns
    ``output, h_n``.

    Examples::

        >>> net = torch.nn.RNN(10, 20, nonlinearity="relu")
        >>> x, params = torch.randn(5, 3, 10), list(net.parameters())
        >>> output, h_n = fastrnn.functional.rnn(x, None, params, nonlinearity="relu")
    """
    cell = _validate.rnn_cell_name(nonlinearity)
    stack = Stack(cell, bias, num_layers, dropout, training, bidirectional, batch_first, tape)
    output, state, _ = _stack(stack, input, hx, params, lengths, reset, False)
    return output, state[0]


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One LSTM step, as :class:`torch.nn.LSTMCell` computes it.

    Args:
        input: ``(B, I)``, or ``(I)`` for one sequence.
        hx: ``(h, c)``, each ``(B, H)`` or ``(H)``, or None for zeros.
        w_ih, w_hh, b_ih, b_hh: ``(4*H, I)``, ``(4*H, H)`` and ``(4*H)``; gates in the order ``i, f, g, o``.

    Returns:
        The next ``(h, c)``, shaped like ``hx``.

    Examples::

        >>> w_ih, w_hh = torch.randn(80, 10), torch.randn(80, 20)
        >>> h, c = fastrnn.functional.lstm_cell(torch.randn(3, 10), None, w_ih, w_hh)
    """
    return _cell("lstm", input, hx, w_ih, w_hh, b_ih, b_hh)  # type: ignore[no-any-return]


def gru_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One GRU step, as :class:`torch.nn.GRUCell` computes it; arguments as in :func:`lstm_cell`, ``hx`` is ``h``."""
    return _cell("gru", input, hx, w_ih, w_hh, b_ih, b_hh)  # type: ignore[no-any-return]


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
) -> Tensor:
    """One Elman step, as :class:`torch.nn.RNNCell` computes it; arguments as in :func:`lstm_cell`, ``hx`` is ``h``."""
    return _cell(_validate.rnn_cell_name(nonlinearity), input, hx, w_ih, w_hh, b_ih, b_hh)  # type: ignore[no-any-return]


class _Batch(NamedTuple):
    """What the engines take: ``x`` time-major or packed, with the shape of its sequences."""

    x: Tensor
    batch_sizes: Tensor | None
    lengths: Tensor | None
    reset: Tensor | None


def plan_stack(
    stack: Stack,
    x: Tensor,
    params: Sequence[Tensor],
    reset: Tensor | None,
    return_cells: bool,
    single: int = 0,
    trains: bool = False,
    steps: int | None = None,
    batch: int | None = None,
    packed: bool = False,
    foreign: str | None = None,
) -> Plan:
    """The plan of a stack's call (every layer of a stack is computed by the same engine)."""
    beyond_torch = "reset" if reset is not None else "return_cells" if return_cells else None
    return plan(
        *(stack.cell, x, list(params)),
        beyond_torch=beyond_torch,
        proj_size=stack.proj_size,
        single=single,
        trains=trains,
        steps=steps,
        batch=batch,
        directions=stack.directions,
        layers=stack.num_layers,
        packed=packed,
        foreign=foreign,
        tape=stack.tape,
    )


def single_rows(stack: Stack, x: Tensor, steps: int, batch: int, trains: bool) -> int:
    """The rows of a dense call of a single step that torch may compute faster; 0 for any other call.

    torch's LSTM layer, unlike its cells and other layers, is no sum of operators, and slow at a single step.
    """
    by_cells = (trains or torch.compiler.is_compiling()) and _takes_cells(stack, x)
    fast = stack.cell != "lstm" or by_cells
    return batch if steps == 1 and fast else 0


def _takes_cells(stack: Stack, x: Tensor) -> bool:
    """Whether a single step can be computed by torch's operators for cells, with the dtypes that its layers give."""
    more = stack.bidirectional or stack.proj_size or (stack.dropout and stack.training)
    return not more and x.device.type == "cpu" and not _validate.autocast_enabled("cpu")


def wants_gradients(*tensors: Tensor) -> bool:
    """Whether autograd is to record what is computed from these."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _stack(
    stack: Stack,
    input: Sequences,
    hx: Hidden | None,
    params: Sequence[Tensor],
    lengths: Tensor | Sequence[int] | None,
    reset: Tensor | None,
    return_cells: bool,
) -> tuple[Sequences, tuple[Tensor, ...], Sequences | None]:
    """Check, normalise to time-major, compute, and give back in the caller's layout."""
    name = _validate.NAMES[stack.cell]
    _validate.options(stack, params)
    packed = isinstance(input, PackedSequence)
    if isinstance(input, Tensor) and lengths is None and reset is None and not return_cells and not stack.proj_size:
        shape = (stack.num_layers, stack.bidirectional, stack.batch_first)
        between = stack.dropout if stack.training else 0.0
        found = _shortcut.call(stack.cell, input, hx, params, *shape, between, stack.tape)
        if found is not None:
            return found[0], found[1] if CELLS[stack.cell].has_c else (found[1],), None
    batch_sizes: Tensor | None
    order: Tensor | None
    unorder: Tensor | None
    if isinstance(input, PackedSequence):
        x, batch_sizes, order, unorder = input
        _validate.packed(x, batch_sizes)
        _validate.no_lengths_when_packed(lengths)
        lengths_ = None
    else:
        x, batch_sizes, order, unorder = input, None, None, None
        _validate.input_dim(name, x)
    batched = packed or x.dim() == 3
    batch_dim = 0 if stack.batch_first else 1
    if not batched:
        x = x.unsqueeze(batch_dim)
    if stack.batch_first and not packed:
        x = x.transpose(0, 1)
    state = _validate.hidden(name, hx, batched, packed)
    if order is not None:
        state = tuple(s.index_select(1, order) for s in state)
    _validate.sizes(stack, x, batch_sizes, state, params, hx if batched else None)
    half_weights = _validate.half_weights(x, params)
    if half_weights:
        _validate.inference(x, state, params)
    steps = x.shape[0] if batch_sizes is None else batch_sizes.shape[0]
    # item() rather than int(), which an exporter refuses
    batch: int = x.shape[1] if batch_sizes is None else batch_sizes[0].item()  # type: ignore[assignment]
    if not packed:
        lengths_ = _validate.lengths(lengths, steps, batch, batched, x.device)
    if reset is not None:
        reset = _validate.reset(reset, steps, batch, batched, stack.batch_first, x.device)
        if order is not None:
            reset = reset.index_select(1, order)

    if (
        packed and not state and torch.compiler.is_compiling()
    ):  # or its shape would not say how many sequences there are
        state = _zeros(stack, x, params, batch)

    # elsewhere, nothing follows from it
    trains = (steps == 1 or x.is_cuda or _cpu.matters()) and wants_gradients(x, *state, *params)
    varied = packed or lengths_ is not None
    foreign = _validate.foreign(x, state)
    single = 0 if varied or foreign else single_rows(stack, x, steps, batch, trains)
    sizes = (single, trains, steps, batch, varied, foreign)
    chosen = plan_stack(stack, x, params, reset, return_cells, *sizes)
    if half_weights and chosen.engine != "cpu":
        params = [p.to(x.dtype) for p in params]
    run = _ours if chosen.engine != "torch" else _torch_cells if single and _takes_cells(stack, x) else _torch_layers
    sequences = _Batch(x, batch_sizes, lengths_, reset)
    y, state, cells = run(chosen, stack, sequences, state, params, return_cells)

    def restore(t: Tensor) -> Sequences:
        if packed:
            return PackedSequence(t, batch_sizes, order, unorder)
        t = transposed(t, False) if stack.batch_first else t
        return t if batched else t.squeeze(batch_dim)

    if unorder is not None:
        state = tuple(s.index_select(1, unorder) for s in state)
    if not batched:
        state = tuple(s.squeeze(1) for s in state)
    return restore(y), state, None if cells is None else restore(cells)


def _zeros(stack: Stack, x: Tensor, params: Sequence[Tensor], batch: Any) -> tuple[Tensor, ...]:
    """The initial state of a stack that was given none."""
    sizes = (stack.proj_size or params[1].shape[1], params[0].shape[0] // CELLS[stack.cell].gates)
    used = sizes if CELLS[stack.cell].has_c else sizes[:1]
    count = stack.num_layers * stack.directions
    return tuple(x.new_zeros(count, batch, size, layout=torch.strided) for size in used)  # whatever x is


def _ours(
    chosen: Plan,
    stack: Stack,
    sequences: _Batch,
    state: tuple[Tensor, ...],
    params: Sequence[Tensor],
    return_cells: bool,
    by_steps: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """The stack on one of fastrnn's own engines: a layer a call, dropout between them."""
    x, batch_sizes, lengths, reset = sequences
    by_steps = by_steps or batch_sizes is not None
    x, state, params, result_dtype = under_autocast(stack.cell, by_steps, x, state, params)
    has_c = CELLS[stack.cell].has_c

    def layer(
        x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: Sequence[Tensor], last: bool
    ) -> _autograd.Outputs:
        if chosen.engine != "reference":
            layout = _autograd.Layout(stack.cell, stack.bidirectional, stack.tape, return_cells and last)
            return _autograd.layer(layout, x, h0, c0, weights, batch_sizes, lengths, reset)
        off = torch.autocast(x.device.type, enabled=False) if autocast_enabled(x.device.type) else nullcontext()
        with off:
            return reference.layer(
                *(stack.cell, x, h0, c0, weights, stack.bidirectional),
                batch_sizes=batch_sizes,
                lengths=lengths,
                reset=reset,
            )

    between = stack.dropout if stack.training else 0.0
    x, joined, cells = _layers.run(layer, x, state, params, stack.num_layers, has_c, between)
    if result_dtype is not None:
        x, joined = x.to(result_dtype), tuple(s.to(result_dtype) for s in joined)
    return x, joined, cells.to(x.dtype) if return_cells and cells is not None else None


def _torch_cells(
    chosen: Plan,
    stack: Stack,
    sequences: _Batch,
    state: tuple[Tensor, ...],
    params: Sequence[Tensor],
    return_cells: bool,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """The stack's single step on torch's cells."""
    y, after = _shortcut.by_cells(stack.cell, sequences.x[0], state, params, stack.num_layers, time=0)
    return y, after, None


def _torch_layers(
    chosen: Plan,
    stack: Stack,
    sequences: _Batch,
    state: tuple[Tensor, ...],
    params: Sequence[Tensor],
    return_cells: bool,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """The stack on torch's own engine, which takes lengths as packing."""
    x, batch_sizes, lengths, _ = sequences
    steps, order, unorder = x.shape[0], None, None
    if lengths is not None:
        x, batch_sizes, order, unorder = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
    if order is not None:
        state = tuple(s.index_select(1, order) for s in state)
    if not state:
        # no int, which a trace would keep
        state = _zeros(stack, x, params, x.shape[1] if batch_sizes is None else batch_sizes[0])
    hx = state if CELLS[stack.cell].has_c else state[0]
    options = (stack.bias, stack.num_layers, stack.dropout, stack.training, stack.bidirectional)
    function = getattr(_VF, stack.cell)
    if batch_sizes is None:
        y, *state_ = function(x, hx, list(params), *options, False)
    else:
        y, *state_ = function(x, batch_sizes, hx, list(params), *options)
    if unorder is not None:
        y, _ = pad_packed_sequence(PackedSequence(y, batch_sizes, order, unorder), total_length=steps)
        state_ = [s.index_select(1, unorder) for s in state_]
    return y, tuple(state_), None


def _cell(
    cell: str,
    input: Tensor,
    hx: Hidden | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> Any:
    """One step of one cell: a layer of one step."""
    found = _shortcut.call(cell, input, hx, (w_ih, w_hh) if b_ih is None and b_hh is None else (w_ih, w_hh, b_ih, b_hh))
    if found is not None:
        return found
    after = _step(cell, input, hx, w_ih, w_hh, b_ih, b_hh)
    return after if CELLS[cell].has_c else after[0]


def _step(
    cell: str,
    input: Tensor,
    hx: Hidden | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> tuple[Tensor, ...]:
    """The same by the usual route."""
    _weights.refuse_expanded(f"{cell}_cell", input, w_ih, w_hh, b_ih, b_hh)
    name = f"{_validate.NAMES[cell]}Cell"
    state = _validate.cell_dims(name, input, hx)
    batched = input.dim() == 2
    x = input if batched else input.unsqueeze(0)
    if not batched:
        state = tuple(s.unsqueeze(0) for s in state)
    if b_ih is None and b_hh is not None:  # torch.nn's cells take one without the other
        b_ih = torch.zeros_like(b_hh)
    elif b_hh is None and b_ih is not None:
        b_hh = torch.zeros_like(b_ih)
    params = [p for p in (w_ih, w_hh, b_ih, b_hh) if p is not None]
    _validate.cell_sizes(cell, x, state, params)
    half_weights = _validate.half_weights(x, params)
    if half_weights:
        _validate.inference(x, state, params)
    trains = wants_gradients(x, *state, *params)
    rows, foreign = x.shape[0], _validate.foreign(x, state)
    given = (cell, x, params)
    chosen = plan(*given, beyond_torch=None, single=rows, trains=trains, steps=1, batch=rows, layers=0, foreign=foreign)
    if half_weights and chosen.engine != "cpu":
        params = [p.to(x.dtype) for p in params]
    if chosen.engine == "torch":
        if not state:
            zeros = x.new_zeros(x.shape[0], w_hh.shape[1], layout=torch.strided)  # whatever x is
            state = (zeros, zeros) if CELLS[cell].has_c else (zeros,)
        given = state if CELLS[cell].has_c else state[0]
        after = getattr(_VF, f"{cell}_cell")(x, given, *params)
        after = (after,) if isinstance(after, Tensor) else after
        return tuple(s if batched else s.squeeze(0) for s in after)
    sequences = _Batch(x.unsqueeze(0), None, None, None)
    initial = tuple(s.unsqueeze(0) for s in state)
    _, after, _ = _ours(chosen, Stack(cell, bias=b_ih is not None), sequences, initial, params, False, by_steps=True)
    return tuple(s.squeeze_(0) if batched else s[0, 0] for s in after)  # torch.nn's are no views either
