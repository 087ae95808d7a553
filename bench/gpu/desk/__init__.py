"""A desk to prove GPU work at: a process that takes a machine without a GPU for one with an H100.

Triton's NVIDIA backend, compiler, launcher and cache are the real ones, on a driver of our own that counts launches and
runs nothing; ``torch.cuda`` is stood in for, and CPU tensors say that they lie on ``cuda:0``. fastrnn's operators go
all their way to the launches of their kernels, and then return what the C++ engine computes. So scripts, benchmarks and
tests of GPUs go through all their lines, with the right numbers and the times of nothing.

    from bench.gpu import desk
    desk.enter()                                   # this process, for good
    python -m bench.gpu.desk -m pytest -m gpu ...  # that command, and all that it starts

* :mod:`bench.gpu.desk.driver`: the driver, in C, compiled on first use
* :mod:`bench.gpu.desk.machine`: ``torch.cuda``: properties, streams, events, graphs
* :mod:`bench.gpu.desk.tensors`, :mod:`bench.gpu.desk.memory`: tensors, and which of them lie on the device
* :mod:`bench.gpu.desk.operators`: fastrnn's operators
* :mod:`bench.gpu.desk.recorded`: which kernels were launched
* :mod:`bench.gpu.desk.later`: all of this as soon as a process imports torch
* :mod:`bench.gpu.desk.tiny`: sizes for what is to go through quickly
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.gpu.desk.recorded import Seen

MODES = ("compile", "record")
VARIABLE = "FASTRNN_DESK"  # in the environment: one of MODES
SEEN = "FASTRNN_DESK_SEEN"  # in the environment: a folder, to which each process writes what it launched
TINY = "FASTRNN_DESK_TINY"  # in the environment, where benchmarks are to take tiny sizes
_entered = False


def enter(mode: str = "compile", *, tensors: bool = True, results: bool = True) -> None:
    """Take this machine for one with an H100, from now on until the process ends.

    Args:
        mode: ``"compile"``, or ``"record"`` where kernels are not to be compiled: what is launched is kept
            (:func:`seen`), and launches do nothing.
        tensors: whether tensors can be made on, or moved to, the device. Without, torch's operators are called as they
            are, at no cost, and fastrnn's CUDA operators (:mod:`fastrnn._cuda`) can be given CPU tensors.
        results: whether fastrnn's operators return what is right, and not what happens to lie there.

    Raises:
        RuntimeError: there is a GPU; or no C compiler, or no Triton.

    Example:
        >>> desk.enter()
        >>> torch.zeros(2, device="cuda").device
        device(type='cuda', index=0)
    """
    import torch

    from bench.gpu.desk import driver, machine, operators, recorded

    global _entered
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode}")
    if _entered:
        return
    if torch.cuda.is_available():
        raise RuntimeError("bench.gpu.desk: there is a GPU")
    driver.load()
    machine.install()
    recorded.watch()
    if mode == "record":
        recorded.compile_nothing()
    operators.results = results
    if tensors:
        from bench.gpu.desk import tensors as on_device

        on_device.install()
    if os.environ.get(SEEN):
        recorded.write_to(os.environ[SEEN])
    _entered = True
    if os.environ.get(TINY):
        from bench.gpu.desk import tiny

        tiny.install()


def seen() -> "list[Seen]":
    """Every kernel that this process has launched, with what it is compiled for, once."""
    from bench.gpu.desk import recorded

    return recorded.seen()


def launches(kernel: str | None = None) -> int:
    """How many launches there were in this process, of a kernel of that name or of all."""
    from bench.gpu.desk import driver, recorded

    counted = recorded.launched
    return driver.launches(kernel) + (counted.total() if kernel is None else counted[kernel])
