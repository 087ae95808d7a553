"""The operators of a layer as Python has them: what they take and give, shapes without data, and rules for vmap.

``fastrnn::layer`` is a layer, and what a compiler or an exporter records. ``fastrnn::layer_forward`` also returns the
tape, which ``fastrnn::layer_backward`` makes gradients of. Each takes a layer whole (x, all weights, both directions),
so that an engine may cut the input product in time and may recompute. The C++ engine (``fastrnn._C``) has their schemas
and implements them for CPU, :mod:`fastrnn._cuda` for CUDA; :mod:`fastrnn._autograd` has the rules by which each is
differentiated.

Arguments, the same in all (shapes as in :func:`fastrnn.reference.layer`):
    ``batch_sizes`` belongs to packed ``x (N, I)``, ``lengths`` to padded ``x (T, B, I)``; at most one is given.
    ``tape`` says what is kept for backward: ``"full"``, the gates of every step (and ``cells``); ``"lean"``, the cell
    state before every :data:`LEAN_CHUNK` steps of processing order, nothing more. ``fastrnn::layer`` keeps it only
    where gradients are wanted.
    ``cells`` asks for the cell states of all steps as an output.

Results: ``y (…, D*H)``, ``h_n (D, B, H)``, ``c_n (D, B, H)``, ``cells (…, D*H)`` and the tape, ``(D, N, W*H)`` when
    full, ``(D, ceil(T / LEAN_CHUNK), B, H)`` when lean. ``cells`` and the tape are in the compute dtype (fp32 for
    16-bit). The gradients are ``dx``, ``dh0`` and ``dc0``, ``dw_ih (D*G*H, I)``, ``dw_hh (D*G*H, H)``, ``db_ih`` and
    ``db_hh (D*G*H)``, of both directions one below the other. What a cell does not have or was not asked for comes as
    an empty tensor ``(0,)``: the arity is fixed, and nothing is a list, which Inductor's C++ wrapper would not take.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn import _C, _flops
from fastrnn._imports import when_imported
from fastrnn.reference import CELLS, compute_dtype

LEAN_CHUNK = 64  # steps between two kept cell states of the lean tape; csrc/cpu/rnn.h names the same number

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]
TapedOutputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, ...]  # dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh

layer = torch.ops.fastrnn.layer.default
layer_forward = torch.ops.fastrnn.layer_forward.default
layer_backward = torch.ops.fastrnn.layer_backward.default

when_imported("torch.utils.flop_counter", _flops.register)


def cpu_isa() -> str:
    """The instruction set of the C++ engine: the best that this CPU has, or what ``FASTRNN_CPU_ISA`` names."""
    return _C.cpu_isa()


def cpu_isas() -> list[str]:
    """Every instruction set in this build that this CPU can run, best first."""
    return _C.cpu_isas()


@torch.library.register_fake("fastrnn::layer")
def _(*args: Any) -> Outputs:
    return _without_data(*args[:-2], "none", args[-1])[:4]  # type: ignore[no-any-return]


@torch.library.register_fake("fastrnn::layer_forward")
def _without_data(
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
    spec, directions, hidden = CELLS[cell], 2 if bidirectional else 1, weights[1].shape[1]
    rows = x.shape[:-1]
    steps = x.shape[0] if batch_sizes is None else batch_sizes.shape[0]
    batch: Any
    if batch_sizes is None:
        batch = x.shape[1]
    elif h0 is not None or c0 is not None:
        batch = (h0 if h0 is not None else c0).shape[1]  # type: ignore[union-attr]
    elif type(batch_sizes) is Tensor and not batch_sizes.is_meta:  # x is on the meta device; nothing is traced
        batch = int(batch_sizes[0])
    else:
        batch = torch.library.get_ctx().new_dynamic_size()
    compute, nothing = compute_dtype(x.dtype), (0,)
    all_cells = spec.has_c and (cells or tape == "full")
    kept: Sequence[int] = nothing
    if tape == "full" and spec.tape:
        kept = (directions, math.prod(rows), spec.tape * hidden)
    elif tape == "lean" and spec.has_c:
        kept = (directions, (steps + LEAN_CHUNK - 1) // LEAN_CHUNK, batch, hidden)
    return (
        x.new_empty((*rows, directions * hidden)),
        x.new_empty((directions, batch, hidden)),
        x.new_empty((directions, batch, hidden) if spec.has_c else nothing),
        x.new_empty((*rows, directions * hidden) if all_cells else nothing, dtype=compute),
        x.new_empty(kept, dtype=compute),
    )


@torch.library.register_fake("fastrnn::layer_backward")
def _(
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
    def like(t: Tensor | None, needed: bool) -> Tensor:
        return x.new_empty(t.shape if t is not None and needed else (0,))

    directions = 2 if bidirectional else 1
    each = weights[: len(weights) // directions]
    rows = [x.new_empty((directions * w.shape[0], *w.shape[1:]) if need_weights else (0,)) for w in each]
    w_ih, w_hh, b_ih, b_hh = (*rows, *(x.new_empty((0,)) for _ in range(4 - len(each))))
    return like(x, need_x), like(h0, need_h0), like(c0, need_c0), w_ih, w_hh, b_ih, b_hh


# vmap: with shared weights the mapped dimension joins the batch, index b * V + v, so that one call does it all; with
# mapped weights (ensembles), or gradients of shared weights per mapped index, it is one call per index.


# The batch dimension of an argument or result; those not named have it where x does, at 1, or at 0 when packed.
_BATCH_DIMS = {"lengths": 0, "reset": 1, "full_tape": 1, "lean_tape": 2}
_BATCH_DIMS |= dict.fromkeys(("h0", "c0", "dh_n", "dc_n", "h_n", "c_n", "dh0", "dc0"), 1)


def _batch_dim(name: str, packed: bool) -> int:
    return _BATCH_DIMS.get(name, 0 if packed else 1)


def _fold(t: Tensor | None, mapped: int | None, size: int, dim: int) -> Tensor | None:
    """Have the mapped dimension join the batch, right behind ``dim``; an unmapped tensor is repeated."""
    if t is None or t.shape == (0,):
        return t
    if mapped is None:
        t = t.unsqueeze(dim + 1).expand(*t.shape[: dim + 1], size, *t.shape[dim + 1 :])
    else:
        t = t.movedim(mapped, dim + 1)
    return t.flatten(dim, dim + 1)


def _unfold(t: Tensor, size: int, dim: int) -> tuple[Tensor, int | None]:
    """Have it leave the batch, to come first: for each index, a result without gaps, as it is without vmap."""
    if t.shape == (0,):
        return t, None
    return t.unflatten(dim, (t.shape[dim] // size, size)).movedim(dim + 1, 0).contiguous(), 0


def _is_mapped(in_dim: Any) -> bool:
    return any(d is not None for d in in_dim) if isinstance(in_dim, list | tuple) else in_dim is not None


def _one_by_one(op: Callable[..., Any], size: int, in_dims: Sequence[Any], args: Sequence[Any]) -> tuple[Any, Any]:
    """Call ``op`` per mapped index and stack the results."""

    def at(v: int, arg: Any, in_dim: Any) -> Any:
        if isinstance(arg, list | tuple):
            return [at(v, a, d) for a, d in zip(arg, in_dim, strict=True)]
        return arg if in_dim is None else arg.select(in_dim, v)

    if size == 0:
        raise NotImplementedError("fastrnn: vmap over a dimension of size 0")
    results = [op(*(at(v, a, d) for a, d in zip(args, in_dims, strict=True))) for v in range(size)]
    stacked = tuple(torch.stack(outs) for outs in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


@torch.library.register_vmap("fastrnn::layer")
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    return _mapped_forward(layer, info, in_dims, args)


@torch.library.register_vmap("fastrnn::layer_forward")
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    return _mapped_forward(layer_forward, info, in_dims, args)


def _mapped_forward(op: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], args: Any) -> tuple[Any, Any]:
    names = ("cell", "x", "h0", "c0", "weights", "bidirectional", "batch_sizes", "lengths", "reset", "tape", "cells")
    arg, dim = dict(zip(names, args, strict=True)), dict(zip(names, in_dims, strict=True))
    if _is_mapped(dim["weights"]) or _is_mapped(dim["batch_sizes"]):
        return _one_by_one(op, info.batch_size, in_dims, args)
    packed, size = arg["batch_sizes"] is not None, info.batch_size
    for name in ("x", "h0", "c0", "lengths", "reset"):
        arg[name] = _fold(arg[name], dim[name], size, _batch_dim(name, packed))
    if packed:
        arg["batch_sizes"] = arg["batch_sizes"] * size
    outputs = op(*arg.values())
    kinds = ("y", "h_n", "c_n", "cells", f"{arg['tape']}_tape")
    unfolded = [_unfold(t, size, _batch_dim(k, packed)) for k, t in zip(kinds, outputs, strict=False)]
    return tuple(t for t, _ in unfolded), tuple(d for _, d in unfolded)


@torch.library.register_vmap("fastrnn::layer_backward")
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    names = (
        *("cell", "dy", "dh_n", "dc_n", "dcells", "x", "h0", "c0", "weights", "bidirectional", "batch_sizes"),
        *("lengths", "reset", "y", "cells", "tape", "tape_kind", "need_x", "need_h0", "need_c0", "need_weights"),
    )
    arg, dim = dict(zip(names, args, strict=True)), dict(zip(names, in_dims, strict=True))
    if arg["need_weights"] or _is_mapped(dim["weights"]) or _is_mapped(dim["batch_sizes"]):
        return _one_by_one(layer_backward, info.batch_size, in_dims, args)
    packed, size = arg["batch_sizes"] is not None, info.batch_size
    tensors = ("dy", "dh_n", "dc_n", "dcells", "x", "h0", "c0", "lengths", "reset", "y", "cells", "tape")
    for name in tensors:
        kind = f"{arg['tape_kind']}_tape" if name == "tape" else name
        arg[name] = _fold(arg[name], dim[name], size, _batch_dim(kind, packed))
    if packed:
        arg["batch_sizes"] = arg["batch_sizes"] * size
    dx, dh0, dc0, *nothing = layer_backward(*arg.values())
    unfolded = [_unfold(t, size, _batch_dim(k, packed)) for k, t in (("x", dx), ("dh0", dh0), ("dc0", dc0))]
    return (*(t for t, _ in unfolded), *nothing), (*(d for _, d in unfolded), *[None] * len(nothing))
