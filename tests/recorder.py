"""CUDA graphs without a GPU: what is captured is kept with the addresses of its tensors, and done at each replay."""

import ctypes
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Address(NamedTuple):
    """Where a tensor lies; it need not live any more."""

    start: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def of(cls, t: Tensor) -> "Address":
        return cls(t.data_ptr(), t.dtype, t.shape, t.stride())

    def tensor(self) -> Tensor:
        """What lies there now."""
        count = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        memory = (ctypes.c_char * (count * self.dtype.itemsize)).from_address(self.start)
        return torch.frombuffer(memory, dtype=self.dtype).as_strided(self.shape, self.stride)


class Graph:
    """Stands in for :class:`torch.cuda.CUDAGraph`."""

    captures: "Graph | None" = None  # the one that does
    replays = 0  # of all graphs

    def __init__(self) -> None:
        self.work: list[tuple[Callable[..., Any], Any, dict[str, Any]]] = []
        self.mode = _Capture()

    def capture_begin(self, *, capture_error_mode: str) -> None:
        assert Graph.captures is None
        Graph.captures = self
        self.mode.__enter__()

    def capture_end(self) -> None:
        self.mode.__exit__(None, None, None)
        Graph.captures = None

    def add(self, work: Callable[..., Any], args: Any, options: dict[str, Any]) -> None:
        self.work.append((work, tree_map_only(Tensor, Address.of, args), options))

    def replay(self) -> None:
        Graph.replays += 1
        for work, args, options in self.work:
            work(*tree_map_only(Address, Address.tensor, args, is_leaf=lambda a: isinstance(a, Address)), **options)


class _Capture(TorchDispatchMode):
    """Puts off what changes a tensor, and refuses what would make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._schema.is_mutable, f"{func} in a capture"
        assert Graph.captures is not None
        Graph.captures.add(func, args, kwargs or {})
        return args[0]


class Kernel:
    """A kernel whose launches can be captured; it counts those that were not."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launched = 0

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            if Graph.captures is not None:
                Graph.captures.add(self.kernel[grid], args, options)
            else:
                self.launched += 1
                self.kernel[grid](*args, **options)

        return launch


class Stream:
    """Stands in for :class:`torch.cuda.Stream`."""

    def __init__(self, device: object = None, cuda_stream: int = 0) -> None:
        self.cuda_stream = cuda_stream
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1


def install(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """Have torch.cuda make such graphs; returns the current stream."""
    current = Stream(cuda_stream=1)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current)
    monkeypatch.setattr(Graph, "replays", 0)
    return current
