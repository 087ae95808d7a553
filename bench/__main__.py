"""The command line: ``python -m bench cpu`` and ``gpu`` measure layers, ``workloads`` trains models, ``plot`` and
``report`` show what was measured.

``gpu-decide`` writes what follows from rows of a GPU where plans find it; ``host`` measures, without a GPU, what calls
for one take on the CPU; ``threads`` measures layers that are short of cores; ``kernels`` compiles the Triton kernels
and shows what they are made of. rich and matplotlib are imported where they are used: a GPU is measured where there may
be neither.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench import (
    contestants,
    cpu,
    host,
    isas,
    packed,
    resets,
    results,
    roofline,
    scaling,
    streaming,
    tape,
    threads,
    weights,
)
from bench.check import MismatchError
from bench.gpu import command, decide, precompile
from bench.grid import CELLS, GRIDS
from bench.plan import DTYPES, Job, Plan
from fastrnn._arguments import pattern, positive_float, positive_int

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 160  # of tables in a file or a pipe, which have no width of their own
ALSO = {
    "streaming": streaming,
    "packed": packed,
    "reset": resets,
    "tape": tape,
    "weights": weights,
    "scaling": scaling,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 is success, 1 a mismatch of results, 2 a mistake in the arguments."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["workloads"]:
        from bench.workloads import command as workloads

        return workloads.main(arguments[1:])
    options = _parser().parse_args(arguments)
    options.arguments = arguments
    try:
        return int(options.run(options))
    except results.ResultsError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks of fastrnn.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    measure = commands.add_parser("cpu", help="measure layers on the CPU against torch.nn and others")
    measure.set_defaults(run=_cpu)
    measure.add_argument("--grid", choices=list(GRIDS), default="quick", help="which shapes (default: %(default)s)")
    measure.add_argument("--cells", nargs="+", choices=CELLS, default=["lstm", "gru", "rnn_tanh"], metavar="CELL")
    measure.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["float32"], help="one or more")
    measure.add_argument("--threads", type=positive_int, default=torch.get_num_threads(), help="default: %(default)s")
    measure.add_argument("--seconds", type=positive_float, default=2.0, help="per row (default: %(default)s)")
    measure.add_argument(
        "--contestants",
        nargs="+",
        choices=list(contestants.NAMES),
        help="beside torch.nn (default: all, but for the cell loop in the full grid)",
    )
    measure.add_argument(
        "--also",
        nargs="*",
        choices=list(ALSO),
        help="benchmarks beside the grid, in float32 (default: all with the core and full grids, none with quick)",
    )
    measure.add_argument("--isa", choices=list(isas.CAPS), help="cap fastrnn and torch alike (default: as they are)")
    measure.add_argument("--out", type=Path, help="results (default: out/cpu.jsonl; of a cap: out/cpu-ISA.jsonl)")
    command.add_parser(commands)
    decide.add_parser(commands)
    precompile.add_parser(commands)
    host.add_parser(commands)
    threads.add_parser(commands)
    draw = commands.add_parser("plot", help="draw a results file")
    draw.set_defaults(run=_plot)
    draw.add_argument("results", type=Path, help="a file of JSON lines")
    draw.add_argument("--out", type=Path, help="folder of the pictures (default: that of the results)")
    tabulate = commands.add_parser("report", help="tables of results files, and which targets they reach")
    tabulate.set_defaults(run=_report)
    tabulate.add_argument("results", type=Path, nargs="+", help="files of JSON lines")
    commands.add_parser("workloads", help="train models with torch.nn and with fastrnn side by side")
    compile_ = commands.add_parser("kernels", help="compile the Triton kernels, without a GPU, and show their costs")
    compile_.set_defaults(run=_kernels)
    compile_.add_argument("names", nargs="*", type=pattern, help="regular expressions in names (default: all kernels)")
    compile_.add_argument("--target", nargs="+", default=[], metavar="TARGET", help="such as sm_90 (default: all)")
    compile_.add_argument(
        "--processes", type=positive_int, default=os.cpu_count() or 1, help="at a time (default: %(default)s)"
    )
    compile_.add_argument("--out", type=Path, help="write what was found to this file as well")
    compile_.add_argument("--show", type=Path, metavar="FILE", help="compile nothing, show what --out has written")
    return parser


def _cpu(options: argparse.Namespace) -> int:
    from bench import plot

    status = isas.run(options.isa, options.arguments)
    if status is not None:
        return status
    options.out = options.out or Path(f"out/cpu{f'-{options.isa}' if options.isa else ''}.jsonl")
    torch.set_num_threads(options.threads)
    console = _console()
    jobs: list[Job] = []
    for dtype in options.dtype:
        plan = _plan(options, dtype, console)
        rates = roofline.measured(dtype, options.threads)
        reading = ", ".join(f"{rate / 1e9:.0f} ({size >> 10} KiB)" for size, rate in rates.reading.items())
        console.print(f"{dtype}: torch multiplies at {rates.gemm / 1e9:.0f} GFlop/s and reads at {reading} GB/s")
        jobs += cpu.jobs(plan)
        if dtype == "float32":
            also = options.also if options.also is not None else ([] if options.grid == "quick" else list(ALSO))
            jobs += [job for name in also for job in ALSO[name].jobs(plan)]
    refused: list[str] = []
    results.write(options.out, _measured(jobs, console, refused))
    rows = results.read(options.out)
    if rows:
        _show(rows, console, targets=options.grid != "quick" or bool(options.also))
        for picture in plot.draw(rows, options.out.parent, options.out.stem):
            console.print(f"picture: {picture}", soft_wrap=True)
        console.print(f"results: {options.out}", soft_wrap=True)
    for message in refused:
        console.print(f"[red]not timed:[/red] {message}", soft_wrap=True)
    return 1 if refused else 0


def _plan(options: argparse.Namespace, dtype: str, console: "Console") -> Plan:
    """What is asked for; says who cannot take part."""
    keys = options.contestants or [key for key in contestants.NAMES if (options.grid, key) != ("full", "cell-loop")]
    taking_part = [results.BASELINE]
    for name in dict.fromkeys(contestants.NAMES[key] for key in keys):
        reason = contestants.unavailable(name, dtype)
        if reason is None:
            taking_part.append(name)
        else:
            console.print(f"{name} does not take part in {dtype}: {reason}", soft_wrap=True)
    return Plan(options.cells, GRIDS[options.grid], dtype, taking_part, options.seconds)


def _measured(jobs: Sequence[Job], console: "Console", refused: list[str]) -> Iterator[results.Row]:
    """Rows as they are measured, under a progress bar; what does not agree with torch.nn goes to ``refused``."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # no refreshing thread: it would take the time of what is being measured
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=sum(job.rows for job in jobs))
        done = 0
        for job in jobs:
            progress.update(task, description=job.label, completed=done, refresh=True)
            try:
                for row in job.measure():
                    progress.update(task, advance=1, refresh=True)
                    yield row
            except MismatchError as error:
                refused.append(f"{job.label}: {error}")
            done += job.rows


