"""Tuning in the background, without a GPU: doubles of layers in the process that tries plans, plans of an H100 here."""

import fcntl
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import doubles
import pytest
import torch
from doubles import H100, RESIDENT, STEPWISE, candidates
from processes import alive, numbers, until
from torch._subclasses.fake_tensor import FakeTensorMode

import fastrnn
from fastrnn import _contest, _cuda, _elsewhere, _settings, engine
from fastrnn.kernels import measured
from fastrnn.kernels.measured import Record, Work
from fastrnn.kernels.plan import DeviceFacts, Plan, device_facts, forced

AUTOTUNE = sys.modules["fastrnn.autotune"]
ROOT = Path(__file__).resolve().parent.parent
CUDA = torch.device("cuda", 0)
WORK = Work("gru", 9, 3, 4, 5, torch.float64)
FASTER = (("torch", 2e-3), ("stepwise", 1e-3)), (("strategy", "stepwise"),)


@pytest.fixture(autouse=True)
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the CPU were an H100, of which is known what the user's cache has."""
    attributes = [field.name for field in fields(Plan)]

    def facts_of(device: torch.device) -> DeviceFacts:
        return replace(H100, records=measured.of_gpu(H100.name, 132, attributes))

    opening = _settings.opening
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path))
    monkeypatch.setenv(doubles.NAMED, "")
    monkeypatch.setenv(doubles.CALLS, str(tmp_path / "numbers"))
    monkeypatch.setattr(_cuda, "facts_of", facts_of)
    monkeypatch.setattr(_cuda, "HAS_TRITON", True)
    monkeypatch.setattr(_contest, "candidates", candidates)
    monkeypatch.setattr(_elsewhere, "BOOT", doubles.BOOT)
    monkeypatch.setattr(AUTOTUNE, "opening", lambda work, device: opening(work, torch.device("cpu")))
    monkeypatch.setattr(doubles, "PLANS", [RESIDENT, STEPWISE])
    monkeypatch.setattr(AUTOTUNE, "capturing", lambda device: False)
    monkeypatch.setattr(AUTOTUNE, "_tuner", AUTOTUNE._Tuner())
    yield
    AUTOTUNE._tuner.end()
    for number in numbers(tmp_path / "numbers"):
        until(lambda number=number: not alive(number))


def planned(steps: int | None = 9, batch: int = 3, beyond_torch: str | None = None) -> engine.Plan:
    with FakeTensorMode():
        x = torch.empty(0, batch, 4, device=CUDA, dtype=WORK.dtype)
        weights = [torch.empty(15, n, device=CUDA, dtype=WORK.dtype) for n in (4, 5)]
    sizes = {"steps": steps, "batch": batch, "beyond_torch": beyond_torch}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        plan = engine.plan("gru", x, weights, **sizes)
    WARNED[:] = found
    return plan


WARNED: list[warnings.WarningMessage] = []


def entry(work: Work = WORK) -> object:
    return AUTOTUNE._tuner.entries[work, 0]


def ended() -> bool:
    return entry().state != AUTOTUNE.TUNING


def test_the_switch() -> None:
    assert not fastrnn.is_autotune_enabled()
    with fastrnn.autotune(True):
        assert fastrnn.is_autotune_enabled()
        with fastrnn.autotune(False):
            assert not fastrnn.is_autotune_enabled()
        assert fastrnn.is_autotune_enabled()
    assert not fastrnn.is_autotune_enabled()
    fastrnn.autotune(True)
    try:
        assert fastrnn.is_autotune_enabled()
    finally:
        fastrnn.autotune(False)
    with pytest.raises(TypeError, match="expected a bool, got int"):
        fastrnn.autotune(1)


