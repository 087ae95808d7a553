"""Putting fastrnn's layers in the place of torch.nn's: in a model that exists, or in every one built from now on."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch.jit import ScriptModule
from torch.nn import Module, Parameter
from torch.nn.modules import rnn as stock

from fastrnn import _reports, _validate, nn
from fastrnn._modules import Fast, has_own_forward, layer_class, rebase

__all__ = ["convert", "patch", "patched", "revert", "unpatch"]

M = TypeVar("M", bound=Module)

FAST: dict[type[Module], type[Module]] = {cls.stock_class: cls for cls in nn.CLASSES}
STOCK: dict[type[Module], type[Module]] = {cls: cls.stock_class for cls in nn.CLASSES}

# Where a library that says `nn.LSTM` finds it. Not torch.nn.modules.rnn, by which pickles name torch's own classes.
NAMESPACES = (torch.nn, torch.nn.modules)


def convert(model: M, *, tape: str | None = None, weight_dtype: torch.dtype | None = None) -> M:
    """Turn every ``torch.nn`` RNN, LSTM, GRU and cell of a model into fastrnn's, in place.

    Nothing but the class of these layers changes: parameters (the very same objects, so an optimizer goes on with
    them), parametrizations, pruning, hooks, training flag, device, dtype and state_dict stay. Layers that already are
    fastrnn's stay as they are, so it may be called again.

    Left alone, and named in one :class:`UserWarning`, are layers that may compute something else: user subclasses of
    torch.nn's classes (derive them from fastrnn's instead), layers whose ``forward`` was replaced, and layers that
    ``torch.jit`` has compiled. A model without any recurrent layer is returned with a :class:`UserWarning` as well.

    Tools that look layers up by their exact class skip fastrnn's in silence, or count them as nothing: Opacus (its
    validator and per-sample gradients), ``torch.ao.quantization`` (``quantize_dynamic``, static and FX), thop, ptflops,
    calflops, DeepSpeed's profiler of flops, and pruners that do so. Call :func:`revert` before you give them the model.
    Where Opacus, thop, ptflops or calflops is installed, the first call in a process that converts a layer says so in a
    :class:`UserWarning`; of the others, which come with much else, only this text does. ``torch.nn.utils.prune``, and
    tools that ask by ``isinstance``, work with fastrnn's layers.

    With ``weight_dtype=torch.bfloat16`` the weights are stored in half the memory, for inference. Inputs, states,
    biases and sums stay float32, and results are those of float32 with rounded weights: each weight is off by 2^-8 of
    itself at most; the output of a random LSTM (H from 64 to 1024, 100 steps) by 0.2 % of its root mean square, and no
    value by more than 0.003. The weights become new Parameters that require no gradient, and a call that is to record
    gradients (for the input, a state or a bias) raises an error: it belongs under ``torch.no_grad()``. State_dicts are
    loaded both ways; into bfloat16 they are rounded.

    Args:
        model: a module, or a layer itself. Wrappers such as ``DistributedDataParallel`` are looked into.
        tape: if given, set on every layer, those included that were fastrnn's before: ``"full"`` or ``"lean"``
            (:class:`fastrnn.LSTM`).
        weight_dtype: ``torch.bfloat16`` to round the weights of every layer, those included that were fastrnn's before.
            None leaves them as they are.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a :class:`torch.nn.Module`.
        ValueError: there is no such ``tape`` or ``weight_dtype``; a layer to be rounded is not float32; its weights are
            computed from others (parametrizations, pruning).
        NotImplementedError: a layer to be rounded has ``proj_size``.

    Examples::

        >>> model = torch.nn.Sequential(torch.nn.LSTM(10, 20))
        >>> fastrnn.convert(model)
        Sequential(
          (0): LSTM(10, 20)
        )
        >>> isinstance(model[0], fastrnn.LSTM)
        True
    """
    if tape is not None:
        _validate.tape(tape)
    rounded = [] if weight_dtype is None else _to_round(model, weight_dtype)
    swapped, left = _swap(model, FAST)
    remaining = {name: module for name, module in left.items() if not isinstance(module, Fast)}
    found = recurrent_layers(model)
    if not found:
        _reports.nothing_found(model)
    _reports.left_alone("convert", _described(remaining), nothing_done=len(remaining) == len(found))
    if swapped:
        _reports.tools_by_class()
    if tape is not None:
        for module in model.modules():
            if isinstance(module, nn.Layers):
                module.tape = tape
    if weight_dtype is not None:
        _recast(rounded, weight_dtype)
        for layer in rounded:
            layer.weight_dtype = weight_dtype  # type: ignore[assignment]
    return model


def revert(model: M) -> M:
    """Turn fastrnn's layers of a model into ``torch.nn``'s again, in place: the inverse of :func:`convert`.

    User subclasses of fastrnn's classes, and layers whose ``forward`` was replaced, are left alone and named in one
    :class:`UserWarning`. Weights that :func:`convert` made bfloat16 are float32 again: as they were rounded, and still
    not requiring a gradient.

    Args:
        model: a module, or a layer itself.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a :class:`torch.nn.Module`.

    Examples::

        >>> type(fastrnn.revert(fastrnn.GRU(10, 20)))
        <class 'torch.nn.modules.rnn.GRU'>
    """
    swapped, left = _swap(model, STOCK)
    _recast([module for module in swapped if module.__dict__.pop("weight_dtype", None) is not None])
    for module in swapped:
        module.__dict__.pop("tape", None)
    _reports.left_alone("revert", _described({name: m for name, m in left.items() if isinstance(m, Fast)}))
    return model


def patch() -> None:
    """Make ``torch.nn.RNN``, ``LSTM``, ``GRU`` and the cells fastrnn's, for every model built from now on.

    It is for libraries that build their layers as ``nn.LSTM(...)``. Names that a module took with
    ``from torch.nn import LSTM`` before the call stay torch's: for those, and for layers that exist already, use
    :func:`convert`. Calling it again does nothing more.

    The names are the process's: other threads build fastrnn's layers too. While they are patched,
    ``isinstance(layer, torch.nn.LSTM)`` is true of fastrnn's layers as ever, but not of torch's own.
    Pickles are not affected: each layer is pickled under its own class.

    Examples::

        >>> fastrnn.patch()
        >>> torch.nn.LSTM is fastrnn.LSTM
        True
        >>> fastrnn.unpatch()
    """
    for namespace in NAMESPACES:
        for cls in nn.CLASSES:
            setattr(namespace, cls.__name__, cls)


def unpatch() -> None:
    """Give ``torch.nn``'s names back to torch's own classes, however often :func:`patch` was called."""
    for namespace in NAMESPACES:
        for cls in nn.CLASSES:
            setattr(namespace, cls.__name__, cls.stock_class)


@contextmanager
def patched() -> Iterator[None]:
    """A block in which ``torch.nn``'s names are patched as by :func:`patch`; afterwards they are what they were before.

    Blocks may be nested. Also a decorator: ``@fastrnn.patched()``.

    Examples::

        >>> with fastrnn.patched():
        ...     model = torch.nn.Sequential(torch.nn.GRU(10, 20))
        >>> type(model[0])
        <class 'fastrnn.nn.GRU'>
    """
    names = [cls.__name__ for cls in nn.CLASSES]
    before = [(namespace, name, getattr(namespace, name)) for namespace in NAMESPACES for name in names]
    patch()
    try:
        yield
    finally:
        for namespace, name, cls in before:
            setattr(namespace, name, cls)


def recurrent_layers(model: Module) -> dict[str, Module]:
    """Every recurrent layer and cell of a model by name: torch.nn's, fastrnn's, subclasses and scripted ones."""
    if not isinstance(model, Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    kinds, names = (stock.RNNBase, stock.RNNCellBase), {cls.__name__ for cls in nn.CLASSES}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, kinds) or (isinstance(module, ScriptModule) and module.original_name in names)
    }


def why_left(module: Module) -> str | None:
    """Why a recurrent layer cannot be swapped, or None where it can."""
    if isinstance(module, ScriptModule):
        return "compiled by torch.jit"
    cls = layer_class(type(module))
    if cls not in FAST and cls not in STOCK:
        base = next(base for base in cls.__mro__ if base.__module__ in (nn.__name__, stock.__name__))
        package = "fastrnn" if issubclass(base, Fast) else "torch.nn"
        return f"a subclass of {package}.{base.__name__}"
    return "its forward was replaced" if has_own_forward(module) else None


def _swap(model: Module, table: Mapping[type[Module], type[Module]]) -> tuple[list[Module], dict[str, Module]]:
    """Change the classes of a model's layers by ``table``; those changed, and by name those that cannot be."""
    swapped, left = [], {}
    for name, module in recurrent_layers(model).items():
        cls = layer_class(type(module))
        if why_left(module) is not None:
            left[name] = module
        elif cls in table:
            module.__class__ = rebase(type(module), table[cls])
            swapped.append(module)
    return swapped, left


