"""What every test runs under: memory that was not written is NaN, random numbers are the same each time."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Two threads in each process share work, and more are a test's own affair (test_determinism.py). Whoever waits sleeps:
# there are as many processes as cores (pytest -n), and one that spins takes the time of another.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Inductor keeps what it generated for one instruction set, and would compile it for another.
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR",
    str(
        Path(__file__).resolve().parent.parent / "build" / "inductor" / os.environ.get("ATEN_CPU_CAPABILITY", "native")
    ),
)

import fast
import torch

pytest_plugins = ["poison"]
INTERPRETED = Path(__file__).parent / "interpreted"
INTERPRET = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
TRITON = importlib.util.find_spec("triton") is not None
# For bench; last, since an installed fastrnn comes before the source tree's.
sys.path.append(str(Path(__file__).resolve().parent.parent))
os.environ["FASTRNN_POISON"] = "1"  # the engine's own memory as well; it asks when it first computes
os.environ["FASTRNN_CACHE"] = str(INTERPRETED / "nothing")  # plans are as on a machine where nothing was tuned


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
def a_core_for_each_thread() -> None:
    """Have work split as on a machine with many cores and nobody else: how is not a matter of where the tests run."""
    from fastrnn import _C

    _C.cpu_assume(64, False)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start each test from the same random state, whichever tests ran before it."""
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--fast``."""
    parser.addoption("--fast", action="store_true", help="the tests for after each edit: tests/fast.py")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Keep interpreted kernels and the rest apart: a process either interprets kernels or compiles them."""
    if config.getoption("--fast") and collection_path.suffix == ".py" and not fast.has(collection_path):
        return True
    inside = collection_path.is_relative_to(INTERPRETED)
    if inside and not (INTERPRET and TRITON):
        return True
    return True if INTERPRET and not inside and collection_path.suffix == ".py" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests of the other kind that were named, too; interpreted ones prove kernels, all of them."""
    other = [item for item in items if item.path.is_relative_to(INTERPRETED) != INTERPRET]
    if config.getoption("--fast"):
        other += [item for item in items if not fast.has(item.path, item.originalname) and item not in other]
    config.hook.pytest_deselected(items=other)
    left_out = set(other)
    items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)  # the slow ones first: see pytest -n
    if INTERPRET:
        for item in items:
            item.add_marker(pytest.mark.triton)


def pytest_report_header() -> list[str]:
    """Say by what is computed, which tests are left out, and how to run them."""
    return [_computed_by(), _left_out()]


def _computed_by() -> str:
    from fastrnn import _ops

    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"fastrnn with {_ops.cpu_isa()} of {', '.join(_ops.cpu_isas())}; torch {torch.__version__} with {capability}; "
        f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    )


def _left_out() -> str:
    if not TRITON:
        return "tests/interpreted: left out, there is no triton"
    if INTERPRET:
        return "TRITON_INTERPRET is set: tests/interpreted, and those alone"
    return "tests/interpreted: left out here, run TRITON_INTERPRET=1 pytest (make test runs both)"
