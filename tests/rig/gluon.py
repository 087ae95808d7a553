"""Gluon kernels in Triton's interpreter, which has none: their source, run as if it were Triton's.

Gluon's own functions mean what Triton's do but for layouts, which say where a number is and not which. Here there are
none, shared memory is an array, and a product on tensor cores is a product. Whether the layouts are right is what
compiling shows; whether the numbers are, what this does.
"""

import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as triton_interpreter
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.runtime.interpreter import InterpretedFunction, TensorHandle


class _Shared:
    """An array in shared memory, or a part of one."""

    def __init__(self, data: Any, dtype: Any):
        self._data, self._dtype = data, dtype

    def store(self, value: Any) -> None:
        if value.dtype != self._dtype or value.handle.data.shape != self._data.shape:
            raise TypeError(f"{value.type} is stored where there is {self._dtype} {self._data.shape}")
        self._data[...] = value.handle.data

    def load(self, layout: object) -> Any:
        return tl.tensor(TensorHandle(self._data.copy(), self._dtype), tl.block_type(self._dtype, [*self._data.shape]))

    def index(self, place: Any) -> "_Shared":
        return _Shared(self._data[int(place)], self._dtype)

    def permute(self, order: Sequence[int]) -> "_Shared":
        return _Shared(self._data.transpose(*[int(axis) for axis in order]), self._dtype)

    def slice(self, start: Any, length: int, dim: int = 0) -> "_Shared":
        part = [slice(None)] * self._data.ndim
        part[dim] = slice(int(start), int(start) + int(length))
        return _Shared(self._data[tuple(part)], self._dtype)


class _Language(types.SimpleNamespace):
    """In the place of Gluon's language: what it has not by itself is Triton's, as it means at the moment."""

    def __getattr__(self, name: str) -> Any:
        return getattr(tl, name)


def _shared(dtype: Any, shape: Sequence[int], layout: object) -> _Shared:
    array = np.zeros([int(size) for size in shape], triton_interpreter._get_np_dtype(dtype))
    if array.dtype.kind == "f":
        array.fill(np.nan)  # as memory that nobody has written
    return _Shared(array, dtype)


def _no_layout(*arguments: object, **named: object) -> None:
    return None


_LANGUAGE = _Language(
    arange=lambda start, end, layout: tl.arange(start, end),
    zeros=lambda shape, dtype, layout: tl.zeros(shape, dtype),
    allocate_shared_memory=_shared,
    convert_layout=lambda value, layout, assert_trivial: value,
    **{name: _no_layout for name in ("SliceLayout", "DotOperandLayout", "SwizzledSharedLayout")},
)


def _product(a: Any, b: Any, sums: Any) -> Any:
    return tl.dot(a, b, sums, out_dtype=sums.dtype)


def interpret(module: types.ModuleType) -> None:
    """Have the Gluon functions of a module interpreted from now on, wherever they are looked up in it."""
    scope = {**vars(module), "gl": _LANGUAGE, "tl": tl, "mma_v2": _product}
    for name, function in vars(module).items():
        if isinstance(function, GluonJITFunction):
            plain = function.fn
            again = types.FunctionType(plain.__code__, scope, name, plain.__defaults__, plain.__closure__)
            # The interpreter knows a constant by the name that its annotation has in Triton's language.
            again.__annotations__ = {arg: "tl.constexpr" for arg in plain.__annotations__}
            again.__module__ = module.__name__
            scope[name] = InterpretedFunction(again)
            rewritten = scope[name].rewrite()
            rewritten.__annotations__ = dict.fromkeys(plain.__annotations__, "constexpr")
    for name, function in scope.items():
        if isinstance(function, InterpretedFunction) and isinstance(vars(module)[name], GluonJITFunction):
            setattr(module, name, function)
