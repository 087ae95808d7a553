"""``python -m bench gpu-decide ROWS ...``: what follows from the rows of a GPU, on any machine.

It writes what plans go by where they find it (:mod:`fastrnn.kernels.measured`): the constants of the cost model and,
for each piece of work, the record of what the ways to compute it took. It prints which targets are met, tables for the
README, and in words what keeps the others from being met.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from bench import results
from bench.gpu import constants, targets
from bench.results import BASELINE, Device, Row
from bench.targets import Target, Value
from fastrnn.kernels.measured import GPUS, TORCH, Record, Work, file_stem, line
from fastrnn.kernels.model import Constants

RECORDED = ("layer", "packed")  # benchmarks whose work a plan can be asked for
PRETENDED = "pretended"  # in the name or driver of a GPU that there is not, where a dry run says that there is


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command's own arguments."""
    parser = commands.add_parser("gpu-decide", help="write what follows from the rows of a GPU, and say what to do")
    parser.set_defaults(run=run)
    parser.add_argument("results", type=Path, nargs="+", help="files of JSON lines, of bench/gpu.sh")
    parser.add_argument("--out", type=Path, default=GPUS, help="folder of what plans go by (default: kernels/gpus)")


def run(options: argparse.Namespace) -> int:
    """Write and print all of it; 0, also where targets are missed."""
    rows = [row for path in options.results for row in results.read(path)]
    device = device_of(rows)
    stem = options.out / file_stem(device.name)
    for part in (_constants(rows, Path(f"{stem}.json")), _records(rows, Path(f"{stem}.jsonl"))):
        print(part)
    for heading, lines in (
        ("Targets", targets_table(rows)),
        ("Layers", layers_table(rows)),
        ("What to do next", [f"- {step}" for step in next_steps(rows)]),
    ):
        print(f"\n## {heading}: {device.name}\n")
        print("\n".join(lines))
    return 0


def device_of(rows: Sequence[Row]) -> Device:
    """The one GPU that rows are of.

    Raises:
        ResultsError: there is none, or there are several, or it is a pretended one.
    """
    devices = {row.provenance.device.name: row.provenance.device for row in rows if row.provenance.device is not None}
    if len(devices) != 1:
        raise results.ResultsError(f"expected rows of one GPU, got {', '.join(sorted(devices)) or 'none'}")
    (device,) = devices.values()
    if PRETENDED in f"{device.name} {device.driver}":
        raise results.ResultsError(f"nothing follows from the rows of a pretended GPU: {device.name}, {device.driver}")
    return device


def _constants(rows: Sequence[Row], path: Path) -> str:
    """Write them where all were measured, since no plan goes by a part of them; which were, in words."""
    if not any("value" in row.detail for row in rows):
        return "constants: none was measured"
    found = constants.measured(rows)
    values = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    if missing := [field.name for field in fields(Constants) if field.name not in found]:
        return f"constants: {values}; not written, for these were not measured: {', '.join(missing)}"
    constants.write(path, found)
    return f"constants: {values}: {path}"


def _records(rows: Sequence[Row], path: Path) -> str:
    """Write those of the rows beside those of other work that the file has; how many, in words."""
    made = dict(records(rows))
    if not made:
        return "records: no row has the times of both torch and a strategy of ours"
    kept = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    of_work = {work_text(line(record, {})): line(record, on_of(row)) for record, row in made.items()}
    lines = [*(text for text in kept if work_text(text) not in of_work), *of_work.values()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text}\n" for text in lines), encoding="utf-8")
    ours = sum(min(dict(record.seconds), key=dict(record.seconds).__getitem__) != TORCH for record in made)
    return f"records: {len(made)}, in {ours} of which a strategy of ours is the fastest: {path}"


def work_text(record_line: str) -> str:
    """The work of a record's line."""
    return json.dumps(json.loads(record_line)["work"], sort_keys=True)


def records(rows: Sequence[Row]) -> Iterator[tuple[Record, Row]]:
    """What a plan may go by, as ``fastrnn.tune`` would have measured it, and the row that each is from.

    By calls, which are users', and against torch's layer as users have it.
    """
    for row in rows:
        by_strategy = _fastest(row)
        if row.benchmark in RECORDED and row.detail.get("clock") == "events" and BASELINE in row.times and by_strategy:
            seconds = {strategy: row.times[name].median for strategy, name in by_strategy.items()}
            best = min(seconds, key=seconds.__getitem__)
            choices = tuple(row.detail["choices"][by_strategy[best]].items())
            took = ((TORCH, row.times[BASELINE].median), *seconds.items())
            yield Record(work_of(row), took, choices, source=""), row


def _fastest(row: Row) -> dict[str, str]:
    """Of each strategy that a row has a time of, the fastest contestant."""
    found: dict[str, str] = {}
    for name, choices in row.detail.get("choices", {}).items():
        strategy = choices["strategy"]
        if name in row.times:
            best = found.setdefault(strategy, name)
            found[strategy] = min((best, name), key=lambda one: row.times[one].median)
    return found


def work_of(row: Row) -> Work:
    """What the row has measured, as plans are asked for it."""
    case = row.case
    return Work(
        *(case.cell, case.steps, case.batch, case.input, case.hidden, getattr(torch, case.dtype)),
        directions=case.directions,
        layers=case.layers,
        trains=case.mode == "training",
        packed=row.benchmark == "packed",
        tf32=row.detail.get("tf32") is True,
        tf32_products=row.detail.get("tf32") is True,
    )


