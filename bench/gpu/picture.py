"""Pictures that only rows of GPUs have."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from bench.gpu.contestants import LEAN
from bench.results import BASELINE, Row
from bench.style import COLOURS, FAINT, INK, STYLE, plain, where

KINDS = {"peak_bytes": "MiB at most, beside what there was before", "kept_bytes": "MiB kept for backward"}


def memory(rows: Sequence[Row]) -> Figure:
    """What a training call takes of a GPU's memory: a bar for each contestant of each case; the output's, a line."""
    bars = [(row, name) for row in rows for name in row.detail["peak_bytes"]]
    figure = Figure(figsize=(10.5, 1.4 + 0.2 * len(bars)), layout="constrained")
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for axes, (kind, label) in zip(panels, KINDS.items(), strict=True):
        mebibytes = [row.detail[kind][name] / 2**20 for row, name in bars]
        axes.barh(range(len(bars)), mebibytes, color=[_colour(name) for _, name in bars])
        for place, (row, _) in enumerate(bars):
            output = row.detail["y_bytes"] / 2**20
            axes.vlines(output, place - 0.5, place + 0.5, color=INK, linewidth=1, linestyle=":")
        axes.set_xlabel(label, **STYLE)
        plain(axes, grid="x")
    panels[0].set_yticks(range(len(bars)), [_named(row, name) for row, name in bars])
    panels[0].set_ylim(len(bars) - 0.5, -0.5)
    figure.suptitle("memory of a training call (dotted: the output alone)\n" + where(rows[0]), **STYLE)
    return figure


def _named(row: Row, name: str) -> str:
    """The case once, before its first contestant."""
    case = (
        f"{row.case.cell} {row.case.shape} {row.case.dtype}  " if name == next(iter(row.detail["peak_bytes"])) else ""
    )
    return case + name


def _colour(name: str) -> str:
    if name == BASELINE:
        return COLOURS[BASELINE]
    return COLOURS["fastrnn lean"] if name.endswith(LEAN) else COLOURS.get(name, FAINT)
