"""Plans tried in a process of their own, without a GPU: what goes wrong there costs its plan and nothing else."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import doubles
import pytest
import torch
from doubles import GRID, H100, RESIDENT, STEPWISE, candidates, layers, off
from processes import alive, numbers, until

from fastrnn import _contest, _cuda, _elsewhere, _settings, _worker
from fastrnn.kernels import measured
from fastrnn.kernels.measured import Work
from fastrnn.kernels.plan import Plan

CPU = torch.device("cpu")
TUNE = sys.modules["fastrnn.tune"]
WORK = Work("gru", 7, 3, 4, 5, torch.float32, trains=True)
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the CPU were an H100, here and in the process that tries plans, which a test finds by its number."""
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path))
    monkeypatch.setenv(doubles.NAMED, "")
    monkeypatch.setenv(doubles.CALLS, str(tmp_path / "numbers"))
    monkeypatch.setattr(_cuda, "facts_of", lambda device: H100)
    monkeypatch.setattr(TUNE, "facts_of", lambda device: H100)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(_contest, "candidates", candidates)
    monkeypatch.setattr(_contest, "LAYERS", layers())
    monkeypatch.setattr(_elsewhere, "BOOT", doubles.BOOT)
    doubles.BEHAVIOUR.clear()
    yield
    doubles.BEHAVIOUR.clear()
    for number in numbers(tmp_path / "numbers"):
        assert not alive(number), "the process that tried plans is still there"


def tune(*works: Work) -> object:
    return TUNE.tune_works([(work, CPU) for work in works or (WORK,)], 0.01)


def test_what_goes_wrong_costs_its_plan_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a kernel can do to its process, in one run, and the plans around it."""
    wrong = ("aborts", "hangs", "off", "fails", "exhausts", "leaves", "loses_the_device")
    plans = [Plan("grid", "a test", units=8 + k) for k in range(len(wrong))]
    monkeypatch.setattr(doubles, "PLANS", [RESIDENT, *plans, STEPWISE])
    monkeypatch.setenv(doubles.NAMED, ";".join(f"grid,{8 + k},{name}" for k, name in enumerate(wrong)))
    monkeypatch.setattr(_elsewhere, "LIMIT", 4.0)
    (result,) = tune().results
    assert {name for name, _ in result.record.seconds} == {"torch", "resident", "stepwise"}
    assert dict(result.record.choices)["strategy"] in ("resident", "stepwise")
    assert [*result.left_out] == plans
    aborted, hung, inaccurate, failed, exhausted, left, lost = result.left_out.values()
    assert aborted == (
        "its process was ended by SIGABRT; the last that it said: "
        "terminate called after throwing an instance of 'c10::AcceleratorError'"
    )
    assert hung == "it took longer than 4 s"
    assert inaccurate.startswith("ArithmeticError: an output is off by ")
    assert failed == "RuntimeError: out of resources: shared memory"
    assert exhausted == "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"
    assert left == "its process ended with status 3"
    assert lost == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert len(numbers(tmp_path / "numbers")) == 5  # one, and another after each that ended
    (line,) = measured.cache_file().read_text().splitlines()
    kept = json.loads(line)["left_out"]
    assert [(plan["units"], plan["reason"]) for plan in kept] == [(p.units, w) for p, w in result.left_out.items()]
    assert len([*measured.read(measured.cache_file(), {}, Plan.__dataclass_fields__, "here")]) == 1


def test_what_is_chosen_is_looked_at_in_this_process_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubles, "PLANS", [GRID, STEPWISE])
    monkeypatch.setenv(doubles.NAMED, f"stepwise,{STEPWISE.units},slowly")
    doubles.BEHAVIOUR["grid", GRID.units] = off  # here, and not there
    (result,) = tune().results
    assert dict(result.record.choices)["strategy"] == "stepwise"
    assert [name for name, _ in result.record.seconds] == ["torch", "stepwise"]
    assert result.left_out[GRID].startswith("ArithmeticError: an output is off by ")


def test_here_means_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubles, "PLANS", [STEPWISE])
    state = torch.get_rng_state()
    TUNE.tune_works([(WORK, CPU)], 0.01, here=True)
    assert not numbers(tmp_path / "numbers")
    assert len(tune().results) == 1
    assert len(numbers(tmp_path / "numbers")) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_it_is_set_as_this_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what torch is set to, in both kinds of names."""
    found = _settings.settings(CPU)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not torch.backends.cudnn.benchmark)
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee" if before == "tf32" else "tf32"
    changed = _settings.settings(CPU)
    assert {name for name in found if found[name] != changed[name]} == {
        "backends.cudnn.benchmark",
        "backends.cudnn.rnn.fp32_precision",
    }
    _settings.restore(found, CPU)
    assert _settings.settings(CPU) == found


