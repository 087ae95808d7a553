"""Differentiation of the operators of :mod:`fastrnn._ops`, to any order, by whatever route torch reaches them.

Each operator has its rule, a torch.autograd function that the dispatcher calls, so that a compiled, exported, traced or
transformed program has the gradients that an ordinary one has. First-order gradients come from the engine's own
backward. What goes beyond them, double backward and forward mode, differentiates a formula made of torch operations,
:func:`fastrnn.reference.layer`: correct before fast.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor, unwrap_if_dead
from torch._functorch.eager_transforms import enable_inplace_requires_grad
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.overrides import has_torch_function
from torch.utils._device import DeviceContext

from fastrnn import _C, _onednn, _ops, reference
from fastrnn._changes import changed, counter
from fastrnn._dynamo import tracing, untraced
from fastrnn.reference import CELLS, compute_dtype

Sizes = tuple[Tensor | None, Tensor | None, Tensor | None]  # batch_sizes, lengths, reset
Outputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # y, h_n, c_n, cells
OUTPUTS = 4


class Layout(NamedTuple):
    """What describes a layer's call beside its tensors."""

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
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    is_ordinary: bool = False,
) -> Outputs:
    """``y, h_n, c_n, cells`` of one layer on the fast engine, differentiable where anything requires it.

    What the cell does not have, or was not asked for, is None or an empty tensor (see :mod:`fastrnn._ops`).
    ``is_ordinary``: it is known that :func:`ordinary` holds and that no tensor is of a subclass.
    """
    sizes = (batch_sizes, lengths, reset)
    args = (layout.cell, x, h0, c0, list(weights), layout.bidirectional, *sizes, *layout[2:])
    # A rule followed at once would see what a subclass of Tensor makes of the engine's results, views among them, which
    # nobody could change in place then. The operator hands it what the rule returns.
    if not is_ordinary and (not ordinary() or has_torch_function((x, h0, c0, *weights))):
        return _ops.layer(*args)  # type: ignore[no-any-return]
    if (weights[0].requires_grad and torch.is_grad_enabled()) or _wants_gradients(x, h0, c0, *weights):
        return _OrdinaryForward.apply(layout, sizes, x, h0, c0, *weights)[:OUTPUTS]  # type: ignore[attr-defined, no-any-return]
    return _directly(_C.layer, *args) or _engine(_ops.layer, *args)  # type: ignore[no-any-return]


def ordinary() -> bool:
    """Whether no compiler, transform or mode is to see the operators, so that a rule can be followed at once.

    The dispatcher takes as long to call a rule as a short sequence takes to compute.
    """
    return not (
        tracing()
        or torch._C._are_functorch_transforms_active()
        or (torch._C._is_torch_function_mode_enabled() and not _default_device_alone())
        or forward_ad._current_level >= 0
    )


def recorded() -> bool:
    """Whether a profiler or torch.jit.trace is to see the operators, which changes nothing about their rules."""
    return torch._C._autograd._profiler_enabled() or torch._C._get_tracing_state() is not None


def _default_device_alone() -> bool:
    """Whether the modes are those of a default device alone, which are about tensors made without saying where."""
    modes = map(torch._C._get_function_stack_at, range(torch._C._len_torch_function_stack()))
    return all(type(mode) is DeviceContext for mode in modes)


def _wants_gradients(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _directly(function: Callable[..., Any], *args: Any) -> Any:
    """An operator past the dispatcher, which takes longer than a short sequence; None where that is not possible."""
    return None if recorded() else function(*args)


def _engine(op: Callable[..., Any], *args: Any) -> Any:
    """An operator past its rule."""
    if not torch._C._are_functorch_transforms_active():
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)
    # The transforms around this one follow the rule in their turn; inside a rule torch turns differentiation off.
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def _follow(rule: type["_Rule"], *args: Any) -> Any:
    """A rule where the dispatcher calls it, once for every transform of ``torch.func``."""
    if not torch._C._are_functorch_transforms_active():
        return rule.apply(*args)  # type: ignore[attr-defined]
    with enable_single_level_autograd_function():
        return rule.apply(*args)  # type: ignore[attr-defined]


