"""``python -m bench workloads [NAME ...]``: all of them under one progress bar, a table, pictures, rows."""

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench import isas, plot, results
from bench.check import MismatchError
from bench.workloads import NAMES, find, processes, runner, tables
from bench.workloads.learner import DivergedError
from bench.workloads.workload import DataError
from fastrnn._arguments import positive_float, positive_int

REFRESH = 0.25  # seconds between two looks at the progress
WIDTH = 160  # where there is no terminal, which has a width of its own


def main(arguments: Sequence[str]) -> int:
    """Run workloads; 0 is success, 1 a difference between fastrnn and torch.nn, 2 a mistake in the arguments."""
    given = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    unknown = [name for name in given if name not in NAMES]
    flags = arguments[len(given) :]
    everyones = parser(given[0] if len(given) == 1 and not unknown else None)
    if unknown:
        everyones.error(f"no workload {', '.join(unknown)}: there are {', '.join(NAMES)}")
    everyones.parse_args(flags)
    names = given or list(NAMES)
    each = {name: parser(name).parse_args(flags) for name in names}
    status = isas.run(next(iter(each.values())).isa, ["workloads", *arguments])
    if status is not None:
        return status
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    others = processes.join()
    console.quiet = processes.number() > 0
    try:
        return _run(each, console)
    finally:
        if others:
            processes.part()


def parser(name: str | None) -> argparse.ArgumentParser:
    """The command line of a workload, or what those of all have in common."""
    made = argparse.ArgumentParser(
        prog=f"python -m bench workloads {name or '[NAME ...]'}",
        description=find(name).summary
        if name
        else "Train models with torch.nn and with fastrnn side by side. NAME: "
        f"{', '.join(NAMES)}; without one, all of them. The flags of one: python -m bench workloads NAME --help.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    own = f": {find(name).data}" if name else ", of one workload: NAME --help says in which format"
    made.add_argument("--data", type=Path, help=f"your own data{own}")
    seconds = find(name).seconds if name else None
    made.add_argument("--seconds", type=positive_float, default=seconds, help="of training, all models together")
    made.add_argument("--updates", type=positive_int, help="of each model; seconds do not count then")
    made.add_argument("--seed", type=int, default=0, help="of weights, batches and sampling")
    made.add_argument("--threads", type=positive_int, default=torch.get_num_threads(), help="of torch and fastrnn")
    made.add_argument("--isa", choices=list(isas.CAPS), help="cap fastrnn and torch alike; else as they are")
    made.add_argument("--out", type=Path, default=Path("out"), help="folder of pictures and results")
    if name:
        workload = find(name)
        made.add_argument(
            "--learning-rate", type=positive_float, default=workload.learning_rate, help="of Adam; it falls to zero"
        )
        made.add_argument("--clip", type=positive_float, default=workload.clip, help="largest norm of the gradients")
        workload.add_arguments(made)
    return made


def _run(each: dict[str, argparse.Namespace], console: Console) -> int:
    rows: list[results.Row] = []
    failures: dict[str, str] = {}
    status = 0
    columns = (TextColumn("{task.fields[name]}"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    # no refreshing thread: it would take the time of the updates that are being measured
    bar = Progress(*columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task("", total=len(each), name="")
        for number, (name, options) in enumerate(each.items()):
            heading = name if len(each) == 1 else f"{name} ({number + 1} of {len(each)})"
            bar.update(task, completed=number, name=heading, description="")
            try:
                rows.append(runner.run(find(name), options, _Reporter(console, bar, task, number, heading)))
                if processes.number() == 0:
                    _write(rows[-1], options.out)
            except DataError as error:
                failures[name], status = str(error), 2
            except DivergedError as error:
                failures[name], status = f"{error}: lower the --learning-rate or the --clip", max(status, 1)
            except MismatchError as error:
                failures[name], status = f"Not the same, stopped: {error}", max(status, 1)
    if processes.number() == 0:
        _show(rows, each, failures, console)
    return max(status, int(any(row.detail["mismatches"] for row in rows)))


class _Reporter:
    """Moves the progress bar; where there is no terminal, prints a line at each tenth of a workload."""

    def __init__(self, console: Console, bar: Progress, task: object, number: int, heading: str) -> None:
        self._console, self._bar, self._task, self._number, self._heading = console, bar, task, number, heading
        self._shown, self._tenths = 0.0, 0

    def __call__(self, done: float, said: str) -> None:
        if not self._console.is_terminal:
            if int(10 * done) > self._tenths:
                self._tenths = int(10 * done)
                self._console.print(f"{self._heading} {done:4.0%} {said}", soft_wrap=True)
        elif done in (0, 1) or time.perf_counter() - self._shown > REFRESH:
            self._bar.update(self._task, completed=self._number + done, description=said, refresh=True)
            self._shown = time.perf_counter()


def _write(row: results.Row, folder: Path) -> None:
    path = folder / f"{_stem(row.benchmark)}.jsonl"
    results.write(path, [row])
    plot.draw([row], folder, path.stem)


def _stem(benchmark: str) -> str:
    """The name of its files: of a cap's, the instruction set comes behind."""
    cap = isas.capped()
    return f"{benchmark}-{cap}" if cap else benchmark


def _show(
    rows: Sequence[results.Row], each: dict[str, argparse.Namespace], failures: dict[str, str], console: Console
) -> None:
    if len(each) == 1 and rows:
        (row,) = rows
        console.print(tables.described(row), soft_wrap=True)
        for renderable in (*find(row.benchmark).show(row), tables.single(row)):
            console.print(renderable)
    if rows:
        console.print(tables.summary(rows))
        folder = next(iter(each.values())).out
        names = [_stem(row.benchmark) for row in rows]
        which = names[0] if len(names) == 1 else f"{{{','.join(names)}}}"
        console.print(f"pictures and results: {folder}/{which}.png and .jsonl", soft_wrap=True)
    for row in rows:
        for mismatch in row.detail["mismatches"]:
            console.print(f"[red]{row.benchmark}: Not the same: {mismatch}[/red]", soft_wrap=True)
    for name, failure in failures.items():
        print(f"{name}: {failure}", file=sys.stderr)
