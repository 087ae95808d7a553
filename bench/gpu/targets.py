"""What fastrnn is to reach on a GPU, and whether rows of results reach it: as it plans, and with its best strategy."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from bench.contestants import CELL_LOOP
from bench.gpu import cases, contestants
from bench.results import BASELINE, Row
from bench.targets import Reached, Target, Value, outcome
from fastrnn.kernels import cudnn
from fastrnn.kernels.measured import Work

LEAST_HIDDEN, MOST_HIDDEN, MOST_BATCH = 256, 1024, 64
# Seconds of FlashRNN's fused CUDA kernels in bfloat16 on an H100 SXM, from the labels of the figure in its repository
# (NX-AI/flashrnn, head_dim--lstm.svg). Its own figures leave the product with the input out; ours have it.
FLASHRNN = {"inference": 4.87e-3, "training": 13.61e-3}
FLASHRNN_DEVICE = "H100"
BARRIER = re.compile(r"step with a barrier of (\d+) programs, of (\d+), all right")  # a row of bench.gpu.meeting
BARRIER_STEPS = 10_000_000


class Judged(NamedTuple):
    """A target, how many values the rows have for it, and what they say of fastrnn as planned and at its best."""

    target: Target
    values: int
    planned: Reached
    best: Reached


def judged(rows: Sequence[Row]) -> dict[str, list[Judged]]:
    """Every target, with what the rows of each GPU say of it. Replays of graphs are others' than users' times."""
    places: dict[str, list[Row]] = {}
    for row in rows:
        if row.provenance.device is not None and row.detail.get("clock") != "graphs":
            places.setdefault(row.provenance.device.name, []).append(row)
    return {name: [_judge(target, own) for target in TARGETS] for name, own in places.items()}


def _judge(target: Target, rows: Sequence[Row]) -> Judged:
    best = [with_best_strategy(row) for row in rows]
    return Judged(target, len(target.values(rows)), outcome(target, rows), outcome(target, best))


def with_best_strategy(row: Row) -> Row:
    """The row as if fastrnn had planned the strategy that was the fastest there, or torch's layer, as it did."""
    ours = [name for name in row.times if name.startswith("fastrnn") and not name.endswith(contestants.LEAN)]
    if "fastrnn" not in ours:
        return row
    fastest = min(ours, key=lambda name: row.times[name].median)
    return replace(row, times={**row.times, "fastrnn": row.times[fastest]})


def is_standard(row: Row) -> bool:
    """Whether targets are about such layers, and cuDNN computes it by its standard algorithm, backward as well."""
    case = row.case
    return (
        row.benchmark == "layer"
        and case.cell in cudnn.GATED
        and LEAST_HIDDEN <= case.hidden <= MOST_HIDDEN
        and case.batch <= MOST_BATCH
        and case.steps in cases.STEPS
        and (case.dtype in ("bfloat16", "float16") or (case.dtype == "float32" and row.detail.get("tf32") is True))
        and algorithms(row) == {cudnn.Algorithm.STANDARD}
    )


def algorithms(row: Row) -> set[cudnn.Algorithm]:
    """All that torch.nn's layer asks cuDNN for in a row of a GPU: in training, forward and backward.

    Raises:
        ValueError: it is not a row of a GPU.
    """
    device, case = row.provenance.device, row.case
    if device is None:
        raise ValueError(f"expected a row of a GPU, got one of {row.provenance.cpu}")
    sizes = (case.steps, case.batch, case.input, case.hidden, getattr(torch, case.dtype), case.directions, case.layers)
    work = Work(case.cell, *sizes, packed=row.benchmark == "packed")
    major, minor = map(int, device.capability.split("."))
    version = int(device.cudnn) if device.cudnn.isdecimal() else None
    passes = (True,) if case.mode == "inference" else (True, False)
    return {cudnn.algorithm(work, forward, (major, minor), device.processors, version) for forward in passes}


def _of(rows: Sequence[Row], mode: str) -> Iterator[Row]:
    return (row for row in rows if row.case.mode == mode and {"fastrnn", BASELINE} <= row.times.keys())