# ---- The rules ----


def _constants(layout: Layout, y: Tensor, h_n: Tensor, c_n: Tensor, cells: Tensor) -> list[Tensor]:
    """The outputs that the cell does not have, or nobody asked for."""
    if CELLS[layout.cell].has_c:
        return [] if layout.cells else [cells]
    return [c_n, cells]


class _Rule(_SingleLevelFunction):
    """What the rules share."""

    @staticmethod
    def _compiled_autograd_key(ctx: Any) -> tuple[int, ...]:
        """What compiled autograd knows a node by; :class:`torch.autograd.Function` has the same."""
        return (ctx._autograd_function_id,)


class _Layer(_Rule):
    """``fastrnn::layer`` where no gradients are wanted, but tangents may be."""

    @staticmethod
    @untraced
    def forward(ctx: Any, layout: Layout, sizes: Sizes, *tensors: Any) -> _ops.Outputs:
        x, h0, c0, *weights = tensors
        outputs = _engine(_ops.layer, layout.cell, x, h0, c0, weights, layout.bidirectional, *sizes, *layout[2:])
        ctx.layout = layout
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*_constants(layout, *outputs))
        ctx.save_for_forward(*sizes, *tensors)
        return outputs  # type: ignore[no-any-return]

    @staticmethod
    @untraced
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        return _push_outputs(ctx.layout, ctx.saved_tensors, tangents[2:])


class _LayerForward(_Rule):
    """``fastrnn::layer_forward``.

    Backward reads y and, of a full tape, the cells, which the caller holds and may change in place. Torch's own layers
    allow that, but where their backward reads the output as well (:func:`fastrnn._onednn.keeps_output`). A copy of y
    would double what the lean tape keeps, and an RNN. So the memory is shared, changes are counted, and who changed
    something pays: the layer is computed again, from tensors that torch lets nobody change. Where a compiler or a
    transform is at work, which have their own ways to count, the caller gets a copy.
    """

    @staticmethod
    @untraced
    def forward(ctx: Any, layout: Layout, sizes: Sizes, *tensors: Any, is_ordinary: bool = False) -> _ops.TapedOutputs:
        x, h0, c0, *weights = tensors
        outputs = _engine(
            _ops.layer_forward, layout.cell, x, h0, c0, weights, layout.bidirectional, *sizes, *layout[2:]
        )
        y, _, _, cells, tape = outputs
        # The lean tape keeps y alone: where the caller asked for the cell states, they are his, not ours.
        kept = cells if layout.tape == "full" else cells.new_empty(0)
        is_shared = layout.cells and layout.tape == "full"
        if is_ordinary or not (tracing() or torch._C._are_functorch_transforms_active()):
            ctx.counters, y = (counter(y),), y.data  # which has a count of its own
            ctx.hooked = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
            if is_shared:
                ctx.counters, kept = (*ctx.counters, counter(kept)), kept.data
        else:
            ctx.counters = ()
            given = _engine(torch.clone, cells) if is_shared else cells
            outputs = (_engine(torch.clone, y), *outputs[1:3], given, tape)
        ctx.layout = layout
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(tape, *_constants(layout, *outputs[:OUTPUTS]))
        ctx.save_for_backward(*sizes, x, h0, c0, y, kept, tape, *weights)
        ctx.save_for_forward(*sizes, *tensors)
        return outputs  # type: ignore[no-any-return]

    @staticmethod
    def _compiled_autograd_key(ctx: Any) -> tuple[int, ...]:
        return (ctx._autograd_function_id, changed(ctx.counters))  # what backward does depends on that

    @staticmethod
    @untraced
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        return (*_push_outputs(ctx.layout, ctx.saved_tensors, tangents[2:]), None)

    @staticmethod
    @untraced
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        # A compiler gives zeros for outputs without a gradient, the empty ones too: those are none.
        arriving = tuple(None if g is None or g.shape == (0,) else g for g in grads[:OUTPUTS])
        given = [g for g in arriving if g is not None]
        if not given:
            return (None,) * len(ctx.needs_input_grad)
        needs, layout = ctx.needs_input_grad[2:], ctx.layout
        batch_sizes, lengths, reset, x, h0, c0, y, cells, tape, *weights = ctx.saved_tensors
        sizes = (batch_sizes, lengths, reset)
        if changed(ctx.counters):
            y_changed = changed(ctx.counters[:1]) and not ctx.hooked  # hooks give torch's backward what was saved
            if y_changed and _onednn.keeps_output(layout.cell, layout.bidirectional, x, *sizes):
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"the output of a layer ({layout.cell}), which torch.nn's backward needs here as well"
                )
            args = (layout.cell, x, h0, c0, weights, layout.bidirectional, *sizes, *layout[2:])
            y, _, _, cells, tape = _engine(_ops.layer_forward, *args)
        given_args = (layout.cell, *arriving, x, h0, c0, weights, layout.bidirectional, *sizes, y)
        wanted = (layout.tape, *needs[:3], any(needs[3:]))
        is_simple = not torch.is_grad_enabled() and ordinary()
        found = _directly(_C.layer_backward, *given_args, cells, tape, *wanted) if is_simple else None
        if found is not None:
            return (None, None, *found)
        if not torch.compiler.is_compiling() and any(map(torch._C._functorch.is_legacy_batchedtensor, given)):
            # torch.autograd.grad(…, is_grads_batched=True), whose gradients only torch's own operators take
            found = _pull(_outputs(layout, sizes), (x, h0, c0, *weights), arriving)
        else:
            if cells is None or tape is None:
                nothing = x.new_empty(0, dtype=compute_dtype(x.dtype))
                cells, tape = (nothing if t is None else t for t in (cells, tape))
            all_args = (*given_args, cells, tape, *wanted)
            found = _engine(_ops.layer_backward, *all_args) if is_simple else _ops.layer_backward(*all_args)
            found = _by_weight(found, len(needs), layout.bidirectional)
        return (None, None, *(g if need else None for g, need in zip(found, needs, strict=True)))


