"""What ``torch.cuda`` offers, stood in for: the device's properties, streams and events on the host's clock, memory.

Everything is done when it is asked for, so that whoever waits has nothing to wait for. Times are the host's, but that a
kernel that is not compiled takes longer the larger its tensors are (:func:`spend`): some measurements rely on it.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bench.gpu.desk import memory

DEVICE = torch.device("cuda", 0)
CUDNN = 91900


@dataclass(frozen=True)
class Properties:
    """Of an H100 SXM, as CUDA has them."""

    name: str = "NVIDIA H100 80GB HBM3"
    major: int = 9
    minor: int = 0
    total_memory: int = 80 * 2**30
    multi_processor_count: int = 132
    max_threads_per_multi_processor: int = 2048
    regs_per_multiprocessor: int = 65536
    warp_size: int = 32
    shared_memory_per_block: int = 48 * 2**10
    shared_memory_per_block_optin: int = 227 * 2**10
    shared_memory_per_multiprocessor: int = 228 * 2**10
    L2_cache_size: int = 50 * 2**20
    is_integrated: bool = False


PROPERTIES = Properties()
SECONDS_A_BYTE = 1e-7  # far more than what else takes time
_busy = 0.0


def spend(size: int) -> None:
    """Have the device be busy for as long as so many bytes take it: time that events see, and nobody waits for."""
    global _busy
    _busy += size * SECONDS_A_BYTE


class Event:
    """A time of the host's clock, and what the device was busy for."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self.at: float | None = None

    def record(self, stream: object = None) -> None:
        """Now."""
        self.at = time.perf_counter() + _busy

    def query(self) -> bool:
        """Whether all is done that came before: it is."""
        return True

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def wait(self, stream: object = None) -> None:
        """Nothing to wait for."""

    def elapsed_time(self, end: "Event") -> float:
        """Milliseconds."""
        if self.at is None or end.at is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return 1e3 * (end.at - self.at)


class Stream:
    """One of many, known by a number; the default stream's is 0."""

    made = 0

    def __init__(self, device: object = None, priority: int = 0, **options: object) -> None:
        Stream.made += 1
        self.device, self.cuda_stream = DEVICE, Stream.made

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        """Whether all is done: it is."""
        return True

    def wait_stream(self, stream: object) -> None:
        """Nothing to wait for."""

    def wait_event(self, event: object) -> None:
        """Nothing to wait for."""

    def record_event(self, event: Event | None = None) -> Event:
        """Now."""
        event = Event() if event is None else event
        event.record()
        return event

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.cuda_stream == self.cuda_stream

    def __hash__(self) -> int:
        return hash(self.cuda_stream)


DEFAULT = Stream()
DEFAULT.cuda_stream = 0


class _Here(threading.local):
    """Of each thread: the current stream, and the graph that it captures."""

    stream: Stream = DEFAULT
    graph: "Any | None" = None


here = _Here()


class Generator(torch._C.Generator):
    """As :class:`torch.Generator`; it draws on the CPU wherever it is."""

    def __new__(cls, device: object = "cpu") -> "Generator":
        return super().__new__(cls, "cpu")


@contextmanager
def stream(given: Stream | None) -> Iterator[None]:
    """As :func:`torch.cuda.stream`."""
    before = here.stream
    here.stream = before if given is None else given
    try:
        yield
    finally:
        here.stream = before


class OnDevice:
    """As :class:`torch.cuda.device`, of which there is one."""

    def __init__(self, device: object) -> None:
        _index(device.get_device() if isinstance(device, torch.Tensor) else device)

    def __enter__(self) -> None:
        """It is the current one."""

    def __exit__(self, *_: object) -> None:
        """It stays so."""


class Graph:
    """As :class:`torch.cuda.CUDAGraph`: what was computed while it was captured is computed again at each replay.

    Results are put where those of the capture were. Unlike a graph, Python's part of an operator runs again as well.
    """

    def __init__(self, keep_graph: bool = False) -> None:
        self.work: list[Callable[[], None]] = []

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        """Have all that this thread computes be captured."""
        if here.stream is DEFAULT:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        if here.graph is not None:
            raise RuntimeError("the stream is being captured already")
        here.graph = self

    def capture_end(self) -> None:
        """No more."""
        here.graph = None

    def replay(self) -> None:
        """Compute all again, of what lies there now."""
        if here.graph is not None:
            here.graph.work.append(self.replay)
        for again in self.work:
            again()

    def reset(self) -> None:
        """Forget it."""
        self.work.clear()

    def pool(self) -> tuple[int, int]:
        """The pool of its memory."""
        return 0, id(self)


