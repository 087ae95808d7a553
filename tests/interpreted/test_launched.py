"""The kernels of the benchmarks compute what they say, so that what is timed is done."""

from dataclasses import replace

import pytest
import torch
import triton
from rig import gluon

from bench import timing
from bench.gpu import clock, constants, contestants, latency, launched, measure, on_chip
from fastrnn import _cuda
from fastrnn.kernels import model
from fastrnn.kernels.plan import DeviceFacts

if triton.knobs.runtime.interpret:
    gluon.interpret(on_chip)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_matrices_are_multiplied_as_often_as_there_are_steps(steps: int) -> None:
    x, w = torch.randint(-8, 9, (8, 16, 32)), torch.randint(-8, 9, (8, 32, 16))  # whole numbers: sums are exact
    expected = (steps * (x @ w)).float()
    assert torch.equal(launched.multiply(x.float(), w.float(), steps), expected)
    assert torch.equal(on_chip.multiply_in_registers(x.bfloat16(), w.bfloat16(), steps), expected)


def test_shared_memory_is_read_part_by_part() -> None:
    x = torch.randint(-1000, 1000, (4, 64), dtype=torch.int32)
    for steps in (1, 4, 7):
        expected = x[torch.arange(steps) % 4].sum(0, dtype=torch.int32)
        assert torch.equal(on_chip.read_shared(x, steps), expected)


def test_a_read_starts_where_the_one_before_says() -> None:
    assert launched.read(torch.zeros(64, dtype=torch.int32), 3, 5).tolist() == [0, 0, 0]
    places = torch.zeros(48, dtype=torch.int32)
    places[0], places[16] = 1, 2  # the first 16 say to read on at 16, and those, at 32
    last = torch.empty(2, dtype=torch.int32)
    for steps, expected in ((1, 16), (2, 32), (3, 0), (4, 16)):
        launched.read_steps[(2,)](places, last, steps, WIDTH=16)
        assert last.tolist() == [expected, expected]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU in the place of a GPU, and little to do."""
    h100 = DeviceFacts("a GPU", "nvidia", (9, 0), 132, 227 * 1024, 50 * 2**20)
    monkeypatch.setattr(_cuda, "facts_of", lambda device: h100)
    monkeypatch.setattr(contestants, "DEVICE", "cpu")
    monkeypatch.setattr(clock, "by_events", timing.by_host)
    monkeypatch.setattr(clock, "captured", lambda call: call)
    monkeypatch.setattr(measure, "device", lambda: None)
    monkeypatch.setattr(timing, "WARMUP", 1)
    monkeypatch.setattr(latency, "CHAIN", 2)
    for name, value in {
        "STEPS": 2,
        "READ": (16, 1 << 20),
        "SHARED": (2, 64),
        "MATRIX": (16, 16, 16),
        "ORDINARY": (16, 16, 16),
        "SEQUENCE": 3,
        "BATCH": 2,
        "RESIDENT": 16,
        "SPREAD": 16,
    }.items():
        monkeypatch.setattr(constants, name, value)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", list(constants.MEASURES))
def test_a_constant_of_the_model_is_measured(name: str) -> None:
    """Its kernels run, and the row says which it is; the interpreter's times say nothing."""
    # what the rests follow from: nothing takes time but they
    found = dict.fromkeys(("barrier", "launch"), 1e-12) | dict.fromkeys(
        ("read", "read_by_all", "shared", "matrix"), 1e18
    )
    *before, row = constants.MEASURES[name](1e-3, found)
    assert row.detail["constant"] == name
    took = row.times["torch"].median
    longer = took - sum(other.times["torch"].median for other in before)
    assert row.detail["value"] == pytest.approx(
        {
            "barrier": took,
            "launch": took,
            "read": 4 * ((1 << 20) - 16) / longer,
            "read_by_all": 4 * ((1 << 20) - 16) / longer,
            "memory": 2 * latency.COPIED / took,
            "shared": 4 * 64 / took,
            "matrix": 8 * 16**3 / took,
            "ordinary": 8 * 16**3 / took,
            "standard": took / 2,
            "rest": took / 2,
            "rest_in_registers": took / 2,
        }[name],
        rel=1e-3,
    )
    assert constants.constants_of([row]) == replace(model.UNMEASURED, **{name: row.detail["value"]})
