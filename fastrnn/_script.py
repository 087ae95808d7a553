"""Has TorchScript compile torch.nn's layers where it meets fastrnn's, which stay in the models that have them.

Whatever is compiled, and however, two functions of torch make of each module a type and an object. They
are given torch.nn's counterpart here, with the very same parameters. torch's own way to have another module compiled,
``__prepare_scriptable__``, is taken by ``torch.jit.script`` alone, and leaves that other module in the caller's model.
"""

from functools import cache, wraps
from typing import Any

import torch
from torch.jit import ScriptModule
from torch.nn import Module
from torch.nn.modules import rnn as stock

from fastrnn._modules import OWN, Fast, has_own_forward, layer_class, rebase

MAKERS = ("get_module_concrete_type", "create_script_module_impl")


def let_through() -> None:
    """Have TorchScript compile torch.nn's counterparts from now on."""
    recursive = getattr(torch.jit, "_recursive", None)
    if all(hasattr(recursive, name) for name in MAKERS):  # else a TorchScript that this module does not know
        for name in MAKERS:
            setattr(recursive, name, _of_counterparts(getattr(recursive, name)))


def _of_counterparts(make: Any) -> Any:
    @wraps(make)
    def wrapper(nn_module: Module, *args: Any, **options: Any) -> Any:
        if isinstance(nn_module, Fast) and not isinstance(nn_module, ScriptModule) and not has_own_forward(nn_module):
            nn_module = counterpart(nn_module)
        return make(nn_module, *args, **options)

    return wrapper


def counterpart(module: Fast) -> Module:
    """torch.nn's module with the very same parameters, buffers, submodules and hooks."""
    if module.weight_dtype is not None:
        raise NotImplementedError(
            "fastrnn: TorchScript compiles torch.nn's layer, which cannot compute in float32 with bfloat16 weights: "
            "fastrnn.revert(model) makes them float32 again"
        )
    cls: Any = layer_class(type(module))
    made = Module.__new__(rebase(type(module), torchs_class(cls)))
    made.__dict__ = {name: value for name, value in vars(module).items() if name != "tape"}
    if isinstance(made, stock.RNNBase):
        made._update_flat_weights()
    return made


@cache
def torchs_class(cls: type[Fast]) -> type[Module]:
    """torch.nn's class that one of fastrnn's stands for; for a user's subclass, that with what the user has added.

    It keeps the name and the place in the source of torch.nn's, by which TorchScript finds the overloads of forward.
    """
    base = cls.stock_class
    added: dict[str, Any] = {}
    for c in reversed(cls.__mro__):
        if c not in base.__mro__ and c.__module__ not in (OWN, Fast.__module__):
            added |= vars(c)
    if not added:
        return base
    for name in ("__dict__", "__weakref__"):
        added.pop(name, None)
    place = ("__module__", "__firstlineno__")
    return type(base.__name__, (base,), added | {name: vars(base)[name] for name in place if name in vars(base)})
