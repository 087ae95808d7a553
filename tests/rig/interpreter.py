"""Triton's interpreter made right, wary and concurrent, so that kernels are proven without a GPU.

It computes what a GPU computes (:mod:`rig.numbers`), refuses accesses outside of the tensors of a launch
(:mod:`rig.memory`), and runs the programs of a launch at the same time (:mod:`rig.scheduler`), so that a barrier that
is missing shows, and one that never opens as well. What it cannot show is a missing fence: see :mod:`rig.ptx`.

``TRITON_INTERPRET=1`` has to be in the environment before triton is imported, and kernels run on tensors of the CPU.
"""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import triton.language as tl
import triton.runtime.interpreter as triton_interpreter
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import GridExecutor, InterpretedFunction, TensorHandle

from rig import numbers, quick
from rig.memory import Memory, OutOfBounds
from rig.scheduler import Deadlock, Index, Scheduler

__all__ = ["Deadlock", "OutOfBounds", "Schedule", "install", "schedule"]

PATIENCE = 300


class Schedule:
    """In which order programs run, and how often one gave way to another; see :func:`schedule`."""

    def __init__(self, seed: int = 0, everywhere: bool = False, patience: int = PATIENCE):
        self.seed = seed
        self.everywhere = everywhere
        self.patience = patience
        self.switches = 0


_schedules = [Schedule()]


@contextlib.contextmanager
def schedule(seed: int, *, everywhere: bool = False, patience: int = PATIENCE) -> Iterator[Schedule]:
    """Run launches in an order drawn from a seed.

    Args:
        seed: the same seed, the same order.
        everywhere: switch at ordinary loads and stores as well, and not at atomics and volatile loads alone: slower,
            and finds more.
        patience: polls of every program that has not ended, with no change of memory, after which :class:`Deadlock` is
            raised. Raise it for a kernel that gives up by itself after more.
    """
    _schedules.append(Schedule(seed, everywhere, patience))
    try:
        yield _schedules[-1]
    finally:
        _schedules.pop()


def install() -> None:
    """Change triton's interpreter in this process; again changes nothing.

    Raises:
        RuntimeError: this process does not interpret, or began to after triton was imported.
    """
    if not isinstance(tl.sum, InterpretedFunction):
        raise RuntimeError(
            "triton was imported without interpretation: start Python with TRITON_INTERPRET=1 in the environment, "
            "as make test does for tests/interpreted"
        )
    numbers.install()
    quick.install()
    triton_interpreter.interpreter_builder.__class__ = _Builder
    triton_interpreter.GridExecutor = _Launch
    triton_interpreter._implicit_cvt = _argument
    InterpretedFunction.__call__ = _helper


class _Launch(GridExecutor):
    """One call of a kernel with a grid."""

    current: ClassVar["_Launch | None"] = None
    memory: Memory
    scheduler: Scheduler

    def __init__(self, fn: Callable[..., None], *rest: Any):
        super().__init__(fn, *rest)
        self._kernel = fn
        self._patched: dict[int, Any] = {id(fn.__globals__): None}
        self.fn = _Collector(fn, self._run)

    def __call__(self, *args: Any, **options: Any) -> None:
        given = {name: value for name, value in options.items() if name in self.arg_names}
        self.memory = Memory(inspect.signature(self._kernel).bind_partial(*args, **given).arguments)
        before, _Launch.current = _Launch.current, self
        try:
            super().__call__(*args, **options)
        except InterpreterError as error:
            # What went wrong in the kernel, with its line, is what a test is to see.
            raise error.__cause__ or error from None
        finally:
            _Launch.current = before

    def _run(self, programs: list[tuple[Index, Callable[[], None]]]) -> None:
        settings = _schedules[-1]
        builder = triton_interpreter.interpreter_builder
        self.scheduler = Scheduler(
            programs,
            seed=settings.seed,
            everywhere=settings.everywhere,
            patience=settings.patience,
            resume=lambda index: builder.set_grid_idx(*index),
        )
        try:
            self.scheduler.run()
        finally:
            settings.switches += self.scheduler.switches
            for scope in reversed(self._patched.values()):
                if scope is not None:
                    scope.restore()

    def prepare(self, fn: Callable[..., Any]) -> None:
        """Make the language mean its interpretation in a helper's module, once: triton does so at each call."""
        if id(fn.__globals__) not in self._patched:
            self._patched[id(fn.__globals__)] = triton_interpreter._patch_lang(fn)