@pytest.mark.parametrize(("value", "on"), [("1", True), ("0", False), ("", False), ("on", None)])
def test_the_environment(value: str, on: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRNN_AUTOTUNE", value)
    if on is None:
        with pytest.raises(ValueError, match="FASTRNN_AUTOTUNE: expected 0 or 1, got on"):
            AUTOTUNE.of_environment(AUTOTUNE.VARIABLE)
    else:
        assert AUTOTUNE.of_environment(AUTOTUNE.VARIABLE) == on


def test_off_by_default(tmp_path: Path) -> None:
    assert planned().engine == "torch"
    assert "tun" not in planned().reason
    assert not AUTOTUNE._tuner.entries
    assert not numbers(tmp_path / "numbers")


def test_new_work_is_tuned_and_what_is_found_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(doubles.NAMED, f"resident,{RESIDENT.units},aborts")
    cleared = []
    monkeypatch.setattr(device_facts, "cache_clear", lambda: cleared.append(1), raising=False)
    with fastrnn.autotune(True):
        first = planned()  # which does not wait
        assert first.engine == "torch"
        assert first.reason.endswith("; being tuned")
        until(ended)
        assert not cleared
        second = planned()
        assert "tuned on this GPU at (B, T, I, H) = (3, 9, 4, 5)" in second.reason
        assert cleared == [1]
        assert planned(batch=2).reason == planned(steps=30).reason == second.reason  # as tune has it
    assert not WARNED
    assert planned() == second
    assert not torch.cuda.is_initialized()
    (kept,) = measured.of_gpu(H100.name, 132, [*Plan.__dataclass_fields__])
    assert (kept.work, [name for name, _ in kept.seconds]) == (WORK, ["torch", "stepwise"])
    assert len(numbers(tmp_path / "numbers")) == 3  # after the abort another, and a fresh one to verify


def test_what_cannot_be_verified_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a process that has computed nothing before."""
    start = _elsewhere.Elsewhere._start
    started: list[object] = []

    def counted(self: _elsewhere.Elsewhere) -> object:
        started.append(self)
        monkeypatch.setenv(doubles.NAMED, f"stepwise,{STEPWISE.units},off" if len(started) > 1 else "")
        return start(self)

    monkeypatch.setattr(_elsewhere.Elsewhere, "_start", counted)
    monkeypatch.setattr(doubles, "PLANS", [STEPWISE])
    with fastrnn.autotune(True):
        planned()
        until(ended)
        assert planned().reason.startswith("none of our strategies that fit it was right, tuned on this GPU")


@pytest.mark.parametrize("how", ["forced", "few steps", "no sizes", "no rows", "known", "observed", "captured"])
def test_what_is_not_tuned(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "known":
        measured.append(Record(WORK, *FASTER), measured.identity(H100.name, 132))
    monkeypatch.setattr(AUTOTUNE, "capturing", lambda device: how == "captured")
    sizes = {"few steps": {"steps": 7}, "no sizes": {"steps": None}, "no rows": {"batch": 0}}.get(how, {})
    with fastrnn.autotune(True):
        if how == "forced":
            with forced(strategy="stepwise"):
                assert planned().reason == "forced"
        elif how == "observed":
            with AUTOTUNE.observing():
                assert planned().reason.endswith("; a call lets autotune try our kernels")
        else:
            assert ("2.00 times as fast" if how == "known" else "torch") in str(planned(**sizes))
            assert "being tuned" not in planned(**sizes).reason
    assert AUTOTUNE._tuner.thread is None


@pytest.fixture
def found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the other process had done its work."""

    def tune(self: object, entry: AUTOTUNE._Entry) -> None:
        measured.append(Record(entry.work, *FASTER), measured.identity(H100.name, 132))

    monkeypatch.setattr(AUTOTUNE._Tuner, "_tune", tune)


@pytest.mark.usefixtures("found_at_once")
def test_what_torch_does_not_have_is_tuned_too() -> None:
    with fastrnn.autotune(True):
        first = planned(beyond_torch="reset")
        assert first.engine == "triton"
        until(ended)
        assert "tuned on this GPU" in planned(beyond_torch="reset").reason


def test_a_compiler_is_left_alone() -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        facts, said = AUTOTUNE.facts_for(WORK, CUDA, called=True)
        return x + len(said) + facts.sm_count

    with fastrnn.autotune(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _cuda.facts_of = fastrnn._dynamo.constant(_cuda.facts_of)
        compiled = torch.compile(program, fullgraph=True, backend="eager")
        assert compiled(torch.zeros(1)) == 132
    assert not AUTOTUNE._tuner.entries


@pytest.mark.usefixtures("found_at_once")
def test_a_capture_does_not_use_what_was_not_used_before(monkeypatch: pytest.MonkeyPatch) -> None:
    captures = []
    monkeypatch.setattr(AUTOTUNE, "capturing", lambda device: bool(captures))
    with fastrnn.autotune(True):
        planned()
        until(ended)
        captures.append(1)
        held = planned()
        assert held.engine == "torch"
        assert held.reason.endswith("; tuned since, but not used in a capture before it was in a call")
        captures.clear()
        used = planned()
        captures.append(1)
        assert planned() == used
        assert "tuned on this GPU" in used.reason


def test_a_failure_is_told_once_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_elsewhere, "BOOT", "import nothing_of_this_name  # {pipe}")
    with fastrnn.autotune(True):
        before = planned()
        until(ended)
        after = planned()
        assert after.engine == before.engine == "torch"
        (warning,) = WARNED
        assert f"fastrnn: {WORK} could not be tuned, and is planned as before: Lost: " in str(warning.message)
        assert "No module named 'nothing_of_this_name'" in str(warning.message)
        assert "; autotune failed: Lost: " in after.reason
        planned()
        assert not WARNED
        for batch in (20, 100):
            planned(batch=batch)
            until(lambda batch=batch: entry(replace(WORK, batch=batch)).state == AUTOTUNE.FAILED)
        assert "tun" not in planned(batch=1000).reason  # enough
    assert not WARNED
    assert not measured.cache_file().exists()


def test_a_cache_that_cannot_be_written_is_no_reason_to_begin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(_cuda, "facts_of", lambda device: H100)
    with fastrnn.autotune(True):
        planned()
        until(ended)
        planned()
    (warning,) = WARNED
    assert "FileExistsError" in str(warning.message)
    assert not numbers(tmp_path / "numbers")


def test_processes_take_turns_and_share_what_they_find(tmp_path: Path) -> None:
    with (tmp_path / "tuned.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as another process
        with fastrnn.autotune(True):
            planned()
            time.sleep(0.5)
            assert planned().reason.endswith("; being tuned")
            measured.append(Record(WORK, *FASTER), measured.identity(H100.name, 132))
            fcntl.flock(file, fcntl.LOCK_UN)
            until(ended)
            assert planned().engine == "triton"
    assert not numbers(tmp_path / "numbers")


def test_the_child_of_a_fork_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """And ends nothing of its parent's when it ends."""
    before, ended = AUTOTUNE._tuner, list[object]()
    monkeypatch.setattr(AUTOTUNE.atexit, "unregister", ended.append)
    AUTOTUNE._forget()
    assert AUTOTUNE._tuner is not before
    assert ended == [before.end]


def test_a_program_ends_while_it_tunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        import sys, time
        sys.path.append({tests!r})
        import doubles, torch
        import fastrnn
        from fastrnn import _contest, _cuda, _elsewhere
        from fastrnn.kernels.measured import Work

        _cuda.facts_of = lambda device: doubles.H100
        _contest.candidates, _elsewhere.BOOT = doubles.candidates, doubles.BOOT
        autotune = sys.modules["fastrnn.autotune"]
        opening = autotune.opening
        autotune.opening = lambda work, device: opening(work, torch.device("cpu"))
        autotune.capturing = lambda device: False
        _, said = autotune.facts_for(Work("gru", 9, 3, 4, 5, torch.float32), torch.device("cuda", 0), True)
        print(said, flush=True)
        input()
    """.format(tests=str(ROOT / "tests"))
    monkeypatch.setenv("FASTRNN_AUTOTUNE", "1")
    monkeypatch.setenv(doubles.NAMED, f"resident,{RESIDENT.units},hangs")
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    file = tmp_path / "numbers"
    until(lambda: numbers(file) or process.poll() is not None)
    time.sleep(1)
    start = time.monotonic()
    said, wrong = process.communicate("\n", timeout=60)
    assert time.monotonic() - start < 10
    assert (said, wrong, process.returncode) == ("; being tuned\n", "", 0)
    (number,) = numbers(file)
    until(lambda: not alive(number))
