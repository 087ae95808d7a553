"""Pictures of results, from the rows of a results file alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.results import BASELINE, Row

COLOURS = {"fastrnn": "#1f6feb", BASELINE: "#d1780f"}
CELL_COLOURS = {"lstm": "#1f6feb", "gru": "#2da44e", "rnn_tanh": "#8250df", "rnn_relu": "#bf3989"}
INK = "#24292f"
FAINT = "#8c959f"
STYLE: dict[str, Any] = {"color": INK, "fontsize": 9}


def draw(rows: Sequence[Row], folder: Path, stem: str) -> list[Path]:
    """Draw every kind of benchmark among the rows; the pictures' paths."""
    pictures = []
    layers = [row for row in rows if row.benchmark == "layer"]
    if layers:
        pictures.append(_save(_layers(layers), folder / f"{stem}.png"))
    models = [row for row in rows if row.benchmark == "language_model"]
    for number, row in enumerate(models):
        suffix = f"-{number}" if number else ""
        name = f"{stem}-language_model" if layers else stem
        pictures.append(_save(_language_model(row), folder / f"{name}{suffix}.png"))
    return pictures


def _layers(rows: Sequence[Row]) -> Figure:
    """The speedup over torch.nn by shape: a dot for each cell, with the spread of the times, a panel for each mode."""
    modes = list(dict.fromkeys(row.case.mode for row in rows))
    shapes = list(dict.fromkeys(str(row.case.shape) for row in rows))
    cells = list(dict.fromkeys(row.case.cell for row in rows))
    figure = Figure(figsize=(3.2 + 3.6 * len(modes), 1.5 + 0.42 * len(shapes)), layout="constrained")
    panels = figure.subplots(1, len(modes), sharey=True, sharex=True, squeeze=False)[0]
    for axes, mode in zip(panels, modes, strict=True):
        axes.axvline(1, color=FAINT, linewidth=1)
        for place, cell in enumerate(cells):
            shift = (place - (len(cells) - 1) / 2) * 0.6 / max(1, len(cells))
            own = [r for r in rows if r.case.mode == mode and r.case.cell == cell and "fastrnn" in r.times]
            height = [shapes.index(str(row.case.shape)) + shift for row in own]
            low = [row.times[BASELINE].p20 / row.times["fastrnn"].p80 for row in own]
            high = [row.times[BASELINE].p80 / row.times["fastrnn"].p20 for row in own]
            colour = CELL_COLOURS[cell]
            axes.hlines(height, low, high, color=colour, alpha=0.35, linewidth=2.5)
            axes.scatter([row.speedup["fastrnn"] for row in own], height, s=22, color=colour, label=cell, zorder=3)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(shapes)), shapes, fontsize=8)
        axes.set_title(mode, **STYLE)
        axes.set_xlabel(f"times as fast as {BASELINE}", **STYLE)
        _plain(axes, grid="x")
    panels[0].invert_yaxis()
    panels[-1].legend(frameon=False, fontsize=8, loc="best")
    figure.suptitle("fastrnn: ratio of median times\n" + _where(rows[0]), fontsize=9, color=INK)
    return figure


def _language_model(row: Row) -> Figure:
    """Training loss against the time that each contestant's own updates took."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, curve in row.detail["curves"].items():
        colour = COLOURS.get(name, FAINT)
        speed, perplexity = row.detail["tokens_per_second"][name], row.detail["heldout_perplexity"][name]
        label = f"{name}: {speed:,.0f} tokens/s, held-out perplexity {perplexity:.4f}"
        axes.plot(curve["seconds"], curve["loss"], color=colour, linewidth=1.8, label=label)
        axes.plot(curve["seconds"][-1], curve["loss"][-1], "o", color=colour, markersize=5)
    axes.set_xlim(left=0)
    axes.legend(loc="upper right", frameon=False, labelcolor="linecolor", fontsize=9)  # a loss falls: it is empty there
    axes.set_xlabel("seconds spent in its own updates", **STYLE)
    axes.set_ylabel("training loss (nats per character)", **STYLE)
    case = row.case
    title = (
        f"{case.cell} language model on {row.detail['text']}: the same updates, "
        f"{row.speedup['fastrnn']:.2f} times as fast\n{case.shape}, {_where(row)}"
    )
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    _plain(axes, grid="y")
    return figure


def _where(row: Row) -> str:
    made = row.provenance
    return f"{row.case.dtype}, threads: {row.threads}, {made.isa}, torch {made.torch}, {made.cpu}"


def _plain(axes: Axes, grid: Literal["x", "y"]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8, length=3)
    axes.grid(axis=grid, color="#d0d7de", linewidth=0.6)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)  # no window system is asked for
    figure.savefig(path, dpi=150)
    return path
