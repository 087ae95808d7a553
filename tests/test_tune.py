"""Tuning, without a GPU: layers of the CPU stand for those of a GPU, some of which are wrong."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from doubles import (
    BEHAVIOUR,
    GRID,
    H100,
    PLANS,
    RESIDENT,
    SLOW,
    STEPWISE,
    candidates,
    fails,
    layers,
    off,
    random,
    slowly,
    wrong_backward,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from bench.gpu import clock
from fastrnn import _contest, _cuda, _tune_command, engine, kernels
from fastrnn import tune as function
from fastrnn.__main__ import main
from fastrnn.kernels import measured
from fastrnn.kernels.measured import Record, Work
from fastrnn.kernels.plan import DeviceFacts, Plan

# Of torch with CUDA: the new names are not in every torch that fastrnn is for.
pytestmark = pytest.mark.filterwarnings("ignore:Please use the new API settings to control TF32")
CPU = torch.device("cpu")
TUNE = sys.modules["fastrnn.tune"]
WORK = Work("gru", 7, 3, 4, 5, torch.float32, trains=True)


@pytest.fixture(autouse=True)
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the CPU were an H100."""
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path))
    monkeypatch.setattr(_cuda, "facts_of", lambda device: H100)
    monkeypatch.setattr(TUNE, "facts_of", lambda device: H100)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(_contest, "candidates", candidates)
    monkeypatch.setattr(_contest, "LAYERS", layers())
    monkeypatch.setattr(_contest, "TURN", 1e-4)
    BEHAVIOUR.clear()


def contest(work: Work = WORK) -> _contest.Result:
    return _contest.contest(work, H100, _contest.Here(work, CPU), 0.01, lambda what: None)


def test_every_strategy_has_its_time_and_the_fastest_is_chosen() -> None:
    for plan in (RESIDENT, GRID, SLOW):
        BEHAVIOUR[plan.strategy, plan.units] = slowly
    result = contest()
    assert [name for name, _ in result.record.seconds] == ["torch", "resident", "grid", "stepwise"]
    assert all(seconds > 0 for _, seconds in result.record.seconds)
    assert result.record.work == WORK
    assert Plan(reason="a test", **dict(result.record.choices)) == STEPWISE
    assert not result.left_out


@pytest.mark.parametrize(
    ("behave", "why"),
    [
        (off, "ArithmeticError: an output is off by "),
        (wrong_backward, "ArithmeticError: a gradient is off by "),
        (fails, "RuntimeError: out of resources: shared memory"),
        (random, "ArithmeticError: another result in a second call"),
    ],
)
def test_what_is_wrong_is_left_out(behave: Callable[..., object], why: str) -> None:
    BEHAVIOUR["grid", 8] = behave
    result = contest()
    assert [name for name, _ in result.record.seconds] == ["torch", "resident", "stepwise"]
    assert list(result.left_out) == [GRID]
    assert result.left_out[GRID].startswith(why)


