"""What was measured on a GPU: how it is kept, and what plans make of it."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastrnn import _cuda, engine
from fastrnn.kernels import measured, model, plan
from fastrnn.kernels.measured import Record, Work
from fastrnn.kernels.plan import DeviceFacts, Plan, forced, plan_kernels

H100 = DeviceFacts("NVIDIA H100", "nvidia", (9, 0), 132, 227 * 1024, 50 * 2**20)
WORK = Work("lstm", 100, 32, 256, 512, torch.bfloat16, trains=True)
GRID = (("strategy", "grid"), ("tile", 16), ("units", 8), ("split", 8), ("warps", 8))
FASTER = Record(WORK, (("torch", 3e-3), ("stepwise", 2e-3), ("grid", 1e-3)), GRID)
SLOWER = replace(FASTER, seconds=(("torch", 5e-4), ("grid", 1e-3)))
ATTRIBUTES = [field.name for field in fields(Plan)]
HERE = {
    "gpu": "NVIDIA H100",
    "multiprocessors": "132",
    "driver": "580.1",
    "torch": "2.13",
    "triton": "3.6",
    "fastrnn": "0.1",
}
Write = Callable[..., None]


def on(*records: Record) -> DeviceFacts:
    return replace(H100, records=records)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measured, "GPUS", tmp_path / "gpus")
    monkeypatch.setattr(
        measured, "identity", lambda name, processors: HERE | {"gpu": name, "multiprocessors": f"{processors}"}
    )
    return tmp_path


def known() -> tuple[Record, ...]:
    return measured.of_gpu("NVIDIA H100", 132, ATTRIBUTES)


def test_what_was_faster_is_planned() -> None:
    chosen = plan.plan(WORK, on(FASTER))
    assert (chosen.strategy, chosen.units, chosen.split) == ("grid", 8, 8)
    assert chosen.reason == "3.00 times as fast as torch, tuned on this GPU at (B, T, I, H) = (32, 100, 256, 512)"
    chosen = plan.plan(WORK, on(SLOWER))
    assert chosen.strategy == "torch"
    assert chosen.reason.startswith("2.00 times as fast as the grid strategy, tuned on this GPU at")
    wrong = replace(FASTER, seconds=(("torch", 1e-3),), choices=())
    assert plan.plan(WORK, on(wrong)).reason.startswith("none of our strategies that fit it was right, tuned on")
    with forced(strategy="stepwise"):
        assert plan.plan(WORK, on(FASTER)).reason == "forced"


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True),
        ({"batch": 17}, True),
        ({"batch": 16}, False),  # half as many tiles, or a quarter of cuDNN's work: who knows
        ({"batch": 33}, False),
        ({"steps": 50}, True),
        ({"steps": 49}, False),
        ({"steps": 5000}, True),
        ({"inputs": 512}, True),
        ({"inputs": 513}, False),
        ({"inputs": 127}, False),
        ({"hidden": 511}, False),
        ({"cell": "gru"}, False),
        ({"dtype": torch.float16}, False),
        ({"directions": 2}, False),
        ({"layers": 2}, False),
        ({"trains": False}, False),
        ({"packed": True}, False),
        ({"tf32": True}, False),
    ],
    ids=str,
)
def test_a_record_holds_for_what_is_like_it(change: dict[str, object], holds: bool) -> None:
    chosen = plan.plan(replace(WORK, **change), on(FASTER))
    assert ("tuned" in chosen.reason) == holds
    ours = plan_kernels(replace(WORK, **change), on(FASTER))
    assert ("tuned" in ours.reason) == (holds or not change.keys().isdisjoint({"inputs", "layers"}))


def test_the_nearest_record_counts() -> None:
    near = replace(FASTER, work=replace(WORK, batch=24), choices=(("strategy", "stepwise"),))
    for records in ((near, FASTER), (FASTER, near)):
        assert plan_kernels(replace(WORK, batch=24), on(*records)).strategy == "stepwise"
        assert plan_kernels(replace(WORK, batch=25), on(*records)).strategy == "grid"


def test_what_torch_does_not_have_is_computed_as_was_fastest() -> None:
    chosen = plan.plan(WORK, on(SLOWER), "reset")
    assert chosen.strategy == "grid"
    assert chosen.reason == (
        "torch's layers have no reset=; the fastest of our strategies, tuned on this GPU at "
        "(B, T, I, H) = (32, 100, 256, 512)"
    )
    assert plan.plan(replace(WORK, batch=99), on(SLOWER), "reset").strategy == "stepwise"


def test_no_record_decides_about_roundings_or_exceeds_the_device() -> None:
    fp32 = replace(WORK, dtype=torch.float32)
    rounded = replace(FASTER, work=fp32, choices=(*GRID, ("precision", "tf32")))
    assert plan.plan(fp32, on(rounded)).precision == "ieee"
    part = replace(on(FASTER), sm_count=64)  # the programs, 2 x 64, would not all run at once
    assert plan_kernels(WORK, part).strategy == "stepwise"
    assert plan.plan(WORK, part).strategy == "stepwise"  # which was measured as well
    assert plan.plan(WORK, replace(part, records=(SLOWER,))).strategy == "torch"


def test_the_engine_and_the_operators_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "facts_of", lambda device: on(FASTER))
    monkeypatch.setattr(_cuda, "HAS_TRITON", True)
    with FakeTensorMode():
        x = torch.empty(100, 32, 256, device="cuda", dtype=torch.bfloat16)
        weights = [torch.empty(4 * 512, n, device="cuda", dtype=torch.bfloat16) for n in (256, 512)]
        sizes = {"steps": 100, "batch": 32, "beyond_torch": None}
        chosen = engine.plan("lstm", x, weights, trains=True, **sizes)
        assert (chosen.engine, chosen.kernel.split(",")[0]) == ("triton", "grid")
        assert "3.00 times as fast as torch" in chosen.reason
        assert engine.plan("lstm", x, weights, **sizes).engine == "torch"
        assert engine.plan("lstm", x, weights, trains=True, packed=True, **sizes).engine == "torch"
        of_operator = _cuda._plan("lstm", x, weights, False, None, None, True)
        assert str(of_operator) == chosen.kernel
        assert "unmeasured" in _cuda._plan("lstm", x, weights, False, None, torch.ones(32), True).reason


def test_a_compiler_takes_records_for_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    def facts(index: int) -> DeviceFacts:
        (Path(__file__).parent / "nothing").exists()  # Dynamo would not look into this
        return on(FASTER)

    monkeypatch.setattr(_cuda, "device_facts", facts)

    def planned(x: torch.Tensor) -> torch.Tensor:
        work = replace(WORK, batch=x.shape[0])
        return x + len(plan.plan(work, _cuda.facts_of(torch.device("cuda", 0))).reason)

    compiled = torch.compile(planned, fullgraph=True, backend="eager")
    for batch in (32, 20, 40):
        assert torch.equal(compiled(torch.zeros(batch)), planned(torch.zeros(batch)))


def test_records_are_kept_and_found_again(folder: Path) -> None:
    assert known() == ()
    gru = replace(FASTER, work=replace(WORK, cell="gru", dtype=torch.float32, tf32=True))
    for record in (FASTER, gru, SLOWER):
        measured.append(record, HERE)
    assert known() == (SLOWER, gru)  # the last of the same work
    assert measured.cache_file() == folder / "cache" / "tuned.jsonl"
    assert len(measured.cache_file().read_text().splitlines()) == 3


@pytest.mark.parametrize("name", HERE)
def test_records_of_another_gpu_or_version_are_not_used(name: str) -> None:
    measured.append(FASTER, HERE | {name: "another"})
    assert known() == ()


def test_the_users_records_come_before_those_of_the_package(folder: Path) -> None:
    (folder / "gpus").mkdir()
    theirs = measured.line(SLOWER, {"gpu": "NVIDIA H100", "driver": "1", "fastrnn": "2"})
    (folder / "gpus" / "NVIDIA-H100.jsonl").write_text(theirs + "\n")
    (record,) = known()
    assert record == replace(SLOWER, source="measured on another NVIDIA H100")
    measured.append(FASTER, HERE)
    assert known()[0] == FASTER
    chosen = plan.plan(WORK, replace(H100, records=known()))
    assert chosen.strategy == "grid"
    assert measured.of_gpu("NVIDIA A100", 108, ATTRIBUTES) == ()


def broken(**changes: object) -> str:
    values = json.loads(measured.line(FASTER, HERE))
    for name, value in changes.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    return json.dumps(values)


@pytest.mark.parametrize(
    "text",
    [
        '{"on": ',
        "[]",
        "{}",
        broken(work={"dtype": "linear"}),
        broken(work={"batch": "32"}),
        broken(work={"depth": 3}),
        broken(seconds={"torch": "long"}),
        broken(choices={"tiles": 3}),
        broken(choices=None),
    ],
)
def test_a_line_that_is_no_record_is_left_out(text: str) -> None:
    measured.append(FASTER, HERE)
    path = measured.cache_file()
    path.write_text(text + "\n" + path.read_text())
    with pytest.warns(UserWarning, match=r"tuned.jsonl, line 1 is no record of tuning, and not used \("):
        assert known() == (FASTER,)


def test_a_file_that_cannot_be_read_is_left_out(folder: Path) -> None:
    measured.cache_file().mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"tuned.jsonl cannot be read, and nothing of it is used: .*directory"):
        assert known() == ()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTRNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert measured.cache_file() == Path("/elsewhere/fastrnn/tuned.jsonl")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert measured.cache_file() == Path("/home/somebody/.cache/fastrnn/tuned.jsonl")


def test_what_is_wide_spread_has_a_name_for_a_file() -> None:
    assert measured.file_stem("NVIDIA H100 80GB HBM3") == "NVIDIA-H100-80GB-HBM3"
    assert measured.file_stem("AMD Instinct™ MI300X/VF") == "AMD-Instinct-MI300X-VF"


CONSTANTS = {field.name: 1e-6 for field in fields(model.Constants)}


def test_constants_of_a_gpu_come_with_the_package(folder: Path) -> None:
    assert measured.constants_of("NVIDIA H100") is None
    (folder / "gpus").mkdir()
    (folder / "gpus" / "NVIDIA-H100.json").write_text(json.dumps({"constants": CONSTANTS}))
    assert measured.constants_of("NVIDIA H100") == model.Constants(**CONSTANTS)
    assert measured.constants_of("NVIDIA A100") is None


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        json.dumps({"constants": {name: 1e-6 for name in CONSTANTS if name != "barrier"}}),
        json.dumps({"constants": CONSTANTS | {"barrier": -1}}),
        json.dumps({"constants": CONSTANTS | {"speed": 1}}),
    ],
)
def test_what_is_no_set_of_constants_is_left_out(folder: Path, content: str) -> None:
    (folder / "gpus").mkdir()
    (folder / "gpus" / "NVIDIA-H100.json").write_text(content)
    with pytest.warns(UserWarning, match=r"NVIDIA-H100.json has no constants of a GPU, and is not used: "):
        assert measured.constants_of("NVIDIA H100") is None