def _described(left: Mapping[str, Module]) -> dict[str, str]:
    """What layers are that were left alone, and why they were."""
    return {
        name: f"{type(module).__module__}.{type(module).__qualname__}, {why_left(module)}"
        for name, module in left.items()
    }


def _weights(layer: Module) -> dict[str, Parameter | None]:
    """The weight matrices of a layer by name; None where one is no parameter but computed."""
    names = layer._flat_weights_names if isinstance(layer, stock.RNNBase) else ("weight_ih", "weight_hh")
    return {name: layer._parameters.get(name) for name in names if name.startswith("weight")}


def _to_round(model: Module, dtype: torch.dtype) -> list[Module]:
    """The layers of a model whose weights :func:`convert` is to round, once all of them can be."""
    if dtype != torch.bfloat16:
        raise ValueError(f"weight_dtype: expected torch.bfloat16 or None, got {dtype!r}")
    found = []
    for name, layer in recurrent_layers(model).items():
        if has_own_forward(layer) or (why_left(layer) is not None and not isinstance(layer, Fast)):
            continue
        if getattr(layer, "proj_size", 0):
            raise NotImplementedError("fastrnn: weight_dtype is not supported together with proj_size")
        weights = _weights(layer)
        if None in weights.values():
            raise ValueError(f"weight_dtype: the weights of {name or 'the layer'} are computed from other tensors")
        dtypes = {key: p.dtype for key, p in layer._parameters.items() if p is not None}
        done = getattr(layer, "weight_dtype", None) == dtype and all(dtypes[key] == dtype for key in weights)
        wrong = {
            str(given) for key, given in dtypes.items() if given != torch.float32 and not (done and key in weights)
        }
        if wrong:
            raise ValueError(
                f"weight_dtype: expected {name or 'the layer'} to be torch.float32, got {', '.join(sorted(wrong))}"
            )
        if not done:
            found.append(layer)
    return found


def _recast(layers: Sequence[Module], dtype: torch.dtype | None = None) -> None:
    """Give the layers weights of another dtype (None: that of their biases); those that were shared still are."""
    cast: dict[Parameter, Parameter] = {}
    for layer in layers:
        biases = [p for name, p in layer._parameters.items() if name.startswith("bias") and p is not None]
        wanted = dtype or (biases[0].dtype if biases else torch.float32)
        for name, weight in _weights(layer).items():
            if weight is not None:
                new = Parameter(weight.detach().to(wanted), requires_grad=False)
                setattr(layer, name, cast.setdefault(weight, new))