@pytest.mark.parametrize("how", ["wrong", "in vain"])
def test_what_is_wrong_later_is_left_out(how: str) -> None:
    """An exchange that goes wrong now and then: what is timed is looked at again."""
    calls = []

    def now_and_then(y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(y)
        if len(calls) > 9 and how == "in vain":
            raise RuntimeError("fastrnn: programs waited in vain for the others")
        return (y * 2, h) if len(calls) > 9 else (y, h)

    BEHAVIOUR["grid", 8] = now_and_then
    result = contest()
    assert [name for name, _ in result.record.seconds] == ["torch", "resident", "stepwise"]
    assert ("is off by" if how == "wrong" else "waited in vain") in result.left_out[GRID]


def test_a_device_that_is_lost_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    BEHAVIOUR["grid", 8] = fails
    here = _contest.Here(WORK, CPU)
    here.device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(RuntimeError, match="cuda:0 computes nothing any more in this process"):
        _contest.contest(WORK, H100, here, 0.01, lambda what: None)


def test_nothing_right_means_torch() -> None:
    for plan in PLANS:
        BEHAVIOUR[plan.strategy, plan.units] = fails
    record = contest().record
    assert [name for name, _ in record.seconds] == ["torch"]
    assert record.choices == ()


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_drawn_is_the_work(cell: str, packed: bool) -> None:
    dtype = torch.float64 if cell == "lstm" else torch.bfloat16
    work = Work(cell, 11, 3, 4, 5, dtype, directions=2, layers=2, packed=packed, trains=not packed)
    state = torch.get_rng_state()
    assert not contest(work).left_out
    assert torch.equal(torch.get_rng_state(), state)
    case = _contest.Case.of(work, CPU)
    outputs, gradients = case.run()
    rows = case.x.data.shape[0] if packed else None
    assert outputs[0].shape == ((rows, 10) if packed else (11, 3, 10))
    assert outputs[0].dtype == dtype
    assert len(gradients) == (0 if packed else 1 + 16)
    if packed:
        assert int(case.x.batch_sizes[0]) == 3
        assert len(case.x.batch_sizes) == 11
        assert rows < 33


def test_layers_are_in_the_mode_that_is_measured() -> None:
    """In inference torch's layer would keep for backward what nobody wants, as long as it is said to train."""
    modes = [_contest.Case.of(replace(WORK, trains=trains), CPU).layer.training for trains in (True, False)]
    assert modes == [True, False]


def test_work_is_kept_as_it_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    BEHAVIOUR["grid", 8] = fails
    works = [WORK, Work("lstm", 7, 3, 4, 5, torch.float64)]
    tuning = TUNE.tune_works([(work, CPU) for work in works], 0.01, here=True)
    known = [
        *measured.read(
            measured.cache_file(), measured.identity("NVIDIA H100", 132), [*Plan.__dataclass_fields__], "here"
        )
    ]
    assert [record.work for record in known] == works
    assert [record.seconds for record in known] == [result.record.seconds for result in tuning.results]
    lines = str(tuning).splitlines()
    assert lines[0].split() == ["work", "torch", "ours", "times", "as", "fast", "plan"]
    assert lines[2].startswith("gru (B, T, I, H) = (3, 7, 4, 5), float32, training ")
    assert "resident" in lines[2] or "stepwise" in lines[2] or lines[2].endswith("torch")
    assert lines[4] == f"not right for {WORK}: {GRID} (RuntimeError: out of resources: shared memory)"
    assert "12/12" in capsys.readouterr().err


def test_progress_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(TUNE, "find_spec", lambda name: None)
    TUNE.tune_works([(WORK, CPU)], 0.01, here=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"1 of 6: {WORK}: torch"
    assert lines[-1] == f"6 of 6: {WORK}: in turns"


def test_what_a_plan_says_follows() -> None:
    for plan in (GRID, SLOW, STEPWISE):
        BEHAVIOUR[plan.strategy, plan.units] = slowly
    record = TUNE.tune_works([(WORK, CPU)], 0.01, here=True).results[0].record
    faster = Record(WORK, (("torch", 1.0), ("resident", 0.5)), record.choices)
    measured.append(faster, measured.identity("NVIDIA H100", 132))
    records = measured.of_gpu("NVIDIA H100", 132, [*Plan.__dataclass_fields__])
    facts = DeviceFacts("NVIDIA H100", "nvidia", (9, 0), 132, 227 * 1024, 50 * 2**20, records=records)
    chosen = kernels.plan.plan(WORK, facts)
    assert chosen.strategy == "resident"
    assert chosen.reason == "2.00 times as fast as torch, tuned on this GPU at (B, T, I, H) = (3, 7, 4, 5)"


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = fastrnn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5)
        self.second = fastrnn.GRU(10, 6)
        self.cell, self.stock = fastrnn.GRUCell(6, 6), nn.GRU(6, 6)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y, _ = self.first(x)
        y, _ = self.second(y.transpose(0, 1), lengths=lengths)
        self.cell(y[0])
        return self.stock(y)[0]


def test_the_works_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    found: list[Work] = []
    monkeypatch.setattr(TUNE, "tune_works", lambda works: found.extend(work for work, _ in works))
    model = Model()
    function(model, torch.zeros(3, 7, 4), lengths=torch.tensor([7, 2, 1]))
    stack = {"directions": 2, "layers": 2}  # tf32 is no matter of a CPU
    assert found == [
        Work("lstm", 7, 3, 4, 5, torch.float32, **stack),
        Work("lstm", 7, 3, 4, 5, torch.float32, trains=True, **stack),
        Work("gru", 7, 3, 10, 6, torch.float32, packed=True),
        Work("gru", 7, 3, 10, 6, torch.float32, packed=True, trains=True),
        Work("gru", 1, 3, 6, 6, torch.float32, layers=0),
        Work("gru", 1, 3, 6, 6, torch.float32, layers=0, trains=True),
    ]
    found.clear()
    with torch.no_grad():
        function(model.second.half(), pack_sequence([torch.zeros(n, 10).half() for n in (3, 2)]))
    assert found == [Work("gru", 3, 2, 10, 6, torch.float16, packed=True)]


def test_work_on_a_gpu_is_known_by_its_roundings(monkeypatch: pytest.MonkeyPatch) -> None:
    net = fastrnn.GRU(4, 5)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    work = engine.work_of("gru", torch.zeros(7, 3, 4), [*net.parameters()], True, 7, 3, 1, 1, False)
    assert work == replace(WORK, tf32=True)


def test_models_without_layers_of_ours() -> None:
    with pytest.raises(ValueError, match="no recurrent layer of fastrnn's was given tensors that its engines compute"):
        fastrnn.tune(nn.LSTM(4, 5), torch.zeros(2, 3, 4))
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module"):
        fastrnn.tune("lstm", torch.zeros(2, 3, 4))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fastrnn", "tune", *arguments])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(_cuda, "HAS_TRITON", True)
    return main()


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found: list[tuple[Work, torch.device]] = []
    monkeypatch.setattr(_tune_command, "tune_works", lambda works, seconds, here: found.extend(works) or "the table")
    arguments = ["--cell", "gru", "lstm", "--dtype", "bfloat16", "--mode", "training", "--layers", "2", "--packed"]
    assert command(monkeypatch, "--shape", "3,7,4,5", "1,2,3,4", *arguments, "--bidirectional") == 0
    options = {"directions": 2, "layers": 2, "trains": True, "packed": True}
    assert found == [
        (Work(cell, *sizes, torch.bfloat16, **options), torch.device("cuda", 0))
        for sizes in ((7, 3, 4, 5), (2, 1, 3, 4))
        for cell in ("gru", "lstm")
    ]
    assert capsys.readouterr().out == f"the table\nkept in {measured.cache_file()}\n"
    measured.append(Record(WORK, (("torch", 1e-3), ("grid", 2e-3)), ()), measured.identity("NVIDIA H100", 132))
    records = measured.of_gpu("NVIDIA H100", 132, [])
    facts = DeviceFacts("NVIDIA H100", "nvidia", (9, 0), 132, 227 * 1024, 50 * 2**20, records=records)
    monkeypatch.setattr(_tune_command, "facts_of", lambda device: facts)
    assert command(monkeypatch, "--list") == 0
    assert capsys.readouterr().out == f"{WORK}: torch 1.000 ms, grid 2.000 ms (tuned on this GPU)\n"


@pytest.mark.parametrize("tf32", ["on", "off"])
def test_tf32_as_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tf32: str) -> None:
    found: list[Work] = []
    monkeypatch.setattr(_tune_command, "tune_works", lambda works, seconds, here: found.extend(w for w, _ in works))
    with clock.tf32(tf32 == "off"):  # and set back
        assert command(monkeypatch, "--shape", "3,7,4,5", "--tf32", tf32) == 0
    assert [work.tf32 for work in found] == 2 * [tf32 == "on"]


