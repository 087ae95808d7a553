"""What fastrnn's modules are to torch's machinery: their classes, and what tracers take them for."""

from typing import Any, ClassVar

import torch
import torch.fx
from torch.nn import Module
from torch.nn.modules import rnn as stock  # and not torch.nn's own names, which fastrnn.patch() may have changed
from torch.nn.utils import parametrize

OWN = "fastrnn.nn"  # the module of fastrnn's layers and cells
PROXY: type[Any] = torch.fx.Proxy  # stands for the input where torch.fx.symbolic_trace records a model


def layer_class(cls: type[Module]) -> type[Module]:
    """A module's class; for a module with parametrizations, the class it had before them."""
    return cls.__bases__[0] if cls.__module__ == parametrize.__name__ else cls


def rebase(cls: type[Module], base: type[Module]) -> type[Module]:
    """The class that a module of class ``cls`` has once its :func:`layer_class` is ``base``.

    A module with parametrizations has a class derived from its layer class, with the parametrized tensors as
    properties. Copies of the module share that class, so it must not be changed itself.
    """
    if layer_class(cls) is cls:
        return base
    return type(cls.__name__, (base,), {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")})


def has_own_forward(module: Module) -> bool:
    """Whether a module of fastrnn's or torch.nn's classes computes something else than they do, or may."""
    return "forward" in vars(module) or type(module).forward.__module__ not in (OWN, stock.__name__)


class Fast(Module):
    """What fastrnn's layers and cells share."""

    stock_class: ClassVar[type[Module]]
    weight_dtype: torch.dtype | None = None  # what fastrnn.convert was given


def node(module: Module, input: Any, hx: Any, **others: Any) -> Any:
    """For ``torch.fx.symbolic_trace``: one node, as it makes of torch.nn's layers."""
    given = {name: value for name, value in others.items() if value is not None and value is not False}
    return input.tracer.create_proxy("call_module", input.tracer.path_of_module(module), (input, hx), given)
