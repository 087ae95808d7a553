"""What follows from rows of a GPU. No row here was ever measured: times are made up, and stay in these tests."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
from rows import make_row, seconds

from bench import results
from bench.__main__ import main as bench
from bench.gpu import cases, decide
from bench.grid import Shape
from bench.results import FLATTENED
from fastrnn.kernels import measured, plan
from fastrnn.kernels.measured import Work
from fastrnn.kernels.model import Constants

MADE_UP = results.Device("NVIDIA H100 of a test", "9.0", "580", "13.0", "91300", "3.6.0", 132)
SHAPE = Shape(16, 128, 512, 512)
GRID = plan.Plan("grid", "", units=8, depth=32, split=8, held="registers", warps=8, stages=1)
PLANS = {
    "fastrnn stepwise": plan.Plan("stepwise", "", units=16),
    "fastrnn grid": GRID,
    "fastrnn polled": replace(GRID, exchange="data"),
}
CHOICES = {name: {key: value for key, value in asdict(made).items() if key != "reason"} for name, made in PLANS.items()}


def row(
    mode: str = "inference",
    clock: str = "events",
    benchmark: str = "layer",
    cell: str = "lstm",
    shape: Shape = SHAPE,
    detail: dict[str, object] | None = None,
    **medians: float,
) -> results.Row:
    """Made up, in microseconds."""
    names = {"torch": "torch.nn", "flat": FLATTENED} | {name.split()[1]: name for name in PLANS}
    times = seconds(**{names.get(name, name): 1e-6 * took for name, took in medians.items()})
    times.setdefault("fastrnn", times["torch.nn"])
    made = make_row(
        benchmark=benchmark,
        case=results.Case.of(cell, shape, "bfloat16", mode),
        times=times,
        detail={"tf32": None, "clock": clock, "choices": CHOICES, "left_out": {}} | (detail or {}),
    )
    return replace(made, provenance=replace(made.provenance, device=MADE_UP))


def constant(name: str, value: float) -> results.Row:
    made = make_row(benchmark="latency", times=seconds(torch=1e-6), detail={"constant": name, "value": value})
    return replace(made, provenance=replace(made.provenance, device=MADE_UP))


def decided(tmp_path: Path, capsys: pytest.CaptureFixture[str], *rows: results.Row) -> tuple[str, Path]:
    """What is printed, and the files without what they end in."""
    path, out = tmp_path / "rows.jsonl", tmp_path / "gpus"
    results.write(path, rows)
    assert bench(["gpu-decide", str(path), "--out", str(out)]) == 0
    return capsys.readouterr().out, out / "NVIDIA-H100-of-a-test"


def test_records_are_what_plans_go_by(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed, stem = decided(
        tmp_path,
        capsys,
        row(torch=300, flat=290, stepwise=200, grid=150, polled=100),
        row(mode="training", torch=300, stepwise=400, grid=500),
        row(clock="graphs", torch=3, stepwise=2),
        row(benchmark="reset", torch=3000, stepwise=2),
        row(cell="gru", torch=100),
    )
    assert "records: 2, in 1 of which a strategy of ours is the fastest" in printed
    monkeypatch.setattr(measured, "GPUS", stem.parent)
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "nothing"))
    attributes = list(CHOICES["fastrnn grid"])
    inference, training = measured.of_gpu(MADE_UP.name, MADE_UP.processors, attributes)
    work = Work("lstm", 128, 16, 512, 512, torch.bfloat16)
    assert (inference.work, training.work) == (work, replace(work, trains=True))
    assert dict(inference.seconds) == pytest.approx({"torch": 300e-6, "stepwise": 200e-6, "grid": 100e-6})
    assert dict(inference.choices) == CHOICES["fastrnn polled"]
    assert dict(training.choices) == CHOICES["fastrnn stepwise"]
    facts = plan.DeviceFacts(MADE_UP.name, "nvidia", (9, 0), 132, 227 * 1024, 50 * 2**20, records=(inference, training))
    chosen = plan.plan(work, facts)
    assert (chosen.strategy, chosen.exchange) == ("grid", "data")
    assert plan.plan(replace(work, trains=True), facts).strategy == "torch"
    on = json.loads(stem.with_suffix(".jsonl").read_text().splitlines()[0])["on"]
    of_device = {"gpu": MADE_UP.name, "multiprocessors": str(MADE_UP.processors), "driver": "580"}
    assert on == of_device | {"torch": "2", "triton": "3.6.0", "fastrnn": "0"}


def test_records_of_other_work_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = row(torch=300, grid=299), row(cell="gru", torch=300, grid=200)
    _, stem = decided(tmp_path, capsys, *old)
    _, stem = decided(tmp_path, capsys, row(torch=300, grid=100))
    lines = [json.loads(line) for line in stem.with_suffix(".jsonl").read_text().splitlines()]
    assert [(line["work"]["cell"], round(1e6 * line["seconds"]["grid"])) for line in lines] == [
        ("gru", 200),
        ("lstm", 100),
    ]


def test_constants_are_written_where_there_are_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [field.name for field in fields(Constants)]
    every = [constant(name, 1e-6 * number) for number, name in enumerate(names, 1)]
    printed, stem = decided(tmp_path, capsys, *every[1:3])
    assert f"constants: {names[1]} 2e-06, {names[2]} 3e-06; not written, for these were not measured: " in printed
    assert "records: no row" in printed
    assert not stem.parent.exists()
    printed, stem = decided(tmp_path, capsys, *every)
    assert f"constants: {names[0]} 1e-06, " in printed
    monkeypatch.setattr(measured, "GPUS", stem.parent)
    assert measured.constants_of(MADE_UP.name) == Constants(*(1e-6 * n for n in range(1, len(names) + 1)))


def test_who_is_to_blame_for_a_missed_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, third = replace(SHAPE, batch=64), replace(SHAPE, batch=1)
    what = "step with a barrier of 128 programs, of 1000, all right"
    barrier = replace(constant("barrier", 1), detail={"what": what})
    printed, _ = decided(
        tmp_path,
        capsys,
        *(row(torch=300, flat=200, grid=150, clock="events"), row(torch=300, flat=200, grid=90, clock="graphs")),
        *(row(shape=other, torch=300, grid=200), row(shape=other, torch=300, grid=190, clock="graphs")),
        row(shape=third, torch=300, grid=200),
        row(mode="training", torch=300, grid=100),
        row(benchmark="packed", torch=600, grid=100),
        barrier,
    )
    next_steps = printed.split("## What to do next")[1].splitlines()
    what = "- cuDNN's standard path, forward, lstm"
    (host,) = [line for line in next_steps if line.startswith(f"{what} {SHAPE} bfloat16: ")]
    assert "1.333 of 2: bound by the host: by replays it is 2.22" in host  # against flattened weights
    (device,) = [line for line in next_steps if line.startswith(f"{what} {other} bfloat16: ")]
    assert "1.5 of 2: bound by the device: by replays it is 1.58" in device
    (unknown,) = [line for line in next_steps if line.startswith(f"{what} {third} bfloat16: ")]
    assert "1.5 of 2: by calls; measure it by replays" in unknown
    assert "- cuDNN's standard path, training: met by the best strategies: plan by these records" in printed
    assert "- steps with a barrier, all right, 128 programs: 1000 of 1e+07" in next_steps
    assert "- packed, forward: met by the best strategies" in printed
    assert "- FlashRNN's published time, forward: not measured" in printed
    table = printed.split("## Layers")[1].split("##")[0]
    assert f"| lstm {SHAPE} bfloat16 | inference | 200 | grid | 1.33 | 2.22 |" in table
    assert f"| lstm {SHAPE} bfloat16, packed | inference | 600 | grid | 6.00 |  |" in table
    targets = printed.split("## Targets")[1].split("##")[0]
    (standard,) = [line for line in targets.splitlines() if "standard path, training" in line]
    assert standard == (
        "| cuDNN's standard path, training | mean ≥ 1.8, all ≥ 1 | 1 | 1 (worst 1) | no | 3 (worst 3) | yes |"
    )


def test_what_failed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smoke = {"grid, shared, data": "stopped after 45 s"}
    mismatch = {"fastrnn grid": "y in inference is off by 1.0"}
    failed = row(torch=300, stepwise=100, detail={"left_out": mismatch, "strategies_left_out": smoke})
    lost = replace(constant("rest", 1), times={}, detail={"constant": "rest", "not_measured": "rest: CUDA error"})
    late = replace(failed, times={}, detail={"not_measured": "the time was up: 1 minutes"})
    printed, _ = decided(tmp_path, capsys, failed, failed, lost, late)
    named = [line for line in printed.splitlines() if line.startswith("- ") and ": not measured" not in line]
    assert named[:3] == [
        "- the strategy grid, shared, data failed its smoke test, and was left out: stopped after 45 s",
        f"- fastrnn grid at layer lstm {SHAPE} bfloat16 inference: y in inference is off by 1.0",
        "- not measured: rest: CUDA error",
    ]


def test_all_targets_met_is_all_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide.targets, "TARGETS", decide.targets.TARGETS[:1])
    assert decide.next_steps([row(torch=300, fastrnn=100, grid=100)]) == ["all targets are met"]
    assert cases.PUBLISHED != SHAPE


def test_rows_of_one_gpu_are_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = row(torch=3, grid=1)
    other = replace(one, provenance=replace(one.provenance, device=replace(MADE_UP, name="another")))
    pretended = replace(one, provenance=replace(one.provenance, device=replace(MADE_UP, driver="a pretended one")))
    for rows, message in (
        ([make_row()], "expected rows of one GPU, got none"),
        ([one, other], "expected rows of one GPU, got NVIDIA H100 of a test, another"),
        ([pretended], "nothing follows from the rows of a pretended GPU"),
    ):
        path = tmp_path / "rows.jsonl"
        results.write(path, rows)
        assert bench(["gpu-decide", str(path), "--out", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err
        assert [path] == list(tmp_path.iterdir())
