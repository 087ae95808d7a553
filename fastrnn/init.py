"""How the weights of recurrent layers begin: functions on a layer, a cell or a whole model, in place.

torch.nn draws every weight and bias of a recurrent layer from U(-1/√H, 1/√H), with which gradients fade over few steps.
These functions change fastrnn's and torch.nn's layers and cells alike, wherever in a model they are, and nothing else.
"""

from collections.abc import Iterator
from typing import TypeVar, cast

import torch
from torch import nn
from torch.nn import Module, Parameter
from torch.nn.modules import rnn as stock

from fastrnn.convert import recurrent_layers

__all__ = ["forget_bias_", "orthogonal_"]

M = TypeVar("M", bound=Module)


def orthogonal_(module: M, gain: float = 1.0, *, inputs: bool = False, generator: torch.Generator | None = None) -> M:
    """Make the recurrent weights orthogonal, in place: those of each gate by themselves, ``gain`` times.

    An orthogonal matrix leaves the length of what it multiplies as it is, so neither states nor gradients grow or fade
    by it from step to step (Saxe et al. 2014, "Exact solutions to the nonlinear dynamics of learning in deep linear
    neural networks"; for recurrent networks Le et al. 2015). Matrices that are not square (with ``proj_size``, whose
    ``weight_hr`` is made so as well) have orthonormal rows or columns.

    Args:
        module: a layer, a cell, or a model with any number of them.
        gain: what each matrix is multiplied by.
        inputs: whether to do the same to the input weights.
        generator: of the random numbers; None for torch's own.

    Returns:
        ``module``.

    Raises:
        TypeError: ``module`` is no :class:`torch.nn.Module`.
        ValueError: it has no recurrent layer, or one that ``torch.jit`` has compiled; a weight is computed from other
            tensors (parametrizations, pruning).

    Examples::

        >>> net = fastrnn.init.orthogonal_(fastrnn.GRU(10, 20))
        >>> for gate in net.weight_hh_l0.chunk(3):
        ...     torch.testing.assert_close(gate @ gate.T, torch.eye(20))
    """
    kinds = ("weight_hh", "weight_hr", "weight_ih") if inputs else ("weight_hh", "weight_hr")
    found = [(layer, weight) for layer in _layers(module) for weight in _parameters(layer, *kinds)]
    with torch.no_grad():
        for layer, weight in found:
            rows = min(cast(int, layer.hidden_size), len(weight))  # weight_hr has fewer, and no gates
            for block in weight.split(rows):
                # in 32 bits at least: torch decomposes no matrix of 16
                drawn = block.new_empty(block.shape, dtype=torch.promote_types(block.dtype, torch.float32))
                block.copy_(nn.init.orthogonal_(drawn, gain, generator))
    return module


def forget_bias_(module: M, value: float = 1.0) -> M:
    """Set the bias of the forget gate of every LSTM layer and cell, in place.

    The gate then begins near ``sigmoid(value)``, so that the cell keeps what it has, and gradients, from step to step
    (Gers et al. 2000; Jozefowicz et al. 2015, "An Empirical Exploration of Recurrent Network Architectures", who found
    1 to be worth setting everywhere). torch's LSTMs have two bias vectors, which are added: ``bias_ih`` gets ``value``
    and ``bias_hh`` zero, in the forget gate's part alone.

    Args:
        module: a layer, a cell, or a model with any number of them; RNNs and GRUs have no forget gate, and stay as
            they are.
        value: the sum of the two biases.

    Returns:
        ``module``.

    Raises:
        TypeError: ``module`` is no :class:`torch.nn.Module`.
        ValueError: it has no LSTM, or one without biases, or one that ``torch.jit`` has compiled; a bias is computed
            from other tensors.

    Examples::

        >>> net = fastrnn.init.forget_bias_(fastrnn.LSTM(10, 20))
        >>> i, f, g, o = (net.bias_ih_l0 + net.bias_hh_l0).chunk(4)
        >>> bool((f == 1).all())
        True
    """
    lstms = [layer for layer in _layers(module) if isinstance(layer, stock.LSTM | stock.LSTMCell)]
    if not lstms:
        raise ValueError(f"expected a module with an LSTM, got {type(module).__name__} without one")
    if not all(layer.bias for layer in lstms):
        raise ValueError("expected LSTMs with biases, got one with bias=False")
    biases = {kind: [bias for layer in lstms for bias in _parameters(layer, kind)] for kind in ("bias_ih", "bias_hh")}
    with torch.no_grad():
        for kind, part in (("bias_ih", value), ("bias_hh", 0.0)):
            for bias in biases[kind]:
                _, forget, _, _ = bias.chunk(4)
                forget.fill_(part)
    return module


def _layers(module: Module) -> list[Module]:
    """The recurrent layers and cells of a module."""
    layers = list(recurrent_layers(module).values())
    if not layers:
        raise ValueError(f"expected a module with a recurrent layer, got {type(module).__name__} without one")
    if any(isinstance(layer, torch.jit.ScriptModule) for layer in layers):
        raise ValueError("expected layers of Python, got one that torch.jit has compiled: initialise it before that")
    return layers


def _parameters(layer: Module, *kinds: str) -> Iterator[Parameter]:
    """The parameters of a layer or a cell whose names begin alike."""
    names = layer._flat_weights_names if isinstance(layer, stock.RNNBase) else kinds
    for name in names:
        if name.startswith(kinds) and hasattr(layer, name):
            parameter = layer._parameters.get(name)
            if parameter is None:
                raise ValueError(f"expected {name} to be a parameter, got one that is computed from other tensors")
            yield parameter
