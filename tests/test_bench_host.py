"""Host time is measured without a GPU, and a call has no more launches and operators than are known to be needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from bench import report, results

ROOT = Path(__file__).resolve().parent.parent
MOST = {  # launches and operators of torch's
    ("grid", "inference"): (1, 19),
    ("grid", "training"): (3, 54),
    ("stepwise", "inference"): (0, 19),
    ("stepwise", "training"): (2, 51),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and this is measured without")
def test_host_time_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "host.jsonl"
    command = [sys.executable, "-m", "bench", "host", "--seconds", "0.01", "--out", str(out)]
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = results.read(out)
    assert len(done.stdout.splitlines()) == len(rows) + 2
    assert [(row.case.steps, row.case.mode) for row in rows] == [
        (steps, mode) for steps in (16, 32, 128) for mode in ("inference", "training")
    ]
    for row in rows:
        strategy = row.detail["plan"].split(",")[0]
        launches, operators = MOST[strategy, row.case.mode]
        if strategy == "stepwise":  # backward, one more of a step, and one for all
            launches += row.case.steps * (1 if row.case.mode == "inference" else 2)
        assert row.detail["launches"] == launches
        assert 0 < row.detail["operators"] <= operators
        assert 0 < row.detail["least"] <= row.times["fastrnn"].median
    assert report.tables(rows) is not None
