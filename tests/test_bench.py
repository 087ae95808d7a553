"""The benchmarks: timing in turns, checks that refuse what is wrong, limits, targets, results and pictures."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from rows import case_row, make_row, seconds
from torch import nn

import fastrnn
from bench import (
    contestants,
    cpu,
    grid,
    onnx_stack,
    packed,
    resets,
    results,
    roofline,
    scaling,
    streaming,
    tape,
    targets,
    timing,
    weights,
)
from bench.__main__ import main as bench
from bench.check import Computed, MismatchError, check_stacks, compare
from bench.grid import Shape
from bench.plan import Job, Plan


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The programs set torch's number of threads: set it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> roofline.Rates:
    """Rates that need not be measured: 1 operation and 10 bytes a second, 40 of weights of less than 10000 bytes."""
    given = roofline.Rates(1.0, {100: 40.0, 10_000: 10.0})
    monkeypatch.setattr(roofline, "measured", lambda *_: given)
    return given


@pytest.fixture
def tiny_grid(monkeypatch: pytest.MonkeyPatch, rates: roofline.Rates) -> None:
    """Make the quick grid a really quick one."""
    monkeypatch.setitem(grid.GRIDS, "quick", (Shape(2, 3, 4, 5), Shape(1, 3, 4, 5, layers=2, directions=2)))


def test_compare_uses_the_error_of_torch_as_its_yardstick() -> None:
    truth = torch.tensor([1.0, -2.0], dtype=torch.float64)
    theirs = (truth + torch.tensor([0, 2e-5])).float()

    def off(by: float, as_gradient: bool) -> float:
        def computed(value: torch.Tensor) -> Computed:
            return Computed({}, {"x": value}) if as_gradient else Computed({"x": value})

        return compare("fastrnn", computed((truth + by).float()), computed(theirs), computed(truth))

    assert off(3.9e-5, False) == pytest.approx(1.93, abs=0.03)
    with pytest.raises(MismatchError, match=r"x is off by 2\.2e-05"):
        off(4.4e-5, False)
    off(5.9e-5, True)
    for wrong in (6.4e-5, torch.nan):
        with pytest.raises(MismatchError, match="gradient of x"):
            off(wrong, True)


def nominal(lasts: dict[str, float], calls: list[str]) -> dict[str, Callable[[], object]]:
    """Contestants whose calls last as long as is said, by :func:`nominal_clock`, on however busy a machine."""

    def call(name: str) -> float:
        calls.append(name)
        return lasts[name]

    return {name: partial(call, name) for name in lasts}


def nominal_clock(call: Callable[[], object], repeat: int) -> float:
    return sum(call() for _ in range(repeat))


def test_contestants_take_turns() -> None:
    calls: list[str] = []
    both = nominal(dict.fromkeys("ab", 2 * timing.TURN), calls)
    times = timing.measure(both, seconds=0, at_least=4, clock=nominal_clock)
    assert "".join(calls) == "a" * timing.WARMUP + "b" * timing.WARMUP + "abbaabba"
    assert all(t == timing.Times(2 * timing.TURN, 2 * timing.TURN, 2 * timing.TURN, 4) for t in times.values())


def test_the_clock_is_the_hosts() -> None:
    times = timing.measure({"a": partial(time.sleep, 2 * timing.TURN)}, seconds=0, at_least=4)
    assert times["a"].turns == 4
    assert 2 * timing.TURN <= times["a"].p20 <= times["a"].median <= times["a"].p80


def test_threads_of_others_rest_before_a_turn_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: calls.append(f"({seconds:g})"))
    monkeypatch.setattr(timing, "WARMUP", 1)
    both = nominal({"a": 2 * timing.TURN, "b": 2 * timing.TURN, "l": timing.LEAD}, calls)
    timing.measure(both, seconds=0, at_least=2, apart=["b", "elsewhere"], clock=nominal_clock)
    assert "".join(calls) == "abl" + "aa(0.01)bbl" + "l(0.01)bbaa"
    calls.clear()
    timing.measure({"a": both["a"]}, seconds=0, at_least=2, apart=["b"], clock=nominal_clock)
    assert "".join(calls) == "aaa"


def test_short_calls_share_a_turn() -> None:
    calls: list[None] = []
    times = timing.measure({"short": lambda: calls.append(None)}, seconds=0, at_least=3)
    assert len(calls) > 1000
    assert times["short"].turns == 3
    assert times["short"].median < timing.TURN / 10


def test_layers_are_checked_timed_and_written(
    tiny_grid: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "cpu.jsonl"
    arguments = ["cpu", "--seconds", "0.01", "--threads", "1", "--contestants", "fastrnn", "cell-loop"]
    assert bench([*arguments, "--out", str(out), "--cells", "lstm", "gru", "rnn_tanh", "rnn_relu"]) == 0
    rows = results.read(out)
    assert len(rows) == 4 * 2 * 2
    assert all(set(row.times) == {"torch.nn", "fastrnn", "torch.nn cell loop"} for row in rows)
    assert all(row.provenance.torch == torch.__version__ and row.threads == 1 for row in rows)
    assert all(row.detail["fraction"]["fastrnn"] == row.detail["limit"] / row.times["fastrnn"].median for row in rows)
    assert out.with_suffix(".png").is_file()
    assert "times as fast as torch.nn" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["outputs", "gradients"])
def test_layers_that_differ_are_not_timed(
    tiny_grid: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    def broken(stack: nn.RNNBase) -> nn.Module:
        made = contestants.fastrnn_stack(stack)
        if part == "outputs":
            made.weight_hh_l0.data.mul_(1 + 1e-4)
        else:
            made.weight_hh_l0.register_hook(lambda gradient: gradient * (1 + 1e-4))
        return made

    monkeypatch.setitem(contestants.CONTESTANTS, "fastrnn", broken)
    monkeypatch.setattr(timing, "measure", lambda *_, **__: pytest.fail("was timed"))
    out = tmp_path / "cpu.jsonl"
    assert bench(["cpu", "--cells", "lstm", "--out", str(out)]) == 1
    assert "not timed" in capsys.readouterr().out
    assert results.read(out) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes_are_checked_by_the_same_rule(rates: roofline.Rates, dtype: str) -> None:
    plan = Plan(["gru"], [Shape(2, 3, 4, 5)], dtype, ["torch.nn", "fastrnn"], 0.01)
    rows = list(cpu.measure("gru", plan.shapes[0], plan))
    assert [row.case.mode for row in rows] == ["inference", "training"]


def tiny_plan(**changes: object) -> Plan:
    """All that a benchmark needs to be told, of the least that it can do."""
    return replace(Plan(["lstm", "gru"], [], "float32", ["torch.nn", "fastrnn"], 0.001), **changes)


def test_contestants_that_are_not_there_are_named(
    tiny_grid: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_stack, "find_spec", lambda name: None if name == "onnxruntime" else name)
    out = tmp_path / "cpu.jsonl"
    arguments = ["cpu", "--seconds", "0.01", "--cells", "gru", "--contestants", "fastrnn", "onnx", "--out", str(out)]
    assert bench(arguments) == 0
    assert (
        "ONNX Runtime does not take part in float32: not installed (pip install onnxruntime)" in capsys.readouterr().out
    )
    assert all(set(row.times) == {"torch.nn", "fastrnn"} for row in results.read(out))


def test_slow_contestants_have_fewer_turns() -> None:
    calls = nominal({"slow": 30 * timing.TURN, "a": timing.TURN / 4, "b": timing.TURN / 4}, [])
    times = timing.measure(calls, seconds=0, at_least=40, clock=nominal_clock)
    assert times["slow"].turns == timing.SLOW_TURNS
    assert times["a"].turns == times["b"].turns == 40


@pytest.mark.parametrize("cell", grid.CELLS)
@pytest.mark.parametrize(("layers", "directions"), [(1, 1), (1, 2), (3, 2)])
def test_onnx_runtime_computes_the_same_stack(cell: str, layers: int, directions: int) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    stack = contestants.torch_stack(cell, Shape(3, 4, 5, 6, layers, directions), torch.float32)
    x = torch.randn(4, 3, 5)
    onnx = onnx_stack.OnnxStack(stack)
    assert check_stacks({"ONNX Runtime": onnx}, stack, x)["ONNX Runtime"] < 10


@pytest.mark.parametrize(("cell", "order"), [("LSTM", (0, 1, 2, 3)), ("GRU", (0, 1, 2))])
def test_onnx_runtime_with_gates_in_torchs_order_is_refused(
    monkeypatch: pytest.MonkeyPatch, cell: str, order: tuple[int, ...]
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(onnx_stack.ORDER, cell, order)
    stack = contestants.torch_stack(cell.lower(), Shape(3, 4, 5, 6), torch.float32)
    with pytest.raises(MismatchError, match="ONNX Runtime: y in inference is off"):
        check_stacks({"ONNX Runtime": onnx_stack.OnnxStack(stack)}, stack, torch.randn(4, 3, 5))


def test_whoever_computes_something_else_is_left_out() -> None:
    """And fastrnn refused."""
    stack = contestants.torch_stack("gru", Shape(3, 4, 5, 6), torch.float32)
    wrong, x = contestants.CellLoop(stack), torch.randn(4, 3, 5)
    with torch.no_grad():
        wrong.cells[0].weight_hh.mul_(1.001)
    left_out: dict[str, str] = {}
    ratios = check_stacks({"loop": wrong, "another": contestants.CellLoop(stack)}, stack, x, left_out=left_out)
    assert list(left_out) == ["loop"]
    assert list(ratios) == ["another"]
    with pytest.raises(MismatchError, match="fastrnn: "):
        check_stacks({"fastrnn": wrong}, stack, x, left_out=left_out)


def test_onnx_runtime_takes_part_in_inference(
    tiny_grid: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "cpu.jsonl"
    arguments = ["cpu", "--seconds", "0.01", "--cells", "lstm", "--contestants", "fastrnn", "onnx", "--out", str(out)]
    assert bench([*arguments, "--dtype", "float32", "bfloat16"]) == 0
    rows = results.read(out)
    taking_part = {(row.case.dtype, row.case.mode) for row in rows if "ONNX Runtime" in row.times}
    assert taking_part == {("float32", "inference")}
    assert rows[0].detail["versions"].keys() == {"ONNX Runtime"}
    assert "does not take part in bfloat16: measured in float32 only" in capsys.readouterr().out


def test_the_limit_is_arithmetic_or_reading(rates: roofline.Rates) -> None:
    # one GRU step of one row: 2*3*4*4 = 96 operations each for input and state, weights of 3*4*4*4 = 192 bytes
    once = roofline.work("gru", Shape(1, 1, 4, 4), "float32", "inference", rates)
    more = replace(rates, activations=2.0, call={"inference": 5.0, "training": 9.0})
    assert roofline.work("gru", Shape(1, 1, 4, 4), "float32", "inference", more).limit == once.limit + 3 * 4 / 2 + 5
    ten = roofline.work("lstm", Shape(2, 5, 4, 4), "float32", "training", more).limit
    assert ten == roofline.work("lstm", Shape(2, 5, 4, 4), "float32", "training", rates).limit + 10 * 4 * 5 / 2 + 9
    assert once == roofline.Work(flops=192, limit=96 + 96)
    fast = replace(rates, gemm=1e9)  # now 192 bytes, which are more than 100, take 192 / 40 seconds
    assert roofline.work("gru", Shape(1, 7, 4, 4), "float32", "inference", fast).limit == pytest.approx(7 * 4.8)
    assert roofline.work("gru", Shape(1, 7, 4, 4), "bfloat16", "inference", fast).limit == pytest.approx(7 * 2.4)
    assert roofline.work("gru", Shape(1, 7, 4, 4), "float32", "training", fast).limit == pytest.approx(2 * 7 * 4.8)
    training = roofline.work("gru", Shape(1, 1, 4, 4), "float32", "training", rates)
    assert training == roofline.Work(flops=3 * 192, limit=3 * 192)
    # two layers of two directions: the second layer's input is twice as wide
    deep = roofline.work("rnn_tanh", Shape(3, 5, 4, 6, layers=2, directions=2), "float32", "inference", rates)
    assert deep.flops == deep.limit == 2 * 2 * 15 * 6 * ((4 + 6) + (12 + 6))
    ragged = roofline.work("gru", Shape(3, 2, 4, 4), "float32", "inference", rates, batch_sizes=[3, 1])
    assert ragged == roofline.Work(flops=4 * 192, limit=4 * 192)


def test_the_full_grid_is_the_core_grid_and_more() -> None:
    full = grid.GRIDS["full"]
    assert len(full) == len(set(full)) >= 40
    assert set(grid.GRIDS["quick"]) < set(grid.GRIDS["core"]) < set(full)
    assert {shape.batch for shape in full} >= {1, 8, 64, 256}
    assert set(targets.GEMM_SHAPES) < set(grid.CORE)


def test_a_small_matrix_is_read_as_fast_as_a_large_one() -> None:
    rates = roofline.Rates(1.0, {100: 5.0, 1000: 20.0, 10_000: 10.0})
    assert [rates.bandwidth(size) for size in (1, 100, 999, 1000, 9999, 10**9)] == [20, 20, 20, 20, 20, 10]


def test_rates_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "PRODUCTS", (64, 128))
    monkeypatch.setattr(roofline, "READ", (2**14, 2**17))
    monkeypatch.setattr(roofline, "SECONDS", 0.01)
    roofline.measured.cache_clear()
    try:
        rates = roofline.measured("bfloat16", torch.get_num_threads())
        assert rates.gemm > 1e6
        assert rates.reading.keys() == set(roofline.READ)
        assert all(1e6 < rate < 1e15 for rate in rates.reading.values())
        with pytest.raises(ValueError, match="threads"):
            roofline.measured("bfloat16", torch.get_num_threads() + 1)
    finally:
        roofline.measured.cache_clear()  # what was measured here is no good for anyone else


SPECIAL = {
    "streaming": lambda cell, plan: streaming.measure(cell, plan, Shape(2, 1, 4, 5)),
    "packed": lambda cell, plan: packed.measure(cell, plan, Shape(4, 6, 4, 5)),
    "reset": lambda cell, plan: resets.measure(cell, plan, Shape(3, 6, 4, 5)),
    "tape": lambda cell, plan: tape.measure(cell, plan, Shape(2, 70, 4, 5)),
    "weights": lambda cell, plan: weights.measure(cell, plan, Shape(2, 3, 4, 5)),
    "scaling": lambda cell, plan: scaling.measure(cell, plan, scaling.Point("threads", 1, Shape(2, 3, 4, 5))),
}


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("benchmark", SPECIAL)
def test_benchmarks_beside_the_grid(
    rates: roofline.Rates, monkeypatch: pytest.MonkeyPatch, benchmark: str, cell: str
) -> None:
    monkeypatch.setattr(resets, "PART", 0.3)
    before = torch.get_num_threads()
    rows = list(SPECIAL[benchmark](cell, tiny_plan()))
    assert {(row.benchmark, row.case.cell) for row in rows} == {(benchmark, cell)}
    assert all({"torch.nn", "fastrnn"} <= set(row.times) and row.detail["fraction"]["fastrnn"] > 0 for row in rows)
    assert torch.get_num_threads() == before
    assert torch.is_grad_enabled()
    if benchmark == "scaling":
        assert all(row.threads == 1 for row in rows)
    if benchmark == "tape":
        (row,) = rows
        y = row.detail["y_bytes"]
        assert y <= row.detail["kept_bytes"]["fastrnn lean"] < row.detail["kept_bytes"]["fastrnn"]
        assert y == 70 * 2 * 5 * 4


@pytest.mark.parametrize("benchmark", SPECIAL)
def test_benchmarks_beside_the_grid_time_nothing_that_differs(
    rates: roofline.Rates, monkeypatch: pytest.MonkeyPatch, benchmark: str
) -> None:
    def broken(stack: nn.RNNBase) -> nn.Module:
        made = contestants.fastrnn_stack(stack)
        made.weight_hh_l0.data.mul_(1 + 1e-3)
        return made

    module = {"reset": resets}.get(benchmark) or globals()[benchmark]
    monkeypatch.setattr(module, "fastrnn_stack", broken)
    monkeypatch.setattr(timing, "measure", lambda *_, **__: pytest.fail("was timed"))
    with pytest.raises(MismatchError, match="fastrnn"):
        list(SPECIAL[benchmark]("lstm", tiny_plan()))


def test_a_loop_over_steps_begins_anew_where_it_is_told() -> None:
    lstm = nn.LSTM(3, 4)
    x, reset = torch.randn(6, 2, 3), torch.zeros(6, 2, dtype=torch.bool)
    reset[4, 1] = True
    for network in (lstm, contestants.CellLoop(lstm).cells[0]):
        y, (h_n, _) = resets.Loop(network, reset, 4)(x)
        torch.testing.assert_close(y[:4], lstm(x[:4])[0])
        torch.testing.assert_close(y[4:, 1], lstm(x[4:, 1])[0])
        torch.testing.assert_close(y[:, 0], lstm(x[:, 0])[0])
        torch.testing.assert_close(h_n[0], y[-1])


def test_kept_bytes_count_each_storage_once_and_nothing_that_is_given() -> None:
    class Model(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x).tanh()  # keeps x, the weight, and the output of tanh
            return y[:2] * y[2:]  # keeps two parts of the same output

    model = Model(3, 5)
    assert tape.kept_bytes(model, torch.randn(4, 3)) == 4 * 5 * 4


def test_the_core_grid_ends_with_every_target(
    rates: roofline.Rates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(grid.GRIDS, "core", (Shape(2, 3, 4, 5),))
    for name, module in (("packed", packed), ("reset", resets), ("tape", tape), ("scaling", scaling)):
        monkeypatch.setattr(
            module, "jobs", lambda plan, name=name: [Job(name, 1, partial(SPECIAL[name], "lstm", plan))]
        )
    out = tmp_path / "cpu.jsonl"
    assert bench(["cpu", "--grid", "core", "--seconds", "0.01", "--cells", "lstm", "--out", str(out)]) == 0
    rows = results.read(out)
    assert {row.benchmark for row in rows} == {"layer", *SPECIAL}
    measured = capsys.readouterr().out
    assert bench(["report", str(out)]) == 0
    for printed in (measured, capsys.readouterr().out):
        assert "packed GRU, training" in printed
        assert printed.count("not measured") == sum(reached.met is None for reached in targets.reached(rows)) > 10


def test_rows_round_trip(tmp_path: Path) -> None:
    rows = [make_row(), make_row(detail={"text": "π", "curve": [1.5, 2.0]})]
    path = tmp_path / "folder" / "rows.jsonl"
    results.write(path, rows)
    assert results.read(path) == rows
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert first["speedup"] == {"fastrnn": 1.5}
    assert first["case"]["hidden"] == 5


@pytest.mark.parametrize("line", ["no json", "[]", "{}", '{"speedup": {}, "case": {}}'])
def test_lines_that_are_no_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    path = tmp_path / "rows.jsonl"
    results.write(path, [make_row()])
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    assert bench(["plot", str(path)]) == 2
    assert "line 2" in capsys.readouterr().err


def test_provenance_is_of_this_process() -> None:
    made = results.Provenance.here_and_now()
    assert (made.torch, made.fastrnn) == (torch.__version__, fastrnn.__version__)
    assert made.isa
    assert made.cpu


def test_pictures_are_made_from_results_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curve = {"seconds": [1.0, 2.0], "loss": [3.0, 2.0]}
    detail = {
        "data": {"text": "a text"},
        "items": "tokens",
        "items_per_second": {"torch.nn": 1.0, "fastrnn": 2.0},
        "quality": {"torch.nn": {"perplexity": 5.0}, "fastrnn": {"perplexity": 5.0}},
        "curves": {"torch.nn": curve, "fastrnn": curve},
    }
    kept = {"kept_bytes": {"torch.nn": 9, "fastrnn": 5, "fastrnn lean": 1}, "y_bytes": 1}
    scales = [
        make_row(benchmark="scaling", detail={"axis": axis, "value": value}) for axis in "BTH" for value in (1, 10)
    ]
    series = [make_row(benchmark="tape", detail=kept, times=seconds(torch=3, fastrnn=1, lean=2)), *scales]
    path = tmp_path / "rows.jsonl"
    with_onnx = case_row("lstm", "inference", times=seconds(torch=3, fastrnn=1, onnx=2))
    results.write(path, [make_row(), with_onnx, *series, make_row(benchmark="language_model", detail=detail)])
    assert bench(["plot", str(path), "--out", str(tmp_path / "pictures")]) == 0
    pictures = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [picture.stem for picture in pictures] == ["rows", "rows-scaling", "rows-tape", "rows-language_model"]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.parametrize("arguments", [["plot", "nowhere.jsonl"], ["plot", "."]])
def test_results_that_are_not_there(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(arguments) == 2
    assert "is not a file" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["cpu", "--threads", "0"], ["cpu", "--seconds", "nan"], ["cpu", "--grid", "x"]])
def test_mistakes_in_arguments(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench(arguments)
    assert stopped.value.code == 2
