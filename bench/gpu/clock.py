"""Time on a GPU: events around batches of calls, which may be replays of a graph, and the setting of TF32."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

WARMUP = 3  # calls on the stream of a capture before it: libraries allocate at first


@dataclass(frozen=True)
class Call:
    """A call, and the context it is made in: that is entered around a batch of calls, so that it takes no time."""

    run: Callable[[], object]
    under: Callable[[], AbstractContextManager[None]] = nullcontext

    def __call__(self) -> None:
        with self.under():
            self.run()


def by_events(call: Callable[[], object], repeat: int) -> float:
    """A clock for :func:`bench.timing.measure`: seconds of the device, waits for the host's launches included."""
    call = call if isinstance(call, Call) else Call(call)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with call.under():
        begin.record()
        for _ in range(repeat):
            call.run()
        end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1e3


def captured(call: Call) -> Call:
    """The call as the replay of a CUDA graph; the context is that of the capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with call.under(), torch.cuda.stream(stream):
        for _ in range(WARMUP):
            call.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with call.under(), torch.cuda.graph(graph):
        call.run()
    return Call(graph.replay)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow products of float32 to be rounded to TF32, or not.

    Both settings, for cuDNN's layers follow one in all of their products, and fastrnn's products over all steps are
    torch's, which follow the other.
    """
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, setting in zip(backends, before, strict=True):
            backend.allow_tf32 = setting
