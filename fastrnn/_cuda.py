"""The operators of :mod:`fastrnn._ops` for CUDA (and ROCm) tensors: plan, then the Triton kernels of fastrnn.kernels.

Triton is imported when a layer is first computed, not before. Kernels are launched on the device of ``x`` and on
torch's current stream there.
"""

from dataclasses import replace
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastrnn._dynamo import constant
from fastrnn._ops import Gradients, Outputs, TapedOutputs
from fastrnn.kernels.device import WHY_NOT_CAPTURED, takes_cooperative_bodies
from fastrnn.kernels.graphs import capturing
from fastrnn.kernels.measured import Work
from fastrnn.kernels.plan import DeviceFacts, Plan, device_facts, plan_kernels, tf32_allowed, tf32_products

HAS_TRITON = find_spec("triton") is not None  # which imports nothing


def facts_of(device: torch.device) -> DeviceFacts:
    """The facts of a CUDA device, of which some hold only while a CUDA graph is captured."""
    index = torch.cuda.current_device() if device.index is None else device.index
    facts = _facts(index)
    if takes_cooperative_bodies(facts.driver) or torch.compiler.is_compiling() or not capturing(device):
        return facts
    known = _captured.get(index)
    if known is None or known[0] is not facts:  # facts are the same object as long as they are the same
        known = _captured[index] = (facts, replace(facts, no_grid=WHY_NOT_CAPTURED))
    return known[1]


_captured: dict[int, tuple[DeviceFacts, DeviceFacts]] = {}


@constant  # for it reads files
def _facts(index: int) -> DeviceFacts:
    return device_facts(index)


def _plan(
    cell: str,
    x: Tensor,
    weights: list[Tensor],
    bidirectional: bool,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    trains: bool,
) -> Plan:
    if not HAS_TRITON:
        raise RuntimeError("fastrnn: the engine for CUDA tensors needs Triton: pip install triton")
    steps, batch = x.shape[:2] if batch_sizes is None else (len(batch_sizes), int(batch_sizes[0]))
    sizes = (steps, batch, x.shape[-1], weights[1].shape[-1])
    varied = batch_sizes is not None or lengths is not None
    roundings = (tf32_allowed(x.dtype), tf32_products(x.dtype))
    work = _work(cell, *sizes, x.dtype, 2 if bidirectional else 1, 1, trains, varied, *roundings)
    return plan_kernels(work, facts_of(x.device))


_work = lru_cache(1024)(Work)  # which takes longer to make than to find


@cache  # nor does a look at what was imported take nothing
def _kernels() -> ModuleType:
    return import_module("fastrnn.kernels.layer")


def layer(*args: Any) -> Outputs:
    """``fastrnn::layer``."""
    *given, _, cells = args
    return layer_forward(*given, "none", cells)[:4]  # type: ignore[call-arg]


def layer_forward(
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
    """``fastrnn::layer_forward``, and without a tape where ``tape`` is ``"none"``."""
    with torch.cuda.device(x.device):
        plan = _plan(cell, x, weights, bidirectional, batch_sizes, lengths, tape != "none")
        layers = (x, h0, c0, weights, bidirectional, batch_sizes, lengths)
        return _kernels().forward(plan, cell, *layers, reset, tape, cells)  # type: ignore[no-any-return]


def layer_backward(
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
    *rest: Any,
) -> Gradients:
    """``fastrnn::layer_backward``."""
    with torch.cuda.device(x.device):
        plan = _plan(cell, x, weights, bidirectional, batch_sizes, lengths, trains=True)
        layers = (x, h0, c0, weights, bidirectional, batch_sizes, lengths)
        return _kernels().backward(plan, cell, dy, dh_n, dc_n, dcells, *layers, *rest)  # type: ignore[no-any-return]


torch.library.impl("fastrnn::layer", "cuda", layer)
torch.library.impl("fastrnn::layer_forward", "cuda", layer_forward)
torch.library.impl("fastrnn::layer_backward", "cuda", layer_backward)