class _OrdinaryForward(_LayerForward):
    """The same where no compiler, transform or mode is at work (:func:`ordinary`), which takes time to ask.

    There are no empty tensors among its outputs, nor among what it keeps.
    """

    @staticmethod
    @untraced
    def forward(ctx: Any, layout: Layout, sizes: Sizes, *tensors: Any) -> Any:  # type: ignore[override]
        x, h0, c0, *weights = tensors
        found = _directly(_C.layer_forward, layout.cell, x, h0, c0, weights, layout.bidirectional, *sizes, *layout[2:])
        if found is None:
            return _LayerForward.forward(ctx, layout, sizes, *tensors, is_ordinary=True)
        y, h_n, c_n, cells, tape = found
        kept_y, kept = y.data, cells if layout.tape == "full" else None
        ctx.counters, ctx.layout = (counter(y),), layout
        ctx.hooked = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        if not layout.cells:
            cells = None
        elif kept is not None:
            ctx.counters, kept = (*ctx.counters, counter(kept)), kept.data
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*sizes, x, h0, c0, kept_y, kept, tape, *weights)
        return y, h_n, c_n, cells


class _LayerBackward(_Rule):
    """``fastrnn::layer_backward``: of ``dy, dh_n, dc_n, dcells, x, h0, c0, *weights``.

    y, the cells and the tape depend on those, which the formula has counted: they have no derivative of their own.
    """

    @staticmethod
    @untraced
    def forward(
        ctx: Any, layout: Layout, sizes: Sizes, saved: tuple[Tensor, ...], wanted: tuple[bool, ...], *tensors: Any
    ) -> tuple[Tensor, ...]:
        *layers, weights = (*tensors[:7], list(tensors[7:]))
        outputs: tuple[Tensor, ...] = _engine(
            *(_ops.layer_backward, layout.cell, *layers, weights, layout.bidirectional, *sizes, *saved),
            *(layout.tape, *wanted),
        )
        ctx.layout, ctx.there = layout, [g.shape != (0,) for g in outputs]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(g for g, there in zip(outputs, ctx.there, strict=True) if not there))
        ctx.save_for_backward(*sizes, *tensors)
        ctx.save_for_forward(*sizes, *tensors)
        return outputs

    @staticmethod
    @untraced
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        pushed = _by_direction(_push(_gradients(ctx.layout, saved[:3]), saved[3:], tangents[4:]), ctx.layout)
        return tuple(t if there else None for t, there in zip(pushed, ctx.there, strict=True))

    @staticmethod
    @untraced
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        given = _by_weight(
            [None if g is None or g.shape == (0,) else g for g in grads], len(saved) - 7, ctx.layout.bidirectional
        )
        return (None,) * 4 + _pull(_gradients(ctx.layout, saved[:3]), saved[3:], given)


