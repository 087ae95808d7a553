"""Pictures of series: throughput along the axes of :mod:`bench.scaling`, memory and time of :mod:`bench.tape`."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, LogLocator, NullFormatter, NullLocator

from bench.results import Row
from bench.style import COLOURS, FAINT, STYLE, plain, where

AXES = {"threads": "threads", "B": "batch size B", "T": "steps T", "H": "hidden units H"}
LINES = {"inference": "--", "training": "-"}


def scaling(rows: Sequence[Row]) -> Figure:
    """Steps of a row of the batch per second along each axis, a line for each contestant and mode."""
    axes_names = [axis for axis in AXES if any(row.detail["axis"] == axis for row in rows)]
    figure = Figure(figsize=(3.4 * len(axes_names), 3.6), layout="constrained")
    panels = figure.subplots(1, len(axes_names), squeeze=False)[0]
    for axes, axis in zip(panels, axes_names, strict=True):
        own = sorted((row for row in rows if row.detail["axis"] == axis), key=lambda row: row.detail["value"])
        for mode, line in LINES.items():
            for name in dict.fromkeys(name for row in own for name in row.times):
                points = [
                    (row.detail["value"], row.case.batch * row.case.steps / row.times[name].median)
                    for row in own
                    if row.case.mode == mode and name in row.times
                ]
                _line(axes, points, name, line, f"{name}, {mode}")
        axes.set_xscale("log", base=10 if axis == "T" else 2)
        axes.set_yscale("log")
        _readable(axes, EngFormatter(sep=""))
        if axis != "T":
            values = sorted({row.detail["value"] for row in own})
            axes.set_xticks(values, [f"{value}" for value in values])
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(f"{AXES[axis]}\n({_fixed(own[0], axis)})", **STYLE)
        plain(axes, grid="both")
    panels[0].set_ylabel("rows × steps per second", **STYLE)
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside right upper")
    figure.suptitle(f"{rows[0].case.cell}: throughput; {where(rows[0], threads=False)}", **STYLE)
    return figure


def tape(rows: Sequence[Row]) -> Figure:
    """Bytes kept for backward and seconds of training against the steps, a row of panels for each cell."""
    cells = list(dict.fromkeys(row.case.cell for row in rows))
    figure = Figure(figsize=(7.6, 0.8 + 2.8 * len(cells)), layout="constrained")
    panels = figure.subplots(len(cells), 2, squeeze=False)
    for (memory, seconds), cell in zip(panels, cells, strict=True):
        own = sorted((row for row in rows if row.case.cell == cell), key=lambda row: row.case.steps)
        for name in dict.fromkeys(name for row in own for name in row.times):
            kept = [(row.case.steps, row.detail["kept_bytes"][name] / 2**20) for row in own]
            _line(memory, kept, name, "-", name)
            _line(seconds, [(row.case.steps, 1e3 * row.times[name].median) for row in own], name, "-", name)
        output = [(row.case.steps, row.detail["y_bytes"] / 2**20) for row in own]
        memory.plot(*zip(*output, strict=True), color=FAINT, linewidth=1, linestyle=":", label="the output itself")
        for axes, what in ((memory, "MiB kept for backward"), (seconds, "ms of forward and backward")):
            axes.set_xscale("log")
            axes.set_yscale("log")
            _readable(axes, FuncFormatter(lambda value, _: f"{value:g}"))
            axes.set_xlabel(f"steps T ({_fixed(own[0], 'T')})", **STYLE)
            axes.set_ylabel(f"{cell}: {what}", **STYLE)
            plain(axes, grid="both")
        memory.legend(frameon=False, fontsize=8)
    figure.suptitle(f"the lean tape; {where(rows[0])}", **STYLE)
    return figure


def _readable(axes: Axes, formatter: Formatter) -> None:
    """Numbers instead of powers, and more of them where the logarithmic axis covers little more than a power of ten."""
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high / low > 30 else (1, 2, 5)))
    axes.yaxis.set_major_formatter(formatter)
    axes.yaxis.set_minor_formatter(NullFormatter())


def _line(axes: Axes, points: Sequence[tuple[float, float]], name: str, line: str, label: str) -> None:
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=COLOURS.get(name, FAINT), linestyle=line, marker="o", markersize=3.5, label=label)


def _fixed(row: Row, axis: str) -> str:
    """The sizes that stay the same along an axis; the input is as wide as the state."""
    sizes = {"B": row.case.batch, "T": row.case.steps, "H": row.case.hidden}
    return " ".join(f"{key}{size}" for key, size in sizes.items() if key != axis)
