"""Tables of results: ratios, since a machine's seconds mean little on another."""

from collections import Counter
from collections.abc import Mapping, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from bench.contestants import ONNX
from bench.gpu import targets as gpu_targets
from bench.gpu.targets import Judged
from bench.plan import MODES
from bench.results import FLATTENED, Row
from bench.targets import Reached, reached
from bench.workloads import NAMES
from bench.workloads.tables import summary

SHORT = {
    "torch.nn cell loop": "cell loop",
    ONNX: "ONNX",
    FLATTENED: "flattened",
    "fastrnn resident": "resident",
    "fastrnn grid": "grid",
    "fastrnn stepwise": "stepwise",
    "fastrnn recorded": "recorded",
}


def tables(rows: Sequence[Row]) -> list[Table]:
    """All that there is to say of these rows, but for targets."""
    measured = [row for row in rows if row.times]
    layers = [row for row in measured if row.benchmark == "layer"]
    kinds = dict.fromkeys((row.case.dtype, row.threads, row.place, row.case.mode) for row in layers)
    made = []
    for kind in sorted(kinds, key=lambda kind: (kind[:3], MODES.index(kind[3]))):
        own = [row for row in layers if (row.case.dtype, row.threads, row.place, row.case.mode) == kind]
        made.append(layers_table(own, f"{kind[3]} ({kind[0]}, {kind[2]})"))
    others = [row for row in measured if "fastrnn" in row.times and row.benchmark not in ("layer", *NAMES)]
    models = [row for row in measured if row.benchmark in NAMES]
    sized = [row for row in measured if "peak_bytes" in row.detail]
    latencies = [row for row in measured if row.benchmark == "latency"]
    missing = Counter(row.detail["not_measured"] for row in rows if "not_measured" in row.detail)
    return [
        *([latency_table(latencies)] if latencies else []),
        *made,
        *([others_table(others)] if others else []),
        *([memory_table(sized)] if sized else []),
        *([summary(models)] if models else []),
        *([missing_table(missing)] if missing else []),
    ]