def _show(rows: Sequence[results.Row], console: "Console", targets: bool) -> None:
    from bench import report

    for table in report.tables(rows):
        console.print(table)
    for table in report.targets_tables(rows) if targets else ():
        console.print(table)


def _console() -> "Console":
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH)


def _plot(options: argparse.Namespace) -> int:
    from bench import plot

    rows = results.read(options.results)
    if not rows:
        raise results.ResultsError(f"{options.results} has no rows")
    for picture in plot.draw(rows, options.out or options.results.parent, options.results.stem):
        print(picture)
    return 0


def _report(options: argparse.Namespace) -> int:
    _show([row for path in options.results for row in results.read(path)], _console(), targets=True)
    return 0


def _kernels(options: argparse.Namespace) -> int:
    from rich.progress import track

    try:
        from bench import kernels
    except ImportError as error:  # where there is no triton, everything else works
        raise results.ResultsError(f"kernels cannot be compiled here: {error}") from error

    console = _console()
    if options.show:
        by, rows = kernels.read(options.show)
        console.print(", ".join(f"{name} {value}" for name, value in by.items()), soft_wrap=True)
    else:
        jobs = kernels.jobs(options.names, options.target, kernels.CATALOG)
        compiled = kernels.rows(jobs, options.processes)
        if options.out:
            compiled = kernels.write(options.out, compiled)
        rows = list(track(compiled, "compiling", len(jobs), console=console, transient=True))
    console.print(kernels.table(rows))
    for row in rows:
        if row.error:
            console.print(f"[red]not compiled:[/red] {row.name} for {row.target}: {row.error}", soft_wrap=True)
    return 1 if any(row.report is None for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
