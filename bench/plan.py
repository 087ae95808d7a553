"""What a run is made of: a plan says how to measure, jobs are what there is to do, one after the other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from bench.grid import Shape
from bench.results import Row

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
MODES = ("inference", "training")


@dataclass(frozen=True)
class Plan:
    """What to measure and how long: ``seconds`` is for one row, all contestants together."""

    cells: Sequence[str]
    shapes: Sequence[Shape]
    dtype: str
    contestants: Sequence[str]
    seconds: float

    @property
    def gated(self) -> list[str]:
        """The cells that most benchmarks beside the grid are about."""
        return [cell for cell in self.cells if cell in ("lstm", "gru")]


@dataclass(frozen=True)
class Job:
    """A check and the rows that follow it; ``measure`` raises MismatchError before any row where the check fails."""

    label: str
    rows: int
    measure: Callable[[], Iterator[Row]]
