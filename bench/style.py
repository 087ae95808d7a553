"""What all pictures have in common: colours, axes, and a line that says where the rows come from."""

from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.results import BASELINE, Row

COLOURS = {"fastrnn": "#1f6feb", BASELINE: "#d1780f", "fastrnn lean": "#2da44e"}
CELL_COLOURS = {"lstm": "#1f6feb", "gru": "#2da44e", "rnn_tanh": "#8250df", "rnn_relu": "#bf3989"}
INK = "#24292f"
FAINT = "#8c959f"
STYLE: dict[str, Any] = {"color": INK, "fontsize": 9}


def where(row: Row, threads: bool = True) -> str:
    """By what a row was measured."""
    made = row.provenance
    if (gpu := made.device) is not None:
        versions = f"driver {gpu.driver}, CUDA {gpu.cuda}, cuDNN {gpu.cudnn}, triton {gpu.triton}"
        return f"{row.case.dtype}, {row.place}, torch {made.torch}, {versions}"
    count = f"threads: {row.threads}, " if threads else ""
    of_torch = f" ({made.torch_isa})" if made.torch_isa else ""
    return f"{row.case.dtype}, {count}{made.isa}, torch {made.torch}{of_torch}, {made.cpu}"


def plain(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    """Few lines, and those faint."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8, length=3)
    axes.grid(axis=grid, color="#d0d7de", linewidth=0.6)
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path) -> Path:
    """Write a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)  # no window system is asked for
    figure.savefig(path, dpi=150)
    return path
