"""What is measured on a GPU: cells, sizes and kinds of numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench import packed, resets
from bench.grid import CELLS, Shape
from bench.plan import MODES
from bench.results import Case

PARTS = ("latency", "barrier", "forward", "training", "stacks", "reset", "packed", "recorded")
MEASURED = CELLS[:3]  # of rnn_relu there is little to learn that rnn_tanh does not tell
BATCHES = (1, 16, 64, 256)
HIDDEN = (64, 128, 256, 512, 1024)
STEPS = (128, 1024)
DTYPES = ("float16", "bfloat16", "float32")
TF32 = ("off", "on")
STACKS = (
    Shape(16, 128, 256, 256, layers=2),
    Shape(64, 128, 128, 128, directions=2),
    Shape(16, 128, 512, 512, layers=2, directions=2),
)
# Where a kernel's step takes about as long as its launch: by launches, and by replays of their recording.
RECORDED = (Shape(1, 128, 256, 256), Shape(16, 1024, 256, 256), Shape(64, 128, 512, 512))


@dataclass(frozen=True)
class Selection:
    """Which part of everything is wanted."""

    parts: Sequence[str] = PARTS
    cells: Sequence[str] = MEASURED
    dtypes: Sequence[str] = DTYPES
    tf32: Sequence[str] = TF32
    batches: Sequence[int] = BATCHES
    hidden: Sequence[int] = HIDDEN
    steps: Sequence[int] = STEPS

    def numbers(self) -> list[tuple[str, bool | None]]:
        """Dtypes, and whether products are rounded to TF32: float32 once with and once without, for others None."""
        kinds: list[tuple[str, bool | None]] = []
        for dtype in self.dtypes:
            kinds += [(dtype, setting == "on") for setting in self.tf32] if dtype == "float32" else [(dtype, None)]
        return kinds


@dataclass(frozen=True)
class Task:
    """A case that is checked once, and then timed in each mode."""

    benchmark: str
    cell: str
    shape: Shape
    dtype: str
    tf32: bool | None
    modes: tuple[str, ...] = MODES

    def __str__(self) -> str:
        tf32 = {None: "", True: " TF32", False: " no TF32"}[self.tf32]
        return f"{self.benchmark} {self.cell} {self.shape} {self.dtype}{tf32}"

    def case(self, mode: str) -> Case:
        """As rows have it."""
        return Case.of(self.cell, self.shape, self.dtype, mode)


def tasks(selection: Selection) -> list[Task]:
    """All of them but latencies: first the few, then the grid, the least work first, since time may run out."""
    return [
        Task(benchmark, cell, shape, dtype, tf32, modes)
        for benchmark, cell, shape, modes in _shapes(selection)
        for dtype, tf32 in selection.numbers()
    ]


def _shapes(selection: Selection) -> Iterator[tuple[str, str, Shape, tuple[str, ...]]]:
    gated = [cell for cell in selection.cells if cell in ("lstm", "gru")]
    for part, benchmark, shapes in (
        ("stacks", "layer", STACKS),
        ("reset", "reset", (resets.SHAPE,)),
        ("packed", "packed", (packed.SHAPE,)),
        ("recorded", "recorded", RECORDED),
    ):
        if part in selection.parts:
            yield from ((benchmark, cell, shape, MODES) for shape in shapes for cell in gated)
    modes = tuple(
        mode for part, mode in (("forward", "inference"), ("training", "training")) if part in selection.parts
    )
    if modes:
        for steps in selection.steps:
            for batch in selection.batches:
                for hidden in selection.hidden:
                    yield from (("layer", cell, Shape(batch, steps, hidden, hidden), modes) for cell in selection.cells)