def on_of(row: Row) -> dict[str, str]:
    """What a record says that it holds for."""
    device, by = row.provenance.device, row.provenance
    if device is None:
        raise ValueError(f"expected a row of a GPU, got one of {by.cpu}")
    return {
        "gpu": device.name,
        "multiprocessors": str(device.processors),
        "driver": device.driver,
        "torch": by.torch,
        "triton": device.triton,
        "fastrnn": by.fastrnn,
    }


def targets_table(rows: Sequence[Row]) -> list[str]:
    """In markdown: every target, as fastrnn plans, and as it would by its best strategies."""
    lines = ["| target | needs | rows | as planned | met | best strategies | met |", "|---|---|---|---|---|---|---|"]
    for found in targets.judged(rows).values():
        for one in found:
            cells = [one.target.what, one.target.needs(), str(one.values or "")]
            for reached in (one.planned, one.best):
                if reached.mean is None or reached.worst is None:
                    cells += ["", "not measured"]
                else:
                    numbers = f"{reached.mean:.4g} (worst {reached.worst.number:.4g})"
                    cells += [numbers, "yes" if reached.met else "no"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def layers_table(rows: Sequence[Row]) -> list[str]:
    """In markdown: what the baseline takes, and how many times as fast our best strategy is, by calls and replays."""
    lines = ["| layer | mode | torch, µs | best strategy | by calls | by replays |", "|---|---|---|---|---|---|"]
    calls, replays = (
        {_key(row): row for row in rows if row.detail.get("clock") == how} for how in ("events", "graphs")
    )
    for row in calls.values():
        if row.baseline not in row.times or not (names := _ours(row)):
            continue
        best = min(names, key=lambda name: row.times[name].median)
        replay = replays.get(_key(row))
        device = f"{replay.ratio(best):.2f}" if replay and {best, replay.baseline} <= replay.times.keys() else ""
        what = row.detail["choices"].get(best, {}).get("strategy", best)
        numbers = {None: row.case.dtype, True: "TF32", False: row.case.dtype}[row.detail.get("tf32")]
        special = "" if row.benchmark == "layer" else f", {row.benchmark}"
        case = f"{row.case.cell} {row.case.shape} {numbers}{special}"
        took = f"{1e6 * row.times[row.baseline].median:.0f}"
        lines.append(f"| {case} | {row.case.mode} | {took} | {what} | {row.ratio(best):.2f} | {device} |")
    return lines


def next_steps(rows: Sequence[Row]) -> list[str]:
    """In words: what was seen to fail, and for each target that is missed, by whom time is lost."""
    steps = list(dict.fromkeys(_failures(rows)))
    for found in targets.judged(rows).values():
        for one in found:
            if one.best.mean is None:
                steps.append(f"{one.target.what}: not measured")
            elif not one.best.met:
                steps += _missed(one.target, rows)
            elif not one.planned.met:
                steps.append(f"{one.target.what}: met by the best strategies: plan by these records and constants")
    return steps or ["all targets are met"]


def _failures(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        for name, reason in row.detail.get("strategies_left_out", {}).items():
            yield f"the strategy {name} failed its smoke test, and was left out: {reason}"
        for name, reason in row.detail.get("left_out", {}).items():
            yield f"{name} at {_case(row)}: {reason}"
        reason = row.detail.get("not_measured", "")
        if reason and not reason.startswith("the time was up"):
            yield f"not measured: {reason}" if row.benchmark == "latency" else f"not measured: {_case(row)}: {reason}"


def _missed(target: Target, rows: Sequence[Row]) -> Iterator[str]:
    """By whom time is lost, for each case that is behind what every case or their mean needs."""
    best = [targets.with_best_strategy(row) for row in rows]
    by_calls, by_replays, others = (
        target.values([row for row in best if row.detail.get("clock") == clock]) for clock in ("events", "graphs", None)
    )
    replays = {value.case: value for value in by_replays}
    needed = max(target.mean or 0, target.least or 0)
    for value in (*by_calls, *others):
        missed = f"{target.what}, {value.case}: {value.number:.4g}"
        if target.most is not None:
            if value.number > target.most:
                yield f"{missed}, {target.most:g} at most"
        elif value.number < needed:
            yield f"{missed} of {needed:g}" + (f": {_by_whom(value, replays, needed)}" if value in by_calls else "")


def _by_whom(value: Value, replays: dict[str, Value], needed: float) -> str:
    replay = replays.get(value.case)
    if replay is None:
        return "by calls; measure it by replays (--graphs), which tell the device's time from the host's"
    if replay.number >= needed:
        return f"bound by the host: by replays it is {replay.number:.2f}, and launches have to take less"
    return f"bound by the device: by replays it is {replay.number:.2f}, and kernels have to take less"


def _ours(row: Row) -> list[str]:
    return [name for name in row.detail.get("choices", {}) if name in row.times]


def _key(row: Row) -> tuple[Any, ...]:
    return row.benchmark, row.case, row.detail.get("tf32")


def _case(row: Row) -> str:
    return f"{row.benchmark} {row.case.cell} {row.case.shape} {row.case.dtype} {row.case.mode}"
