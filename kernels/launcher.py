"""Launches of Triton's kernels, past most of what Triton does for each of them.

At every launch Triton finds out anew which compiled kernel its arguments ask for, which takes many times as long as to
launch it. Here what the first launch of a kind returned is kept, and called by itself from then on. A kind is all that
Triton specialises a kernel on: the device, constants and options, and of each argument whether it is there, its dtype,
whether it lies at a multiple of 16 bytes, and how wide a whole number is.

Whoever is to be told of launches is told: while there are hooks, or settings of Triton's have been changed in the
program, launches take the ordinary way. So do those of anything that this module does not know: a version of Triton,
GPUs other than NVIDIA's, the interpreter.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import triton
from torch import Tensor
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

VERSIONS = ("3.6.", "3.7.", "3.8.", "3.9.")  # of Triton, whose compiled kernels are called as here
KNOWN = triton.__version__.startswith(VERSIONS)
ALIGNED = 16  # bytes, whose multiples Triton specialises pointers on
LEAST, MOST = -(1 << 31), (1 << 31) - 1  # whole numbers beyond are passed as wider ones

OF_COMPILER = ("jit_cache_hook", "jit_post_compile_hook")  # which are told of what is compiled, and not of launches
INTEGER = {int}  # which bool is not

Key = tuple[object, ...]


class _Kept(NamedTuple):
    """A compiled kernel and what it is called with beside a launch's own arguments."""

    run: Any
    function: Any
    metadata: Any
    constants: tuple[object, ...]  # in the order of the kernel's parameters
    owners: tuple[object, ...]  # whose identities are in the key, and what unloads the function when it is dropped


_kept: dict[Key, _Kept] = {}
# Of a kernel and so many arguments: which are numbers that nothing is specialised on, which are not, and the kernel.
_places: dict[tuple[int, int], tuple[tuple[int, ...], tuple[int, ...], object]] = {}


class Launch:
    """A launch that is ready to be done, on the current device and its current stream, once or again and again.

    Args:
        kernel: what :func:`triton.jit` has made.
        grid: programs along each axis.
        arguments: for the kernel's first parameters: tensors, whole numbers and None.
        constants: for the others, by name, all hashable.
        warps, stages: how to compile it.
        options: more of that.

    Examples::

        >>> step = Launch(kernel, (4, 1), (x, y, 0), {"BLOCK": 64}, warps=4, stages=2)
        >>> for s in range(10):
        ...     step.set(2, s)
        ...     step()
    """

    __slots__ = ("_arguments", "_found", "_grid", "_kernel", "_key", "_options", "_passed", "_stream")

    def __init__(
        self,
        kernel: Any,
        grid: Sequence[int],
        arguments: Sequence[object],
        constants: Mapping[str, object],
        warps: int,
        stages: int,
        **options: object,
    ) -> None:
        options |= constants
        options["num_warps"], options["num_stages"] = warps, stages
        self._kernel, self._grid, self._arguments, self._options = kernel, grid, arguments, options
        self._key: Key | None = None
        self._found: _Kept | None = None
        self._passed: list[Any] | None = None
        if not KNOWN or not isinstance(kernel, JITFunction) or _is_observed(kernel):
            return
        kind = _kind(kernel, arguments)
        if kind is not None:
            active = driver.active
            device = active.get_current_device()
            self._stream = active.get_current_stream(device)
            self._key = (id(kernel), id(active), device, tuple(options), tuple(options.values()), kind)
            self._found = _kept.get(self._key)

    def set(self, index: int, number: int) -> None:
        """Give another number for an argument that was one: of 32 bits, and of those that are not specialised on."""
        if self._passed is None:
            # Addresses of a GPU's memory are passed faster than tensors; of other memory a driver is to be asked.
            self._arguments = list(self._arguments)
            self._passed = [a.data_ptr() if isinstance(a, Tensor) and a.is_cuda else a for a in self._arguments]
        self._arguments[index] = self._passed[index] = number  # type: ignore[index]

    def __call__(self) -> None:
        """Launch it."""
        found = self._found
        if found is None:
            self._launch_ordinarily()
            return
        x, y, z = (*self._grid, 1, 1)[:3]
        run, function, metadata, constants, _ = found
        passed = self._arguments if self._passed is None else self._passed
        run(x, y, z, self._stream, function, metadata, None, None, None, *passed, *constants)

    def _launch_ordinarily(self) -> None:
        """Launch it by Triton, and keep what that returns."""
        compiled = self._kernel[self._grid](*self._arguments, **self._options)
        if self._key is None or not isinstance(compiled, CompiledKernel) or compiled.metadata.target.backend != "cuda":
            return
        names = self._kernel.arg_names[len(self._arguments) :]
        if all(name in self._options for name in names):
            constants = tuple(self._options[name] for name in names)
            owners = (self._kernel, driver.active, compiled)
            self._found = _Kept(compiled.run, compiled.function, compiled.packed_metadata, constants, owners)
            _kept[self._key] = self._found


def launch(
    kernel: Any,
    grid: Sequence[int],
    arguments: Sequence[object],
    constants: Mapping[str, object],
    warps: int,
    stages: int,
    **options: object,
) -> None:
    """Launch a kernel once; arguments as of :class:`Launch`."""
    Launch(kernel, grid, arguments, constants, warps, stages, **options)()


def _kind(kernel: JITFunction[Any], arguments: Sequence[Any]) -> Key | None:
    """What a kernel is specialised on in arguments, or None if that is not known."""
    found = _places.get((id(kernel), len(arguments)))
    if found is None:
        free = [parameter.do_not_specialize for parameter in kernel.params[: len(arguments)]]
        numbers_at = tuple(i for i, is_free in enumerate(free) if is_free)
        others_at = tuple(i for i, is_free in enumerate(free) if not is_free)
        found = _places[id(kernel), len(arguments)] = numbers_at, others_at, kernel
    numbers = [arguments[i] for i in found[0]]
    tensors = [arguments[i] for i in found[1]]
    if numbers and not ({*map(type, numbers)} == INTEGER and min(numbers) >= LEAST and max(numbers) <= MOST):
        return None
    try:
        addresses = [0 if t is None else t.data_ptr() for t in tensors]
        dtypes = [None if t is None else t.dtype for t in tensors]
    except AttributeError:  # a number, or whatever
        return None
    low = 0
    for address in addresses:
        low |= address
    if low % ALIGNED == 0:
        return tuple(dtypes)
    return (*dtypes, *[address % ALIGNED == 0 for address in addresses])


def _is_observed(kernel: JITFunction[Any]) -> bool:
    """Whether somebody is to be told of launches, or has changed how kernels are compiled."""
    runtime, compilation = vars(knobs.runtime), vars(knobs.compilation)
    return bool(
        (runtime and any(value is not None and name not in OF_COMPILER for name, value in runtime.items()))
        or (compilation and any(value is not None for value in compilation.values()))
        or knobs.runtime.launch_enter_hook.calls
        or knobs.runtime.launch_exit_hook.calls
        or kernel.pre_run_hooks
    )