def test_the_gpu_is_found_by_what_identifies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES may have changed since this process looked at it."""
    known = {0: "a", 1: "b"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(_worker, "uuid_of", lambda device: known[device.index])
    device = torch.device("cuda", 0)
    assert _worker.same_device(device, "a") == _worker.same_device(device, None) == device
    assert _worker.same_device(device, "b") == torch.device("cuda", 1)
    with pytest.raises(RuntimeError, match="GPU c is not among those"):
        _worker.same_device(device, "c")


@pytest.mark.parametrize("how", ["no Python", "nothing imported", "no command"])
def test_where_no_process_can_try_plans_tuning_says_so(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "nothing imported":
        monkeypatch.setattr(_elsewhere, "BOOT", "import nothing_of_this_name  # {pipe}")
    command = {"no Python": "/no/python", "no command": ""}.get(how, sys.executable)
    monkeypatch.setattr("multiprocessing.spawn.get_executable", lambda: command)
    what = {
        "no Python": "no process can be started that tries plans: .*No such file",
        "nothing imported": "the process that tries plans cannot compute gru .*No module named 'nothing_of_this_name'",
        "no command": "does not know by which command another one is started",
    }
    with pytest.raises(RuntimeError, match=what[how]):
        tune()


SCRIPT = """
    import os, sys, time
    sys.path.append({tests!r})
    import doubles, torch
    from fastrnn import _elsewhere, _settings
    from fastrnn.kernels.measured import Work

    print("once", flush=True)
    _elsewhere.BOOT = doubles.BOOT
    work = Work("gru", 7, 3, 4, 5, torch.float32)
    elsewhere = _elsewhere.Elsewhere(_settings.opening(work, torch.device("cpu")))
    print(elsewhere.trial(None) > 0, flush=True)
    {then}
"""


def script(then: str, **options: object) -> "subprocess.Popen[str]":
    """A program without a guard around what it does, in a session of its own."""
    code = textwrap.dedent(SCRIPT.format(tests=str(ROOT / "tests"), then=then))
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **options
    )


@pytest.mark.parametrize("end", ["killed", "left", "interrupted"])
def test_it_ends_with_the_process_that_asks(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it computes: here, a plan that hangs."""
    monkeypatch.setenv(doubles.NAMED, f"grid,{GRID.units},hangs")
    then = "elsewhere.trial(doubles.GRID)" if end != "left" else "os._exit(0)"
    process = script(then, start_new_session=True)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["once\n", "True\n"]
    (number,) = numbers(tmp_path / "numbers")
    if end == "killed":
        time.sleep(0.5)
        assert alive(number)
        process.kill()
    elif end == "interrupted":  # as by a terminal: all of its processes
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == {"killed": -signal.SIGKILL, "left": 0}.get(end, -signal.SIGINT)
    until(lambda: not alive(number))


def test_an_interrupt_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `tune`, which passes it on; this process goes on."""
    monkeypatch.setenv(doubles.NAMED, f"grid,{GRID.units},hangs")
    monkeypatch.setattr(_elsewhere.Elsewhere, "_start", interrupted(_elsewhere.Elsewhere._start))
    with pytest.raises(KeyboardInterrupt):
        tune()
    (number,) = numbers(tmp_path / "numbers")
    until(lambda: not alive(number))


def interrupted(start: Callable[..., object]) -> Callable[..., object]:
    def then_interrupt(self: _elsewhere.Elsewhere) -> object:
        running = start(self)
        signal.raise_signal(signal.SIGINT)
        return running

    return then_interrupt


def test_daemons_may_try_plans() -> None:
    """Which may have no children of multiprocessing's kind."""
    code = """
        import multiprocessing, sys
        sys.path.append({tests!r})
        import doubles

        def daemon():
            import torch
            from fastrnn import _elsewhere, _settings
            from fastrnn.kernels.measured import Work
            _elsewhere.BOOT = doubles.BOOT
            work = Work("gru", 7, 3, 4, 5, torch.float32)
            elsewhere = _elsewhere.Elsewhere(_settings.opening(work, torch.device("cpu")))
            print(elsewhere.trial(None) > 0, flush=True)
            elsewhere.close()

        process = multiprocessing.get_context("fork").Process(target=daemon, daemon=True)
        process.start()
        process.join()
    """.format(tests=str(ROOT / "tests"))
    arguments = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.stdout, done.stderr) == ("True\n", "")
