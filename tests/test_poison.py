"""A test whose kernel faults is named, and costs no other test. The fault is a stand-in's, in the place of torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
CONFTEST = """
import sys, types

pytest_plugins = ["poison"]
lost = False

def synchronize():
    if lost:
        raise RuntimeError("an illegal memory access was encountered")

cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)
sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)

def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: as in this project")
"""
FAULTY = """
import sys
import pytest

@pytest.mark.gpu
@pytest.mark.parametrize("n", range(12))
def test_kernel(n, pytestconfig):
    (plugin,) = [p for p in pytestconfig.pluginmanager.get_plugins() if hasattr(p, "lost")]
    assert not plugin.lost, "computed by a process that had lost the device"
    plugin.lost = n in (3, 7)  # which the test itself does not see
"""


def run(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_faulty.py").write_text(FAULTY)
    command = [sys.executable, "-m", "pytest", "-v", "-rfE", "-p", "no:cacheprovider", "-c", os.devnull, *options]
    environment = os.environ | {"PYTHONPATH": str(TESTS), "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run([*command, str(folder)], cwd=folder, env=environment, capture_output=True, text=True)


def test_a_worker_that_lost_the_device_is_replaced(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    done = run(tmp_path, "-p", "xdist", "-n", "2")
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    for n in range(12):
        outcomes = [line for line in lines if line.endswith(f"PASSED test_faulty.py::test_kernel[{n}] ")]
        assert bool(outcomes) or n in (3, 7), done.stdout
    blamed = {line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR "))}
    assert blamed == {"test_faulty.py::test_kernel[3]", "test_faulty.py::test_kernel[7]"}
    assert "illegal memory access" in done.stdout
    assert "computed by a process that had lost the device" not in done.stdout


def test_without_workers_it_ends(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    assert "ERROR test_faulty.py::test_kernel[3]" in done.stdout
    assert "the device is lost: RuntimeError: an illegal memory access was encountered" in done.stdout
    assert "test_kernel[4]" not in done.stdout