class _Collector:
    """In a kernel's place, called for one program after the other: keeps them until all can be run together."""

    def __init__(self, fn: Callable[..., None], run: Callable[[list[tuple[Index, Callable[[], None]]]], None]):
        self._fn = fn
        self._run = run
        self._programs: list[tuple[Index, Callable[[], None]]] = []
        self.__globals__ = fn.__globals__
        self.__name__ = fn.__name__
        self.__signature__ = inspect.signature(fn)

    def __call__(self, **arguments: Any) -> None:
        builder = triton_interpreter.interpreter_builder
        self._programs.append((builder.grid_idx, lambda: self._fn(**arguments)))
        if len(self._programs) == math.prod(int(size) for size in builder.grid_dim):
            self._run(self._programs)


class _Builder(numbers.Numbers):
    """The interpreter's accesses of memory."""

    def create_masked_load(
        self, ptrs: TensorHandle, mask: TensorHandle, other: TensorHandle | None, *policy: Any, **named: Any
    ) -> TensorHandle:
        """A load. Lanes that are masked out and have no other value are undefined: here NaN, if they can be."""
        launch = self._accessed(poll=[*policy, *named.values()][-1])  # is_volatile comes last in every version
        kind = ptrs.get_element_ty()
        dtype = triton_interpreter._get_np_dtype(kind)
        if other is None:
            nan = np.uint16(0x7FC0) if kind == tl.bfloat16 else np.nan if dtype.kind == "f" else 0
            other = TensorHandle(np.full(ptrs.data.shape, nan, dtype=dtype), kind)
        pointers = launch.memory.translate(ptrs.data, mask.data, dtype.itemsize, self._told("load"))
        return TensorHandle(_native.load(pointers, mask.data, other.data, dtype), kind)

    def create_masked_store(
        self, ptrs: TensorHandle, value: TensorHandle, mask: TensorHandle, *policy: Any, **named: Any
    ) -> None:
        """A store."""
        launch = self._accessed(poll=False)
        size = triton_interpreter._get_np_dtype(ptrs.get_element_ty()).itemsize
        if value.data.itemsize != size:
            raise TypeError(f"the interpreter has {value.data.dtype} for {ptrs.get_element_ty()}")
        pointers = launch.memory.translate(ptrs.data, mask.data, size, self._told("store"))
        _native.store(pointers, value.data, mask.data)
        launch.scheduler.changed()

    def create_atomic_rmw(
        self, operation: Any, ptr: TensorHandle, val: TensorHandle, mask: TensorHandle, sem: Any, scope: Any
    ) -> TensorHandle:
        """An atomic operation; one that changes nothing is a poll."""
        if ptr.get_element_ty() == tl.bfloat16:
            raise NotImplementedError("the interpreter has no atomics on bfloat16")
        return self._atomic(
            ptr, mask.data, lambda real: super(_Builder, self).create_atomic_rmw(operation, real, val, mask, sem, scope)
        )

    def create_atomic_cas(
        self, ptr: TensorHandle, cmp: TensorHandle, val: TensorHandle, sem: Any, scope: Any
    ) -> TensorHandle:
        """An exchange if memory has what is expected; one that changes nothing is a poll."""
        everywhere = np.ones(ptr.data.shape, dtype=np.bool_)
        return self._atomic(
            ptr, everywhere, lambda real: super(_Builder, self).create_atomic_cas(real, cmp, val, sem, scope)
        )

    def _atomic(
        self, ptr: TensorHandle, mask: npt.NDArray[np.bool_], operate: Callable[[TensorHandle], TensorHandle]
    ) -> TensorHandle:
        launch = self._accessed(poll=True)
        dtype = triton_interpreter._get_np_dtype(ptr.get_element_ty())
        pointers = launch.memory.translate(ptr.data, mask, dtype.itemsize, self._told("atomic"))
        before = operate(TensorHandle(pointers, ptr.dtype))
        if np.any(_native.load(pointers, mask, before.data, dtype) != before.data):
            launch.scheduler.changed()
        return before

    def _accessed(self, poll: bool) -> _Launch:
        launch = _Launch.current
        assert launch is not None, "memory is accessed in launches alone"
        launch.scheduler.access(poll)
        return launch

    def _told(self, access: str) -> str:
        return f"program {tuple(int(place) for place in self.grid_idx)}: {access}"


def _argument(value: Any) -> Any:
    """What a kernel gets for an argument: for tensors, addresses of the launch."""
    converted = _implicit_cvt(value)
    if _Launch.current is not None and hasattr(value, "data_ptr"):
        converted.handle.data = np.array([_Launch.current.memory.address(value)], dtype=np.uint64)
    return converted


def _helper(self: InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
    """A call of a jitted function by another, which leaves exceptions as they are."""
    if _Launch.current is None:
        return _call(self, *args, **kwargs)
    _Launch.current.prepare(self.fn)
    return self.rewrite()(*args, **kwargs)


_native = triton_interpreter._interpreter
_implicit_cvt = triton_interpreter._implicit_cvt
_call = InterpretedFunction.__call__
