"""Both calls of ``bench/gpu.sh`` at the desk, through every group: no fault of a script is left for a GPU to find."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("xdist")

from bench import results
from bench.__main__ import main as bench
from bench.gpu.stages import FIRST, SECOND
from bench.gpu.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parent.parent
# Those that fail, for no kernel runs: one waits for tensors to lie where others lay, as torch's own cache of a GPU's
# memory has it, one for a fault.
FAIL = ("tests/test_cuda.py::test_recorded_launches", "tests/test_tune_cuda.py::test_a_fault_of_the_gpu")


def call(which: str, tmp_path: Path) -> tuple[dict[str, str], list[results.Row], str]:
    """How each group ended, the rows, and what was printed."""
    desk = [sys.executable, "-m", "bench.gpu.desk", "--record", str(tmp_path / "seen"), "--tiny"]
    script = ["bash", "bench/gpu.sh", str(tmp_path / "out"), f"--{which}", "--known", str(tmp_path / "known")]
    variables = {"OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(tmp_path / "cache"), "FASTRNN_CACHE": str(tmp_path)}
    environment = {**os.environ, **variables}
    command = [*desk, *script, "--seconds", "2000", "--patience", "20"]  # here are few cores, and shared
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    ended = {}
    for line in done.stdout.splitlines():
        how, _, rest = line.partition(": ")
        if how in ("passed", "FAILED"):
            ended[rest.split(" in ")[0]] = how if how == "passed" else rest.split(" s: ")[1]
    return ended, results.read(tmp_path / "out" / f"{which}.jsonl"), done.stdout


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_both_calls_go_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended, rows, printed = call("first", tmp_path)
    cache = ended.pop("versions")
    assert cache in ("passed", "cache (1)")  # whether kernels were compiled before
    assert cache == "passed" or "precompile: miss: " in printed
    tests = {"tests": "pytest (1)"}
    assert ended == {group.name: tests.get(group.name, "passed") for group in FIRST if group.name != "versions"}, (
        printed
    )
    for strategy in STRATEGIES:
        for cell in ("lstm", "gru"):
            assert f"smoke: {strategy}, {cell}: right" in printed
    failed = (tmp_path / "known" / "failed-tests.txt").read_text().splitlines()
    assert failed
    assert all(test.startswith(FAIL) for test in failed), printed
    seconds, more, printed = call("second", tmp_path)
    again = {"again": "pytest (1)", "memcheck": "memcheck (1)"}  # those tests
    assert seconds == {group.name: again.get(group.name, "passed") for group in SECOND}, printed
    for row in (*rows, *more):
        assert row.times, row.detail
        assert "pretended" in row.provenance.device.driver
    paths = [str(tmp_path / "out" / name) for name in ("first.jsonl", "second.jsonl")]
    assert bench(["gpu-decide", *paths]) == 2
    assert "nothing follows from the rows of a pretended GPU" in capsys.readouterr().err
