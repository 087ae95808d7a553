"""Which tensors a layer computes with: those that torch.nn's forward would take.

They are in ``_flat_weights``, a list that torch.nn's forward makes anew when a weight is not the one that it was made
from. Whoever edits the list computes with what is in it until then.
"""

import weakref
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from fastrnn import _C
from fastrnn._dynamo import tracing

PER_SAMPLE = "torch.func.vmap(torch.func.grad(...)) computes gradients per sample of anything"

_NOTHING: weakref.ref[Any] = weakref.ref(set())  # what it referred to is gone

# What torch.nn's forward calls of a layer, and a subclass or the layer itself may have in another version.
METHODS = (
    "check_forward_args",
    "check_input",
    "check_hidden_size",
    "get_expected_hidden_size",
    "get_expected_cell_size",
    "permute_hidden",
    "_update_flat_weights",
    "_weights_have_changed",
)


def of(layer: Any) -> Sequence[Tensor] | None:
    """The weights of a layer in the order of torch.nn; None where the layer has one of ``METHODS`` of its own."""
    if not torch.compiler.is_dynamo_compiling():
        found = _C.flat_weights(layer.__dict__, METHODS)
        if found is not None:
            return found
    source = layer._source_of_weights()
    if source == "methods":
        return None
    if source == "list":
        return layer._flat_weights  # type: ignore[no-any-return]
    own, attributes, names = layer._parameters, layer.__dict__, layer._flat_weights_names
    changed = source == "changed" and not tracing()
    if changed and layer.training and _have_a_state(layer._modules.get("parametrizations")):
        layer._weights_have_changed()  # computes them, which moves the state on: as often as torch.nn's forward does
        weights = [getattr(layer, name) for name in names if hasattr(layer, name)]
    else:
        weights = [own[name] if name in own else getattr(layer, name) for name in names]
    if changed:
        held = [isinstance(own[name], Parameter) if name in own else name in attributes for name in names]
        if all(held):
            layer._init_flat_weights()
        else:  # computed, or lent for a call: not to be kept, but the list is out of date
            layer._flat_weight_refs = [weakref.ref(w) if h else _NOTHING for w, h in zip(weights, held, strict=True)]
    return weights


def none(layer: Any) -> None:
    """In the place of :func:`of` where a subclass has one of ``METHODS`` of its own."""


def source(layer: Any) -> Literal["methods", "list", "names", "changed"]:
    """Where the weights are to be taken from, for a layer with its own methods, or else by the state of its list."""
    attributes, own = layer.__dict__, layer._parameters
    if any(name in attributes for name in METHODS):
        return "methods"
    named = [own.get(name, attributes.get(name)) for name in layer._flat_weights_names]
    if not _are_same(named, [None if ref is None else ref() for ref in layer._flat_weight_refs]):
        return "changed"
    return "names" if _are_same(named, layer._flat_weights) else "list"


def _have_a_state(parametrizations: Module | None) -> bool:
    """Whether weights are computed by modules with buffers, as those of spectral_norm have."""
    return parametrizations is not None and next(parametrizations.buffers(), None) is not None


def _are_same(these: Sequence[Any], those: Sequence[Any]) -> bool:
    return len(these) == len(those) and all(a is b is not None for a, b in zip(these, those, strict=True))


def are_expanded(*tensors: Any) -> bool:
    """Whether there are ExpandedWeights among these, of whose batch torch's own functions alone know."""
    return torch.overrides.has_torch_function(tensors) and any(
        type(t).__module__.startswith("torch.nn.utils._expanded_weights") for t in tensors
    )


def refuse_expanded(function: str, *tensors: Any) -> None:
    """Raise torch's error where there are any, for a function that torch does not have for them."""
    if are_expanded(*tensors):
        raise RuntimeError(f"Expanded Weights encountered but cannot handle function {function}; {PER_SAMPLE}")
