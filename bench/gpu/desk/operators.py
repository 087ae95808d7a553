"""fastrnn's operators on the pretended device: launched as on a GPU, computed by the C++ engine.

Plans, checks, allocations and launches are those of CUDA tensors; since no kernel runs, their results are then
overwritten with those of the operator for CPU tensors. A tape is the engine's, for the engine's backward.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

results = True  # whether anything is computed, and not launched alone


def compute(func: Any, *args: Any) -> Any:
    """``fastrnn::layer``, ``layer_forward`` or ``layer_backward``, of tensors on the device."""
    from fastrnn import _cuda

    found = getattr(_cuda, func._schema.name.removeprefix("fastrnn::"))(*args)
    if results:
        with torch.utils._python_dispatch._disable_current_modes():
            right = func(*args)
        for to, of in zip(_tensors(found), _tensors(right), strict=True):
            if to.shape != of.shape or to.dtype != of.dtype:
                raise RuntimeError(f"{func}: {tuple(to.shape)} {to.dtype} on CUDA, {tuple(of.shape)} {of.dtype} on CPU")
            to.copy_(of.to(to.device))
    return found


def _tensors(found: Any) -> list[Tensor]:
    return [t for t in tree_leaves(found) if isinstance(t, Tensor)]
