"""What fastrnn is to reach on a CPU, and whether rows of results reach it."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.contestants import CELL_LOOP, ONNX
from bench.grid import Shape
from bench.resets import WITHOUT
from bench.results import BASELINE, Row
from bench.streaming import FASTRNN_CELL, TORCH_CELL
from bench.tape import LEAN
from bench.weights import HALF

GEMM_SHAPES = (Shape(64, 50, 512, 512), Shape(64, 50, 1024, 1024))  # where arithmetic is all there is
HALVED = Shape(1, 100, 512, 512)  # whose float32 weights are more than a second-level cache holds
LINEAR = (1000, 100_000)  # steps between which the time of a step may grow by a fifth: caches are left behind
RNNS = ("rnn_tanh", "rnn_relu")


class Value(NamedTuple):
    """A number, the case that it is of and, of a ratio, the part of the machine's limit that fastrnn reaches there."""

    case: str
    number: float
    fraction: float | None = None


@dataclass(frozen=True)
class Target:
    """A number that is to be reached by every case, or by their geometric mean, or both.

    ``least`` and ``mean`` are bounds from below, ``most`` is one from above.
    """

    what: str
    values: Callable[[Sequence[Row]], list[Value]]
    mean: float | None = None
    least: float | None = None
    most: float | None = None

    def needs(self) -> str:
        """The bounds in words."""
        parts = []
        if self.mean is not None:
            parts.append(f"mean ≥ {self.mean:g}")
        if self.least is not None:
            parts.append(f"all ≥ {self.least:g}")
        if self.most is not None:
            parts.append(f"all ≤ {self.most:g}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Reached:
    """What the rows say of a target; ``mean`` and ``worst`` are None where none is about it.

    ``at_limit`` is what the mean would be if fastrnn took no longer than the machine's limit; None where the target is
    no ratio to others.
    """

    target: Target
    mean: float | None
    worst: Value | None
    at_limit: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether it is reached; None where it was not measured."""
        if self.mean is None or self.worst is None:
            return None
        target, worst = self.target, self.worst.number
        return (
            (target.mean is None or self.mean >= target.mean)
            and (target.least is None or worst >= target.least)
            and (target.most is None or worst <= target.most)
        )


def reached(rows: Sequence[Row]) -> list[Reached]:
    """Every target, with what these rows say of it."""
    on_cpu = [row for row in rows if row.provenance.device is None]
    return [outcome(target, on_cpu) for target in TARGETS]


def outcome(target: Target, rows: Sequence[Row]) -> Reached:
    """What these rows say of a target."""
    values = target.values(rows)
    if not values:
        return Reached(target, None, None)
    worst = (max if target.most is not None else min)(values, key=lambda value: value.number)
    best = [value.number / min(value.fraction, 1) for value in values if value.fraction is not None]
    return Reached(target, _mean([value.number for value in values]), worst, _mean(best) if best else None)


def _mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def _of(
    rows: Iterable[Row], benchmark: str, cells: Sequence[str], modes: Sequence[str], dtype: str = "float32"
) -> list[Row]:
    return [
        row
        for row in rows
        if row.benchmark == benchmark
        and row.case.cell in cells
        and row.case.mode in modes
        and row.case.dtype == dtype
        and "fastrnn" in row.times
    ]


def _named(row: Row) -> str:
    return f"{row.case.cell} {row.case.shape}"


def _ratio(row: Row, against: str, ours: str = "fastrnn") -> Value:
    return Value(_named(row), row.ratio(ours, against), row.detail.get("fraction", {}).get(ours))


def _layer(cells: Sequence[str], mode: str, against: str = BASELINE) -> Callable[[Sequence[Row]], list[Value]]:
    """Ratios to a contestant over the grid."""

    def values(rows: Sequence[Row]) -> list[Value]:
        own = _of(rows, "layer", cells, [mode])
        return [_ratio(row, against) for row in own if against in row.times]

    return values


def _special(benchmark: str, cell: str, mode: str, *against: str) -> Callable[[Sequence[Row]], list[Value]]:
    """Ratios to the fastest of some contestants in a benchmark of its own."""

    def values(rows: Sequence[Row]) -> list[Value]:
        own = _of(rows, benchmark, [cell], [mode])
        return [min((_ratio(row, name) for name in against), key=lambda value: value.number) for row in own]

    return values


def _cell_step(rows: Sequence[Row]) -> list[Value]:
    return [_ratio(row, TORCH_CELL, FASTRNN_CELL) for row in _of(rows, "streaming", ["lstm"], ["inference"])]


def _half_weights(rows: Sequence[Row]) -> list[Value]:
    own = [row for row in _of(rows, "weights", ("lstm",), ["inference"]) if row.case.shape == HALVED]
    return [Value(_named(row), row.ratio(HALF, "fastrnn")) for row in own]


def _without_resets(rows: Sequence[Row]) -> list[Value]:
    own = _of(rows, "reset", ("lstm", "gru"), ["training"])
    return [Value(_named(row), row.ratio(WITHOUT, "fastrnn")) for row in own]


def _tape_time(rows: Sequence[Row]) -> list[Value]:
    return [Value(_named(row), row.ratio("fastrnn", LEAN)) for row in _tape(rows)]


def _tape_bytes(rows: Sequence[Row]) -> list[Value]:
    return [Value(_named(row), row.detail["kept_bytes"][LEAN] / row.detail["y_bytes"]) for row in _tape(rows)]


def _tape(rows: Sequence[Row]) -> list[Row]:
    """The LSTM's, whose tape the target is about."""
    return _of(rows, "tape", ["lstm"], ["training"])


def _gemm(mode: str) -> Callable[[Sequence[Row]], list[Value]]:
    def values(rows: Sequence[Row]) -> list[Value]:
        own = [row for row in _of(rows, "layer", ("lstm", "gru", *RNNS), [mode]) if row.case.shape in GEMM_SHAPES]
        return [Value(_named(row), row.detail["gemm_fraction"]["fastrnn"]) for row in own]

    return values


def _bfloat16(rows: Sequence[Row]) -> list[Value]:
    own = _of(rows, "layer", ("lstm", "gru", *RNNS), ["inference", "training"], "bfloat16")
    return [_ratio(row, BASELINE)._replace(case=f"{_named(row)} {row.case.mode}") for row in own]


def _linear(mode: str) -> Callable[[Sequence[Row]], list[Value]]:
    """Seconds of a step of a long sequence over those of a short one."""

    def values(rows: Sequence[Row]) -> list[Value]:
        own = [row for row in _of(rows, "scaling", ("lstm", "gru"), [mode]) if row.detail["axis"] == "T"]
        per_step = {row.case.steps: row.times["fastrnn"].median / row.case.steps for row in own}
        if not per_step.keys() >= set(LINEAR):
            return []
        return [Value(f"T{LINEAR[0]} to T{LINEAR[1]}", per_step[LINEAR[1]] / per_step[LINEAR[0]])]

    return values


TARGETS = (
    Target("torch.nn.LSTM, inference", _layer(["lstm"], "inference"), 1.8, 1),
    Target("torch.nn.LSTM, training", _layer(["lstm"], "training"), 1.8, 1),
    Target("torch.nn.GRU, inference", _layer(["gru"], "inference"), 2.5, 1),
    Target("torch.nn.GRU, training", _layer(["gru"], "training"), 3, 1),
    Target("torch.nn.RNN, inference", _layer(RNNS, "inference"), 2, 1),
    Target("torch.nn.RNN, training", _layer(RNNS, "training"), 2, 1),
    Target(f"{ONNX} LSTM", _layer(["lstm"], "inference", ONNX), 1.3, 1),
    Target(f"{ONNX} GRU", _layer(["gru"], "inference", ONNX), 1.3, 1),
    Target("one step: torch.nn.LSTM", _special("streaming", "lstm", "inference", BASELINE), least=10),
    Target("one step: torch.nn.LSTMCell", _cell_step, least=4),
    Target("packed LSTM, training", _special("packed", "lstm", "training", BASELINE), least=5),
    Target("packed GRU, training", _special("packed", "gru", "training", BASELINE), least=5),
    Target("reset LSTM: faster loop", _special("reset", "lstm", "training", BASELINE, CELL_LOOP), least=8),
    Target("reset GRU: faster loop", _special("reset", "gru", "training", BASELINE, CELL_LOOP), least=8),
    Target("reset: time / without resets", _without_resets, most=1.1),
    Target("lean tape: bytes kept / of y", _tape_bytes, most=1.25),
    Target("lean tape: time / full tape's", _tape_time, most=1.35),
    Target("part of GEMM rate, inference", _gemm("inference"), least=0.85),
    Target("part of GEMM rate, training", _gemm("training"), least=0.85),
    Target("torch.nn in bfloat16", _bfloat16, least=1),
    Target("bfloat16 weights: float32's time / theirs", _half_weights, least=2),
    Target("step at T100000 / T1000, inference", _linear("inference"), most=1.2),
    Target("step at T100000 / T1000, training", _linear("training"), most=1.2),
)
