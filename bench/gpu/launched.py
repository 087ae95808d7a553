"""The least that a Triton kernel can do, apart from the rest, for it needs Triton to be imported."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _touch(ptr):
    tl.store(ptr, tl.load(ptr) + 1)


def touch(x: Tensor) -> None:
    """Add 1 to the first number."""
    _touch[(1,)](x)
