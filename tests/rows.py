"""Rows of results that were never measured, for tests of what is made of rows."""

from dataclasses import replace

from bench import results, timing
from bench.grid import Shape

SHAPE = Shape(2, 3, 4, 5)


def make_row(**changes: object) -> results.Row:
    """A row of results that was never measured."""
    row = results.Row(
        benchmark="layer",
        case=results.Case.of("gru", Shape(2, 3, 4, 5), "float32", "training"),
        threads=2,
        times={"torch.nn": timing.Times(3e-3, 2e-3, 4e-3, 9), "fastrnn": timing.Times(2e-3, 1e-3, 3e-3, 9)},
        provenance=results.Provenance("2", "0", "3", "base", "a CPU", None, "2020-01-01T00:00:00+00:00"),
    )
    return replace(row, **changes)


def seconds(**medians: float) -> dict[str, timing.Times]:
    """Times of contestants that were never measured, under short names."""
    names = {"torch": "torch.nn", "cell": "torch.nn cell", "loop": "torch.nn cell loop", "onnx": "ONNX Runtime"}
    names |= {"lean": "fastrnn lean", "without": "fastrnn without resets", "own_cell": "fastrnn cell"}
    names["half"] = "fastrnn bfloat16 weights"
    return {names.get(name, name): timing.Times(m, m, m, 9) for name, m in medians.items()}


def case_row(cell: str, mode: str, shape: Shape = SHAPE, dtype: str = "float32", **changes: object) -> results.Row:
    """A row that was never measured, of a case."""
    return make_row(case=results.Case.of(cell, shape, dtype, mode), **changes)
