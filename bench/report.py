"""Tables of results: ratios, since a CPU's seconds mean little on another."""

from collections.abc import Sequence

from rich.table import Table

from bench.results import BASELINE, Row


def layers_table(rows: Sequence[Row]) -> Table:
    """How many times as fast as torch.nn each contestant is, by cell and shape, in inference and in training."""
    names = list(dict.fromkeys(name for row in rows for name in row.times if name != BASELINE))
    modes = list(dict.fromkeys(row.case.mode for row in rows))
    kinds = list(dict.fromkeys((row.case.dtype, row.threads, row.provenance.isa) for row in rows))
    title = "; ".join(f"{dtype}, threads: {threads}, {isa}" for dtype, threads, isa in kinds)
    table = Table(
        title=f"times as fast as {BASELINE} ({title})", caption="ratios of medians, 20 % and 80 % in brackets"
    )
    table.add_column("cell")
    table.add_column("shape", no_wrap=True)
    for name in names:
        for mode in modes:
            table.add_column(f"{name}\n{mode}", justify="right", no_wrap=True)
    by_layer: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        by_layer.setdefault((row.case.cell, str(row.case.shape)), {})[row.case.mode] = row
    for (cell, shape), by_mode in by_layer.items():
        table.add_row(cell, shape, *(_ratio(by_mode.get(mode), name) for name in names for mode in modes))
    return table


def _ratio(row: Row | None, name: str) -> str:
    """The ratio of medians, and how far it goes when both contestants' times spread: the nearest and the farthest."""
    if row is None or name not in row.times:
        return ""
    ours, theirs = row.times[name], row.times[BASELINE]
    colour = "green" if row.speedup[name] >= 1 else "red"
    spread = f"[dim]({theirs.p20 / ours.p80:.2f}–{theirs.p80 / ours.p20:.2f})[/dim]"
    return f"[{colour}]{row.speedup[name]:.2f}[/{colour}] {spread}"
