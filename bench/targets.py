"""What fastrnn is to reach on a CPU, by its instruction set, and whether rows of results reach it."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.contestants import CELL_LOOP, ONNX
from bench.grid import Shape
from bench.isas import WIDE
from bench.resets import WITHOUT
from bench.results import BASELINE, Row
from bench.streaming import FASTRNN_CELL, TORCH_CELL
from bench.tape import LEAN
from bench.weights import HALF

GEMM_SHAPES = (Shape(64, 50, 512, 512), Shape(64, 50, 1024, 1024))  # where arithmetic is all there is
HALVED = Shape(1, 100, 512, 512)  # whose float32 weights are more than a second-level cache holds
LINEAR = (1000, 100_000)  # steps between which the time of a step may grow by a fifth: caches are left behind
RNNS = ("rnn_tanh", "rnn_relu")
DEMO = "language_model"  # make demo
COLUMNS = ("AVX2", "AVX-512")


class Value(NamedTuple):
    """A number, the case that it is of and, of a ratio, the part of the machine's limit that fastrnn reaches there."""

    case: str
    number: float
    fraction: float | None = None


@dataclass(frozen=True)
class Target:
    """A number that is to be reached by every case, or by their geometric mean, or both.

    ``least`` and ``mean`` are bounds from below, ``most`` is one from above. ``column`` is that of the instruction sets
    which it is about.
    """

    what: str
    values: Callable[[Sequence[Row]], list[Value]]
    mean: float | None = None
    least: float | None = None
    most: float | None = None
    column: str = ""

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


def column(row: Row) -> str:
    """Which of a table's columns the row's instruction set belongs to; what has no vectors of its own to the first."""
    return COLUMNS[row.provenance.isa in WIDE]


def reached(rows: Sequence[Row]) -> list[Reached]:
    """Every target of the instruction sets that there are rows of, or of all, with what these rows say of it."""
    on_cpu = [row for row in rows if row.provenance.device is None]
    there = {column(row) for row in on_cpu} or set(COLUMNS)
    return [
        outcome(target, [row for row in on_cpu if column(row) == target.column])
        for target in TARGETS
        if target.column in there
    ]


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


Values = Callable[[Sequence[Row]], list[Value]]


def _layer(cells: Sequence[str], mode: str, against: str = BASELINE, alone: bool = False) -> Values:
    """Ratios to a contestant over the grid, on one thread or on several."""

    def values(rows: Sequence[Row]) -> list[Value]:
        own = [row for row in _of(rows, "layer", cells, [mode]) if (row.threads == 1) == alone]
        return [_ratio(row, against) for row in own if against in row.times]

    return values


def _special(benchmark: str, cell: str, mode: str, *against: str) -> Values:
    """Ratios to the fastest of some contestants in a benchmark of its own."""

    def values(rows: Sequence[Row]) -> list[Value]:
        own = _of(rows, benchmark, [cell], [mode])
        return [min((_ratio(row, name) for name in against), key=lambda value: value.number) for row in own]

    return values


def _step(against: str, ours: str, most: int) -> Values:
    """Of a single step, with up to as many units."""

    def values(rows: Sequence[Row]) -> list[Value]:
        own = _of(rows, "streaming", ["lstm"], ["inference"])
        return [_ratio(row, against, ours) for row in own if row.case.hidden <= most]

    return values


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


def _gemm(mode: str) -> Values:
    def values(rows: Sequence[Row]) -> list[Value]:
        own = [row for row in _of(rows, "layer", ("lstm", "gru", *RNNS), [mode]) if row.case.shape in GEMM_SHAPES]
        return [Value(_named(row), row.detail["gemm_fraction"]["fastrnn"]) for row in own]

    return values


def _bfloat16(rows: Sequence[Row]) -> list[Value]:
    own = _of(rows, "layer", ("lstm", "gru", *RNNS), ["inference", "training"], "bfloat16")
    return [_ratio(row, BASELINE)._replace(case=f"{_named(row)} {row.case.mode}") for row in own]


def _linear(mode: str) -> Values:
    """Seconds of a step of a long sequence over those of a short one."""

    def values(rows: Sequence[Row]) -> list[Value]:
        own = [row for row in _of(rows, "scaling", ("lstm", "gru"), [mode]) if row.detail["axis"] == "T"]
        per_step = {row.case.steps: row.times["fastrnn"].median / row.case.steps for row in own}
        if not per_step.keys() >= set(LINEAR):
            return []
        return [Value(f"T{LINEAR[0]} to T{LINEAR[1]}", per_step[LINEAR[1]] / per_step[LINEAR[0]])]

    return values


