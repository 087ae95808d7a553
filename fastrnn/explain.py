"""Which engine computes each recurrent layer of a model, by which kernel, and why."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

import torch
from torch.nn import Module
from torch.nn.modules import rnn as stock

from fastrnn import _C, functional, nn
from fastrnn._autocast import under_autocast
from fastrnn._modules import Fast, has_own_forward, layer_class
from fastrnn._requests import Request, observe_calls, stack_of
from fastrnn.convert import recurrent_layers, why_left
from fastrnn.engine import COMPILED, Plan

__all__ = ["Explanation", "LayerExplanation", "explain"]


@dataclass(frozen=True)
class LayerExplanation:
    """Who computes one layer.

    Attributes:
        name: where it is in the model, as in ``model.named_modules()``.
        layer: its class.
        engine, kernel, reason: as in :class:`fastrnn.engine.Plan`.
    """

    name: str
    layer: str
    engine: str
    kernel: str
    reason: str


@dataclass(frozen=True)
class Explanation:
    """Who computes the recurrent layers of a model; prints as a table.

    Attributes:
        layers: one entry per layer; more where the calls of one layer were planned differently.
    """

    layers: tuple[LayerExplanation, ...]

    def __str__(self) -> str:
        if not self.layers:
            return "no recurrent layers"
        return table([[field.name for field in fields(LayerExplanation)], *map(astuple, self.layers)])


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in aligned columns; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def explain(model: Module, /, *inputs: Any, **kwargs: Any) -> Explanation:
    """Tell which engine computes each recurrent layer of a model, by which kernel, and why.

    The model is run once on ``inputs`` without gradients, and each layer's plan is made from what the layer was given:
    the same decision as in any other call (with gradients, where they are enabled around ``explain``). Random number
    generators, buffers, modes, hooks and gradients are left as they were. Without inputs the layers are explained from
    their parameters: device and dtype, and no kernel in detail.

    On the CPU, ``torch.backends.mkldnn.rnn.fp32_precision``, with which torch's own LSTM may multiply float32 in
    bfloat16, is not followed by fastrnn's engine: float32 stays float32. Where the switch is set, the reason says so.

    Args:
        model: a module, or a layer itself. Layers of torch.nn in it are listed, with the reason why they are torch's.
        inputs, kwargs: what to call it with.

    Returns:
        An :class:`Explanation`; print it.

    Raises:
        TypeError: ``model`` is not a :class:`torch.nn.Module`.

    Examples::

        >>> explanation = fastrnn.explain(fastrnn.LSTM(10, 20), torch.randn(5, 3, 10))
        >>> explanation.layers[0].engine
        'cpu'
        >>> print(fastrnn.explain(torch.nn.Sequential(torch.nn.GRU(10, 20))))
        name  layer         engine  kernel              reason
        ----  ------------  ------  ------------------  ----------------------------------------------
        0     torch.nn.GRU  torch   torch.nn's own gru  not converted: fastrnn.convert(model) takes it
    """
    layers = recurrent_layers(model)
    seen: dict[str, list[Plan]] = {name: [] for name in layers}

    def observe(name: str, request: Request) -> None:
        plan = _plan(request, _is_compiled(model, name))
        if plan not in seen[name]:
            seen[name].append(plan)

    called = bool(inputs or kwargs)
    if called:
        observe_calls(model, inputs, kwargs, observe)
    return Explanation(
        tuple(
            LayerExplanation(name, _class_name(layer), plan.engine, plan.kernel, plan.reason)
            for name, layer in layers.items()
            for plan in seen[name] or [_plan_by_parameters(layer, called)]
        )
    )


def _class_name(layer: Module) -> str:
    if isinstance(layer, torch.jit.ScriptModule):
        return f"scripted {layer.original_name}"
    cls = layer_class(type(layer))
    package = {nn.__name__: "fastrnn", stock.__name__: "torch.nn"}.get(cls.__module__, cls.__module__)
    return f"{package}.{cls.__qualname__}"


def _plan_by_parameters(layer: Module, called: bool) -> Plan:
    """The plan of a layer whose inputs are not known."""
    why = why_left(layer)
    if isinstance(layer, torch.jit.ScriptModule):
        return Plan("torch", "TorchScript", f"not converted: {why}")
    stack, params = stack_of(layer)
    if isinstance(layer, Fast):
        x = params[0] if layer.weight_dtype is None else params[0][:0].float()
        plan = _with_precision(functional.plan_stack(stack, x, params, None, False), x.dtype)
        doubt = f"{why}, so by its parameters alone" if why else "not called with these inputs" if called else None
        return plan if doubt is None else replace(plan, reason=f"{plan.reason} ({doubt})")
    kernel = "a forward of its own" if has_own_forward(layer) else f"torch.nn's own {stack.cell}"
    return Plan("torch", kernel, f"not converted: {why or 'fastrnn.convert(model) takes it'}")


def _is_compiled(model: Module, name: str) -> bool:
    """Whether torch.compile was given the layer of that name or a module that it is in."""
    around = [model]
    for part in filter(None, name.split(".")):
        around.append(around[-1].get_submodule(part))
    return any("_orig_mod" in m._modules or getattr(m, "_compiled_call_impl", None) is not None for m in around)


def _plan(request: Request, compiled: bool) -> Plan:
    """The plan of a call of one of fastrnn's layers, with the kernel in detail."""
    stack, x, params = request.stack, request.x, request.params
    single = request.batch
    if request.varied:
        single = 0
    elif not request.is_cell:
        single = functional.single_rows(stack, x, request.steps, request.batch, request.trains or compiled)
    sizes = (single, request.trains, request.steps, request.batch, request.varied)
    planned = stack._replace(num_layers=0) if request.is_cell else stack
    plan = functional.plan_stack(planned, x, params, request.reset, request.return_cells, *sizes)
    if compiled and single and plan.engine == "cpu" and params[0].dtype is x.dtype:
        return Plan("torch", f"torch.nn's own {stack.cell}", COMPILED)
    if plan.engine != "cpu" or x.is_meta:
        return plan
    # Under autocast the engine computes in another dtype than the input's.
    dtype = under_autocast(stack.cell, request.packed or request.is_cell, x[:0], (), [params[0][:0]])[0].dtype
    hidden, threads = params[1].shape[1], torch.get_num_threads()
    kernels = [
        _C.cpu_plan(
            *(stack.cell, request.steps, request.batch, features, hidden, stack.directions, str(dtype)[6:], threads),
            *(request.trains, request.varied),
        )
        for features in (x.shape[-1], *[hidden * stack.directions] * (stack.num_layers - 1))
    ]
    return _with_precision(replace(plan, kernel="; then ".join(dict.fromkeys(kernels))), dtype)


def _with_precision(plan: Plan, dtype: torch.dtype) -> Plan:
    """The plan with what becomes of torch's switch that lets layers of float32 be multiplied as something smaller."""
    if plan.engine != "cpu" or dtype != torch.float32:
        return plan
    # With what it inherits from torch.backends.fp32_precision.
    switch = getattr(torch.backends.mkldnn, "rnn", None)
    precision = str(getattr(switch, "fp32_precision", "none"))
    if precision in ("none", "ieee"):
        return plan
    told = f"float32 all the same, torch.backends.mkldnn.rnn.fp32_precision = {precision!r} is not followed"
    return replace(plan, reason=f"{plan.reason}; {told}")
