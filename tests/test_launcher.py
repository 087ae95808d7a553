"""Launches past Triton's own: the same calls of the same compiled kernels, for all that it specialises kernels on.

Triton's launches are its real ones, but for the compiler and the driver.
"""

from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver

from fastrnn.kernels import launcher
from fastrnn.kernels.launcher import Launch, launch

pytestmark = [
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
    pytest.mark.triton,
    pytest.mark.skipif(knobs.runtime.interpret, reason="the interpreter launches by itself"),
    pytest.mark.skipif(not launcher.KNOWN, reason="a version of Triton that is launched in the ordinary way"),
]


@triton.jit(do_not_specialize=["n", "s"])
def kernel(x_ptr, y_ptr, n, s, z_ptr, BLOCK: tl.constexpr, ADD: tl.constexpr):
    tl.store(y_ptr, tl.load(x_ptr) + n + s + BLOCK)


@triton.jit
def specialised(x_ptr, n, BLOCK: tl.constexpr):
    tl.store(x_ptr, n + BLOCK)


class Compiled(CompiledKernel):
    """What the compiler returns: keeps how it was launched."""

    def __init__(self, machine: "Machine") -> None:
        self.module, self.function, self.packed_metadata = None, object(), object()
        self.metadata = SimpleNamespace(target=GPUTarget(machine.backend, 90, 32))
        self.machine = machine
        self.launched: list[tuple[Any, ...]] = []

    @property
    def run(self) -> Callable[..., None]:
        def launched(*args: Any) -> None:
            self.machine.last = args
            self.launched.append(args)

        return launched

    def launch_metadata(self, grid: Any, stream: Any, *args: Any) -> str:
        return "metadata"


class Machine:
    """Devices and streams, and a compiler of nothing."""

    def __init__(self) -> None:
        self.device, self.stream, self.backend = 0, 7, "cuda"
        self.compiled: list[Compiled] = []
        self.ordinary = 0  # launches by Triton
        self.last: tuple[Any, ...] = ()  # what the last launch was called with

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        assert device == self.device
        return self.stream

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(driver, "_active", made)
    monkeypatch.setattr(launcher, "_kept", {})
    for jitted in (kernel, specialised):
        jitted.device_caches.clear()
        run = jitted.run

        def compile(key: str, *args: Any, jitted: Any = jitted, **options: Any) -> Compiled:
            made.compiled.append(Compiled(made))
            jitted.device_caches[made.device][0][key] = made.compiled[-1]
            return made.compiled[-1]

        def count(*args: Any, run: Any = run, **options: Any) -> Any:
            made.ordinary += 1
            return run(*args, **options)

        monkeypatch.setattr(jitted, "_do_compile", compile)
        monkeypatch.setattr(jitted, "run", count)
    return made