def layers_table(rows: Sequence[Row], kind: str) -> Table:
    """How many times as fast as torch.nn each contestant is, by cell and shape, for rows of one kind."""
    names = list(dict.fromkeys(name for row in rows for name in row.times if name != row.baseline))
    table = Table(
        title=f"{kind}: times as fast as {' or '.join(dict.fromkeys(row.baseline for row in rows))}",
        caption="ratios of medians, 20 % and 80 % in brackets; limit: the part of the machine's that fastrnn reaches",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("cell")
    table.add_column("shape", no_wrap=True)
    for name in names:
        table.add_column(SHORT.get(name, name), justify="right", no_wrap=True)
    table.add_column("limit", justify="right", no_wrap=True)
    for row in rows:
        ratios = (_ratio(row, name, spread=name == "fastrnn") for name in names)
        table.add_row(row.case.cell, str(row.case.shape), *ratios, _fraction(row))
    return table


def others_table(rows: Sequence[Row]) -> Table:
    """How many times as fast as each other contestant fastrnn is, in the benchmarks beside the grid."""
    table = Table(title="fastrnn: times as fast as the others", box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in ("benchmark", "case", "mode"):
        table.add_column(column, no_wrap=True)
    table.add_column("against")
    table.add_column("limit", justify="right", no_wrap=True)
    for row in rows:
        what = row.benchmark
        if row.detail.get("axis") == "threads":
            what += f" {row.threads} threads"
        against = ", ".join(
            f"{SHORT.get(name, name)} {row.ratio('fastrnn', name):.2f}" for name in row.times if name != "fastrnn"
        )
        table.add_row(what, f"{row.case.cell} {row.case.shape}", row.case.mode, against, _fraction(row))
    return table


def memory_table(rows: Sequence[Row]) -> Table:
    """What a training call takes of a GPU's memory."""
    table = Table(
        title="memory of a training call",
        caption="at most, beside what there was before; and kept for backward, as a multiple of the output",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    for column, justify in (("case", "left"), ("contestant", "left"), ("peak, MiB", "right"), ("kept", "right")):
        table.add_column(column, justify=justify, no_wrap=True)
    for row in rows:
        case = f"{row.case.cell} {row.case.shape} {row.case.dtype}"
        for name, peak in row.detail["peak_bytes"].items():
            kept = row.detail["kept_bytes"][name] / row.detail["y_bytes"]
            table.add_row(case, name, f"{peak / 2**20:.1f}", f"{kept:.2f}")
            case = ""
    return table


def latency_table(rows: Sequence[Row]) -> Table:
    """What a GPU takes for the least there is to do, and its rates."""
    table = Table(title=f"latencies and rates: {rows[0].place}", box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in ("what", "microseconds", "rate"):
        table.add_column(column, justify="left" if column == "what" else "right", no_wrap=True)
    for row in rows:
        (times,) = row.times.values()
        table.add_row(row.detail["what"], f"{1e6 * times.median:.3f}", row.detail.get("rate", ""))
    return table


def missing_table(reasons: Mapping[str, int]) -> Table:
    """The rows that were to be measured and were not, by the reason."""
    table = Table(title="not measured", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("rows", justify="right")
    table.add_column("why")
    for reason, rows in reasons.items():
        table.add_row(str(rows), escape(reason))
    return table


def targets_table(results: Sequence[Reached], column: str) -> Table:
    """Every target of one column, and whether it is reached."""
    table = Table(
        title=f"targets: {column}",
        caption="at the limit: what the mean would be if fastrnn took no longer than the machine's limit",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("target", no_wrap=True)
    table.add_column("needs")
    table.add_column("geometric mean", justify="right")
    table.add_column("at the limit", justify="right")
    table.add_column("worst case")
    table.add_column("met?")
    for result in results:
        table.add_row(result.target.what, result.target.needs(), *_outcome(result))
    return table


def gpu_targets_table(device: str, judged: Sequence[Judged]) -> Table:
    """Every target of a GPU: whether it is reached as fastrnn plans, and what its best strategies would reach."""
    table = Table(
        title=f"targets: {device}",
        caption="mean and worst case as fastrnn plans; had it planned what was the fastest in each row: mean (worst)",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    right = ("rows", "mean", "best strategies")
    for column in ("target", "needs", "rows", "mean", "worst case", "met?", "best strategies"):
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column == "target")
    for one in judged:
        mean, _, worst, met = _outcome(one.planned)
        best = ""
        if one.best.mean is not None and one.best.worst is not None:
            best = f"{_short(one.best.mean)} ({_short(one.best.worst.number)})"
        table.add_row(one.target.what, one.target.needs(), str(one.values or ""), mean, worst, met, best)
    return table


def targets_tables(rows: Sequence[Row]) -> list[Table]:
    """Those of CPUs, by instruction set, where there are rows of one or none at all, and those of each GPU."""
    on_gpu = [row for row in rows if row.provenance.device is not None]
    results = reached(rows) if not on_gpu or len(on_gpu) < len(rows) else []
    columns = dict.fromkeys(result.target.column for result in results)
    of_cpu = [targets_table([one for one in results if one.target.column == name], name) for name in columns]
    return of_cpu + [gpu_targets_table(device, judged) for device, judged in gpu_targets.judged(on_gpu).items()]


def _outcome(result: Reached) -> tuple[str, str, str, str]:
    if result.mean is None or result.worst is None:
        return "", "", "", "[dim]not measured[/dim]"
    limit = "" if result.at_limit is None else f"{result.at_limit:.2f}"
    worst = f"{_short(result.worst.number)}, {result.worst.case}"
    return _short(result.mean), limit, worst, "[green]yes[/green]" if result.met else "[red]no[/red]"


def _short(number: float) -> str:
    return f"{number:.2f}" if number < 1000 else f"{number:,.0f}"


def _fraction(row: Row) -> str:
    fraction = row.detail.get("fraction", {}).get("fastrnn")
    return "" if fraction is None else f"{100 * fraction:.0f} %"


def _ratio(row: Row, name: str, spread: bool) -> str:
    """The ratio of medians, and how far it goes when both contestants' times spread: the nearest and the farthest."""
    if name not in row.speedup:
        return ""
    ours, theirs = row.times[name], row.times[row.baseline]
    colour = "green" if row.speedup[name] >= 1 else "red"
    ratio = f"[{colour}]{row.speedup[name]:.2f}[/{colour}]"
    return f"{ratio} [dim]({theirs.p20 / ours.p80:.2f}–{theirs.p80 / ours.p20:.2f})[/dim]" if spread else ratio
