"""The rule by which every test judges numbers: :mod:`fastrnn._accuracy`, for tensors by name."""

import copy
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn._accuracy import allowed, error

Named = Mapping[str, Tensor]
T = TypeVar("T")


def assert_accurate(ours: Named, torchs: Named, truth: Named) -> None:
    """Fail unless ``ours`` is near enough to ``truth`` (float64), by how near ``torchs`` is, torch's in the same dtype.

    Names that begin with ``d`` are gradients, which may be off a little more.
    """
    assert ours.keys() == torchs.keys() == truth.keys()
    wrong = []
    for name, true in truth.items():
        result, theirs = ours[name].detach(), torchs[name].detach()
        assert (result.shape, result.dtype) == (theirs.shape, theirs.dtype), name
        assert theirs.shape == true.shape, name
        off, limit = error(result, true.detach()), allowed(theirs, true.detach(), gradient=name.startswith("d"))
        if not off <= limit:
            wrong.append(
                f"{name} is off by {off:.2e}, torch by {error(theirs, true.detach()):.2e}: allowed {limit:.2e}"
            )
    assert not wrong, "\n".join(wrong)


def assert_alike(ours: Named, torchs: Named, truth: Named) -> None:
    """NaN and infinities in the same places; the rest by the rule of the accuracy."""
    for name, theirs in torchs.items():
        assert torch.equal(ours[name].isnan(), theirs.isnan()), name
        assert torch.equal(ours[name].isposinf(), theirs.isposinf()), name
        assert torch.equal(ours[name].isneginf(), theirs.isneginf()), name
    clean = [
        {name: torch.where(torchs[name].isfinite(), t, 0.0) for name, t in f.items()} for f in (ours, torchs, truth)
    ]
    assert_accurate(*clean)


def assert_same(ours: Named, theirs: Named) -> None:
    """Fail unless the tensors are equal to the last bit."""
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, different


def flatten(output: object) -> list[Tensor]:
    """The tensors of a layer's output, in order: y, h_n, c_n, cells."""
    if isinstance(output, PackedSequence):
        return [output.data]
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in output for tensor in flatten(part)]


def run(module: nn.Module, *inputs: object, **kwargs: object) -> dict[str, Tensor]:
    """Outputs of a module, and gradients for all of its parameters and inputs from a fixed upstream gradient."""
    leaves: dict[str, Tensor] = {}

    def leaf(name: str, value: object) -> object:
        if isinstance(value, PackedSequence):
            return value._replace(data=leaf(name, value.data))
        if isinstance(value, tuple):
            return tuple(leaf(f"{name}{i}", v) for i, v in enumerate(value))
        if isinstance(value, Tensor) and value.is_floating_point():
            value = leaves[f"d{name}"] = value.detach().requires_grad_()
        return value

    inputs = tuple(leaf(name, value) for name, value in zip(("x", "hx"), inputs, strict=False))
    leaves |= {f"d{name}": parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    outputs = dict(zip(("y", "h_n", "c_n", "cells"), flatten(module(*inputs, **kwargs)), strict=False))
    if isinstance(module, nn.RNNCellBase):
        outputs = dict(zip(("h", "c"), outputs.values(), strict=False))
    generator = torch.Generator().manual_seed(1)
    # Drawn alike for every dtype, and short enough to be exact in each.
    upstream = [torch.randint(-8, 9, t.shape, generator=generator).to(t.dtype) / 8 for t in outputs.values()]
    gradients = torch.autograd.grad(list(outputs.values()), list(leaves.values()), upstream)
    return outputs | dict(zip(leaves, gradients, strict=True))


def in_float64(value: object) -> object:
    """Inputs, however nested, in float64."""
    if isinstance(value, PackedSequence):
        return value._replace(data=value.data.double())
    if isinstance(value, tuple):
        return tuple(map(in_float64, value))
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def rounded(value: object, dtype: torch.dtype) -> object:
    """Inputs, however nested, in float64, of the numbers that ``dtype`` has."""
    if isinstance(value, PackedSequence):
        return value._replace(data=value.data.to(dtype).double())
    if isinstance(value, tuple):
        return tuple(rounded(v, dtype) for v in value)
    return value.to(dtype).double() if isinstance(value, Tensor) and value.is_floating_point() else value


def if_torch_can(call: Callable[[], T]) -> T | None:
    """What torch computes, or None where it has no kernel for it on this CPU.

    Under autocast, dense LSTMs go to oneDNN, which has those of 16 bits only for CPUs with instructions for them.
    fastrnn computes all of that on every CPU; without torch's result, :func:`dtypes_own` is the yardstick.
    """
    try:
        return call()
    except RuntimeError as error:
        if "could not create a primitive" not in str(error):
            raise
        return None


def dtypes_own(module: nn.Module, dtype: torch.dtype, *inputs: object) -> list[Tensor]:
    """What ``dtype`` makes of a layer: the yardstick where torch has none, the same one on every machine.

    Whoever computes in a dtype of few bits rounds what the layer reads (weights, input, state) and what it writes, once
    each; between that, sums and gates are of float32, whose roundings are nothing beside these. So this is the layer in
    float64, of rounded numbers, its results rounded. It does not round the state from step to step, as some do (oneDNN,
    AMX): a rounding a step of what is multiplied by recurrent weights that are as far off themselves. That is at most
    as much again, for which the rule has its factor of two.
    """
    exact = copy.deepcopy(module).double()
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.copy_(parameter.to(dtype))
    return [t.to(dtype) for t in flatten(exact(*(rounded(value, dtype) for value in inputs)))]