@contextmanager
def graph(
    cuda_graph: Graph, pool: object = None, stream: Stream | None = None, capture_error_mode: str = "global"
) -> Iterator[None]:
    """As :class:`torch.cuda.graph`."""
    before = here.stream
    here.stream = Stream() if stream is None else stream
    try:
        cuda_graph.capture_begin(pool, capture_error_mode)
        try:
            yield
        finally:
            cuda_graph.capture_end()
    finally:
        here.stream = before


def refuse_in_capture() -> None:
    """Where a stream is captured, nothing can be waited for.

    Raises:
        RuntimeError: one is.
    """
    if here.graph is not None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


def _synchronize(device: object = None) -> None:
    refuse_in_capture()


def _index(device: object = None) -> None:
    """Check that it is the device that there is, or a tensor's on the host, which asks for none."""
    index = device if isinstance(device, int) else 0 if device is None else torch.device(device).index  # type: ignore[call-overload]
    if index not in (0, -1, None):
        raise RuntimeError("CUDA error: invalid device ordinal")


def _properties(device: object = None) -> Properties:
    _index(device)
    return PROPERTIES


def _acceptable(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cuda" and tensor.dtype in torch.backends.cudnn.CUDNN_TENSOR_DTYPES


CUDA: dict[str, Any] = {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "init": lambda: None,
    "_lazy_init": lambda: None,
    "_lazy_call": lambda call, **options: None,
    "manual_seed": lambda seed: None,
    "manual_seed_all": lambda seed: None,
    "get_rng_state": lambda device=None: torch.get_rng_state(),
    "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": _index,
    "device": OnDevice,
    "device_of": OnDevice,
    "get_device_properties": _properties,
    "get_device_name": lambda device=None: _properties(device).name,
    "get_device_capability": lambda device=None: (_properties(device).major, _properties(device).minor),
    "Event": Event,
    "Stream": Stream,
    "stream": stream,
    "current_stream": lambda device=None: here.stream,
    "default_stream": lambda device=None: DEFAULT,
    "synchronize": _synchronize,
    "CUDAGraph": Graph,
    "graph": graph,
    "graph_pool_handle": lambda: (0, 0),
    "is_current_stream_capturing": lambda: here.graph is not None,
    "empty_cache": lambda: None,
    "memory_allocated": lambda device=None: memory.allocated(),
    "memory_reserved": lambda device=None: memory.allocated(),
    "max_memory_allocated": lambda device=None: memory.peak(),
    "max_memory_reserved": lambda device=None: memory.peak(),
    "reset_peak_memory_stats": lambda device=None: memory.reset_peak(),
    "get_per_process_memory_fraction": lambda device=None: 1.0,
    "set_per_process_memory_fraction": lambda fraction, device=None: None,
    "mem_get_info": lambda device=None: (PROPERTIES.total_memory - memory.allocated(), PROPERTIES.total_memory),
}
CUDNN_MODULE: dict[str, Any] = {
    "version": lambda: CUDNN,
    "is_available": lambda: True,
    "is_acceptable": _acceptable,
}


def _cudnn_mode(mode: str) -> int:
    return ["RNN_RELU", "RNN_TANH", "LSTM", "GRU"].index(mode)


def install() -> None:
    """Have ``torch.cuda`` and ``torch.backends.cudnn`` say so, for good."""
    for name, stand_in in CUDA.items():
        setattr(torch.cuda, name, stand_in)
    for name, stand_in in CUDNN_MODULE.items():
        setattr(torch.backends.cudnn, name, stand_in)
    sys.modules["torch.backends.cudnn.rnn"].get_cudnn_mode = _cudnn_mode  # type: ignore[attr-defined]
    torch.Generator = Generator  # type: ignore[misc]
    # By which Triton asks for the stream; where torch does not have it, it asks for torch.cuda.current_stream.
    torch._C._cuda_getCurrentRawStream = lambda index: here.stream.cuda_stream  # type: ignore[attr-defined]
