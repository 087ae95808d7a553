"""Targets: what rows of results say of them."""

import pytest
from rows import SHAPE, case_row, seconds

from bench import results, targets
from bench.grid import Shape


def outcome(what: str, *rows: results.Row) -> targets.Reached:
    """What these rows say of one target; of most others they say nothing."""
    (found,) = [reached for reached in targets.reached(rows) if reached.target.what == what]
    return found


def test_a_target_of_the_grid_is_a_mean_and_a_worst_case() -> None:
    def rows(*ratios: float) -> list[results.Row]:
        return [
            case_row("gru", "training", Shape(2, 3, 4, k), times=seconds(torch=ratio, fastrnn=1))
            for k, ratio in enumerate(ratios, 5)
        ]

    other = case_row("lstm", "training", times=seconds(torch=1, fastrnn=9))
    met = outcome("torch.nn.GRU, training", *rows(1, 9.1), other)
    assert (met.mean, met.worst, met.met) == (pytest.approx(9.1**0.5), ("gru B2 T3 I4 H5", 1, None), True)
    assert outcome("torch.nn.GRU, training", *rows(0.99, 30)).met is False
    assert outcome("torch.nn.GRU, training", *rows(1, 8.9)).met is False
    for unmeasured in (
        "torch.nn.GRU, inference",
        "torch.nn.LSTM, training",
        "ONNX Runtime GRU",
        "torch.nn in bfloat16",
    ):
        assert outcome(unmeasured, *rows(1, 9)).met is None


@pytest.mark.parametrize(
    ("what", "benchmark", "mode", "missed_by"),
    [
        ("ONNX Runtime LSTM", "layer", "inference", {"onnx": 1.2}),
        ("one step: torch.nn.LSTM", "streaming", "inference", {"torch": 9.9}),
        ("one step: torch.nn.LSTMCell", "streaming", "inference", {"cell": 3.9}),
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
    assert outcome(what, gemm_row(0.85), gemm_row(0.1, Shape(1, 1, 4, 4))).met
    missed = outcome(what, gemm_row(0.9), gemm_row(0.84, targets.GEMM_SHAPES[1]))
    assert (missed.worst, missed.met) == (("lstm B64 T50 I1024 H1024", 0.84, None), False)

    def long_row(steps: int, took: float) -> results.Row:
        case = ("lstm", "training", Shape(1, steps, 4, 4))
        return case_row(*case, benchmark="scaling", times=seconds(fastrnn=took), detail={"axis": "T", "value": steps})

    what = "step at T100000 / T1000, training"
    assert outcome(what, long_row(1000, 1), long_row(100_000, 119)).met
    assert outcome(what, long_row(1000, 1), long_row(100_000, 121)).met is False
    assert outcome(what, long_row(1000, 1)).met is None

    half = case_row("rnn_tanh", "inference", dtype="bfloat16", times=seconds(torch=0.99, fastrnn=1))
    assert outcome("torch.nn in bfloat16", half).met is False
    assert outcome("torch.nn.RNN, inference", half).met is None
