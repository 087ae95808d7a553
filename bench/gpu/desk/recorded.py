"""What Triton was asked to launch; and, where nothing is to be compiled, something in the place of its compiler."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import Tensor

from bench.gpu.desk import machine


class Seen(NamedTuple):
    """A kernel with what it was compiled for.

    Attributes:
        module, name: where the kernel is.
        specialization: types, constants and options, as :meth:`triton.runtime.jit.JITFunction.preload` takes them.
    """

    module: str
    name: str
    specialization: str


_seen: dict[Seen, None] = {}
_file: Path | None = None  # of what is launched
launched: Counter[str] = Counter()  # by name, of kernels that were not compiled
reachable: Callable[[int, Tensor], None] | None = None  # raises for what does not lie on the device


def seen() -> list[Seen]:
    """Every kernel that this process has launched since :func:`watch`, once, in the order of first use."""
    return list(_seen)


def watch() -> None:
    """Keep what is launched from now on."""
    runtime = import_module("triton").knobs.runtime

    def hook(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        specialization = json.loads(compile["specialization_data"])
        del specialization["options"]["extern_libs"]  # a path here; Triton finds its own
        kernel = Seen(fn.module, fn.jit_function.fn.__name__, json.dumps(specialization))
        if kernel not in _seen and _file is not None:
            _file.parent.mkdir(parents=True, exist_ok=True)
            with _file.open("a", encoding="utf-8") as file:
                file.write(written([kernel]))
        _seen[kernel] = None
        return False

    runtime.jit_cache_hook = hook


def compile_nothing() -> None:
    """Have Triton's compiler return at once; what it returns can be launched, and does nothing."""
    import_module("triton.compiler").compile = lambda source, target=None, options=None, **_: Nothing(source, options)


class Nothing:
    """In the place of a compiled kernel."""

    def __init__(self, source: Any, options: dict[str, Any] | None) -> None:
        self.src, self.name, self.function, self.module = source, source.name, 1, 1
        self.metadata = SimpleNamespace(name=self.name, shared=0, **(options or {}))
        self.packed_metadata = (getattr(self.metadata, "num_warps", 4), 1, 0)
        self.n_regs = self.n_spills = 0
        self.asm: dict[str, Any] = {}

    def _init_handles(self) -> None:
        """Nothing to load."""

    def launch_metadata(self, grid: Any, stream: int, *args: Any) -> None:
        """Nothing to say."""

    def run(self, x: int, y: int, z: int, stream: int, function: int, packed: Any, metadata: Any, *rest: Any) -> None:
        """As a launcher is called: behind two hooks come the arguments."""
        launched[self.name] += 1
        for position, t in enumerate(rest[2:]):
            if isinstance(t, Tensor):
                if reachable is not None:
                    reachable(position, t)
                machine.spend(t.nbytes)
        if self.name == "grid_meeting":  # the one whose result somebody checks: numbers that were read wrong
            rest[2 + self.src.fn.arg_names.index("wrong_ptr")].zero_()


def write_to(folder: str) -> None:
    """Have this process write what it launches: at once, for it may be ended."""
    global _file
    _file = Path(folder) / f"{os.getpid()}-{time.time_ns()}.jsonl"


def written(kernels: list[Seen]) -> str:
    """As JSON lines."""
    return "".join(json.dumps(kernel._asdict()) + "\n" for kernel in kernels)


def read(text: str) -> list[Seen]:
    """What :func:`written` has written."""
    return [Seen(**json.loads(line)) for line in text.splitlines()]
