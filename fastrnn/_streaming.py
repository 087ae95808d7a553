"""A single step without gradients, as a stream is served: past checks, plan and dispatcher, straight into the engine.

A call of a PyTorch operator takes several times as long as a small step does. What is not an ordinary step of ordinary
CPU tensors is left to the usual route (None), which computes it or says what is wrong with it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.jit._trace import is_tracing
from torch.nn import Parameter

from fastrnn import _C
from fastrnn.reference import CELLS

_KINDS = (Tensor, Parameter)  # and no subclass, which may act otherwise


def is_ordinary() -> bool:
    """Whether nothing looks on: no autograd, autocast, tracing, transform or mode that would see operators."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._is_any_autocast_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_torch_function_mode_enabled()
        or forward_ad._current_level >= 0
        or is_tracing()
    )


def _address(t: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Where an ordinary contiguous CPU tensor of that shape and dtype lies; 0 for any other."""
    ordinary = type(t) in _KINDS and t.dtype is dtype and t.shape == shape and t.is_cpu and t.is_contiguous()
    return t.data_ptr() if ordinary and not t.is_neg() else 0


def layers(
    cell: str,
    x: Tensor,
    state: Sequence[Tensor],
    params: Sequence[Tensor],
    each: int,
    batch: int,
    lead: tuple[int, ...],
    output: bool,
) -> tuple[Tensor, ...] | None:
    """One step of a stack of unidirectional layers; to be called where :func:`is_ordinary`.

    Args:
        cell: a key of :data:`fastrnn.reference.CELLS`.
        x: the input, ``(…, I)`` with B rows.
        state: ``h0`` and, for an LSTM, ``c0``, each ``(*lead, H)``; empty for zeros.
        params: the parameters of all L layers, ``each`` of them a layer (2 without biases, else 4).
        batch: B.
        lead: the dimensions of a state before H: ``(L, B)``; without B for one sequence, without L for a cell.
        output: return the output as well, for a layer.

    Returns:
        ``y (…, H)`` if wanted, ``h_n`` and, for an LSTM, ``c_n``, each ``(*lead, H)``; or None.
    """
    if each not in (2, 4) or len(params) < each or type(params[1]) not in _KINDS:
        return None
    w_hh, dtype, spec = params[1], x.dtype, CELLS[cell]
    is_double, sizes = dtype is torch.float64, x.shape
    known = is_double or dtype is torch.float32
    if not known or w_hh.dim() != 2 or x.layout is not torch.strided:
        return None
    inputs, hidden = sizes[-1], w_hh.shape[1]
    rows, shape = spec.gates * hidden, (*lead, hidden)
    x_at, h_at, c_at = _address(x, sizes, dtype), 0, 0
    if not x_at:
        return None
    if state:
        h_at, c_at = _address(state[0], shape, dtype), _address(state[-1], shape, dtype)
        if not h_at or not c_at:
            return None
        h_n = torch.empty_like(state[0])
    else:
        h_n = torch.empty(shape, dtype=dtype)
    c_n = torch.empty_like(h_n) if spec.has_c else h_n
    y = torch.empty((*sizes[:-1], hidden), dtype=dtype) if output else h_n
    last, y_at = len(params) - each, y.data_ptr()
    h_out, c_out, size = h_n.data_ptr(), c_n.data_ptr(), batch * hidden * dtype.itemsize
    for k in range(0, len(params), each):
        y_out = y_at if output and k == last else h_out
        b_ih = b_hh = 0
        w_ih, w_hh_ = _address(params[k], (rows, inputs), dtype), _address(params[k + 1], (rows, hidden), dtype)
        if each == 4:
            b_ih, b_hh = _address(params[k + 2], (rows,), dtype), _address(params[k + 3], (rows,), dtype)
            if not b_ih or not b_hh:
                return None
        if not w_ih or not w_hh_:
            return None
        _C.step(cell, is_double, batch, inputs, hidden, x_at, h_at, c_at, w_ih, w_hh_, b_ih, b_hh, y_out, h_out, c_out)
        x_at, inputs = h_out, hidden
        if state:
            h_at, c_at = h_at + size, c_at + size
        h_out, c_out = h_out + size, c_out + size
    states = (h_n, c_n) if spec.has_c else (h_n,)
    return (y, *states) if output else states
