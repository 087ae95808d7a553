"""What happens to a process in production: Python ends during a call, memory runs out. tests/soak has more of it."""

import contextlib
import ctypes
import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from layers import draw, fast, run

import fastrnn

SOAK = Path(__file__).parent / "soak"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="what is loaded before all else is Linux's matter")


def ends_well(command: list[str], **environment: str) -> str:
    """What a program prints that ends with 0, and in time."""
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, *command], env=os.environ | paths | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout


def test_python_ends_during_a_call() -> None:
    """A thread that comes back from a call to an interpreter that is shutting down takes nothing down with it."""
    assert "all ended with 0" in ends_well([str(SOAK / "shutdown.py"), "1", "1"])


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("call", ["module", "units"])
def test_memory_runs_out(call: str, tmp_path: Path) -> None:
    """At each place in turn: an error of Python's, no thread that waits for another, and the next call is right."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    library = str(tmp_path / "allocation.so")
    source = str(SOAK / "allocation.cpp")
    subprocess.run([compiler, "-std=c++20", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    said = ends_well([str(SOAK / "allocation.py"), "200", "1", call], LD_PRELOAD=library)
    assert "MemoryError" in said
    assert "RuntimeError" in said


FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class Allocated(ctypes.Structure):
    """What malloc says of itself (mallinfo2 of glibc)."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in FIELDS.split())


def every_kind_of_call() -> dict[str, Callable[[], object]]:
    """Small calls by each way into the engine."""
    net, x, dense = fastrnn.LSTM(4, 6, num_layers=2), torch.randn(3, 2, 4), draw("gru", 3, 2, 4, 6)
    padded = draw("lstm", 3, 2, 4, 6, bidirectional=True, layout="lengths", reset=True)
    packed = draw("rnn_tanh", 3, 2, 4, 6, layout="packed", dtype=torch.float64)
    short = draw("lstm", 3, 2, 4, 6, dtype=torch.bfloat16)
    state, cell = fastrnn.stream(fastrnn.GRU(4, 6)), fastrnn.GRUCell(4, 6)

    def refused() -> None:
        with contextlib.suppress(RuntimeError):
            torch.ops.fastrnn.layer("lstm", x, None, None, [x], False, None, None, None, "full", False)

    return {
        "module": torch.no_grad()(lambda: net(x)),
        "training": lambda: net(x)[0].sum().backward(),
        "full tape": lambda: run(fast(), padded),
        "lean tape": lambda: run(fast("lean"), padded),
        "outputs": torch.no_grad()(lambda: fast()(dense)),
        "packed": lambda: run(fast(), packed),
        "bfloat16": lambda: run(fast(), short),
        "stream": torch.no_grad()(lambda: state(x)),
        "cell": lambda: cell(x[0]).sum().backward(),
        "refused": refused,
    }


@LINUX
def test_calls_leave_no_memory_behind() -> None:
    """Not a string: torch 2.13's own conversion of an operator's arguments left some fifty bytes of each."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("this C library does not say what is in use")
    libc.mallinfo2.restype = Allocated

    def used() -> int:
        gc.collect()
        now = libc.mallinfo2()
        return int(now.uordblks + now.hblkhd)

    left = {}
    for kind, call in every_kind_of_call().items():
        added = []
        for _ in range(3):  # what is kept once is no leak
            before = used()
            for _ in range(300):
                call()
            added.append((used() - before) / 300)
        left[kind] = min(added)
    assert max(left.values()) < 24, f"{left} bytes a call"