def at(offset: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor so many bytes behind a multiple of 16."""
    return torch.zeros(64, dtype=torch.uint8)[offset : offset + 32].view(dtype)


X, Y = at(0), at(0)
CONSTANTS = {"BLOCK": 32, "ADD": True}


def go(*arguments: object, jitted: Any = kernel, constants: Any = CONSTANTS, warps: int = 4, **options: object) -> None:
    launch(jitted, (3, 2), arguments, constants, warps, 1, **options)


def test_the_second_launch_is_the_first_again(machine: Machine) -> None:
    go(X, Y, 5, 6, None)
    first = machine.last
    go(X, Y, 5, 6, None)
    again = machine.last
    (compiled,) = machine.compiled
    assert (machine.ordinary, len(compiled.launched)) == (1, 2)
    assert first[:6] == again[:6] == (3, 2, 1, 7, compiled.function, compiled.packed_metadata)
    assert again[6:9] == (None, None, None)  # no hooks, and nothing for them
    assert all(a is b for a, b in zip(first[9:], again[9:], strict=True))
    assert again[9:] == (X, Y, 5, 6, None, 32, True)


def test_arguments_are_those_of_each_launch(machine: Machine) -> None:
    other = at(0)
    go(X, Y, 5, 6, None)
    machine.stream = 8
    launch(kernel, (1,), (other, X, 17, -16, None), CONSTANTS, 4, 1)
    assert machine.ordinary == 1
    found = machine.last
    assert found[:4] == (1, 1, 1, 8)
    assert found[9] is other
    assert found[10:] == (X, 17, -16, None, 32, True)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((at(8), Y, 5, 6, None), {}),
        ((X, at(4), 5, 6, None), {}),
        ((X, at(12), 5, 6, None), {}),
        ((at(0, torch.bfloat16), Y, 5, 6, None), {}),
        ((X, at(0, torch.int32), 5, 6, None), {}),
        ((None, Y, 5, 6, None), {}),
        ((X, Y, 5, 6, X), {}),
        ((X, Y, 5, 6, at(4)), {}),
        ((X, Y, 5, 6, None), {"constants": {"BLOCK": 64, "ADD": True}}),
        ((X, Y, 5, 6, None), {"constants": {"BLOCK": 32, "ADD": False}}),
        ((X, Y, 5, 6, None), {"warps": 8}),
        ((X, Y, 5, 6, None), {"maxnreg": 255}),
        ((X, Y, 5, 6, None), {"launch_cooperative_grid": True}),
    ],
)
def test_what_triton_specialises_on_is_another_kind(
    arguments: tuple[Any, ...], options: dict[str, Any], machine: Machine
) -> None:
    for _ in range(2):
        go(X, Y, 5, 6, None)
        go(*arguments, **options)
    assert (machine.ordinary, len(machine.compiled)) == (2, 2)
    assert [len(compiled.launched) for compiled in machine.compiled] == [2, 2]
    usual, other = machine.compiled
    assert usual.launched[-1][9] is X
    assert all(a is b or a == b for a, b in zip(other.launched[0][9:14], other.launched[1][9:14], strict=True))


def test_every_kind_is_told_apart_that_triton_tells_apart(machine: Machine) -> None:
    """What is launched is what Triton launches for the same arguments, also when it has known all others before."""
    places = [(0, torch.float32), (8, torch.float32), (0, torch.bfloat16), (2, torch.bfloat16), (0, torch.bool)]
    tensors = [None, *(at(offset, dtype) for offset, dtype in places)]
    numbers = (0, 1, 16, -1, 2**31 - 1, 2**31, -(2**31) - 1, 2**40)
    for x, y, n in [*product(tensors, tensors, numbers)] * 2:
        go(x, y, n, 3, None)
        ours = machine.last
        kernel[3, 2](x, y, n, 3, None, **CONSTANTS, num_warps=4, num_stages=1)
        assert ours[4] is machine.last[4]
        assert all(a is b or a == b for a, b in zip(ours[9:], machine.last[9:], strict=True))
    assert 36 < len(machine.compiled) < machine.ordinary


def test_devices_have_kernels_of_their_own(machine: Machine) -> None:
    for machine.device in (0, 1, 0, 1):
        go(X, Y, 5, 6, None)
    assert [len(compiled.launched) for compiled in machine.compiled] == [2, 2]
    assert machine.ordinary == 2


@pytest.mark.parametrize("argument", [5, True, 2.0, None], ids=repr)
def test_unknown_arguments_are_launched_in_the_ordinary_way(argument: Any, machine: Machine) -> None:
    """Numbers that kernels are specialised on, and what no kernel of ours is given."""
    for _ in range(3):
        if argument is None:
            go(X, Y, 2.5, 6, None)
        else:
            go(X, argument, jitted=specialised, constants={"BLOCK": 32})
    assert machine.ordinary == 3


@pytest.mark.parametrize("where", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_are_told(where: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    go(X, Y, 5, 6, None)
    chain = getattr(knobs.runtime, where)

    def hook(metadata: object) -> None: ...

    chain.add(hook)
    try:
        for _ in range(2):
            go(X, Y, 5, 6, None)
            assert machine.last[6] == "metadata"
            assert chain in machine.last[7:9]
    finally:
        chain.remove(hook)
    assert machine.ordinary == 3
    monkeypatch.setitem(vars(knobs.runtime), where, hook)  # as some set it
    go(X, Y, 5, 6, None)
    assert hook in machine.last[7:9]
    monkeypatch.delitem(vars(knobs.runtime), where)
    go(X, Y, 5, 6, None)
    assert machine.ordinary == 4


def test_settings_of_triton_are_followed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    go(X, Y, 5, 6, None)
    with monkeypatch.context() as patch:
        patch.setitem(vars(knobs.runtime), "debug", True)
        go(X, Y, 5, 6, None)
        assert len(machine.compiled) == 2
    with monkeypatch.context() as patch:
        patch.setitem(vars(knobs.compilation), "instrumentation_mode", "consan")
        go(X, Y, 5, 6, None)
        assert len(machine.compiled) == 3
    seen: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "pre_run_hooks", [lambda *args, **options: seen.append(args)])
        go(X, Y, 5, 6, None)
        assert len(seen) == 1
    with monkeypatch.context() as patch:  # of which nothing is compiled, and nobody has to be told
        patch.setitem(vars(knobs.runtime), "jit_cache_hook", seen.append)
        go(X, Y, 5, 6, None)
    assert machine.ordinary == 4


@pytest.mark.parametrize("unknown", ["version", "backend", "kernel"])
def test_what_is_not_known_is_launched_in_the_ordinary_way(
    unknown: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[object] = []
    if unknown == "version":
        monkeypatch.setattr(launcher, "KNOWN", False)
    elif unknown == "backend":
        machine.backend = "hip"
    jitted = {(3, 2): lambda *args, **options: launched.append(args)} if unknown == "kernel" else kernel
    for _ in range(3):
        go(X, Y, 5, 6, None, jitted=jitted)
    assert len(launched) + machine.ordinary == 3


def test_nothing_is_kept_of_a_launch_that_was_left_out(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those are that enumerate kernels without compiling them."""
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "_do_compile", lambda *args, **options: None)
        go(X, Y, 5, 6, None)
    go(X, Y, 5, 6, None)
    assert [len(compiled.launched) for compiled in machine.compiled] == [1]


