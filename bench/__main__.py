"""The command line: ``python -m bench cpu`` measures, ``python -m bench plot RESULTS`` draws."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench import cpu, plot, report, results
from bench.arguments import positive_float, positive_int
from bench.check import MismatchError
from bench.grid import CELLS, GRIDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 is success, 1 a mismatch of results, 2 a mistake in the arguments."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except results.ResultsError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks of fastrnn.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    measure = commands.add_parser("cpu", help="measure layers on the CPU against torch.nn")
    measure.set_defaults(run=_cpu)
    measure.add_argument("--grid", choices=list(GRIDS), default="quick", help="which shapes (default: %(default)s)")
    measure.add_argument("--cells", nargs="+", choices=CELLS, default=["lstm", "gru", "rnn_tanh"], metavar="CELL")
    measure.add_argument("--dtype", choices=list(cpu.DTYPES), default="float32")
    measure.add_argument("--threads", type=positive_int, default=torch.get_num_threads(), help="default: %(default)s")
    measure.add_argument("--seconds", type=positive_float, default=2.0, help="per case (default: %(default)s)")
    measure.add_argument("--cell-loop", action="store_true", help="measure a Python loop over torch.nn's cells as well")
    measure.add_argument("--out", type=Path, default=Path("out/cpu.jsonl"), help="results (default: %(default)s)")
    draw = commands.add_parser("plot", help="draw a results file")
    draw.set_defaults(run=_plot)
    draw.add_argument("results", type=Path, help="a file of JSON lines")
    draw.add_argument("--out", type=Path, help="folder of the pictures (default: that of the results)")
    return parser


def _cpu(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    contestants = [results.BASELINE, "fastrnn", *(["torch.nn cell loop"] if options.cell_loop else [])]
    plan = cpu.Plan(options.cells, GRIDS[options.grid], options.dtype, contestants, options.seconds)
    console = Console()
    refused: list[str] = []
    results.write(options.out, _measured(plan, console, refused))
    rows = results.read(options.out)
    if rows:
        console.print(report.layers_table(rows))
        for picture in plot.draw(rows, options.out.parent, options.out.stem):
            console.print(f"picture: {picture}", soft_wrap=True)
        console.print(f"results: {options.out}", soft_wrap=True)
    for message in refused:
        console.print(f"[red]not timed:[/red] {message}", soft_wrap=True)
    return 1 if refused else 0


def _measured(plan: cpu.Plan, console: Console, refused: list[str]) -> Iterator[results.Row]:
    """Rows as they are measured, under a progress bar; layers that do not agree with torch.nn go to ``refused``."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # no refreshing thread: it would take the time of what is being measured
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        layers = plan.layers()
        task = progress.add_task("", total=len(layers) * len(cpu.MODES))
        for place, (cell, shape) in enumerate(layers):
            progress.update(task, description=f"{cell} {shape}", completed=place * len(cpu.MODES), refresh=True)
            try:
                for row in cpu.measure(cell, shape, plan):
                    progress.update(task, advance=1, refresh=True)
                    yield row
            except MismatchError as error:
                refused.append(f"{cell} {shape}: {error}")


def _plot(options: argparse.Namespace) -> int:
    rows = results.read(options.results)
    if not rows:
        raise results.ResultsError(f"{options.results} has no rows")
    for picture in plot.draw(rows, options.out or options.results.parent, options.results.stem):
        print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