def test_a_model_is_found_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "import fastrnn, torch\n"
        "def make():\n    return torch.nn.GRU(4, 5), (torch.zeros(2, 3, 4),)\n"
        "def nothing():\n    return None, ()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name, why in (
        ("mine:make", "no recurrent layer of fastrnn's was given tensors that its engines compute"),
        ("mine:nothing", "the function has to return a module and a tuple of its inputs"),
        ("mine:none", "module 'mine' has no attribute 'none'"),
        ("other:make", "No module named 'other'"),
        ("mine", "expected MODULE:FUNCTION"),
    ):
        assert command(monkeypatch, "--model", name) == 2
        assert f"--model {name}: " in (said := capsys.readouterr().err)
        assert why in said


def test_mistakes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, why in (
        (["--shape", "1,2,3"], "expected B,T,I,H, got 1,2,3"),
        (["--shape", "1,2,3,0"], "must be at least 1, got 0"),
        (["--shape", "1,2,3,x"], "invalid shape value: '1,2,3,x'"),
        (["--seconds", "inf"], "must be above 0 and finite, got inf"),
        (["--dtype", "complex64"], "invalid choice: 'complex64'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            command(monkeypatch, *arguments)
        assert stopped.value.code == 2
        assert why in capsys.readouterr().err
    assert command(monkeypatch) == 2
    assert "name shapes (--shape B,T,I,H) or a model" in capsys.readouterr().err
    assert command(monkeypatch, "--shape", "1,2,3,4", "--device", "1") == 2
    assert "--device 1: there are 1, numbered from 0" in capsys.readouterr().err

    def fault(works: object, seconds: float, here: bool) -> None:
        raise RuntimeError("fastrnn: cuda:0 computes nothing any more in this process")

    monkeypatch.setattr(_tune_command, "tune_works", fault)
    assert command(monkeypatch, "--shape", "1,2,3,4") == 1
    assert "computes nothing any more in this process; what was measured before is kept" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu() -> None:
    arguments = [sys.executable, "-m", "fastrnn", "tune", "--shape", "1,2,3,4", "--device", "0"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("python -m fastrnn tune: there is no GPU that torch can use")
