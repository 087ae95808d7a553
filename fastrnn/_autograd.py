"""Differentiation of a layer: the operators of :mod:`fastrnn._ops` as torch.autograd functions, to any order.

First-order gradients come from the engine's own backward. Double backward differentiates a formula made of torch
operations, derived from :func:`fastrnn.reference.layer` by ``torch.func.vjp``: correct before fast.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from fastrnn import _ops, reference
from fastrnn.reference import CELLS


class Layout(NamedTuple):
    """What describes a layer's call beside its differentiable tensors."""

    cell: str
    bidirectional: bool
    tape: str
    cells: bool


def layer(
    layout: Layout,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``y, h_n, c_n, cells`` of one layer on the fast engine, differentiable where anything requires it.

    What the cell does not have, or was not asked for, is an empty tensor (see :mod:`fastrnn._ops`).
    """
    transformed = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    if transformed:
        outputs = _TransformedLayer.apply(layout, batch_sizes, lengths, reset, x, h0, c0, *weights)
    elif torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h0, c0, *weights)):
        outputs = _Layer.apply(layout, batch_sizes, lengths, reset, x, h0, c0, *weights)
    else:
        outputs = _forward(layout._replace(tape="none"), batch_sizes, lengths, reset, x, h0, c0, *weights)
    return outputs[:4]  # type: ignore[no-any-return]


def _forward(
    layout: Layout,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    *weights: Tensor,
) -> _ops.Outputs:
    cell, bidirectional, tape, cells = layout
    weights_ = list(weights)
    return _ops.layer_forward(  # type: ignore[no-any-return]
        cell, x, h0, c0, weights_, bidirectional, batch_sizes, lengths, reset, tape, cells
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    layout, batch_sizes, lengths, reset, x, h0, c0, *weights = inputs
    y, _, c_n, cells, tape = output
    ctx.layout = layout
    ctx.set_materialize_grads(False)
    spec = CELLS[layout.cell]
    constants = [tape] if spec.has_c else [tape, c_n]
    if not (spec.has_c and layout.cells):
        constants.append(cells)
    ctx.mark_non_differentiable(*constants)
    # The lean tape keeps y alone: where the caller asked for the cell states, they are his, not ours.
    kept = cells if layout.tape == "full" else cells.new_empty(0)
    ctx.save_for_backward(batch_sizes, lengths, reset, x, h0, c0, y, kept, tape, *weights)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    # A compiler gives zeros for outputs without a gradient, the empty ones too: those are none.
    dy, dh_n, dc_n, dcells, _ = (None if g is None or g.shape == (0,) else g for g in grads)
    batch_sizes, lengths, reset, x, h0, c0, y, cells, tape, *weights = ctx.saved_tensors
    if all(g is None for g in (dy, dh_n, dc_n, dcells)):
        return (None,) * len(ctx.needs_input_grad)
    needs = ctx.needs_input_grad[4:]
    given = [g for g in (dy, dh_n, dc_n, dcells) if g is not None]
    if not torch.compiler.is_compiling() and any(map(torch._C._functorch.is_legacy_batchedtensor, given)):
        found = _by_operations(
            ctx.layout, needs, (dy, dh_n, dc_n, dcells), (x, h0, c0, *weights), batch_sizes, lengths, reset
        )
        return (None,) * 4 + found
    wanted = (*needs[:3], any(needs[3:]))
    args = (
        (ctx.layout, wanted, batch_sizes, lengths, reset, dy, dh_n, dc_n, dcells),
        (x, h0, c0, y, cells, tape, *weights),
    )
    # Grad mode is on in a backward pass only where a higher derivative may be asked for.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        dx, dh0, dc0, *dweights = _LayerBackward.apply(*args[0], *args[1])
    else:
        dx, dh0, dc0, *dweights = _layer_backward(*args[0], *args[1])
    found = (dx, dh0, dc0, *dweights)
    return (None,) * 4 + tuple(g if need else None for g, need in zip(found, needs, strict=True))


def _by_operations(
    layout: Layout,
    needs: Sequence[bool],
    grads: Sequence[Tensor | None],
    inputs: Sequence[Any],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """For ``torch.autograd.grad(…, is_grads_batched=True)``, whose batched gradients only torch's operators take."""
    higher = torch.is_grad_enabled()
    x, h0, c0, *weights = inputs
    with torch.enable_grad():
        outputs = reference.layer(
            *(layout.cell, x, h0, c0, weights, layout.bidirectional),
            batch_sizes=batch_sizes,
            lengths=lengths,
            reset=reset,
        )
        used = [(o, g) for o, g in zip(outputs, grads, strict=True) if o is not None and g is not None]
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
        found = iter(
            torch.autograd.grad(
                [o for o, _ in used], wanted, [g for _, g in used], create_graph=higher, allow_unused=True
            )
        )
    return tuple(next(found) if need else None for need in needs)


class _Layer(Function):
    """The usual route: 15 us a call cheaper than the style that ``torch.func`` needs."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> _ops.Outputs:
        outputs = _forward(*inputs)
        _save(ctx, inputs, outputs)
        return outputs

    backward = staticmethod(_backward)


class _TransformedLayer(Function):
    """The same under ``torch.func`` transforms."""

    generate_vmap_rule = True
    forward = staticmethod(_forward)
    setup_context = staticmethod(_save)
    backward = staticmethod(_backward)


def _layer_backward(
    layout: Layout,
    wanted: tuple[bool, bool, bool, bool],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    dcells: Tensor | None,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    y: Tensor,
    cells: Tensor,
    tape: Tensor,
    *weights: Tensor,
) -> tuple[Tensor, ...]:
    cell, bidirectional, tape_kind, _ = layout
    dx, dh0, dc0, dweights = _ops.layer_backward(
        *(cell, dy, dh_n, dc_n, dcells, x, h0, c0, list(weights), bidirectional, batch_sizes, lengths, reset),
        *(y, cells, tape, tape_kind, *wanted),
    )
    return (dx, dh0, dc0, *dweights)


class _LayerBackward(Function):
    """The engine's backward, itself differentiable."""

    generate_vmap_rule = True
    forward = staticmethod(_layer_backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        layout, wanted, batch_sizes, lengths, reset, *grads = inputs[:9]
        x, h0, c0, _, _, _, *weights = inputs[9:]
        ctx.layout, ctx.wanted, ctx.present = layout, wanted, [g is not None for g in grads]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(g for g in outputs if g.shape == (0,)))
        ctx.save_for_backward(batch_sizes, lengths, reset, *grads, x, h0, c0, *weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        batch_sizes, lengths, reset, *primals = ctx.saved_tensors
        formula = _first_order(ctx.layout, batch_sizes, lengths, reset, primals)
        there = [i for i, p in enumerate(primals) if p is not None]
        gradients, vjp, *_ = torch.func.vjp(formula, *(primals[i] for i in there))
        # `gradients` stand for the primals behind the four output gradients, in order, where those are there.
        targets = [i for i in there if i >= 4]
        cotangents = []
        for i, g in zip(targets, gradients, strict=True):
            given = grads[i - 4]
            cotangents.append(torch.zeros_like(g) if given is None or given.shape == (0,) else given)
        found: list[Tensor | None] = [None] * len(primals)
        for i, g in zip(there, vjp(tuple(cotangents)), strict=True):
            found[i] = g
        # y, cells and the tape depend on the primals, and the formula has counted that: no gradient of their own.
        return (None,) * 5 + (*found[:7], None, None, None, *found[7:])


def _first_order(
    layout: Layout,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    primals: Sequence[Tensor | None],
) -> Callable[..., tuple[Tensor, ...]]:
    """The gradients of a layer as a function of ``dy, dh_n, dc_n, dcells, x, h0, c0, *weights`` (those not None)."""
    names = [i for i, p in enumerate(primals) if p is not None]

    def gradients(*present: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(names, present, strict=True))
        cotangents = [given[i] for i in range(4) if i in given]

        def outputs(*inputs: Tensor) -> tuple[Tensor, ...]:
            at = dict(zip([i for i in names if i >= 4], inputs, strict=True))
            weights = [at[i] for i in range(7, len(primals))]
            results = reference.layer(
                *(layout.cell, at[4], at.get(5), at.get(6), weights, layout.bidirectional),
                batch_sizes=batch_sizes,
                lengths=lengths,
                reset=reset,
            )
            return tuple(r for i, r in enumerate(results) if i in given and r is not None)

        _, vjp, *_ = torch.func.vjp(outputs, *(given[i] for i in names if i >= 4))
        return tuple(vjp(tuple(cotangents)))

    return gradients
