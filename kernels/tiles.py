"""Arithmetic of tiles and products of matrices, for the host."""

import torch
from torch import Tensor


def cdiv(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def padded(n: int) -> int:
    """The power of two, 16 or more, that ``n`` fits in: the least that the GPU's matrix units take."""
    return max(16, 1 << (n - 1).bit_length())


def multiply(a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> None:
    """``out = a b`` or, with ``add``, ``out += a b``, of matrices or batches of them.

    Where ``out`` is of another dtype than the factors (float32 for 16 bits), the sums are not rounded to theirs on the
    way.
    """
    if a.shape[-1] == 0 or out.numel() == 0:
        if not add:
            out.zero_()
    elif add:
        if out.dtype == a.dtype:
            out.addmm_(a, b)
        else:
            part = torch.empty_like(out)
            multiply(a, b, part)
            out += part
    elif out.dtype == a.dtype:
        torch.matmul(a, b, out=out)
    elif a.is_cuda and torch.version.hip is None:
        (torch.mm if a.dim() == 2 else torch.bmm)(a, b, out_dtype=out.dtype, out=out)
    else:
        torch.matmul(a.to(out.dtype), b.to(out.dtype), out=out)
