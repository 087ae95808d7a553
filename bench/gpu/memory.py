"""What a training call takes of a GPU's memory: by what it keeps for backward, and at its peak."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from bench.gpu.contestants import Prepared, context
from bench.tape import kept_bytes

Calls = Mapping[str, Callable[[], object]]


def of_training(made: Prepared, calls: Calls, y_bytes: int) -> dict[str, Any]:
    """For the row of a case: bytes by contestant, and those of the output, which nobody can do without."""
    return {
        "kept_bytes": {name: _kept(made, name) for name in calls},
        "peak_bytes": {name: peak_bytes(call, context(made, name)) for name, call in calls.items()},
        "y_bytes": y_bytes,
    }


def _kept(made: Prepared, name: str) -> int:
    with context(made, name):
        return kept_bytes(made.stacks[name].train(), made.x)


def peak_bytes(call: Callable[[], object], under: AbstractContextManager[None]) -> int:
    """The most bytes of tensors at any time of a call, beside those that there were before it.

    It is called twice: what a library allocates at the first call and keeps counts for neither.
    """
    with under:
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
