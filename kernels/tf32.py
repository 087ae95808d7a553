"""Factors of products in tf32, rounded to nearest.

For tf32 a matrix unit takes the upper 19 bits of a float32 and cuts off the others, and Triton gives it numbers as they
are. So each factor would be too near to zero, by 0.035 % on average, all of them in the same way: that adds up through
time, to three to five times the error of the same layer with factors that are rounded. Weights are rounded when they
are loaded or, where that is at every step, before. States are rounded where they are few: in a resident program, and
before they are sent to others. Where there is too much to go through, factors are cut off, and the product makes up for
what that takes off on average.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rounded(x, PRECISION: tl.constexpr):
    """A factor, of which the upper 19 bits are the nearest number in tf32; what is no finite number stays."""
    if PRECISION == "tf32" and x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        x = tl.where(tl.abs(x) < float("inf"), bits + 0x1000, bits).to(tl.float32, bitcast=True)
    return x


@triton.jit
def all_rounded(xs, PRECISION: tl.constexpr):
    """Several factors."""
    found = ()
    for k in tl.static_range(len(xs)):
        found = found + (rounded(xs[k], PRECISION),)
    return found


@triton.jit
def restored(product, PRECISION: tl.constexpr):
    """A product of which one factor was cut off: half of the last bit on average, by mantissas as numbers have them."""
    if PRECISION == "tf32" and product.dtype == tl.float32:
        product = product * 1.00035222  # 1 + 2**-11 / (2 * ln 2)
    return product


@triton.jit
def all_restored(products, PRECISION: tl.constexpr):
    """Several products."""
    found = ()
    for k in tl.static_range(len(products)):
        found = found + (restored(products[k], PRECISION),)
    return found


def rounded_tensor(x: Tensor) -> Tensor:
    """A float32 tensor as :func:`rounded` has it for tf32."""
    bits = x.view(torch.int32)
    return torch.where(x.isfinite(), bits + 0x1000, bits).view(torch.float32)