@pytest.mark.parametrize("cuda", [False, True])
def test_numbers_change_between_launches(cuda: bool, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tensors on a GPU addresses are passed; of others, which a driver is asked about, the tensors."""
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "is_cuda", cuda)
        step = Launch(kernel, (3, 2), (X, Y, 5, 0, None), CONSTANTS, 4, 1)
        for s in range(3):
            step.set(3, s)
            step()
    (compiled,) = machine.compiled
    assert machine.ordinary == 1
    assert [args[12] for args in compiled.launched] == [0, 1, 2]
    x, y = (X.data_ptr(), Y.data_ptr()) if cuda else (X, Y)
    assert [args[9:11] for args in compiled.launched] == [(X, Y), (x, y), (x, y)]
    monkeypatch.setattr(launcher, "KNOWN", False)
    step = Launch(kernel, (3, 2), (X, Y, 5, 0, None), CONSTANTS, 4, 1)
    for s in range(3):
        step.set(3, s)
        step()
    assert machine.ordinary == 4
    assert [args[12] for args in compiled.launched[3:]] == [0, 1, 2]


def test_who_is_forgotten_is_not_mistaken_for_another(machine: Machine) -> None:
    """Kernels are known by identities, which live as long as what is kept of them."""
    go(X, Y, 5, 6, None)
    (kept,) = launcher._kept.values()
    assert kernel in kept.owners
    assert machine in kept.owners
    assert machine.compiled[0] in kept.owners