def _named(row: Row) -> str:
    return f"{row.case.cell} {row.case.shape} {row.case.dtype}"


def _ratio(row: Row, *others: str) -> Value:
    """To the fastest of the baseline and those others that are there."""
    ratios = [row.ratio("fastrnn", name) for name in (row.baseline, *others) if name in row.times]
    return Value(_named(row), min(ratios))


def _standard(mode: str) -> Callable[[Sequence[Row]], list[Value]]:
    return lambda rows: [_ratio(row) for row in _of(rows, mode) if is_standard(row)]


def _published(rows: Sequence[Row], mode: str, dtype: str) -> Iterator[Row]:
    """Of the shape that others published times of."""
    for row in _of(rows, mode):
        case = row.case
        if (row.benchmark, case.cell, case.shape, case.dtype) == ("layer", "lstm", cases.PUBLISHED, dtype):
            yield row


def _best_case(mode: str) -> Callable[[Sequence[Row]], list[Value]]:
    return lambda rows: [_ratio(row) for row in _published(rows, mode, "float16")]


def _flashrnn(mode: str) -> Callable[[Sequence[Row]], list[Value]]:
    """Published seconds over ours: only on a GPU of the kind that they were published of."""

    def values(rows: Sequence[Row]) -> list[Value]:
        return [
            Value(_named(row), FLASHRNN[mode] / row.times["fastrnn"].median)
            for row in _published(rows, mode, "bfloat16")
            if row.provenance.device is not None and FLASHRNN_DEVICE in row.provenance.device.name
        ]

    return values


def _special(benchmark: str, mode: str, *others: str) -> Callable[[Sequence[Row]], list[Value]]:
    return lambda rows: [_ratio(row, *others) for row in _of(rows, mode) if row.benchmark == benchmark]


def _lean(number: Callable[[Row, str, str], float]) -> Callable[[Sequence[Row]], list[Value]]:
    """Of an LSTM, whose tape the target is about, by each strategy: from the names of its full and its lean tape."""

    def values(rows: Sequence[Row]) -> list[Value]:
        return [
            Value(f"{_named(row)}, {full}", number(row, full, full + contestants.LEAN))
            for row in rows
            if row.benchmark == "lean" and row.case.cell == "lstm"
            for full in row.times
            if full + contestants.LEAN in row.times
        ]

    return values


def _kept(row: Row, full: str, lean: str) -> float:
    return row.detail["kept_bytes"][lean] / row.detail["y_bytes"]


def _peak(row: Row, full: str, lean: str) -> float:
    return row.detail["peak_bytes"][lean] / row.detail["peak_bytes"][full]


def _barrier(rows: Sequence[Row]) -> list[Value]:
    found = (BARRIER.fullmatch(row.detail.get("what", "")) for row in rows if row.benchmark == "latency" and row.times)
    return [Value(f"{match[1]} programs", float(match[2])) for match in found if match]


TARGETS = (
    Target("cuDNN's standard path, forward", _standard("inference"), 2, 1),
    Target("cuDNN's standard path, training", _standard("training"), 1.8, 1),
    Target("cuDNN's best case, forward", _best_case("inference"), least=1),
    Target("cuDNN's best case, training", _best_case("training"), least=1),
    Target("FlashRNN's published time, forward", _flashrnn("inference"), least=2),
    Target("FlashRNN's published time, training", _flashrnn("training"), least=2),
    Target("packed, forward", _special("packed", "inference"), least=5),
    Target("packed, training", _special("packed", "training"), least=5),
    Target("reset: faster loop, forward", _special("reset", "inference", CELL_LOOP), least=20),
    Target("reset: faster loop, training", _special("reset", "training", CELL_LOOP), least=20),
    Target("lean tape: bytes kept / of y", _lean(_kept), most=1.25),
    Target("lean tape: peak / full tape's", _lean(_peak), most=1),
    Target("steps with a barrier, all right", _barrier, least=BARRIER_STEPS),
)
