"""Tables of workloads, from the rows of results alone."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from bench.results import BASELINE, Row

OURS = "fastrnn"
BOTH = (BASELINE, OURS)
MIB = 1 << 20


def summary(rows: Sequence[Row]) -> Table:
    """A line for each workload: quality, time and memory of both."""
    table = Table(
        title="workloads, torch.nn and fastrnn",
        caption="medians of the updates, in turns; memory is what updates add at their peak",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("workload", no_wrap=True)
    table.add_column("quality")
    for heading in ("torch.nn", "fastrnn", "ms/update", "fastrnn", "times as fast", "peak MiB", "fastrnn"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("same?")
    for row in rows:
        quality = row.detail["quality"]
        measure = next(iter(quality[BASELINE]))
        colour = "green" if row.speedup[OURS] >= 1 else "red"
        table.add_row(
            row.benchmark,
            measure,
            *(f"{quality[name][measure]:.4f}" for name in BOTH),
            *(f"{1e3 * row.times[name].median:.2f}" for name in BOTH),
            f"[{colour}]{row.speedup[OURS]:.2f}[/{colour}]",
            *(_mib(row.detail["peak_bytes"][name]) for name in BOTH),
            "[red]no[/red]" if row.detail["mismatches"] else "[green]yes[/green]",
        )
    return table


def single(row: Row) -> Table:
    """All numbers of one workload."""
    detail = row.detail
    table = Table(title=f"{row.benchmark}: {detail['updates']:,} updates of each, in turns")
    for heading in ("", *BOTH):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_column("comparison")

    def line(title: str, values: Mapping[str, float], form: str, comparison: str = "") -> None:
        table.add_row(title, *(format(values[name], form) for name in BOTH), comparison)

    items = detail["items"]
    speeds, seconds = detail["items_per_second"], detail["evaluation_seconds"]
    line(f"{items}/s in training", speeds, ",.0f", f"{row.speedup[OURS]:.2f} times as fast")
    line("seconds of updates", detail["seconds"], ",.1f")
    line("seconds of an evaluation", seconds, ",.3f", f"{seconds[BASELINE] / seconds[OURS]:.2f} times as fast")
    last = {name: curve["loss"][-1] for name, curve in detail["curves"].items()}
    line("training loss at the end", last, ".5f", f"{abs(last[OURS] - last[BASELINE]):.1e} apart")
    ours, moved = detail["largest_loss_difference"].values()
    table.add_row("  furthest apart", "", "", f"{ours:.1e}, by rounding {moved:.1e}")
    apart, allowed = detail["deviation"]["measured"], detail["deviation"]["tolerance"]
    table.add_row("held-out losses", "", "", f"{apart:.1e} apart, {allowed:.1e} allowed")
    for measure in detail["quality"][BASELINE]:
        values = {name: detail["quality"][name][measure] for name in BOTH}
        line(f"held-out {measure}", values, ".5f", f"{abs(values[OURS] - values[BASELINE]):.1e} apart")
        same = {BASELINE: values[BASELINE], OURS: detail["quality_same_weights"][measure]}
        line("  of torch.nn's weights", same, ".5f", f"{abs(same[OURS] - same[BASELINE]):.1e} apart")
    peaks = detail["peak_bytes"]
    table.add_row("MiB that updates take", *(_mib(peaks[name]) for name in BOTH))
    return table


def described(row: Row) -> str:
    """A line about data, model and threads."""
    data = row.detail["data"].items()
    parts = [f"{name}: {value:,}" if isinstance(value, int) else f"{value}" for name, value in data]
    return "; ".join([*parts, f"weights: {row.detail['weights']:,}", f"{row.case.shape}", f"threads: {row.threads}"])


def _mib(count: int | None) -> str:
    return "" if count is None else f"{count / MIB:.1f}"
