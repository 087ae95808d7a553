"""What is to be reached on a GPU: whose rows count, and what they say. No row here was ever measured."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rows import make_row, seconds

from bench import report, results
from bench.__main__ import main as bench
from bench.gpu import cases, targets
from bench.grid import Shape
from fastrnn.kernels.cudnn import Algorithm

H100 = results.Device("NVIDIA H100 80GB HBM3", "9.0", "580", "13.0", "91300", "3.6.0", 132)
LAYER = Shape(16, 128, 512, 512)
WHAT = "cuDNN's standard path, "


def row(
    cell: str = "gru",
    shape: Shape = LAYER,
    dtype: str = "bfloat16",
    mode: str = "inference",
    device: results.Device | None = H100,
    benchmark: str = "layer",
    detail: dict[str, object] | None = None,
    **medians: float,
) -> results.Row:
    """A row that was never measured, of a GPU."""
    times = seconds(**(medians or {"torch": 3, "fastrnn": 1}))
    times = {name.replace("_", " "): value for name, value in times.items()}
    case = results.Case.of(cell, shape, dtype, mode)
    tf32 = {"tf32": True} if dtype == "float32" else {"tf32": None}
    made = make_row(benchmark=benchmark, case=case, times=times, detail=tf32 | (detail or {}))
    return replace(made, provenance=replace(made.provenance, device=device))


def judged(what: str, *rows: results.Row) -> targets.Judged:
    """What these rows, all of one GPU, say of one target."""
    ((_, found),) = targets.judged(rows).items()
    (one,) = [one for one in found if one.target.what == what]
    return one


def asked(
    cell: str,
    shape: Shape,
    dtype: str,
    mode: str = "inference",
    device: results.Device = H100,
    benchmark: str = "layer",
) -> set[Algorithm]:
    return targets.algorithms(row(cell, shape, dtype, mode, device, benchmark))


def size(batch: int = 16, hidden: int = 512, **more: int) -> Shape:
    return Shape(**{"batch": batch, "steps": 128, "input": hidden, "hidden": hidden} | more)


@pytest.mark.parametrize(
    ("cell", "shape", "dtype"),
    [
        ("lstm", cases.PUBLISHED, "float16"),
        ("lstm", size(), "float16"),
        ("lstm", size(8, 1024), "float16"),
        ("lstm", size(128, 256), "float16"),
        ("rnn_tanh", size(64, 1024), "float16"),
        ("rnn_relu", size(128, 768), "float16"),
    ],
)
def test_layers_that_cudnn_keeps_on_chip(cell: str, shape: Shape, dtype: str) -> None:
    for mode in ("inference", "training"):
        assert asked(cell, shape, dtype, mode) == {Algorithm.PERSISTENT}
    for few in (replace(H100, processors=97), replace(H100, capability="8.6")):
        assert asked(cell, shape, dtype, device=few) == {Algorithm.STANDARD}
    assert asked(cell, shape, dtype, device=replace(H100, processors=None)) == {Algorithm.UNKNOWN}
    assert asked(cell, shape, dtype, benchmark="packed") == {Algorithm.STANDARD}


@pytest.mark.parametrize(
    ("cell", "shape", "dtype"),
    [
        ("gru", size(), "float16"),
        ("lstm", size(), "bfloat16"),
        ("lstm", size(), "float32"),
        ("lstm", size(layers=2), "float16"),
        ("lstm", size(directions=2), "float16"),
        ("lstm", size(136), "float16"),
        ("lstm", size(1), "float16"),
        ("lstm", size(12), "float16"),
        ("lstm", size(hidden=1152), "float16"),
        ("lstm", size(hidden=320), "float16"),
        ("lstm", size(input=500), "float16"),
        ("rnn_tanh", size(96, 896), "float16"),
        ("lstm", size(hidden=64), "float64"),
    ],
)
def test_layers_that_cudnn_computes_by_its_standard_algorithm(cell: str, shape: Shape, dtype: str) -> None:
    for mode in ("inference", "training"):
        assert asked(cell, shape, dtype, mode) == {Algorithm.STANDARD}
    assert asked(cell, shape, dtype, device=replace(H100, processors=None)) == {Algorithm.STANDARD}


@pytest.mark.parametrize(
    ("cell", "hidden", "forward", "both"),
    [
        ("lstm", 128, {Algorithm.SMALL}, {Algorithm.SMALL}),
        ("gru", 129, {Algorithm.SMALL}, {Algorithm.SMALL, Algorithm.STANDARD}),
        ("gru", 192, {Algorithm.SMALL}, {Algorithm.SMALL, Algorithm.STANDARD}),
        ("lstm", 193, {Algorithm.STANDARD}, {Algorithm.STANDARD}),
        ("rnn_tanh", 256, {Algorithm.SMALL}, {Algorithm.SMALL}),
        ("rnn_relu", 384, {Algorithm.SMALL}, {Algorithm.SMALL, Algorithm.STANDARD}),
        ("rnn_tanh", 385, {Algorithm.STANDARD}, {Algorithm.STANDARD}),
    ],
)
def test_small_layers(cell: str, hidden: int, forward: set[Algorithm], both: set[Algorithm]) -> None:
    for shape in (size(hidden=hidden), size(hidden=hidden, layers=2, directions=2), size(1, hidden)):
        assert asked(cell, shape, "bfloat16") == forward
        assert asked(cell, shape, "bfloat16", "training") == both


def test_bfloat16_is_cudnns_from_a_version_on() -> None:
    assert asked("gru", size(), "bfloat16", device=replace(H100, cudnn="91200")) == {Algorithm.OTHER}
    assert asked("gru", size(), "float16", device=replace(H100, cudnn="91200")) == {Algorithm.STANDARD}
    assert asked("gru", size(), "float16", device=replace(H100, cudnn="None")) == {Algorithm.OTHER}


def test_a_row_of_a_cpu_is_no_row_of_cudnn() -> None:
    with pytest.raises(ValueError, match="expected a row of a GPU, got one of a CPU"):
        targets.algorithms(row(device=None))


@pytest.mark.parametrize(("mode", "least"), [("inference", 2), ("training", 1.8)])
def test_the_standard_path_is_a_mean_and_no_row_below_one(mode: str, least: float) -> None:
    what = WHAT + {"inference": "forward", "training": "training"}[mode]
    slow, fast = row(mode=mode, torch=1, fastrnn=1), row("lstm", mode=mode, torch=least**2 + 1e-9, fastrnn=1)
    met = judged(what, slow, fast)
    assert (met.values, met.planned.met, met.planned.worst.number) == (2, True, 1)
    assert met.planned.mean == pytest.approx(least)
    assert judged(what, slow, row(mode=mode, torch=least**2 - 1e-3, fastrnn=1)).planned.met is False
    assert judged(what, fast, row(mode=mode, torch=0.99, fastrnn=1), fast, fast).planned.met is False
    other = {"inference": "training", "training": "inference"}[mode]
    assert judged(what, row(mode=other)).planned.met is None


@pytest.mark.parametrize(
    "other",
    [
        row("lstm", cases.PUBLISHED, "float16"),
        row("rnn_tanh"),
        row(shape=size(hidden=128)),
        row(shape=size(hidden=2048)),
        row(shape=size(batch=65)),
        row(shape=size(steps=64)),
        row(dtype="float32", detail={"tf32": False}),
        row(benchmark="packed"),
        row(detail={"clock": "graphs"}),
        row(device=replace(H100, cudnn="90000")),
        row(torch=1),
        row(fastrnn=1),
    ],
    ids=lambda r: f"{r.benchmark} {r.case.cell} {r.case.shape} {r.case.dtype} {sorted(r.times)}",
)
def test_other_rows_do_not_count(other: results.Row) -> None:
    assert not any(one.planned.mean for one in targets.judged([other]).get(H100.name, []) if WHAT in one.target.what)


def test_rows_of_the_targets_part_count() -> None:
    """Each that is no special case, in each mode: what is measured is what is judged."""
    made = [task for task in cases.tasks(cases.Selection(parts=["targets"])) if task.benchmark == "layer"]
    own = [row(task.cell, task.shape, task.dtype, mode) for task in made for mode in task.modes]
    counted = judged(WHAT + "forward", *own).values
    assert counted == judged(WHAT + "training", *own).values == len(made) - 1  # float16 is cuDNN's best case
    assert judged("cuDNN's best case, forward", *own).values == 1
    assert judged("FlashRNN's published time, training", *own).values == 1


def test_what_the_best_strategies_would_reach() -> None:
    """A plan that leaves a row to torch, though a strategy is faster; one strategy that is slower than its plan."""
    rows = [row(torch=3, fastrnn=3, fastrnn_grid=1, fastrnn_stepwise=2), row(torch=3, fastrnn=1, fastrnn_grid=4)]
    found = judged(WHAT + "forward", *rows)
    assert (found.planned.mean, found.planned.met) == (pytest.approx(3**0.5), False)
    assert (found.best.mean, found.best.worst.number, found.best.met) == (pytest.approx(3), 3, True)
    lean = row(**{"torch": 3, "fastrnn": 3, "fastrnn grid, lean tape": 1})
    assert targets.with_best_strategy(lean).times["fastrnn"].median == 3
    assert targets.with_best_strategy(row(torch=1)) == row(torch=1)


@pytest.mark.parametrize(
    ("what", "mode", "met_by", "missed_by", "more"),
    [
        ("cuDNN's best case, forward", "inference", {"torch": 1}, {"torch": 0.99}, {"dtype": "float16"}),
        ("cuDNN's best case, training", "training", {"torch": 1}, {"torch": 0.99}, {"dtype": "float16"}),
        ("FlashRNN's published time, forward", "inference", {"fastrnn": 2.43e-3}, {"fastrnn": 2.44e-3}, {}),
        ("FlashRNN's published time, training", "training", {"fastrnn": 6.80e-3}, {"fastrnn": 6.81e-3}, {}),
    ],
)
def test_the_published_shape(
    what: str, mode: str, met_by: dict[str, float], missed_by: dict[str, float], more: dict[str, str]
) -> None:
    for medians, met in ((met_by, True), (missed_by, False)):
        one = row("lstm", cases.PUBLISHED, mode=mode, **more, **({"torch": 1, "fastrnn": 1} | medians))
        assert judged(what, one).planned.met is met
        for other in (
            replace(one, case=replace(one.case, steps=512)),
            replace(one, case=replace(one.case, cell="gru")),
            replace(one, case=replace(one.case, dtype="float32")),
        ):
            assert judged(what, other).planned.met is None


def test_published_times_are_compared_on_the_gpu_that_they_are_of() -> None:
    other = row("lstm", cases.PUBLISHED, device=replace(H100, name="NVIDIA A100"), torch=1, fastrnn=1e-3)
    assert judged("FlashRNN's published time, forward", other).planned.met is None


@pytest.mark.parametrize(
    ("what", "benchmark", "mode", "missed_by"),
    [
        ("packed, forward", "packed", "inference", {"torch": 4.99}),
        ("packed, training", "packed", "training", {"torch": 4.99}),
        ("reset: faster loop, forward", "reset", "inference", {"torch": 19.9}),
        ("reset: faster loop, training", "reset", "training", {"loop": 19.9}),
    ],
)
def test_targets_of_one_case(what: str, benchmark: str, mode: str, missed_by: dict[str, float]) -> None:
    least = {"torch": 20, "loop": 20} if benchmark == "reset" else {"torch": 5}
    for changed, met in (({}, True), (missed_by, False)):
        one = row(mode=mode, benchmark=benchmark, **{"fastrnn": 1, **least, **changed})
        assert judged(what, one).planned.met is met


def test_the_lean_tape_by_each_strategy() -> None:
    def one(kept: int, peak: int) -> results.Row:
        names = ("fastrnn grid", "fastrnn grid, lean tape", "fastrnn stepwise")
        detail = {
            "y_bytes": 100,
            "kept_bytes": dict(zip(names, (900, kept, 900), strict=True)),
            "peak_bytes": dict(zip(names, (2000, peak, 2000), strict=True)),
        }
        return row(
            "lstm", benchmark="lean", mode="training", detail=detail, torch=1, fastrnn=1, **dict.fromkeys(names, 1)
        )

    kept, peak = "lean tape: bytes kept / of y", "lean tape: peak / full tape's"
    assert judged(kept, one(125, 2000)).planned.met
    assert judged(kept, one(125, 2000), one(126, 2000)).planned.met is False
    assert judged(peak, one(1, 2000)).planned.met
    assert judged(peak, one(1, 2001)).planned.met is False
    assert judged(peak, one(1, 1000)).planned.mean == 0.5


def test_steps_with_a_barrier() -> None:
    def one(steps: int) -> results.Row:
        what = f"step with a barrier of 128 programs, of {steps}, all right"
        return row(benchmark="latency", detail={"what": what}, torch=1)

    what = "steps with a barrier, all right"
    assert judged(what, one(10_000_000)).planned.met
    assert judged(what, one(9_999_999)).planned.met is False
    assert judged(what, row(benchmark="latency", detail={"what": "step with a barrier of 128 programs"})).values == 0


def shown(tables: Sequence[object]) -> str:
    from rich.console import Console

    console = Console(width=160, record=True, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.export_text()


def test_the_table_says_what_is_met_and_what_was_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(torch=3, fastrnn=1), row(benchmark="packed", mode="training", torch=4, fastrnn=2, fastrnn_grid=0.5)]
    lines = shown(report.targets_tables(rows)).splitlines()
    assert [line for line in lines if "torch.nn.LSTM" in line] == []  # nothing of a CPU
    (standard,) = [line for line in lines if line.strip().startswith(WHAT + "forward")]
    assert "mean ≥ 2, all ≥ 1" in standard
    assert standard.split()[-3:] == ["yes", "3.00", "(3.00)"]
    (packed,) = [line for line in lines if line.strip().startswith("packed, training")]
    assert "2.00, gru B16 T128 I512 H512 bfloat16" in packed
    assert packed.split()[-3:] == ["no", "8.00", "(8.00)"]
    assert sum("not measured" in line for line in lines) == len(targets.TARGETS) - 2
    on_two = [*rows, row(device=replace(H100, name="another GPU")), row(device=None, dtype="float32")]
    titles = [table.title for table in report.targets_tables(on_two)]
    assert titles == ["targets: AVX2", f"targets: {H100.name}", "targets: another GPU"]
    assert [table.title for table in report.targets_tables([])] == ["targets: AVX2", "targets: AVX-512"]
    path = tmp_path / "gpu.jsonl"
    results.write(path, rows)
    assert bench(["report", str(path)]) == 0
    assert f"targets: {H100.name}" in capsys.readouterr().out
