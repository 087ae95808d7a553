"""Targets: what rows of results say of them."""

from dataclasses import replace

import pytest
from rows import SHAPE, case_row, seconds

from bench import results, targets
from bench.grid import Shape


def outcome(what: str, *rows: results.Row) -> targets.Reached:
    """What these rows say of one target; of most others they say nothing."""
    (found,) = [reached for reached in targets.reached(rows) if reached.target.what == what]
    return found


def on(isa: str, row: results.Row) -> results.Row:
    """The row as measured with an instruction set."""
    return replace(row, provenance=replace(row.provenance, isa=isa))


def test_a_target_of_the_grid_is_a_mean_and_a_worst_case() -> None:
    def rows(*ratios: float) -> list[results.Row]:
        return [
            case_row("gru", "training", Shape(2, 3, 4, k), times=seconds(torch=ratio, fastrnn=1))
            for k, ratio in enumerate(ratios, 5)
        ]

    other = case_row("lstm", "training", times=seconds(torch=1, fastrnn=9))
    met = outcome("torch.nn.GRU, training", *rows(1.1, 8.3), other)
    assert (met.mean, met.worst, met.met) == (pytest.approx(9.13**0.5), ("gru B2 T3 I4 H5", 1.1, None), True)
    assert outcome("torch.nn.GRU, training", *rows(1.09, 30)).met is False
    assert outcome("torch.nn.GRU, training", *rows(1.1, 8.1)).met is False
    for unmeasured in ("torch.nn.GRU, inference", "torch.nn.LSTM, training", "ONNX Runtime GRU"):
        assert outcome(unmeasured, *rows(1, 9)).met is None


@pytest.mark.parametrize(
    ("what", "benchmark", "mode", "missed_by"),
    [
        ("ONNX Runtime LSTM", "layer", "inference", {"onnx": 1.2}),
        ("one step: torch.nn.LSTM", "streaming", "inference", {"torch": 5.9}),
        ("one step: torch.nn.LSTMCell", "streaming", "inference", {"cell": 2.9}),
        ("bfloat16 weights: float32's time / theirs", "weights", "inference", {"half": 0.51}),
        ("packed LSTM, training", "packed", "training", {"torch": 4.9}),
        ("reset LSTM: faster loop", "reset", "training", {"loop": 7.9}),
        ("reset LSTM: faster loop", "reset", "training", {"torch": 7.9}),
        ("reset: time / without resets", "reset", "training", {"without": 0.9}),
        ("lean tape: time / full tape's", "tape", "training", {"lean": 1.36}),
    ],
)
def test_targets_of_one_case(what: str, benchmark: str, mode: str, missed_by: dict[str, float]) -> None:
    medians = {"fastrnn": 1, "torch": 10, "cell": 4, "loop": 9, "onnx": 1.4, "lean": 1.35, "without": 0.92}
    medians |= {"own_cell": 1, "half": 0.5}
    shape = targets.HALVED if benchmark == "weights" else SHAPE
    detail = {"kept_bytes": {"fastrnn lean": 1}, "y_bytes": 1}
    for changed, met in (({}, True), (missed_by, False)):
        row = case_row("lstm", mode, shape, benchmark=benchmark, times=seconds(**(medians | changed)), detail=detail)
        assert outcome(what, row).met is met


