"""A catalogue as ``kernels/catalog.py`` is one, of a kernel that compiles and one that does not."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import triton
import triton.language as tl


class Entry(NamedTuple):
    """A kernel, the types and values of its arguments, and how it is launched."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, object]
    num_warps: int
    num_stages: int
    divisible: tuple[str, ...]
    targets: tuple[str, ...]
    options: dict[str, object]


@triton.jit
def product_kernel(x_ptr, w_ptr, y_ptr, state_ptr, steps, H: tl.constexpr):
    """Computes y[t] = x[t] W and keeps the sum of all."""
    row, unit = tl.arange(0, 16), tl.arange(0, H)
    weights = tl.load(w_ptr + unit[:, None] * H + unit[None, :])
    total = tl.zeros((16, H), tl.float32)
    for t in range(steps):
        place = (t * 16 + row[:, None]) * H + unit[None, :]
        product = tl.dot(tl.load(x_ptr + place), weights, out_dtype=tl.float32)
        tl.store(y_ptr + place, product.to(y_ptr.dtype.element_ty))
        total += product
    tl.store(state_ptr + row[:, None] * H + unit[None, :], total)


@triton.jit
def broken_kernel(x_ptr, H: tl.constexpr):
    """Does not compile: a range of a size that is no power of two."""
    tl.store(x_ptr + tl.arange(0, H + 1), 0.0)


def entries() -> Iterator[Entry]:
    """The kernels."""
    pointers = {"x_ptr": "*bf16", "w_ptr": "*bf16", "y_ptr": "*bf16", "state_ptr": "*fp32"}
    product = (product_kernel, {**pointers, "steps": "i32"}, {"H": 64})
    yield Entry("lstm_product", *product, 4, 1, (), ("sm_80", "gfx942"), {})
    yield Entry("broken", broken_kernel, {"x_ptr": "*fp32"}, {"H": 64}, 4, 1, (), ("sm_80",), {})