def _by_weight(gradients: Sequence[Tensor | None], count: int, bidirectional: bool) -> tuple[Tensor | None, ...]:
    """The results of ``fastrnn::layer_backward`` as ``count`` gradients, of ``x, h0, c0, *weights``.

    They are no views, so that they can be changed and detached in place: torch has a split for that, but not for vmap.
    """
    if not bidirectional:
        return tuple(gradients[:count])
    rows = gradients[3 : (count + 3) // 2]
    is_transformed = torch._C._are_functorch_transforms_active()
    split = Tensor.split_with_sizes if is_transformed else Tensor.unsafe_split_with_sizes
    both = [(None, None) if g is None else split(g, (len(g) // 2,) * 2) for g in rows]
    return (*gradients[:3], *(g for g, _ in both), *(g for _, g in both))


def _by_direction(gradients: Sequence[Tensor | None], layout: Layout) -> tuple[Tensor | None, ...]:
    """The reverse of :func:`_by_weight`."""
    states, rows = gradients[:3], list(gradients[3:])
    if layout.bidirectional:
        each = len(rows) // 2
        pairs = zip(rows[:each], rows[each:], strict=True)
        rows = [None if g is None or r is None else torch.cat((g, r)) for g, r in pairs]
    return (*states, *rows, *[None] * (4 - len(rows)))


def _parts(
    cell: str, x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor], bidirectional: bool, *rest: Any
) -> tuple[Layout, Sizes, tuple[Tensor | None, ...]]:
    """The arguments of a forward operator as those of its rule: the layout, the sizes, the differentiable tensors."""
    batch_sizes, lengths, reset, tape, cells = rest
    return Layout(cell, bidirectional, tape, cells), (batch_sizes, lengths, reset), (x, h0, c0, *weights)


@untraced
def _layer_rule(*args: Any) -> _ops.Outputs:
    layout, sizes, tensors = _parts(*args)
    rule = _LayerForward if _wants_gradients(*tensors) else _Layer
    return _follow(rule, layout, sizes, *tensors)[:OUTPUTS]  # type: ignore[no-any-return]


@untraced
def _layer_forward_rule(*args: Any) -> _ops.TapedOutputs:
    layout, sizes, tensors = _parts(*args)
    return _follow(_LayerForward, layout, sizes, *tensors)  # type: ignore[no-any-return]


@untraced
def _layer_backward_rule(
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
    *wanted: bool,
) -> _ops.Gradients:
    layout, sizes = Layout(cell, bidirectional, tape_kind, False), (batch_sizes, lengths, reset)
    tensors = (dy, dh_n, dc_n, dcells, x, h0, c0, *weights)
    return _follow(_LayerBackward, layout, sizes, (y, cells, tape), wanted, *tensors)  # type: ignore[no-any-return]


_LIBRARY = torch.library.Library("fastrnn", "FRAGMENT")
_LIBRARY.impl("layer", _layer_rule, "Autograd")
_LIBRARY.impl("layer_forward", _layer_forward_rule, "Autograd")
_LIBRARY.impl("layer_backward", _layer_backward_rule, "Autograd")


# ---- The formulas, and their derivatives ----

Formula = Callable[..., tuple[Tensor | None, ...]]


def _outputs(layout: Layout, sizes: Sequence[Tensor | None]) -> Formula:
    """``y, h_n, c_n, cells`` as a function of ``x, h0, c0, *weights``."""
    batch_sizes, lengths, reset = sizes

    def outputs(x: Tensor, h0: Tensor | None, c0: Tensor | None, *weights: Tensor) -> tuple[Tensor | None, ...]:
        return reference.layer(
            *(layout.cell, x, h0, c0, weights, layout.bidirectional),
            batch_sizes=batch_sizes,
            lengths=lengths,
            reset=reset,
        )

    return outputs


def _gradients(layout: Layout, sizes: Sequence[Tensor | None]) -> Formula:
    """``dx, dh0, dc0, *dweights`` as a function of ``dy, dh_n, dc_n, dcells, x, h0, c0, *weights``."""

    def gradients(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return _pull(_outputs(layout, sizes), tensors[OUTPUTS:], tensors[:OUTPUTS])

    return gradients


def _push_outputs(
    layout: Layout, saved: Sequence[Tensor | None], tangents: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    pushed = _push(_outputs(layout, saved[:3]), saved[3:], tangents)
    return (*pushed[:3], pushed[3] if layout.cells else None)


def _tracked(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The same tensors as inputs of a graph; graphs that they are in already go on behind it."""

    def track(t: Tensor | None) -> Tensor | None:
        if t is None:
            return None
        with enable_inplace_requires_grad(True):
            return t + t.new_zeros(()).requires_grad_()

    return [track(t) for t in tensors]


def _in_graphs(*tensors: Tensor | None) -> bool:
    """Whether autograd or any transform records what is computed from these.

    Where none does, a formula's results are to leave the graph that :func:`_tracked` began.
    """

    def in_graph(t: Tensor | None) -> bool:
        while t is not None:
            t = unwrap_if_dead(t)  # its transform may be over
            if t.requires_grad:
                return True
            t = get_unwrapped(t) if is_functorch_wrapped_tensor(t) else None
        return False

    return any(map(in_graph, tensors))


def _pull(
    formula: Formula, tensors: Sequence[Tensor | None], cotangents: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The gradients of ``tensors`` when ``cotangents`` arrive at the formula's results: reverse mode."""
    higher = torch.is_grad_enabled() and _in_graphs(*tensors, *cotangents)
    with torch.enable_grad():
        inputs = _tracked(tensors)
        pairs = [(r, c) for r, c in zip(formula(*inputs), cotangents, strict=True) if r is not None and c is not None]
        if not pairs:
            return (None,) * len(tensors)
        there = [t for t in inputs if t is not None]
        found = iter(_grad([r for r, _ in pairs], there, [c for _, c in pairs], higher))
    return tuple(None if t is None else next(found) for t in inputs)


def _push(
    formula: Formula, tensors: Sequence[Tensor | None], tangents: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The tangents of the formula's results: forward mode, as the gradient of the gradients, which are linear."""
    recorded = torch._C._are_functorch_transforms_active() or torch.is_grad_enabled()
    higher = recorded and _in_graphs(*tensors, *tangents)
    # Torch turns forward mode off in a rule, for the transforms around this one too, whose tangents would be wrong.
    # Where it is on, the inputs have to come without the tangents that are pushed here.
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        inputs = _tracked([None if t is None else forward_ad.unpack_dual(t, level=0).primal for t in tensors])
        results = formula(*inputs)
        there = [r for r in results if r is not None]
        cotangents = [t for t in _tracked([torch.zeros_like(r) for r in there]) if t is not None]
        moved = [(t, v) for t, v in zip(inputs, tangents, strict=True) if t is not None and v is not None]
        gradients = _grad(there, [t for t, _ in moved], cotangents, True)
        pairs = [(g, v) for g, (_, v) in zip(gradients, moved, strict=True) if g is not None]
        found = iter(_grad([g for g, _ in pairs], cotangents, [v for _, v in pairs], higher))
    return tuple(None if r is None else next(found) for r in results)


def _grad(
    results: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], create_graph: bool
) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(results, inputs, cotangents, create_graph=create_graph, allow_unused=True)