def test_targets_in_details() -> None:
    def tape_row(kept: int) -> results.Row:
        detail = {"kept_bytes": {"fastrnn lean": kept}, "y_bytes": 100}
        return case_row("lstm", "training", benchmark="tape", times=seconds(fastrnn=1, lean=1), detail=detail)

    assert outcome("lean tape: bytes kept / of y", tape_row(125)).met
    assert outcome("lean tape: bytes kept / of y", tape_row(100), tape_row(126)).met is False

    def gemm_row(part: float, shape: Shape = targets.GEMM_SHAPES[0]) -> results.Row:
        return case_row("lstm", "training", shape, detail={"gemm_fraction": {"fastrnn": part}})

    what = "part of GEMM rate, training"
    assert outcome(what, gemm_row(0.82), gemm_row(0.1, Shape(1, 1, 4, 4))).met
    missed = outcome(what, gemm_row(0.9), gemm_row(0.81, targets.GEMM_SHAPES[1]))
    assert (missed.worst, missed.met) == (("lstm B64 T50 I1024 H1024", 0.81, None), False)

    def long_row(steps: int, took: float) -> results.Row:
        case = ("lstm", "training", Shape(1, steps, 4, 4))
        return case_row(*case, benchmark="scaling", times=seconds(fastrnn=took), detail={"axis": "T", "value": steps})

    what = "step at T100000 / T1000, training"
    assert outcome(what, long_row(1000, 1), long_row(100_000, 119)).met
    assert outcome(what, long_row(1000, 1), long_row(100_000, 121)).met is False
    assert outcome(what, long_row(1000, 1)).met is None

    half = on("avx512", case_row("rnn_tanh", "inference", dtype="bfloat16", times=seconds(torch=0.99, fastrnn=1)))
    assert outcome("torch.nn in bfloat16", half).met is False
    assert outcome("torch.nn.RNN, inference", half).met is None


def test_bounds_are_those_of_the_rows_instruction_set() -> None:
    """Rows of other instruction sets say nothing, and each column is judged by its own."""
    row = case_row("lstm", "inference", times=seconds(torch=1.6, fastrnn=1))
    slow = case_row("lstm", "inference", times=seconds(torch=1, fastrnn=2))
    what = "torch.nn.LSTM, inference"
    for isa, met in (("base", True), ("avx2", True), ("avx512", False), ("avx512bf16", False), ("amx", False)):
        assert outcome(what, on(isa, row)).met is met
    both = [one for one in targets.reached([on("avx2", row), on("amx", slow)]) if one.target.what == what]
    assert [(one.target.column, one.target.mean, one.met) for one in both] == [
        ("AVX2", 1.5, True),
        ("AVX-512", 1.8, False),
    ]
    found = targets.reached([on("avx2", row)])
    assert {one.target.column for one in found} == {"AVX2"}
    assert "torch.nn in bfloat16" not in {one.target.what for one in found}
    assert {one.target.column for one in targets.reached([])} == set(targets.COLUMNS)


def test_rows_of_one_thread_have_targets_of_their_own() -> None:
    row = on("avx2", case_row("gru", "training", times=seconds(torch=2.7, fastrnn=1)))
    assert outcome("torch.nn.GRU, training", row).met is False
    assert outcome("one thread: GRU, training", row).met is None
    alone = replace(row, threads=1)
    assert outcome("one thread: GRU, training", alone).met
    assert outcome("torch.nn.GRU, training", alone).met is None


def test_single_steps_by_their_units() -> None:
    """AVX2's target is about up to 256 units, AVX-512's about 128."""

    def step(isa: str, hidden: int, ratio: float) -> results.Row:
        times = seconds(torch=ratio, cell=1.0, fastrnn=1, own_cell=0.1)
        return on(isa, case_row("lstm", "inference", Shape(1, 1, 8, hidden), benchmark="streaming", times=times))

    what = "one step: torch.nn.LSTM"
    assert outcome(what, step("avx2", 128, 9), step("avx2", 256, 6), step("avx2", 512, 1)).met
    assert outcome(what, step("avx2", 128, 9), step("avx2", 256, 5.9)).met is False
    assert outcome("one step, H128: torch.nn.LSTM", step("avx512", 128, 10), step("avx512", 160, 8)).met
    assert outcome("one step, H128: torch.nn.LSTM", step("avx512", 128, 9.9)).met is False


def test_the_demo_is_one() -> None:
    def demo(ratio: float) -> results.Row:
        return case_row("lstm", "training", benchmark="language_model", times=seconds(torch=ratio, fastrnn=1))

    assert outcome("make demo, training", demo(1.16)).met
    assert outcome("make demo, training", demo(1.14)).met is False
