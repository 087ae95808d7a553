"""A barrier of all programs of a launch, for kernels whose programs exchange states at every step.

In two halves, so that a program can do something useful while the others come: it arrives, adding to a counter in
global memory, and later waits until the counter says that all have. What a program stored before it arrived is seen by
the others after they have waited; both halves are, within a program, for all of its threads. Programs wait for each
other only if all of them run at the same time: :func:`launch` sees to that, and that there is no launch on AMD's GPUs.
As Triton 3.6 compiles an arrival for those, the one wave that arrives waits for its own stores alone, and those of the
program's other waves may come later.

A wait has an end. A program that has polled in vain for seconds writes the step into the launch's error word and waits
no more: it goes through its remaining steps without, stays within its tensors, and computes nonsense. The error word is
the host's own memory, which kernels on a GPU can write to. So the host looks at it without waiting for the GPU, also
where the launch was captured in a graph: before and after every launch, hence at the latest in the next call of such a
kernel, and whenever :func:`check` is called.
"""

import ctypes
import threading
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastrnn.kernels import launcher
from fastrnn.kernels.device import multiprocessors
from fastrnn.kernels.graphs import capturing

APART = 32  # counters, of 4 bytes each, do not share a cache line
PATIENCE = 1 << 22  # polls, each of which takes about a microsecond
MOST_KERNELS = 16
# Error words, of 4 bytes each, at multiples of 16 bytes: for other pointers Triton compiles a kernel once more.
WORDS_APART = 4
# Triton's pipelines would load what a step reads while the one before it runs, when it is not there yet: no stages.
STAGES = 1


@triton.jit
def arrive(counter_ptr):
    """Tell the others that all that this program has stored so far can be read, and what it has read, overwritten."""
    tl.debug_barrier()  # before Triton 3.9, nothing else has all threads be done when one of them releases
    tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter_ptr, arrivals, patience, error_ptr, s):
    """Wait for so many arrivals, at step ``s``. Returns the patience for the next wait: none, if these did not come."""
    polls = patience
    arrived = tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu")
    while (arrived < arrivals) & (polls > 0):
        polls -= 1
        arrived = tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()
    in_vain = arrived < arrivals
    tl.store(error_ptr, s + 1, mask=in_vain & (patience > 0))
    return tl.where(in_vain, 0, patience)


class _Errors:
    """The error words of a device, one for each kernel: 0, or 1 more than the step at which it gave up."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.inference_mode(False):  # or it could not be cleared outside of it
            pinned = device.type == "cuda"
            self.words = torch.zeros(MOST_KERNELS * WORDS_APART, dtype=torch.int32, device="cpu", pin_memory=pinned)
        size = self.words.numel() * self.words.itemsize
        self.memory = (ctypes.c_ubyte * size).from_address(self.words.data_ptr())  # of the words, to look without torch
        self.no_words = bytes(size)
        self.kernels: dict[str, Tensor] = {}

    def word(self, kernel: str) -> Tensor:
        word = self.kernels.get(kernel)
        if word is None:
            with _lock:
                at = WORDS_APART * len(self.kernels)
                word = self.kernels.setdefault(kernel, self.words[at : at + 1])
        return word

    def check(self) -> None:
        if bytes(self.memory) == self.no_words:
            return
        found = self.words[::WORDS_APART].tolist()
        self.words.zero_()
        failed = [f"{name} at step {word - 1}" for name, word in zip(self.kernels, found, strict=False) if word]
        raise RuntimeError(
            f"fastrnn: programs of {', '.join(failed)} waited in vain for the others on {self.device}; what that call, "
            "this one or an earlier one, has computed is wrong"
        )


_errors: dict[torch.device, _Errors] = {}
_lock = threading.Lock()  # autograd computes on threads of its own


def _errors_of(device: torch.device) -> _Errors:
    known = _errors.get(device)
    if known is not None:
        return known
    with _lock:
        if device not in _errors:
            if capturing(device):  # which does not allow what pins memory
                raise RuntimeError(
                    "fastrnn: the first call of a kernel whose programs wait for each other cannot be captured in a "
                    "CUDA graph: call the layer once before"
                )
            _errors[device] = _Errors(device)
        return _errors[device]


def check(device: torch.device) -> None:
    """Look whether a launch on ``device`` that has ended by now gave up.

    Raises:
        RuntimeError: one did; the message has the kernel and the step. It is raised once.
    """
    _errors_of(device).check()


def most_programs(device: torch.device) -> int | None:
    """How many programs certainly run at the same time: one on every multiprocessor. None where that is no question."""
    return None if device.type != "cuda" else _processors(device)


@cache
def _processors(device: torch.device) -> int:
    return multiprocessors(torch.cuda.get_device_properties(device))


def options(vendor: str, all_registers: bool = True) -> dict[str, object]:
    """How such a kernel is to be compiled, which has a multiprocessor to itself: with all registers.

    NVIDIA's assembler takes what it is given, to read ahead, and then spills where it would not without a limit.
    """
    return {"maxnreg": 255} if vendor == "nvidia" and all_registers else {}


def launch(
    kernel: Any,
    grid: tuple[int, int],
    counters: int,
    device: torch.device,
    *arguments: object,
    num_warps: int,
    all_registers: bool = True,
    **constants: object,
) -> None:
    """Launch a kernel whose programs wait for each other, all of them at the same time.

    Behind ``arguments`` the kernel gets ``counter_ptr`` (``counters`` of them, :data:`APART` apart), ``error_ptr`` and
    ``patience``.

    Raises:
        NotImplementedError: the device is AMD's.
        RuntimeError: there are more programs than certainly run at once; or a former launch gave up.
    """
    name = kernel.__name__
    if torch.version.hip is not None:
        raise NotImplementedError("fastrnn: programs exchange states on NVIDIA's GPUs alone, not on AMD's")
    most, programs = most_programs(device), grid[0] * grid[1]
    if most is not None and programs > most:
        raise RuntimeError(f"fastrnn: the {programs} programs of {name} have to run at once; {device} runs {most}")
    errors = _errors_of(device)
    errors.check()
    counter = torch.zeros(counters * APART, dtype=torch.int32, device=device)
    arguments += (counter, errors.word(name), PATIENCE)
    how = options("nvidia", all_registers)
    launcher.launch(kernel, grid, arguments, constants, num_warps, STAGES, launch_cooperative_grid=True, **how)
    errors.check()
