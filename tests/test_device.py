"""What a device lets programs do that wait for each other, without a device."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastrnn import _cuda, engine
from fastrnn.kernels import device, measured, plan
from fastrnn.kernels.measured import Record, Work
from fastrnn.kernels.plan import DeviceFacts

H100 = DeviceFacts("NVIDIA H100", "nvidia", (9, 0), 132, 227 * 1024, 50 * 2**20)
WORK = Work("lstm", 100, 32, 256, 512, torch.bfloat16)
GRID = (("strategy", "grid"), ("tile", 16), ("units", 8), ("split", 8), ("warps", 8))


@pytest.mark.parametrize(
    ("share", "expected"),
    [(None, 132), ("100", 132), ("25", 33), ("12.5", 16), ("0.1", 1), ("0", 132), ("150", 132), ("much", 132)],
)
def test_a_share_of_the_multiprocessors(share: str | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(device.SHARE, raising=False)
    if share is not None:
        monkeypatch.setenv(device.SHARE, share)
    assert device.multiprocessors(SimpleNamespace(multi_processor_count=132)) == expected


def test_facts_are_those_of_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuning as well: what was the fastest on all of them is not known to be on a few."""
    properties = SimpleNamespace(
        name="NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        major=8,
        minor=0,
        multi_processor_count=42,
        shared_memory_per_block_optin=163 * 1024,
        shared_memory_per_block=48 * 1024,
        L2_cache_size=20 * 2**20,
    )
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: None)
    monkeypatch.setattr(measured, "of_gpu", lambda *given: asked.append(given[:2]) or ())
    for share, expected in (("100", 42), ("50", 21)):
        monkeypatch.setenv(device.SHARE, share)
        assert plan.device_facts.__wrapped__(0).sm_count == expected
    assert asked == [(properties.name, 42), (properties.name, 21)]
    names = [measured.identity(*given) for given in asked]
    assert names[0] != names[1]
    for spread in plan._spreads(replace(WORK, batch=16), replace(H100, sm_count=21)):
        assert plan.programs(plan.grid_plan(spread, "ieee"), replace(WORK, batch=16)) <= 21


def test_the_driver_is_asked_for_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Itself: torch does not tell."""

    class Driver:
        def __init__(self, name: str) -> None:
            assert name == "libcuda.so.1"

        def cuDriverGetVersion(self, version: Any) -> int:
            version._obj.value = 12040
            return 0

    def none(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(device.ctypes, "CDLL", Driver)
    assert device.driver_version() == 12040
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert device.driver_version() == 0
    monkeypatch.setattr(device.ctypes, "CDLL", none)
    assert device.driver_version() == 0


@pytest.mark.parametrize(
    ("driver", "whatever"), [(0, True), (12020, True), (12030, False), (12050, False), (12060, True), (13000, True)]
)
def test_captures_before_cuda_12_6(driver: int, whatever: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture may be of a conditional node's body: others compute it then, and explain would say why."""
    record = Record(WORK, (("torch", 3e-3), ("stepwise", 2e-3), ("grid", 1e-3)), GRID)
    facts, captures = replace(H100, driver=driver, records=(record,)), []
    monkeypatch.setattr(_cuda, "_facts", lambda index: facts)
    monkeypatch.setattr(_cuda, "HAS_TRITON", True)
    monkeypatch.setattr(_cuda, "capturing", lambda device: bool(captures))
    with FakeTensorMode():
        x = torch.empty(100, 32, 256, device="cuda:0", dtype=torch.bfloat16)
        weights = [torch.empty(4 * 512, n, device="cuda:0", dtype=torch.bfloat16) for n in (256, 512)]
        planned = engine.plan("lstm", x, weights, steps=100, batch=32, beyond_torch=None)
        assert planned.kernel.startswith("grid")
        assert _cuda._plan("lstm", x, weights, False, None, None, False).strategy == "grid"
        captures.append(1)
        inside = engine.plan("lstm", x, weights, steps=100, batch=32, beyond_torch=None)
        of_operator = _cuda._plan("lstm", x, weights, False, None, None, False)
    assert (inside == planned) == whatever
    assert (of_operator.strategy == "grid") == whatever
    assert _cuda.facts_of(x.device) is _cuda.facts_of(x.device)
    if not whatever:
        assert inside.kernel.startswith("stepwise")
        assert "1.50 times as fast as torch" in inside.reason
        assert inside.reason.endswith("takes them from CUDA 12.6 on")
        facts = replace(facts, records=())
        assert _cuda.facts_of(x.device).records == ()
