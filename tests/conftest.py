"""What every test runs under: memory that was not written is NaN, random numbers are the same each time."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# For bench; last, since an installed fastrnn comes before the source tree's.
sys.path.append(str(Path(__file__).resolve().parent.parent))
os.environ["FASTRNN_POISON"] = "1"  # the engine's own memory as well; it asks when it first computes


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Have ``torch.empty`` give NaN (or an integer's largest value), from C++ as well, so that reading it shows.

    torch does so in deterministic mode, whose warnings about its own operators are no concern of these tests.
    """
    debug_mode = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.set_deterministic_debug_mode(debug_mode)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start each test from the same random state, whichever tests ran before it."""
    torch.manual_seed(0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
