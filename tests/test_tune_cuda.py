"""Tuning on a GPU: what only a device can show."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fastrnn
from fastrnn import _cuda, _elsewhere
from fastrnn._accuracy import allowed, error
from fastrnn._contest import Here
from fastrnn.kernels.measured import Work
from fastrnn.kernels.plan import candidates, device_facts, forced

pytestmark = [
    pytest.mark.gpu,
    # The new names are not in every torch that fastrnn is for.
    pytest.mark.filterwarnings("ignore:Please use the new API settings to control TF32"),
]
TUNE = sys.modules["fastrnn.tune"]
WORK = Work("gru", 40, 16, 24, 64, torch.float16)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path))
    device_facts.cache_clear()
    yield tmp_path
    device_facts.cache_clear()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("fault", ["stray", "endless"])
def test_a_fault_of_the_gpu_costs_its_plan_alone(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import faults

    monkeypatch.setenv(faults.NAMED, fault)
    monkeypatch.setattr(_elsewhere, "BOOT", faults.BOOT)
    monkeypatch.setattr(_elsewhere, "LIMIT", 20.0)
    x = torch.randn(512, 512, device="cuda")
    before = x @ x
    (result,) = TUNE.tune_works([(WORK, x.device)], 0.1).results
    (why,) = (why for plan, why in result.left_out.items() if plan.strategy == "resident")
    assert "illegal memory access" in why if fault == "stray" else why == "it took longer than 20 s"
    assert {"torch", "stepwise"} <= dict(result.record.seconds).keys(), result.left_out
    assert torch.equal(x @ x, before)  # the context of this process is whole


@pytest.mark.usefixtures("cache")
def test_new_work_is_tuned_in_the_background() -> None:
    layer = fastrnn.GRU(24, 64, device="cuda", dtype=torch.float16).eval()
    x = torch.randn(40, 16, 24, device="cuda", dtype=torch.float16)
    with torch.no_grad(), forced(strategy="torch"):
        theirs = layer(x)[0]
        truth = fastrnn.GRU(24, 64, device="cuda", dtype=torch.float64)
        truth.load_state_dict(layer.state_dict())
        true = truth(x.double())[0]
    with torch.no_grad(), fastrnn.autotune(True):
        assert torch.equal(layer(x)[0], theirs)
        (line,) = fastrnn.explain(layer, x).layers
        assert line.reason.endswith("; being tuned")
        end = time.monotonic() + 240
        while "being tuned" in line.reason and time.monotonic() < end:
            assert error(layer(x)[0], true) <= allowed(theirs, true, gradient=False)
            time.sleep(0.5)
            (line,) = fastrnn.explain(layer, x).layers
        assert "tuned on this GPU" in line.reason, line.reason
        assert error(layer(x)[0], true) <= allowed(theirs, true, gradient=False)


@pytest.mark.parametrize("hidden", [64, 512])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_tf32_by_the_rule(cell: str, hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether our kernels may compute float32 under tf32: torch's layer has to round as much as they do.

    Where this fails, cuDNN does not round the products of the recurrence, and the work is to be left to torch.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    device = torch.device("cuda", torch.cuda.current_device())
    work = Work(cell, 100, 16, 64, hidden, torch.float32, trains=True, tf32=True)
    here, seen = Here(work, device), set()
    for plan in candidates(work, _cuda.facts_of(device)):
        if plan.strategy not in seen:  # one of each
            assert plan.precision == "tf32"
            here.check(plan)
            seen.add(plan.strategy)
    assert {"stepwise", "resident" if hidden == 64 else "grid"} <= seen