class Bounds(NamedTuple):
    """Of a target, in one column."""

    mean: float | None = None
    least: float | None = None
    most: float | None = None


def _table(*lines: tuple[str, Values, Bounds | None, Bounds | None]) -> tuple[Target, ...]:
    """The targets of lines: what, its values, and the bounds in each column, None where there is none."""
    return tuple(
        Target(what, values, *bounds[place], column=name)
        for place, name in enumerate(COLUMNS)
        for what, values, *bounds in lines
        if bounds[place] is not None
    )


def _at_least(least: float) -> Bounds:
    return Bounds(least=least)


def _at_most(most: float) -> Bounds:
    return Bounds(most=most)


TARGETS = _table(
    ("torch.nn.LSTM, inference", _layer(["lstm"], "inference"), Bounds(1.5, 1), Bounds(1.8, 1)),
    ("torch.nn.LSTM, training", _layer(["lstm"], "training"), Bounds(1.4, 1), Bounds(1.6, 1)),
    ("torch.nn.GRU, inference", _layer(["gru"], "inference"), Bounds(2.3, 1.1), Bounds(3, 1.1)),
    ("torch.nn.GRU, training", _layer(["gru"], "training"), Bounds(3, 1.1), Bounds(3.7, 1.1)),
    ("torch.nn.RNN, inference", _layer(RNNS, "inference"), Bounds(2, 1), Bounds(2, 1)),
    ("torch.nn.RNN, training", _layer(RNNS, "training"), Bounds(2, 1), Bounds(2, 1)),
    (f"{ONNX} LSTM", _layer(["lstm"], "inference", ONNX), Bounds(1.25, 1), Bounds(1.4, 1)),
    (f"{ONNX} GRU", _layer(["gru"], "inference", ONNX), Bounds(1.25, 1), Bounds(1.4, 1)),
    ("one thread: LSTM, inference", _layer(["lstm"], "inference", alone=True), Bounds(1.4, 1), Bounds(1.5, 1)),
    ("one thread: LSTM, training", _layer(["lstm"], "training", alone=True), Bounds(1.25, 1), Bounds(1.3, 1)),
    ("one thread: GRU, inference", _layer(["gru"], "inference", alone=True), Bounds(2, 1), Bounds(2.4, 1)),
    ("one thread: GRU, training", _layer(["gru"], "training", alone=True), Bounds(2.6, 1), Bounds(3.1, 1)),
    ("one step, H128: torch.nn.LSTM", _step(BASELINE, "fastrnn", 128), None, _at_least(10)),
    ("one step, H128: torch.nn.LSTMCell", _step(TORCH_CELL, FASTRNN_CELL, 128), None, _at_least(4)),
    ("one step: torch.nn.LSTM", _step(BASELINE, "fastrnn", 256), _at_least(6), None),
    ("one step: torch.nn.LSTMCell", _step(TORCH_CELL, FASTRNN_CELL, 256), _at_least(3), None),
    ("packed LSTM, training", _special("packed", "lstm", "training", BASELINE), _at_least(5), _at_least(11)),
    ("packed GRU, training", _special("packed", "gru", "training", BASELINE), _at_least(5), _at_least(11)),
    (
        "reset LSTM: faster loop",
        _special("reset", "lstm", "training", BASELINE, CELL_LOOP),
        _at_least(8),
        _at_least(10),
    ),
    ("reset GRU: faster loop", _special("reset", "gru", "training", BASELINE, CELL_LOOP), _at_least(8), _at_least(10)),
    ("reset: time / without resets", _without_resets, _at_most(1.1), _at_most(1.1)),
    ("lean tape: bytes kept / of y", _tape_bytes, _at_most(1.25), _at_most(1.25)),
    ("lean tape: time / full tape's", _tape_time, _at_most(1.35), _at_most(1.35)),
    ("part of GEMM rate, inference", _gemm("inference"), _at_least(0.88), _at_least(0.88)),
    ("part of GEMM rate, training", _gemm("training"), _at_least(0.82), _at_least(0.82)),
    ("torch.nn in bfloat16", _bfloat16, None, _at_least(1)),
    ("bfloat16 weights: float32's time / theirs", _half_weights, _at_least(2), _at_least(2)),
    ("step at T100000 / T1000, inference", _linear("inference"), _at_most(1.2), _at_most(1.2)),
    ("step at T100000 / T1000, training", _linear("training"), _at_most(1.2), _at_most(1.2)),
    ("make demo, training", _special(DEMO, "lstm", "training", BASELINE), _at_least(1.15), _at_least(1.15)),
)
