"""Arithmetic of Triton's interpreter put right: it computes with bfloat16 as if it were integers, and more.

bfloat16 is computed with in float32 and rounded to nearest even after each operation, as torch does and GPUs do.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import triton.language as tl
import triton.runtime.interpreter as triton_interpreter
from triton._C.libtriton import ir
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def widened(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The numbers that bfloat16's bits stand for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrowed(numbers: npt.NDArray[Any], toward_zero: bool = False) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bfloat16, of two that are as near the even one; or of the next one toward zero."""
    single = np.asarray(numbers).astype(np.float32)
    bits = single.view(np.uint32)
    rounding = np.uint32(0) if toward_zero else np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))
    return np.where(np.isnan(single), np.uint16(0x7FC0), ((bits + rounding) >> 16).astype(np.uint16))


def truncated(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What tensor cores see of float32 in their tf32 mode: 10 bits of the mantissa."""
    return (numbers.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _is_bfloat16(handle: TensorHandle) -> bool:
    # The handle of a comparison has the type of what was compared, and booleans.
    return bool(handle.dtype.scalar == tl.bfloat16 and handle.data.dtype == np.uint16)


def _wide(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(widened(handle.data), tl.float32) if _is_bfloat16(handle) else handle


def _as_bfloat16(numbers: npt.NDArray[Any]) -> TensorHandle:
    if numbers.dtype == np.bool_:
        return TensorHandle(numbers, tl.int1)
    return TensorHandle(narrowed(numbers), tl.bfloat16)


class Numbers(InterpreterBuilder):
    """The interpreter's operations on values."""

    def get_bf16(self, value: float) -> TensorHandle:
        """A constant."""
        return _as_bfloat16(np.array([value], dtype=np.float32))

    def create_splat(self, *given: Any) -> TensorHandle:
        """One value for all lanes; the truth of a comparison stays one, and is no number to be negated bit by bit."""
        value, splat = given[-1], super().create_splat(*given)
        if value.data.dtype == np.bool_:
            splat.data = splat.data.astype(np.bool_)
        return splat

    def cast_impl(self, src: TensorHandle, dst_type: Any) -> TensorHandle:
        """Conversions but for the bits of 8-bit floats."""
        kinds = {src.dtype.scalar, dst_type.scalar}
        if len(kinds) == 1 or tl.bfloat16 not in kinds or any(kind.is_fp8() for kind in kinds):
            return super().cast_impl(src, dst_type)
        if dst_type.scalar == tl.bfloat16:
            return TensorHandle(narrowed(src.data), tl.bfloat16)
        return super().cast_impl(_wide(src), dst_type)

    def create_fp_to_fp(self, src: TensorHandle, dst_type: Any, rounding_mode: Any) -> TensorHandle:
        """Conversions with a rounding."""
        kinds = {src.dtype.scalar, dst_type.scalar}
        if tl.bfloat16 not in kinds or any(kind.is_fp8() for kind in kinds):
            return super().create_fp_to_fp(src, dst_type, rounding_mode)
        if dst_type.scalar == tl.bfloat16:
            return TensorHandle(narrowed(src.data, rounding_mode == ir.ROUNDING_MODE.RTZ), tl.bfloat16)
        return self.cast_impl(src, dst_type)

    def unary_op(self, arg: TensorHandle, op: Any) -> TensorHandle:
        """Functions of numpy with one argument."""
        if _is_bfloat16(arg):
            return _as_bfloat16(op(_wide(arg).data))
        return super().unary_op(arg, op)

    def binary_op(self, lhs: TensorHandle, rhs: TensorHandle, op: Any) -> TensorHandle:
        """Functions of numpy with two arguments."""
        if _is_bfloat16(lhs) or _is_bfloat16(rhs):
            return _as_bfloat16(op(_wide(lhs).data, _wide(rhs).data))
        return super().binary_op(lhs, rhs, op)

    def ternary_op(self, lhs: TensorHandle, rhs: TensorHandle, other: TensorHandle, op: Any) -> TensorHandle:
        """Functions of numpy with three arguments; a choice computes nothing."""
        if _is_bfloat16(other) and op is not np.where:
            return _as_bfloat16(op(_wide(lhs).data, _wide(rhs).data, _wide(other).data))
        return super().ternary_op(lhs, rhs, other, op)

    def create_fma(self, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
        """A product and a sum, rounded once."""
        if _is_bfloat16(z):
            return _as_bfloat16(_wide(x).data.astype(np.float64) * _wide(y).data + _wide(z).data)
        return super().create_fma(x, y, z)

    def create_erf(self, arg: TensorHandle) -> TensorHandle:
        """The error function, which numpy does not have."""
        wide = super().create_erf(_wide(arg))
        return _as_bfloat16(wide.data) if _is_bfloat16(arg) else wide

    def create_rsqrt(self, arg: TensorHandle) -> TensorHandle:
        """1 / sqrt(x)."""
        wide = super().create_rsqrt(_wide(arg))
        return _as_bfloat16(wide.data) if _is_bfloat16(arg) else wide

    def create_minnumf(self, lhs: TensorHandle, rhs: TensorHandle) -> TensorHandle:
        """The smaller one, or the one that is a number; triton before 3.8 gives NaN."""
        return self.binary_op(lhs, rhs, np.fmin)

    def create_maxnumf(self, lhs: TensorHandle, rhs: TensorHandle) -> TensorHandle:
        """The larger one, or the one that is a number."""
        return self.binary_op(lhs, rhs, np.fmax)

    def create_dot(self, a: TensorHandle, b: TensorHandle, d: TensorHandle, precision: Any, *rest: Any) -> TensorHandle:
        """Products of matrices: 16-bit operands exactly, sums in the accumulator's type, tf32 where it is asked for."""

        def operand(handle: TensorHandle) -> TensorHandle:
            if handle.dtype.scalar == tl.float32 and precision == ir.INPUT_PRECISION.TF32:
                return TensorHandle(truncated(handle.data), tl.float32)
            if handle.dtype.scalar == tl.float16:
                return TensorHandle(handle.data.astype(np.float32), tl.float32)
            return _wide(handle)

        return super().create_dot(operand(a), operand(b), d, precision, *rest)


def _reduced(self: Any, inputs: Any) -> Any:
    """Reductions and scans of bfloat16, in float32 and rounded at the end."""
    if not isinstance(inputs, tuple):
        return self.apply((inputs,))[0]
    narrow = [value.dtype == tl.bfloat16 for value in inputs]
    wide = tuple(value.to(tl.float32) if value.dtype == tl.bfloat16 else value for value in inputs)
    return tuple(
        value.to(tl.bfloat16) if was and value.dtype == tl.float32 else value
        for value, was in zip(_apply(self, wide), narrow, strict=False)
    )


def _index(self: Any) -> int:
    """A number that the interpreter has as an array of one element, which numpy 2.4 does not convert by itself."""
    return int(self.handle.data.item())


def _patch_tensor(tensor: Any, scope: Any) -> None:
    _patch_lang_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", _index)


_apply = triton_interpreter.ReduceScanOpInterface.apply
_patch_lang_tensor = triton_interpreter._patch_lang_tensor


def install() -> None:
    """Repair what is not the builder's."""
    triton_interpreter.ReduceScanOpInterface.apply = _reduced
    triton_interpreter._patch_lang_tensor = _patch_tensor
