"""The benchmarks of GPUs, without one: on CPU tensors, by the host's clock."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from bench import check, report, results, sanitize, targets, timing
from bench import contestants as everybody
from bench.__main__ import main as bench
from bench.gpu import clock, command, contestants, measure, memory, smoke, versions
from bench.gpu.cases import Task
from bench.gpu.desk import tiny
from bench.grid import Shape
from fastrnn.kernels.plan import Plan

# Of torch with CUDA: the new names are not in every torch that fastrnn is for.
pytestmark = pytest.mark.filterwarnings("ignore:Please use the new API settings to control TF32")
ROOT = Path(__file__).resolve().parent.parent
GPU = results.Device("a GPU", "9.0", "580", "13.0", "91300", "3.6.0")
TINY = ["--batch", "2", "--hidden", "5", "--steps", "3", "--seconds-per-case", "0.001"]
TASK = Task("layer", "gru", Shape(2, 3, 5, 5), "float32", False)
PLANS = {f"fastrnn {strategy}": Plan(strategy, "", warps=8) for strategy in ("resident", "stepwise")}
RESIDENT, STEPWISE = map(str, PLANS.values())


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU in the place of a GPU, and small shapes where the command line chooses none."""
    monkeypatch.setattr(contestants, "DEVICE", "cpu")
    monkeypatch.setattr(contestants, "forced_plans", lambda task, left_out: {})
    monkeypatch.setattr(clock, "by_events", timing.by_host)
    monkeypatch.setattr(clock, "captured", lambda call: call)
    monkeypatch.setattr(memory, "peak_bytes", lambda call, under: 2**20)
    monkeypatch.setattr(measure, "device", lambda: GPU)
    monkeypatch.setattr(measure, "gemm_rate", lambda dtype, tf32: 1e12)
    tiny.install(monkeypatch.setattr)


