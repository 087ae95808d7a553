"""The constants of the cost model from rows of results, and the file in which the plan finds them."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from rows import make_row, seconds

from bench import results, timing
from bench.__main__ import main as bench
from bench.gpu import clock, command, constants, contestants, latency, measure, meeting, strategies
from bench.timing import Times
from fastrnn.kernels import model

GPU = results.Device("a GPU", "9.0", "580", "13.0", "91300", "3.6.0")
NAMES = [field.name for field in fields(model.Constants)]


def constant_row(name: str, value: float, device: results.Device | None = GPU) -> results.Row:
    """A row that was never measured."""
    row = make_row(benchmark="latency", times=seconds(torch=1e-6), detail={"constant": name, "value": value})
    return replace(row, provenance=replace(row.provenance, device=device))


def test_each_constant_has_a_measure() -> None:
    assert sorted(constants.MEASURES) == sorted(NAMES)
    assert {"rest", "rest_in_registers"} == set(list(constants.MEASURES)[-2:])  # they follow from the others


def test_constants_are_those_of_the_rows_and_the_guesses_else() -> None:
    rows = [constant_row("barrier", 2e-6), make_row(), constant_row("matrix", 1e12), constant_row("barrier", 3e-6)]
    assert constants.measured(rows) == {"barrier": 3e-6, "matrix": 1e12}
    assert constants.constants_of(rows) == replace(model.UNMEASURED, barrier=3e-6, matrix=1e12)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no row is a constant of the model"),
        ([make_row(benchmark="latency", detail={"what": "launch: torch"})], "no row is a constant of the model"),
        (
            [constant_row("barrier", -1e-6)],
            "not constants of the model: barrier: expected a positive number, got -1e-06",
        ),
        ([constant_row("speed", 1.0)], "not constants of the model: .*'speed'"),
        (
            [constant_row("barrier", 1e-6), constant_row("rest", 1e-6, replace(GPU, name="another GPU"))],
            "the constants are of different devices: a GPU, another GPU",
        ),
    ],
)
def test_rows_that_are_no_constants(rows: list[results.Row], message: str) -> None:
    with pytest.raises(results.ResultsError, match=message):
        constants.constants_of(rows)


def test_constants_are_written_beside_what_the_file_has(tmp_path: Path) -> None:
    rows, out = [constant_row("barrier", 2e-6), constant_row("shared", 1e11)], tmp_path / "measured" / "a GPU.json"
    constants.write(out, constants.measured(rows))
    assert json.loads(out.read_text()) == {"constants": {"barrier": 2e-6, "shared": 1e11}}
    out.write_text(json.dumps({"times": [1, 2], "constants": {"launch": 1e-6}}))
    constants.write(out, constants.measured(rows))
    written = json.loads(out.read_text())
    assert written == {"times": [1, 2], "constants": {"barrier": 2e-6, "shared": 1e11}}
    assert model.Constants(**written["constants"]) == constants.constants_of(rows)


@pytest.mark.parametrize(("content", "message"), [("[1]", "expected a JSON object, got list"), ("{", "not JSON")])
def test_a_file_of_something_else_stays_as_it_is(content: str, message: str, tmp_path: Path) -> None:
    out = tmp_path / "a-GPU.json"
    out.write_text(content)
    with pytest.raises(results.ResultsError, match=message):
        constants.write(out, {"barrier": 2e-6})
    assert out.read_text() == content


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run believes to be a GPU; nothing is computed there."""
    monkeypatch.setattr(contestants, "DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(constants, "_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(measure, "device", lambda: GPU)
    monkeypatch.setattr(clock, "by_events", timing.by_host)
    monkeypatch.setattr(latency, "rows", lambda *_: iter(()))
    monkeypatch.setattr(meeting, "rows", lambda *_: iter(()))


@pytest.mark.usefixtures("device")
def test_a_constant_that_cannot_be_measured_does_not_keep_the_others_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton")

    def fails(seconds: float, found: constants.Found) -> list[results.Row]:
        raise RuntimeError("out of resource: registers\nRequired: 300")

    def works(seconds: float, found: constants.Found) -> list[results.Row]:
        row = latency.row("nothing", lambda: None, seconds)
        return [constants._constant("rest", row, found.get("matrix", 0.25))]

    def useless(seconds: float, found: constants.Found) -> list[results.Row]:
        return [constants._constant("rest_in_registers", latency.row("nothing", lambda: None, seconds), -1e-9)]

    measures = {"matrix": fails, "rest": works, "rest_in_registers": useless}
    monkeypatch.setattr(constants, "MEASURES", measures)
    monkeypatch.setattr(command, "LATENCY_SECONDS", 1e-3)
    out = tmp_path / "gpu.jsonl"
    assert bench(["gpu", "--part", "constants", "--out", str(out)]) == 1
    rows = results.read(out)
    assert [(row.detail["constant"], bool(row.times)) for row in rows] == [
        ("matrix", False),
        ("rest", True),
        ("rest_in_registers", False),
    ]
    assert constants.measured(rows) == {"rest": 0.25}
    printed = capsys.readouterr().out
    assert "not timed: matrix: RuntimeError: out of resource: registers" in printed
    assert "not timed: rest_in_registers: ValueError: the model would need -1e-09" in printed
    assert "rest = 0.25" in printed


@pytest.mark.usefixtures("device")
def test_nothing_is_measured_by_a_strategy_that_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    assert set(constants.STRATEGIES) <= set(constants.MEASURES)
    assert set(constants.STRATEGIES.values()) <= set(strategies.STRATEGIES)

    def works(seconds: float, found: constants.Found) -> list[results.Row]:
        return [constants._constant("launch", latency.row("nothing", lambda: None, seconds), 1.0)]

    monkeypatch.setattr(constants, "MEASURES", dict.fromkeys(constants.MEASURES, works))
    rows = list(constants.rows(1e-3, {"resident": "it hangs", "stepwise": "no"}))
    assert [row.detail["constant"] for row in rows if not row.times] == ["rest"]
    assert [row.detail.get("not_measured") for row in rows if not row.times] == [
        "rest: LookupError: resident is left out"
    ]


@pytest.mark.parametrize(("few", "many"), [(2e-6, 2e-6), (2e-6, 1e-6)])
def test_a_rate_needs_many_bytes_to_take_longer_than_few(
    few: float, many: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    took = iter((few, many))
    monkeypatch.setattr(contestants, "DEVICE", "cpu")
    monkeypatch.setattr(latency, "row", lambda *_, **__: make_row(times={"torch": Times(next(took), 0, 0, 1)}))
    with pytest.raises(ValueError, match="to read 16384 numbers took no longer than 1024"):
        constants.MEASURES["read"](1e-3, {})


@pytest.mark.usefixtures("device")
def test_times_of_programs_that_waited_in_vain_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from fastrnn.kernels import barrier

    def gives_up(seconds: float, found: constants.Found) -> list[results.Row]:
        barrier._errors_of(torch.device("cpu")).word("grid_meeting").fill_(8)
        return [constants._constant("barrier", latency.row("nothing", lambda: None, seconds), 1.0)]

    monkeypatch.setattr(constants, "MEASURES", {"barrier": gives_up})
    (row,) = constants.rows(1e-3)
    assert not row.times
    assert "programs of grid_meeting at step 7 waited in vain" in row.detail["not_measured"]


def test_what_a_rest_follows_from_has_to_be_measured() -> None:
    with pytest.raises(LookupError, match="it follows from read, matrix, not measured"):
        constants._known({"barrier": 1e-6, "read_by_all": 1e12}, "barrier", "read", "read_by_all", "matrix")
