"""The process that tries plans for another one: what :mod:`fastrnn._elsewhere` starts, and asks.

It is asked through a pipe, which it reads in a thread of its own: the pipe's end is the end of the process that asks,
and of this one, whatever it is computing.
"""

import ctypes
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch

from fastrnn._contest import Here, Lost, words
from fastrnn._settings import Settings, restore, uuid_of
from fastrnn.kernels.measured import Work

PR_SET_PDEATHSIG = 1  # of Linux's prctl


def main(pipe_number: int) -> None:
    """Answer what is asked, each with ``("done", value)``, ``("failed", why)`` or, at last, ``("lost", why)``."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # gigabytes, each time
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: whoever asks knows what to do then
    if sys.platform == "linux":  # where a computation holds Python's lock, the thread below would not notice
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    pipe: Connection[Any, Any] = Connection(pipe_number)
    asked: SimpleQueue[tuple[str, tuple[Any, ...]]] = SimpleQueue()
    Thread(target=_listen, args=(pipe, asked), daemon=True).start()
    here: Here | None = None
    while True:
        name, given = asked.get()
        try:
            if name == "open":
                here = _opened(*given)
                answer: tuple[str, object] = "done", None
            else:
                answer = "done", getattr(here, name)(*given)
        except Lost as lost:
            answer = "lost", words(lost.__cause__ or lost)
        except Exception as problem:
            answer = "failed", words(problem)
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()  # one plan may have taken what the next one needs
        pipe.send(answer)
        if answer[0] == "lost":
            os._exit(1)  # an ordinary end might wait for the device


def _listen(pipe: "Connection[Any, Any]", asked: "SimpleQueue[tuple[str, tuple[Any, ...]]]") -> None:
    while True:
        try:
            asked.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(0)


def _opened(work: Work, device: torch.device, uuid: str | None, found: Settings) -> Here:
    device = same_device(device, uuid)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    restore(found, device)
    return Here(work, device)


def same_device(device: torch.device, uuid: str | None) -> torch.device:
    """The device here, where it may have another number.

    Raises:
        RuntimeError: this process cannot see it.
    """
    if uuid is None or uuid_of(device) == uuid:
        return device
    for index in range(torch.cuda.device_count()):
        if uuid_of(torch.device("cuda", index)) == uuid:
            return torch.device("cuda", index)
    raise RuntimeError(f"GPU {uuid} is not among those that another process sees: was CUDA_VISIBLE_DEVICES changed?")
