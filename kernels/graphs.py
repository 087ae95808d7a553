"""Launches that repeat, replayed as one CUDA graph.

A step's kernel may take less time than the CPU takes to launch it. A recording holds the launches of all steps with the
addresses of their tensors. It copies nothing and owns no memory: it is replayed for tensors that lie where those lay,
which are the same again in a loop over batches of one shape, since torch's allocator hands out what was given back. So
numbers are those of the launches themselves. What comes for the second time is recorded: what comes once costs nothing
but a look-up, and kernels are compiled and loaded before a capture, which allows neither.

Nothing here knows of gradients or transforms, which torch has resolved before it calls the operators. A plan says
whether launches are to be recorded.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

MOST = 128  # keys that are remembered, whether recorded or seen once

Key = tuple[Hashable, ...]


class Recording(NamedTuple):
    """A graph, and the stream that it is replayed on."""

    graph: torch.cuda.CUDAGraph
    stream: torch.cuda.Stream


class Recordings:
    """The launches that came last, recorded if they came before."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._known: OrderedDict[Key, Recording | None] = OrderedDict()
        self._lock = Lock()  # backward runs on threads of autograd's

    def run(self, launches: Callable[[], None], tensors: Sequence[Tensor | None], options: Key) -> None:
        """Do what ``launches()`` does, itself or by a replay.

        Args:
            launches: launches kernels on the current stream, and allocates nothing.
            tensors: all that it reads and writes, on one device, which is the current one.
            options: whatever else it depends on.
        """
        device = next(t.device for t in tensors if t is not None)
        if capturing(device):  # by somebody else, in whose graph the launches belong
            launches()
            return
        stream = torch.cuda.current_stream(device)
        key = (device, stream.cuda_stream, options, *map(_place, tensors))
        with self._lock:
            recording = self._known.get(key)
            if recording is None and key in self._known:
                recording = Recording(_recorded(launches, device), stream)
            self._known[key] = recording
            self._known.move_to_end(key)
            dropped = self._known.popitem(last=False)[1] if len(self._known) > self.most else None
        if dropped is not None:
            dropped.stream.synchronize()  # it may still be running
        if recording is None:
            launches()
        else:
            recording.graph.replay()


def capturing(device: torch.device) -> bool:
    """Whether the current stream is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _place(t: Tensor | None) -> Hashable:
    return None if t is None else (t.data_ptr(), t.dtype, t.shape, t.stride())


def _recorded(launches: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.Stream(device)):  # the default stream cannot be captured
        graph.capture_begin(capture_error_mode="thread_local")  # other threads may do what this one must not
        try:
            launches()
        finally:
            graph.capture_end()
    return graph


recordings = Recordings()
