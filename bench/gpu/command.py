"""``python -m bench gpu``: rows as they are measured, until all are or the time is up."""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from bench import results
from bench.gpu import cases, cluster, constants, contestants, latency, measure, meeting, strategies
from bench.gpu.cases import Selection, Task
from bench.grid import CELLS
from bench.results import Row
from fastrnn._arguments import positive_float, positive_int

LATENCY_SECONDS = 0.1  # of each


@dataclass
class Limit:
    """The end of a run."""

    minutes: float
    now: Callable[[], float] = time.monotonic
    begin: float = field(init=False)

    def __post_init__(self) -> None:
        self.begin = self.now()

    def over(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.now() - self.begin >= 60 * self.minutes

    @property
    def reason(self) -> str:
        """For rows that were not begun."""
        return f"the time was up: {self.minutes:g} minutes"


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command's own arguments."""
    parser = commands.add_parser("gpu", help="measure layers on a GPU against torch.nn, that is cuDNN")
    parser.set_defaults(run=run)
    parser.add_argument(
        "--part", nargs="+", choices=cases.PARTS, default=cases.PARTS, help="default: all", metavar="PART"
    )
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=cases.MEASURED, metavar="CELL")
    parser.add_argument("--dtype", nargs="+", choices=cases.DTYPES, default=cases.DTYPES, metavar="DTYPE")
    parser.add_argument("--tf32", nargs="+", choices=cases.TF32, default=cases.TF32, help="of float32 (default: both)")
    for name, default in (("batch", cases.BATCHES), ("hidden", cases.HIDDEN), ("steps", cases.STEPS)):
        listed = " ".join(map(str, default))
        parser.add_argument(f"--{name}", nargs="+", type=positive_int, default=default, help=f"default: {listed}")
    parser.add_argument("--graphs", action="store_true", help="time replays of CUDA graphs, not calls")
    parser.add_argument("--only-plan", action="store_true", help="fastrnn as it plans, and not each strategy as well")
    parser.add_argument(
        "--seconds-per-case", type=positive_float, default=0.2, help="of timing a row (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes", type=positive_float, default=8.0, help="after which nothing is begun (default: %(default)s)"
    )
    parser.add_argument("--left-out", type=Path, metavar="FILE", help="strategies that do not take part, of gpu.sh")
    parser.add_argument("--append", action="store_true", help="write behind the rows that --out has")
    parser.add_argument("--out", type=Path, default=Path("out/gpu.jsonl"), help="results (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Measure what is asked for; 1 if something could not be, but for want of time."""
    if contestants.DEVICE == "cuda" and not torch.cuda.is_available():
        raise results.ResultsError("there is no CUDA device here (torch.cuda.is_available() is False)")
    selection = Selection(
        options.part, options.cells, options.dtype, options.tf32, options.batch, options.hidden, options.steps
    )
    try:
        left_out = strategies.read_left_out(options.left_out)
    except ValueError as error:
        raise results.ResultsError(str(error)) from error
    limit = Limit(options.minutes)
    problems, done, late = list[str](), 0, 0

    def counted() -> Iterator[Row]:
        nonlocal done, late
        for row in measured(selection, options, limit, problems, left_out):
            done += bool(row.times)
            late += row.detail.get("not_measured") == limit.reason
            yield row

    results.write(options.out, counted(), options.append)
    print(f"{done} rows measured: `python -m bench report {options.out}` makes tables, `plot` pictures")
    if late:
        print(f"left out: {late} rows, since {limit.reason}")
    for problem in problems:
        print(f"not timed: {problem}")
    return 1 if problems else 0


def measured(
    selection: Selection,
    options: argparse.Namespace,
    limit: Limit,
    problems: list[str],
    left_out: Mapping[str, str],
) -> Iterator[Row]:
    """Every row that is asked for, in order; those that cannot be measured without times, but with the reason."""
    for part, least in (
        ("constants", partial(constants.rows, LATENCY_SECONDS, left_out)),
        ("latency", partial(latency.rows, selection.numbers(), LATENCY_SECONDS)),
        ("barrier", partial(meeting.rows, LATENCY_SECONDS)),
        ("cluster", partial(cluster.rows, LATENCY_SECONDS)),
    ):
        try:
            for row in least() if part in selection.parts else ():
                if row.times:
                    took = f"{1e6 * row.times['torch'].median:.3f} us {row.detail.get('rate', '')}"
                    print(f"{row.detail['what']}: {took}", flush=True)
                else:
                    problems.append(row.detail["not_measured"])
                yield row
        except Exception as error:
            problems.append(f"{part}: {measure.first_line(error)}")
    lost = ""  # why nothing more can be measured, if so
    for task in cases.tasks(selection):
        left, reason = list(task.modes), lost or limit.reason
        try:
            if not lost and not limit.over():
                timed = (options.seconds_per_case, options.graphs, not options.only_plan, left_out)
                for row in measure.measure(task, *timed):
                    left.remove(row.case.mode)
                    problems += _left_out(task, row)
                    print(f"{task} {row.case.mode}: {summary(row)}", flush=True)
                    yield row
                    if limit.over():
                        break
        except Exception as error:  # whatever a device or a compiler raises: the others are to be measured all the same
            reason = measure.first_line(error)
            problems.append(f"{task}: {reason}")
            print(f"{task}: {reason}", flush=True)
            lost = _lost()
        for mode in left:
            yield measure.not_measured(task, mode, reason)
        if contestants.DEVICE == "cuda" and not lost:
            torch.cuda.empty_cache()


def summary(row: Row) -> str:
    """Microseconds of the baseline, and how many times as fast the others are."""
    if row.baseline not in row.times:
        return "no times of torch.nn"
    ratios = ", ".join(f"{name.removeprefix('fastrnn ')} {ratio:.2f}" for name, ratio in row.speedup.items())
    return f"{row.baseline} {1e6 * row.times[row.baseline].median:.0f} us; {ratios}"


def _left_out(task: Task, row: Row) -> Sequence[str]:
    """Contestants of ours that failed, as problems; once for a task."""
    return [
        f"{task}: {name}: {reason}"
        for name, reason in row.detail["left_out"].items()
        if row.case.mode == task.modes[0] and not reason.startswith("not captured")
    ]


def _lost() -> str:
    """Why the device cannot go on: after a fault in a kernel, every call fails."""
    if contestants.DEVICE != "cuda":
        return ""
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").item()
    except Exception as error:
        return f"the device was lost before: {measure.first_line(error)}"
    return ""
