"""Modules' calls past checks, plan and dispatcher: into the engine, or a single step with gradients into torch's
operators.

A call of a PyTorch operator takes several times as long as a small step does, and as long as a short sequence. What is
not an ordinary dense call of ordinary CPU tensors is left to the usual route (None), which computes it or says what is
wrong with it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import _VF, Tensor

from fastrnn import _C, _autograd, _layers
from fastrnn._changes import transposed
from fastrnn.engine import SINGLE_ROWS
from fastrnn.reference import CELLS

_ANY_NUMBER = 1 << 62
_LAYERS = {cell: getattr(_VF, cell) for cell in CELLS}
_STEPS = {cell: getattr(_VF, f"{cell}_cell") for cell in CELLS}  # which takes long to look up


def nobody_looks_on() -> bool:
    """Whether no autocast, tracing, transform, mode or profiler would see which operators are called."""
    return _autograd.ordinary() and not (torch._C._is_any_autocast_enabled() or _autograd.recorded())


def call(
    cell: str,
    input: Any,
    hx: Any,
    params: Sequence[Any],
    layers: int = 0,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    tape: str = "full",
) -> Any:
    """What a module returns, or None where the usual route is to be taken.

    Args:
        cell: a key of :data:`fastrnn.reference.CELLS`.
        input, hx: as the module was given them.
        params: the parameters of all layers, two a layer and direction without biases, else four.
        layers: how many layers; 0 for a cell.
        bidirectional, batch_first: as in :class:`torch.nn.LSTM`.
        dropout: the probability that acts between the layers, 0 where they are not in training.
        tape: as in :class:`fastrnn.LSTM`.
    """
    if not nobody_looks_on():
        return None
    given = (cell, input, hx, params, layers, bidirectional, batch_first)
    if torch.is_grad_enabled():
        steps = _C.shortcut(*given, _ANY_NUMBER, False)
        if steps is None:
            return None
        state = () if hx is None else hx if cell == "lstm" else (hx,)
        if params[0].requires_grad or any(t.requires_grad for t in (input, *state, *params)):
            if steps > 1:
                return _sequence(cell, input, state, params, layers, bidirectional, batch_first, dropout, tape)
            return None if dropout else _by_torch(cell, input, hx, params, layers, batch_first)
    if dropout:
        return None
    found = _C.shortcut(*given, _ANY_NUMBER if layers and cell == "lstm" else SINGLE_ROWS, True)
    return _measured(*given) if found is False else found


def _sequence(
    cell: str,
    input: Tensor,
    state: Sequence[Tensor],
    params: Sequence[Tensor],
    layers: int,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    tape: str,
) -> Any:
    """Sequences with gradients, of which everything is checked, by the engine."""
    if input.dim() != 3:
        return None  # one sequence: the usual route adds its batch
    layout, has_c = _autograd.Layout(cell, bidirectional, tape, False), cell == "lstm"

    def layer(x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: Sequence[Tensor], _: bool) -> _autograd.Outputs:
        return _autograd.layer(layout, x, h0, c0, weights, is_ordinary=True)

    x = input.transpose(0, 1) if batch_first else input
    y, after, _ = _layers.run(layer, x, state, params, layers, has_c, dropout)
    return transposed(y, True) if batch_first else y, after if has_c else after[0]


def _by_torch(cell: str, input: Tensor, hx: Any, params: Sequence[Any], layers: int, batch_first: bool) -> Any:
    """A step of which input, state and first layer are checked, by torch's operators, which check the rest."""
    if input.dim() != (3 if layers else 2):
        return None  # one sequence: the usual route adds its batch
    if layers:
        time = 1 if batch_first else 0
        state = None if hx is None else hx if cell == "lstm" else (hx,)
        y, after = by_cells(cell, input.squeeze(time), state, params, layers, time)
        return y, after if cell == "lstm" else after[0]
    if hx is None:
        zeros = input.new_zeros(input.shape[0], params[1].shape[1])
        hx = (zeros, zeros) if cell == "lstm" else zeros
    return _STEPS[cell](input, hx, *params)


def _measured(
    cell: str, input: Tensor, hx: Any, params: Sequence[Any], layers: int, bidirectional: bool, batch_first: bool
) -> Any:
    """A call that is checked, without gradients, by torch's layer, which was measured to be faster."""
    if not layers:
        return _by_torch(cell, input, hx, params, 0, False)
    if input.dim() != 3:
        return None
    if hx is None:
        rows, directions = input.shape[0 if batch_first else 1], 2 if bidirectional else 1
        zeros = input.new_zeros(layers * directions, rows, params[1].shape[1])
        hx = (zeros, zeros) if cell == "lstm" else zeros
    has_biases = len(params) == 4 * layers * (2 if bidirectional else 1)
    y, *after = _LAYERS[cell](input, hx, list(params), has_biases, layers, 0.0, False, bidirectional, batch_first)
    return y, tuple(after) if cell == "lstm" else after[0]


def by_cells(
    cell: str, x: Tensor, state: Sequence[Tensor] | None, params: Sequence[Tensor], layers: int, time: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A step of unidirectional layers by torch's operators for cells, which take less time than those for layers.

    Args:
        cell, params, layers: as in :func:`call`.
        x: ``(B, I)``.
        state: ``h0`` and, for an LSTM, ``c0``, each ``(layers, B, H)``; None or empty for zeros.
        time: the output's dimension of time.

    Returns:
        The output, ``(1, B, H)`` or ``(B, 1, H)``, and the states like ``state``.
    """
    step, each, is_lstm = _STEPS[cell], len(params) // layers, cell == "lstm"
    if not state:
        zeros = x.new_zeros(x.shape[0], params[1].shape[1])
        given: Any = [(zeros, zeros) if is_lstm else zeros] * layers
    else:
        given = list(zip(*(s.unbind() for s in state), strict=True)) if is_lstm else state[0].unbind()
    after = []
    for k in range(layers):
        after.append(step(x, given[k], *params[k * each : (k + 1) * each]))
        x = after[-1][0] if is_lstm else after[-1]
    states = zip(*after, strict=True) if is_lstm else (after,)
    # copies, and no views: each may be changed or detached in place, and backward may need what the cells gave
    return torch.stack((x,), time), tuple(map(torch.stack, states))