@pytest.fixture
def strategies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two strategies that are the CPU engine, and, after the test, the names under which anything was computed."""
    entered: list[str] = []

    @contextmanager
    def forced(plan: Plan) -> Iterator[None]:
        entered.append(str(plan))
        yield

    monkeypatch.setattr(contestants, "forced_plans", lambda task, left_out: PLANS)
    monkeypatch.setattr(contestants, "forced", forced)
    return entered


def run(out: Path, *arguments: str) -> tuple[int, list[results.Row]]:
    status = bench(["gpu", *arguments, "--out", str(out)])
    return status, results.read(out)


@pytest.mark.usefixtures("cpu")
def test_everything_is_measured_and_shown(
    tmp_path: Path, strategies: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "gpu.jsonl"
    status, rows = run(out, *TINY, "--cells", "lstm", "--dtype", "float32", "bfloat16", "--tf32", "off")
    assert status == 0
    layers = [row for row in rows if row.benchmark != "latency"]
    assert {row.benchmark for row in rows} == {"latency", "layer", "lean", "packed", "recorded", "reset", "state"}
    assert all(row.case.mode == "training" for row in rows if row.benchmark == "lean")
    # of all kinds of numbers, of the targets, of the lean tape, and of applications: two with resets, one with states
    assert len(layers) == 5 * 2 * 2 + 3 * 2 + 1 + 3
    assert all(row.provenance.device == GPU for row in rows)
    assert all({"torch.nn", "fastrnn", "fastrnn resident", "fastrnn stepwise"} <= set(row.times) for row in layers)
    assert {(row.case.dtype, row.detail["tf32"]) for row in layers} == {("float32", False), ("bfloat16", None)}
    assert set(strategies) == {RESIDENT, STEPWISE}
    row = next(row for row in layers if row.benchmark == "layer" and row.case.layers == 1)
    assert row.detail["plan"][0].keys() == {"engine", "kernel", "reason"}
    assert row.detail["strategies"] == {"fastrnn resident": RESIDENT, "fastrnn stepwise": STEPWISE}
    assert row.detail["choices"]["fastrnn stepwise"] == {
        name: value for name, value in asdict(PLANS["fastrnn stepwise"]).items() if name != "reason"
    }
    assert row.detail["flattened"] == {"torch.nn": False}
    assert row.detail["clock"] == "events"
    assert row.detail["error_ratio"].keys() == {"fastrnn", "fastrnn resident", "fastrnn stepwise"}
    assert row.detail["gemm_fraction"]["fastrnn"] == row.detail["flops"] / row.times["fastrnn"].median / 1e12
    assert f"`python -m bench report {out}` makes tables" in capsys.readouterr().out
    assert bench(["report", str(out)]) == bench(["plot", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "a GPU, no TF32" in printed
    assert "resident" in printed
    assert sorted(path.name for path in out.parent.glob("*.png")) == ["gpu-float32.png", "gpu-lean.png", "gpu.png"]


@pytest.mark.usefixtures("cpu", "strategies")
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_states_that_are_given_have_gradients(cell: str) -> None:
    """Of every layer and direction; a contestant that starts anew is off."""
    shape = Shape(2, 3, 4, 5, layers=2, directions=2)
    task = replace(TASK, benchmark="state", cell=cell, shape=shape, graphs=True)
    rows = list(measure.measure(task, 0.001))
    assert [row.detail["clock"] for row in rows] == ["graphs"] * 2
    assert all(row.times.keys() == {"torch.nn", "fastrnn", "fastrnn resident", "fastrnn stepwise"} for row in rows)
    made = contestants.prepare(task)
    assert [p.shape for p in made.stacks["fastrnn"].states] == [(4, 2, 5)] * (2 if cell == "lstm" else 1)
    forgetful = contestants.Started(
        made.stacks["fastrnn"].layer, [s.detach() * 0 for s in made.stacks["fastrnn"].states]
    )
    with pytest.raises(check.MismatchError, match="fastrnn: y in inference is off"):
        check.check_stacks({"fastrnn": forgetful}, made.stacks["torch.nn"], made.x, made.reference)


@pytest.mark.usefixtures("cpu", "strategies")
def test_the_lean_tape_is_checked_timed_and_weighed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the full one, by each strategy: here both are the CPU engine, whose tapes differ as those of a GPU do."""
    shape = Shape(3, 200, 4, 32)
    (row,) = measure.measure(replace(TASK, benchmark="lean", cell="lstm", shape=shape, modes=("training",)), 0.001)
    ours = [f"fastrnn {strategy}{tape}" for strategy in ("resident", "stepwise") for tape in ("", ", lean tape")]
    assert row.times.keys() == {"torch.nn", "fastrnn", *ours}
    assert row.detail["error_ratio"].keys() == {"fastrnn", *ours}
    assert row.detail["left_out"] == {}
    kept, y_bytes = row.detail["kept_bytes"], 200 * 3 * 32 * 4
    assert row.detail["y_bytes"] == y_bytes
    assert kept.keys() == row.detail["peak_bytes"].keys() == row.times.keys()
    assert y_bytes <= kept[ours[1]] == kept[ours[3]] < 1.25 * y_bytes < 5 * y_bytes < kept[ours[0]] == kept[ours[2]]
    late = measure.not_measured(replace(TASK, benchmark="lean"), "training", "the time was up")
    path = tmp_path / "gpu.jsonl"
    results.write(path, [row, late])
    assert bench(["report", str(path)]) == bench(["plot", str(path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu-lean.png", "gpu.jsonl"]
    printed = capsys.readouterr().out
    assert "memory of a training call" in printed
    assert f"{kept[ours[1]] / y_bytes:.2f}" in printed


def test_the_peak_is_what_a_call_takes_beside_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocator that counts, in the place of torch's."""
    allocated, peak = 100, 0

    def call() -> None:
        nonlocal allocated, peak
        allocated += 0 if allocated > 100 else 7  # kept from the first call on, as a library does
        peak = max(peak, allocated + 30)

    def reset_peak() -> None:
        nonlocal peak
        peak = allocated

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: allocated)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset_peak)
    peak = 10_000  # of somebody else, before
    assert memory.peak_bytes(call, nullcontext()) == 30


@pytest.mark.usefixtures("cpu")
def test_when_time_is_up_rows_are_left_out_visibly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ticks = iter(range(0, 10_000, 25))  # seconds: the minute is over after the third look at the clock
    limit = command.Limit
    monkeypatch.setattr(command, "Limit", lambda minutes: limit(minutes, lambda: next(ticks)))
    arguments = ["--part", "forward", "training", "--cells", "gru", "--minutes", "1", "--dtype", "float16", "float32"]
    status, rows = run(tmp_path / "gpu.jsonl", *TINY, *arguments)
    assert status == 0
    assert [(row.case.mode, bool(row.times)) for row in rows][:3] == [
        ("inference", True), ("training", True), ("inference", False),
    ]  # fmt: skip
    late = [row for row in rows if not row.times]
    assert len(late) == 4
    assert {row.detail["not_measured"] for row in late} == {"the time was up: 1 minutes"}
    assert all(json.loads(line)["provenance"]["device"] for line in (tmp_path / "gpu.jsonl").read_text().splitlines())
    printed = capsys.readouterr().out
    assert "left out: 4 rows, since the time was up: 1 minutes" in printed
    assert "2 rows measured" in printed


@pytest.mark.usefixtures("cpu")
def test_a_case_that_fails_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = everybody.fastrnn_stack

    def broken(stack: torch.nn.RNNBase) -> torch.nn.Module:
        made = ours(stack)
        if stack.mode == "GRU":
            made.weight_hh_l0.data.mul_(1.01)
        return made

    monkeypatch.setattr(contestants, "fastrnn_stack", broken)
    status, rows = run(
        tmp_path / "gpu.jsonl",
        *TINY,
        "--part",
        "forward",
        "--cells",
        "gru",
        "lstm",
        "--dtype",
        "float32",
        "--tf32",
        "on",
    )
    assert status == 1
    assert [(row.case.cell, bool(row.times)) for row in rows] == [("gru", False), ("lstm", True)]
    assert rows[0].detail["not_measured"].startswith("MismatchError: fastrnn: y in inference is off by")
    assert "not timed: layer gru B2 T3 I5 H5 float32 TF32: MismatchError" in capsys.readouterr().out


@pytest.mark.usefixtures("cpu", "strategies")
def test_a_strategy_that_cannot_run_is_left_out_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def forced(plan: Plan) -> Iterator[None]:
        if plan.strategy == "resident":
            raise RuntimeError("out of resource: shared memory\nRequired: 300000")
        yield

    monkeypatch.setattr(contestants, "forced", forced)
    for row in measure.measure(TASK, 0.001):
        assert set(row.times) == {"torch.nn", "fastrnn", "fastrnn stepwise"}
        assert row.detail["left_out"] == {"fastrnn resident": "RuntimeError: out of resource: shared memory"}


@pytest.mark.usefixtures("cpu", "strategies")
def test_strategies_compute_under_their_plans_and_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward as well: gradients are off here while a plan is forced, and nowhere else."""
    under: list[str] = []

    @contextmanager
    def forced(plan: Plan) -> Iterator[None]:
        under.append(str(plan))
        yield
        under.pop()

    made = everybody.fastrnn_stack

    def watched(stack: torch.nn.RNNBase) -> torch.nn.Module:
        ours = made(stack)
        ours.weight_hh_l0.register_hook(lambda gradient: gradient * (2 if under == [STEPWISE] else 1))
        return ours

    monkeypatch.setattr(contestants, "forced", forced)
    monkeypatch.setattr(contestants, "fastrnn_stack", watched)
    inference, training = measure.measure(TASK, 0.001)
    for row in (inference, training):
        assert set(row.times) == {"torch.nn", "fastrnn", "fastrnn resident"}
        assert "the gradient of weight_hh_l0 is off" in row.detail["left_out"]["fastrnn stepwise"]
    assert set(measure.measure(replace(TASK, modes=("inference",)), 0.001).__next__().times) > {"fastrnn stepwise"}


@pytest.mark.parametrize("benchmark", ["layer", "packed", "reset"])
@pytest.mark.usefixtures("cpu", "strategies")
def test_ratios_are_to_weights_that_cudnn_can_read(benchmark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch does not flatten a layer's weights, and as a CPU computes with them."""

    def flatten(layer: torch.nn.RNNBase) -> torch.nn.RNNBase:
        weights = list(layer.parameters())
        buffer = torch.cat([weight.detach().flatten() for weight in weights])
        parts = buffer.split([weight.numel() for weight in weights])
        for weight, part in zip(weights, parts, strict=True):
            weight.data = part.view_as(weight)
        return layer

    monkeypatch.setattr(contestants, "can_flatten", lambda layer: True)
    monkeypatch.setattr(contestants, "flatten", flatten)
    rows = list(measure.measure(replace(TASK, benchmark=benchmark, dtype="bfloat16", tf32=None), 0.001))
    titles = [table.title for table in report.tables(rows) if benchmark == "layer"]
    assert all(title.endswith(f": times as fast as {results.FLATTENED}") for title in titles)
    for row in rows:
        assert row.detail["flattened"] == {"torch.nn": False, results.FLATTENED: True}
        assert row.baseline == results.FLATTENED
        assert "torch.nn" in row.speedup
        assert results.FLATTENED not in row.speedup
        ours, flat = (row.times[name].median for name in ("fastrnn", results.FLATTENED))
        assert row.speedup["fastrnn"] == row.ratio("fastrnn") == flat / ours
        assert command.summary(row).startswith(f"{results.FLATTENED} ")
        assert results.FLATTENED in row.detail["error_ratio"]  # it has computed the same
    monkeypatch.setattr(contestants, "flattened", lambda layer: True)
    assert results.FLATTENED not in next(measure.measure(TASK, 0.001)).times


@pytest.mark.usefixtures("cpu")
def test_weights_that_cannot_be_flattened_are_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def flatten(layer: torch.nn.RNNBase) -> torch.nn.RNNBase:
        raise RuntimeError("cuDNN has no such dtype")

    monkeypatch.setattr(contestants, "can_flatten", lambda layer: True)
    monkeypatch.setattr(contestants, "flatten", flatten)
    row = next(measure.measure(TASK, 0.001))
    assert row.baseline == "torch.nn"
    assert row.detail["not_flattened"] == "RuntimeError: cuDNN has no such dtype"


class OnGpu(torch.nn.Parameter):
    """One of a CPU that says otherwise."""

    is_cuda = True


def test_weights_are_flattened_as_torch_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same operator with the same arguments, in the dtypes that torch itself flattens."""
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(torch, "_cudnn_rnn_flatten_weight", lambda *given: asked.append(given))
    monkeypatch.setattr(torch, "_use_cudnn_rnn_flatten_weight", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda weight: True)
    monkeypatch.setattr(torch.backends.cudnn.rnn, "get_cudnn_mode", lambda mode: 2)
    monkeypatch.setattr(torch.cuda, "device_of", lambda weight: nullcontext())
    layer = torch.nn.LSTM(3, 5, 2, bidirectional=True, batch_first=True, bias=False)
    layer._flat_weights = [OnGpu(weight) for weight in layer.parameters()]
    layer.flatten_parameters()
    contestants.flatten(layer)
    theirs, ours = asked
    assert all(a is b for a, b in zip(theirs[0], ours[0], strict=True))
    assert theirs[1:] == ours[1:]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk of memory")  # bfloat16's
def test_weights_flattened_by_hand_compute_the_same() -> None:
    layer = torch.nn.LSTM(32, 64, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(20, 16, 32, device="cuda", dtype=torch.bfloat16)
    theirs = layer(x)[0]
    flat = contestants.flatten(copy.deepcopy(layer))
    assert contestants.flattened(flat)
    torch.testing.assert_close(flat(x)[0], theirs)


@pytest.mark.usefixtures("cpu")
def test_graphs_are_captured_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[clock.Call] = []

    def captured(call: clock.Call) -> clock.Call:
        runs.append(call)
        if len(runs) % 2 == 0:
            raise RuntimeError("operation not permitted when stream is capturing")
        return call

    monkeypatch.setattr(clock, "captured", captured)
    for row in measure.measure(TASK, 0.001, graphs=True):
        assert set(row.times) == {"torch.nn"}
        assert row.detail["left_out"] == {
            "fastrnn": "not captured: RuntimeError: operation not permitted when stream is capturing"
        }
        assert row.detail["clock"] == "graphs"
        assert row.place == "a GPU, no TF32, graphs"


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_set_for_both_contestants_and_set_back(allowed: bool) -> None:
    def settings() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = settings()
    with clock.tf32(allowed):
        assert settings() == (allowed, allowed)
    assert settings() == before


@pytest.mark.usefixtures("cpu")
def test_rows_of_a_gpu_say_nothing_of_the_targets_of_a_cpu() -> None:
    rows = list(measure.measure(TASK, 0.001))
    assert all(reached.met is None for reached in targets.reached(rows))


def test_rows_without_a_device_are_read_as_before(tmp_path: Path) -> None:
    """Results that were written before rows of GPUs existed."""
    rows = results.read(ROOT / "bench" / "results" / "core-1-thread.jsonl")
    assert rows[0].provenance.device is None
    results.write(tmp_path / "again.jsonl", rows)
    assert results.read(tmp_path / "again.jsonl") == rows
    assert report.tables(rows)


def test_strategies_that_fit_are_those_that_could_be_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrnn import _cuda
    from fastrnn.kernels import plan
    from fastrnn.kernels.measured import Work

    h100 = plan.DeviceFacts("NVIDIA H100", "nvidia", (9, 0), 132, 227 * 1024, 50 * 2**20)
    monkeypatch.setattr(_cuda, "facts_of", lambda device: h100)
    small = contestants.forced_plans(replace(TASK, shape=Shape(2, 3, 64, 64), dtype="float16", tf32=None))
    out = {"grid, registers, barrier": "wrong", "stepwise": "it hangs"}
    half = replace(TASK, shape=Shape(16, 128, 512, 512), dtype="bfloat16", tf32=None)
    grids = [(p.held, p.exchange) for name, p in contestants.forced_plans(half).items() if name != "fastrnn stepwise"]
    assert grids == [("registers", "barrier"), ("registers", "data")]
    others = contestants.forced_plans(half, out)
    assert [(p.strategy, p.held, p.exchange) for p in others.values()] == [
        ("grid", "shared", "barrier"), ("grid", "registers", "data"),
    ]  # fmt: skip
    with pytest.raises(RuntimeError, match="by a strategy that is left out: stepwise: it hangs"):
        contestants.forced_plans(replace(TASK, benchmark="reset", shape=Shape(2, 3, 512, 512)), out)
    assert list(small) == ["fastrnn resident", "fastrnn stepwise", "fastrnn grid", "fastrnn polled"]
    assert small["fastrnn polled"] == replace(small["fastrnn grid"], exchange="data")
    assert small["fastrnn stepwise"].stages == 3  # as it is planned where nothing fits on chip
    large = contestants.forced_plans(replace(TASK, shape=Shape(2, 3, 512, 512), tf32=True))
    assert {name: p.precision for name, p in large.items()} == dict.fromkeys(
        ("fastrnn stepwise", "fastrnn grid", "fastrnn polled"), "tf32"
    )
    recorded = contestants.forced_plans(replace(TASK, benchmark="recorded", dtype="float16", tf32=None))
    assert {name: (p.strategy, p.graphs) for name, p in recorded.items()} == {
        "fastrnn stepwise": ("stepwise", False),
        "fastrnn recorded": ("stepwise", True),
    }
    for made in large.values():
        with contestants.forced(made):
            chosen = plan.plan(Work("gru", 3, 2, 512, 512, torch.float32), h100)
        assert replace(chosen, reason="") == replace(made, reason="")


@pytest.mark.parametrize("arguments", [["--part", "x"], ["--minutes", "0"], ["--dtype", "float64"], ["--batch", "0"]])
def test_mistakes_in_arguments(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench(["gpu", *arguments])
    assert stopped.value.code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_all_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["gpu", "--out", str(tmp_path / "gpu.jsonl")]) == 2
    assert sanitize.main([]) == smoke.main(["stepwise"]) == versions.main() == 2
    assert capsys.readouterr().err.count("there is no CUDA device") == 4


def test_rich_and_matplotlib_are_not_needed() -> None:
    code = "import sys; sys.modules |= {'rich': None, 'matplotlib': None}; import bench.__main__, bench.gpu.smoke"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_tiny_layers_are_run_and_looked_at(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @contextmanager
    def forced(choices: dict[str, object]) -> Iterator[None]:
        yield

    monkeypatch.setattr(sanitize, "_forced", forced)
    monkeypatch.setattr(sanitize, "find_spec", lambda name: name)
    assert sanitize.main(["--device", "cpu"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4 * 2 * 4
    assert sanitize.main(["--device", "cpu", "--cells", "lstm", "gru", "--strategies", "grid"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 * 2
    monkeypatch.setattr(sanitize, "_run", lambda *_: False)
    assert sanitize.main(["--device", "cpu"]) == 1
    assert "not finite: lstm float32 resident, full tape" in capsys.readouterr().err
