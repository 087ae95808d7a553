"""What happens to a process in production: Python ends during a call, memory runs out. tests/soak has more of it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
