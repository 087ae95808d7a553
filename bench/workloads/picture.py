"""The picture of a workload: training loss against time and, where it has some, the workload's own panels."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.results import Row
from bench.style import COLOURS, FAINT, INK, STYLE, plain, where
from bench.workloads import find


def draw(row: Row) -> Figure:
    """From a row of results alone."""
    workload = find(row.benchmark)
    panels = 1 if workload.draw is None else 1 + workload.panels
    lines = 1 if panels <= 3 else 2
    columns = -(-panels // lines)
    figure = Figure(figsize=(7.2 if panels == 1 else 6.25 * columns, 4.4 * lines), layout="constrained")
    first, *others = figure.subplots(lines, columns, squeeze=False).flat
    _curves(first, row)
    for axes in others[panels - 1 :]:
        axes.set_axis_off()
    if workload.draw is not None:
        workload.draw(*others[: panels - 1], row)
    data = next(iter(row.detail["data"].values()))
    title = (
        f"{row.benchmark} ({row.case.cell}) on {data}: the same updates, "
        f"{row.speedup['fastrnn']:.2f} times as fast\n{row.case.shape}, {where(row)}"
    )
    figure.suptitle(title, fontsize=9, color=INK, x=0.02, ha="left")
    return figure


def _curves(axes: Axes, row: Row) -> None:
    """Training loss against the time that each contestant's own updates took."""
    for name, curve in row.detail["curves"].items():
        colour = COLOURS.get(name, FAINT)
        measure, quality = next(iter(row.detail["quality"][name].items()))
        speed = row.detail["items_per_second"][name]
        label = f"{name}: {speed:,.0f} {row.detail['items']}/s, held-out {measure} {quality:.4f}"
        axes.plot(curve["seconds"], curve["loss"], color=colour, linewidth=1.8, label=label)
        axes.plot(curve["seconds"][-1], curve["loss"][-1], "o", color=colour, markersize=5)
    axes.set_xlim(left=0)
    axes.legend(loc="upper right", frameon=False, labelcolor="linecolor", fontsize=9)  # a loss falls: it is empty there
    axes.set_xlabel("seconds spent in its own updates", **STYLE)
    axes.set_ylabel(f"training loss, mean over {row.detail['items']}", **STYLE)
    plain(axes, grid="y")
