"""Pictures of results, from the rows of a results file alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench import curves
from bench.contestants import ONNX
from bench.gpu import picture as gpu_picture
from bench.results import BASELINE, Row
from bench.style import CELL_COLOURS, FAINT, INK, STYLE, plain, save, where
from bench.workloads import NAMES, picture

SERIES: dict[str, Callable[[Sequence[Row]], Figure]] = {
    "scaling": curves.scaling,
    "tape": curves.tape,
    "lean": gpu_picture.memory,
}


def draw(rows: Sequence[Row], folder: Path, stem: str) -> list[Path]:
    """Draw every kind of benchmark among the rows; the pictures' paths."""
    pictures = []
    layers = [row for row in rows if row.benchmark == "layer" and row.times]
    kinds = dict.fromkeys((row.case.dtype, bool(row.detail.get("tf32"))) for row in layers)
    for number, (dtype, tf32) in enumerate(kinds):
        own = [row for row in layers if (row.case.dtype, bool(row.detail.get("tf32"))) == (dtype, tf32)]
        suffix = f"-{dtype}{'-tf32' if tf32 else ''}" if number else ""
        pictures.append(save(_layers(own), folder / f"{stem}{suffix}.png"))
    for benchmark, series in SERIES.items():
        own = [row for row in rows if row.benchmark == benchmark and row.times]
        if own:
            pictures.append(save(series(own), folder / f"{stem}-{benchmark}.png"))
    for benchmark in NAMES:
        for number, row in enumerate(row for row in rows if row.benchmark == benchmark):
            name = stem if stem.partition("-")[0] == benchmark else f"{stem}-{benchmark}"
            pictures.append(save(picture.draw(row), folder / f"{name}{f'-{number}' if number else ''}.png"))
    return pictures


def _layers(rows: Sequence[Row]) -> Figure:
    """The speedup over torch.nn by shape: a dot for each cell, with the spread of the times, a panel for each mode.

    Where ONNX Runtime was measured, one more for the speedup over it; on a GPU, more for each strategy by itself.
    """
    shapes = list(dict.fromkeys(str(row.case.shape) for row in rows))
    names = dict.fromkeys(name for row in rows for name in row.times if name.startswith("fastrnn"))
    modes = dict.fromkeys(row.case.mode for row in rows)
    against = [(mode, name, BASELINE) for name in names for mode in modes]
    if any(ONNX in row.times for row in rows):
        against.append(("inference", "fastrnn", ONNX))
    figure = Figure(figsize=(3.2 + 3.6 * len(against), 1.5 + 0.42 * len(shapes)), layout="constrained")
    panels = figure.subplots(1, len(against), sharey=True, sharex=True, squeeze=False)[0]
    for axes, (mode, ours, other) in zip(panels, against, strict=True):
        own = [row for row in rows if row.case.mode == mode and {ours, other} <= set(row.times)]
        _speedups(axes, own, ours, other, shapes)
        axes.set_title(mode if ours == "fastrnn" else f"{mode}, {ours}", **STYLE)
        axes.set_xlabel(f"times as fast as {other}", **STYLE)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        plain(axes, grid="x")
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside right upper")
    figure.suptitle("fastrnn: ratio of median times\n" + where(rows[0]), fontsize=9, color=INK)
    return figure


def _speedups(axes: Axes, rows: Sequence[Row], ours: str, other: str, shapes: Sequence[str]) -> None:
    """One panel of them, of one contestant over another."""
    cells = list(dict.fromkeys(row.case.cell for row in rows))
    axes.axvline(1, color=FAINT, linewidth=1)
    for place, cell in enumerate(cells):
        shift = (place - (len(cells) - 1) / 2) * 0.6 / len(cells)
        own = [row for row in rows if row.case.cell == cell]
        height = [shapes.index(str(row.case.shape)) + shift for row in own]
        against = [row.baseline if other == BASELINE else other for row in own]
        low = [row.times[name].p20 / row.times[ours].p80 for row, name in zip(own, against, strict=True)]
        high = [row.times[name].p80 / row.times[ours].p20 for row, name in zip(own, against, strict=True)]
        ratios = [row.ratio(ours, name) for row, name in zip(own, against, strict=True)]
        colour = CELL_COLOURS[cell]
        axes.hlines(height, low, high, color=colour, alpha=0.35, linewidth=2.5)
        axes.scatter(ratios, height, s=22, color=colour, label=cell, zorder=3)
    axes.set_xscale("log", base=2)
    axes.set_yticks(range(len(shapes)), shapes, fontsize=8)
