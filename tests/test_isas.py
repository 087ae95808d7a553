"""Caps of instruction sets act: on fastrnn, and on torch and its oneDNN alike."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import isas
import pytest
import torch

from fastrnn import _ops

CODE = """
import torch
from fastrnn import _ops
with torch.no_grad():
    torch.nn.LSTM(16, 16)(torch.ones(3, 2, 16))
print(_ops.cpu_isa(), torch.backends.cpu.get_cpu_capability())
"""
# What oneDNN calls them, which says no more than the first where a CPU has no more.
ONEDNN = {
    "amx": "Intel AVX-512 with float16, Intel DL Boost and bfloat16 support and Intel AMX",
    "avx512bf16": "Intel AVX-512 with Intel DL Boost and bfloat16 support",
    "avx512": "Intel AVX-512 with AVX512BW, AVX512VL, and AVX512DQ extensions",
    "avx2": "Intel AVX2",
    "base": "Intel SSE4.1",
}


def test_every_instruction_set_has_its_caps() -> None:
    assert set(_ops.cpu_isas()) <= set(isas.CAPS)
    assert set(ONEDNN) == set(isas.CAPS)


def test_the_tests_of_the_engine_are_there() -> None:
    assert all((isas.TESTS / f"test_{name}.py").is_file() for name in isas.ENGINE)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="there are caps for x86 alone")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("isa", _ops.cpu_isas()[1:])
def test_a_cap_acts(isa: str) -> None:
    environment = os.environ | isas.CAPS[isa] | {"ONEDNN_VERBOSE": "1"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{isa} {isas.CAPS[isa]['ATEN_CPU_CAPABILITY'].upper()}"
    assert f"cpu,isa:{ONEDNN[isa]}\n" in done.stdout


def test_each_instruction_set_is_run_and_a_failure_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that pass with the first of two sets, and fail with the second."""
    first, second = "avx2", "base"
    monkeypatch.setattr(_ops, "cpu_isas", lambda: [first, second])
    monkeypatch.setattr(isas, "TESTS", tmp_path)
    monkeypatch.setattr(isas, "ENGINE", ["toy"])
    for name in isas.VARIABLES:
        monkeypatch.setenv(name, "something else")
    code = "import os\n\ndef test_toy():\n    assert {name: os.environ.get(name) for name in %r} %s %r\n"
    toy = tmp_path / "test_toy.py"
    toy.write_text(code % (isas.VARIABLES, "in", [dict.fromkeys(isas.VARIABLES), isas.CAPS[second]]))
    assert isas.main(["-q", f"--rootdir={tmp_path}", "-p", "no:cacheprovider"]) == 0
    toy.write_text(code % (isas.VARIABLES, "==", dict.fromkeys(isas.VARIABLES)))
    assert isas.main(["-q", f"--rootdir={tmp_path}", "-p", "no:cacheprovider"]) == 1
