"""What is measured on a GPU: cells, sizes and kinds of numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bench import packed, resets
from bench.grid import CELLS, Shape
from bench.plan import MODES
from bench.results import Case

Numbers = tuple[str, bool | None]  # a dtype, and whether products are rounded to TF32, which only float32's can be

# In the order in which they are measured.
LEAST = ("constants", "latency", "barrier", "cluster")  # no layers, but what they take at least
LAYERS = (
    *("targets", "first", "lean", "applications", "stacks", "reset", "packed", "recorded"),
    *("forward", "training"),
)
PARTS = (*LEAST, *LAYERS)
MEASURED = CELLS[:3]  # of rnn_relu there is little to learn that rnn_tanh does not tell
BATCHES = (1, 16, 64, 256)
HIDDEN = (64, 128, 256, 512, 768, 1024)
STEPS = (128, 1024)
DTYPES = ("bfloat16", "float32", "float16")
TF32 = ("on", "off")
STACKS = (
    *(Shape(16, 128, hidden, hidden, layers=2) for hidden in (256, 512, 768, 1024)),
    *(Shape(16, 128, hidden, hidden, directions=2) for hidden in (256, 512, 768, 1024)),
    Shape(64, 128, 128, 128, directions=2),
    Shape(16, 128, 512, 512, layers=2, directions=2),
)
RESETS = (resets.SHAPE, Shape(16, 128, 512, 512))
PACKED = (packed.SHAPE, Shape(32, 200, 512, 512))
LEAN = (Shape(32, 1024, 512, 512), Shape(32, 256, 512, 512), Shape(32, 1024, 128, 128))
# Where a kernel's step takes about as long as its launch: by launches, and by replays of their recording.
RECORDED = (Shape(1, 128, 256, 256), Shape(16, 1024, 256, 256), Shape(64, 128, 512, 512))

# What the targets are about (bench.gpu.targets). In 16-bit floating point, which cuDNN has its best kernels for, and in
# bfloat16, in which others have published times of this shape:
PUBLISHED = Shape(16, 1024, 768, 768)
# and, in kinds of numbers that cuDNN has no kernels for that keep weights on chip,
STANDARD: tuple[Numbers, ...] = (("bfloat16", None), ("float32", True))
FIRST = (PUBLISHED, Shape(16, 128, 512, 512), Shape(16, 128, 256, 256))  # before all else, on a GPU that is new to us
# these hidden units, each in these shapes.
TARGET_HIDDEN = (512, 256, 1024, 768)
TARGET_SHAPES: tuple[dict[str, int], ...] = (
    {"batch": 16, "steps": 128},
    {"batch": 16, "steps": 128, "layers": 2},
    {"batch": 16, "steps": 128, "directions": 2},
    {"batch": 64, "steps": 128},
    {"batch": 1, "steps": 128},
    {"batch": 16, "steps": 1024},
)


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

    def numbers(self) -> list[Numbers]:
        """All kinds: float32 once rounded to TF32 and once not."""
        kinds: list[Numbers] = []
        for dtype in self.dtypes:
            kinds += [(dtype, setting == "on") for setting in self.tf32] if dtype == "float32" else [(dtype, None)]
        return kinds

    @property
    def gated(self) -> list[str]:
        """The cells that most parts beside the grid are about."""
        return [cell for cell in self.cells if cell in ("lstm", "gru")]


@dataclass(frozen=True)
class Task:
    """A case that is checked once, and then timed in each mode."""

    benchmark: str
    cell: str
    shape: Shape
    dtype: str
    tf32: bool | None
    modes: tuple[str, ...] = MODES
    graphs: bool = False  # whether replays of CUDA graphs are timed, whatever else is

    def __str__(self) -> str:
        tf32 = {None: "", True: " TF32", False: " no TF32"}[self.tf32]
        return f"{self.benchmark} {self.cell} {self.shape} {self.dtype}{tf32}{' in a graph' * self.graphs}"

    def case(self, mode: str) -> Case:
        """As rows have it."""
        return Case.of(self.cell, self.shape, self.dtype, mode)


# What layers are used for. Of "state", states are given; they are parameters where they are trained.
HALF, TRAINS, INFERS = ("bfloat16", None), ("training",), ("inference",)
APPLICATIONS = (
    # speech decoded from a brain's signals, of which each step has 14 bins of 512 channels
    Task("state", "gru", Shape(64, 100, 7168, 768, layers=5), *HALF, TRAINS),
    # DNA: signals of nanopores, as long as they come
    *(
        Task("layer", "gru", Shape(100, 10_000, n, n, layers=2, directions=2), "float16", None, INFERS)
        for n in (128, 256)
    ),
    # robots in simulation, thousands at a time, whose episodes end at any step
    *(
        Task("reset", "lstm", Shape(4096, 24, 64, 256), *kind, TRAINS)
        for kind in (HALF, ("float32", True), ("float32", False))
    ),
    # text or music, a step at a time
    Task("state", "lstm", Shape(64, 1, 512, 512, layers=3), "float32", True, INFERS),
    # speech recognition by transducers, whose decoders are captured
    Task("state", "lstm", Shape(32, 1, 640, 640), *HALF, INFERS, graphs=True),
)


def tasks(selection: Selection) -> list[Task]:
    """All of them but latencies, each once: the most important first, since time may run out."""
    special = {
        "targets": _targets(selection),
        "first": _first(selection),
        "lean": _each(selection, "lean", LEAN, STANDARD, ("training",)),
        "applications": _applications(selection),
        "stacks": _each(selection, "layer", STACKS),
        "reset": _each(selection, "reset", RESETS),
        "packed": _each(selection, "packed", PACKED),
        "recorded": _each(selection, "recorded", RECORDED),
    }
    wanted = [task for part, made in special.items() if part in selection.parts for task in made]
    return list(dict.fromkeys([*wanted, *_grid(selection)]))


def _each(
    selection: Selection,
    benchmark: str,
    shapes: Sequence[Shape],
    numbers: Sequence[Numbers] | None = None,
    modes: tuple[str, ...] = MODES,
) -> Iterator[Task]:
    """The gated cells in each shape, in all kinds of numbers or in these."""
    for dtype, tf32 in selection.numbers():
        if numbers is None or (dtype, tf32) in numbers:
            for shape in shapes:
                yield from (Task(benchmark, cell, shape, dtype, tf32, modes) for cell in selection.gated)


def _first(selection: Selection) -> Iterator[Task]:
    """One cell after the other, so that time is up for the last one first."""
    for cell in selection.gated:
        yield from _each(replace(selection, cells=[cell]), "layer", FIRST, STANDARD)


def _targets(selection: Selection) -> Iterator[Task]:
    """First the shape that others published; then something of everything; then the rest."""
    half, single = ([kind] for kind in STANDARD)
    for dtype, tf32 in selection.numbers():
        if "lstm" in selection.cells and tf32 is None:
            yield Task("layer", "lstm", PUBLISHED, dtype, None)
    first, *rest = (
        [Shape(input=hidden, hidden=hidden, **sizes) for hidden in TARGET_HIDDEN] for sizes in TARGET_SHAPES
    )
    yield from _each(selection, "layer", first, half)
    yield from _each(selection, "packed", PACKED, half)
    yield from _each(selection, "reset", RESETS, half)
    yield from _each(selection, "layer", first, single)
    for kind in (half, single):
        for shapes in rest:
            yield from _each(selection, "layer", shapes, kind)


def _applications(selection: Selection) -> Iterator[Task]:
    kinds = selection.numbers()
    for task in APPLICATIONS:
        if task.cell in selection.cells and (task.dtype, task.tf32) in kinds:
            yield task


def _grid(selection: Selection) -> Iterator[Task]:
    """Every size with every other, the least work first."""
    modes = tuple(
        mode for part, mode in (("forward", "inference"), ("training", "training")) if part in selection.parts
    )
    for steps in selection.steps if modes else ():
        for batch in selection.batches:
            for hidden in selection.hidden:
                for cell in selection.cells:
                    for dtype, tf32 in selection.numbers():
                        yield Task("layer", cell, Shape(batch, steps, hidden, hidden), dtype, tf32, modes)
