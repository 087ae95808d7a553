"""What a step of time takes on a GPU, by a model of it: what the plan goes by where nothing has been measured.

The model adds what cannot overlap: a barrier or a launch, the way of the state through the second-level cache, the
product by matrix units or by ordinary ones, and the rest of a step's chain of instructions. What a step has of its own
in memory, gates and their gradients, adds to that where a kernel is launched for it, and can be on its way meanwhile
where one kernel takes all steps: there it is a limit, of large batches. What it knows of a GPU are :class:`Constants`,
and nothing else, so that a measurement has one place to go to.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

from fastrnn.kernels.tiles import cdiv, padded


@dataclass(frozen=True)
class Constants:
    """What a GPU takes for each part of a step.

    The defaults are guesses for an H100, from data sheets and from what others have published: unmeasured.
    ``python -m bench gpu --part constants`` measures all of them.

    Attributes:
        barrier: seconds of a barrier of all programs, from the first store to the last load.
        launch: seconds of a kernel behind another one.
        standard: seconds of a step of torch's layer, beside its product, where cuDNN has kernels for each.
        rest: seconds of a step's gates, reductions and barriers within a program.
        rest_in_registers: the same where weights stay in registers, and sums need fewer barriers.
        read: bytes per second that one multiprocessor reads from the second-level cache.
        read_by_all: bytes per second that all multiprocessors together read from it.
        memory: bytes per second that all of them together read from the GPU's memory or write to it.
        shared: bytes per second that a multiprocessor reads from its shared memory.
        matrix: multiplications with an addition per second and multiprocessor, of 16-bit numbers by matrix units; of
            tf32 half as many.
        ordinary: the same in float32 by ordinary units; in float64 half as many.

    Raises:
        ValueError: a constant is no positive number.
    """

    barrier: float = 1.2e-6
    launch: float = 4e-6
    standard: float = 4.4e-6
    rest: float = 0.6e-6
    rest_in_registers: float = 0.4e-6
    read: float = 64 * 1.7e9
    read_by_all: float = 5.5e12
    memory: float = 3e12
    shared: float = 128 * 1.7e9
    matrix: float = 1270 * 1.7e9
    ordinary: float = 128 * 1.7e9

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise ValueError(f"{field.name}: expected a positive number, got {value!r}")


UNMEASURED = Constants()

FOUR_WARPS_WIDTH, FOUR_WARPS_SUMS = 256, 256  # the most units, and the most rows times units, that four warps sum up
THREADS = 256  # of a program whose warps share rows and units, and not the sum
MOST_HIDDEN = 1024
MULTIPLYING = 0.8  # part of a stepwise kernel's instructions where ordinary units multiply, as compiled
# Gates times H up to which the weights of 16 units leave registers enough. Beyond it, 32 rows beside them spill unless
# the assembler finds its own number of registers, and the next gate's gradients are read ahead.
FEW_WEIGHTS = 2048


@dataclass(frozen=True)
class Shape:
    """Rows and units of a program of the grid strategy, and up to which H it spills no register on any target.

    Attributes:
        tile, units: rows of the batch, and hidden units.
        most, most_of_fewer: the largest H of a cell of four gates, and of one of fewer.
        most_in_turns: that of a cell of four gates whose batch tiles come in turns.
        in_turns_from: the compute capability from which on they may.
        depth: of the sum, for each warp at a time.
        split: whether each warp has a part of the sum; else there are enough rows and units for all warps to share.
    """

    tile: int
    units: int
    most: int = MOST_HIDDEN
    most_of_fewer: int = MOST_HIDDEN
    most_in_turns: int = MOST_HIDDEN
    in_turns_from: tuple[int, int] = (0, 0)
    depth: int = 32
    split: bool = True


# By vendor, bytes of an element, and what weights are held in, the fewest units first; known from compilation, as is in
# bench/results/grid-budgets.jsonl. What lies beyond, backward, and of an LSTM but where it says so:
# - In shared memory 64 rows and 8 units spill 8 to 96 from H=512 on, and 16 units some 500. Two tiles of 32 rows are
#   the same work in twice as many programs.
# - In registers, twice the rows and half the units would be the same work in as many programs, each of which would read
#   twice as much at every step.
# - 32 rows and 32 units in registers spill 164 bytes at H=384, and a GRU's 24 at H=512 on an A100; in shared memory 444
#   at H=256, where the sum is split.
# - In registers, 16 rows and 32 units spill 8 to 16 from H=384 on. In turns, forward, 16 rows and 16 units spill 12 at
#   H=1024; on an A100 32 rows and 16 units spill 4 backward at H=768, and 32 rows and 32 units 48 forward at H=256.
# - 32 rows and 16 units in shared memory spill 8 to 32 from H=512 on where the sum is split, and none where it is not.
# - On AMD's, where no plan goes by these yet, 64 rows spill 92 to 396 where the sum is split, and 424 at H=1024 where
#   it is not. Float32 was not tried.
# Weights of float32 take twice the memory, so that H=768 is for multiprocessors with 163 KiB, and H=1024 for those with
# 227 alone.
SHAPES: dict[tuple[str, int, str], tuple[Shape, ...]] = {
    ("nvidia", 2, "registers"): (
        Shape(16, 8),
        Shape(16, 16, most_in_turns=768),
        Shape(32, 16, most=768, most_of_fewer=768, most_in_turns=736),
        Shape(16, 32, most=256, most_of_fewer=512),
        Shape(32, 32, most=256, most_of_fewer=256, in_turns_from=(9, 0)),
    ),
    ("nvidia", 2, "shared"): (
        Shape(16, 8),
        Shape(32, 8, most=768),
        Shape(64, 8, most=256),
        Shape(16, 16),
        Shape(32, 16, depth=64, split=False),
    ),
    ("nvidia", 4, "shared"): (Shape(16, 8, depth=16), Shape(16, 16, depth=16)),
    ("amd", 2, "shared"): (Shape(16, 16), Shape(32, 16), Shape(64, 16, most=768, most_of_fewer=768, split=False)),
}


@dataclass(frozen=True)
class Step:
    """What a step of a layer is to the model.

    Attributes:
        gates, batch, hidden, directions: G, B, H, D.
        itemsize: bytes of a factor.
        by_matrix_units: whether products are by matrix units.
        processors: multiprocessors of the GPU.
        cache: bytes of its second-level cache.
        torch_by_matrix_units: whether torch's products of matrices are, with its setting for them.
    """

    gates: int
    batch: int
    hidden: int
    directions: int
    itemsize: int
    by_matrix_units: bool
    processors: int
    cache: int
    torch_by_matrix_units: bool

    @property
    def numbers(self) -> int:
        """One for each row, unit and direction."""
        return self.batch * self.hidden * self.directions

    @property
    def sumsize(self) -> int:
        """Bytes of a sum, or a state."""
        return max(self.itemsize, 4)

    def rate(self, constants: Constants, by_matrix_units: bool | None = None) -> float:
        """Products per second and multiprocessor, by the units that this step has for them or by others."""
        if self.by_matrix_units if by_matrix_units is None else by_matrix_units:
            return constants.matrix / (self.itemsize / 2)
        return constants.ordinary / (self.itemsize / 4)

    def streams(self, constants: Constants) -> tuple[float, float]:
        """Seconds of a forward step and of a backward one to move what they alone have in memory.

        That is what all steps' inputs become, read and overwritten by gates; and gates, read, with their gradients.
        """
        each = self.numbers * self.gates / constants.memory
        return each * 2 * self.sumsize, each * (self.sumsize + self.itemsize)

    def again(self, size: int, constants: Constants) -> float:
        """Seconds to write so many bytes and to read them soon after: in the cache, where half of it has room."""
        return 2 * size / (constants.read_by_all if 2 * size <= self.cache else constants.memory)


@dataclass(frozen=True)
class Spread:
    """How the grid strategy spreads a layer over programs; attributes as of a plan."""

    tile: int
    units: int
    depth: int
    split: int
    warps: int
    stages: int
    held: str
    programs: int
    groups: int


def backward_units(units: int, held: str) -> int:
    """Hidden units of a program backward, where one forward has so many.

    Every program reads the gradients of all gates, so fewer programs read less. With weights in registers there are 16
    units at least: matrix units take as many at a time. In shared memory there is no room for more than forward.
    """
    return max(units, 16) if held == "registers" else units


def spreads(
    vendor: str,
    capability: tuple[int, int],
    gates: int,
    width: int,
    batch: int,
    hidden: int,
    itemsize: int,
    directions: int,
    most: int,
    memory: int,
) -> Iterator[Spread]:
    """Every way to spread W_hh over at most ``most`` programs with so many bytes of shared ``memory`` each.

    Where there are more batch tiles than groups of programs that hold all of it, the groups take them in turns.

    Args:
        vendor, capability: of the device.
        gates, width: G, and W, the pre-activations of a unit.
        batch, hidden, directions: B, H, D.
        itemsize: bytes of an element.
        most: as many as run at the same time.
        memory: bytes that a program may have.
    """
    for held in ("registers", "shared"):
        for shape in SHAPES.get((vendor, itemsize, held), ()):
            tile, units = shape.tile, shape.units
            tiles, group = cdiv(batch, tile), cdiv(hidden, units) * directions
            if group > most or hidden > (shape.most if gates > 3 else shape.most_of_fewer):
                continue
            turns = cdiv(tiles, most // group)
            if turns > 1 and (capability < shape.in_turns_from or (gates > 3 and hidden > shape.most_in_turns)):
                continue
            at_once = cdiv(tiles, turns)  # as few as need no more turns: fewer read from the same cache
            warps = 4 if hidden <= FOUR_WARPS_WIDTH and tile * units <= FOUR_WARPS_SUMS else 8
            if not shape.split:
                warps = THREADS // (64 if vendor == "amd" else 32)
            split = warps if shape.split else 1
            stages = 2 if tile * units <= 256 or (held == "registers" and gates * hidden > FEW_WEIGHTS) else 1
            length = cdiv(hidden, split * shape.depth) * split * shape.depth
            state, sums = itemsize * length * tile, 4 * split * tile * units
            if held == "registers":
                taken = 4 * split * tile * max(width * units, 16) + 256
            elif vendor == "amd":  # whose compiler has weights in registers: memory is for the sums of all warps
                taken = sums * width
            else:
                forward = itemsize * length * width * units + max(state, sums * width)
                backward = itemsize * length * gates * units + min(stages, gates) * state
                if backward > memory:
                    stages, backward = 1, backward - (min(stages, gates) - 1) * state
                taken = max(forward, backward)
            if taken <= memory:
                groups = at_once if turns > 1 else 0
                yield Spread(tile, units, shape.depth, split, warps, stages, held, at_once * group, groups)


def grid_seconds(
    tile: int, units: int, stages: int, held: str, step: Step, constants: Constants = UNMEASURED, groups: int = 0
) -> float:
    """A step forward and a step backward of the grid strategy; arguments as of :class:`Spread`.

    Where groups take batch tiles in turns, it is one of each, for all of the batch.
    """
    tiles = cdiv(step.batch, tile)
    groups = groups or tiles
    seconds = 0.0
    # the state, or the gradients of all gates
    passes = ((1, units), (step.gates, backward_units(units, held)))
    for (factors, own), streamed in zip(passes, step.streams(constants), strict=True):
        programs = groups * cdiv(step.hidden, own) * step.directions
        rate = min(constants.read, constants.read_by_all / programs)
        read = tile * factors * step.hidden * step.itemsize / rate
        weights = step.gates * own * step.hidden
        multiplied, rest = tile * weights / step.rate(constants), constants.rest_in_registers
        if held == "shared":
            multiplied, rest = max(multiplied, weights * step.itemsize / constants.shared), constants.rest
        turn = constants.barrier + rest + read / (stages if factors > 1 else 1) + multiplied
        seconds += max(cdiv(tiles, groups) * turn, streamed)
    return seconds


def resident_seconds(tile: int, step: Step, constants: Constants = UNMEASURED) -> float:
    """A step forward and a step backward of the resident strategy, as often as its programs do not run at once."""
    width = padded(step.hidden)
    weights = step.gates * width * width
    multiplied = max(tile * weights / step.rate(constants), weights * step.itemsize / constants.shared)
    times = cdiv(cdiv(step.batch, tile) * step.directions, step.processors)
    return sum(max(times * (constants.rest + multiplied), streamed) for streamed in step.streams(constants))


def stepwise_seconds(product: str, tile: int, units: int, step: Step, constants: Constants = UNMEASURED) -> float:
    """A step forward and a step backward of the stepwise strategy.

    Its kernel reads the factors of a tile and of its units, or the sums that torch's product has left.
    """
    states = 2 * step.again(2 * step.numbers * step.sumsize, constants)  # h and c, and their gradients
    seconds = states + 2 * constants.rest + sum(step.streams(constants))
    if product == "torch":
        forward = 2 + (step.itemsize < step.sumsize)  # with a copy of the state as a factor
        backward = 1 + step.directions * (2 if step.gates == 3 else 1)
        sums = sum(step.again(each * step.numbers * step.sumsize, constants) for each in (step.gates, 1))
        by_matrix_units = step.torch_by_matrix_units
        multiplied = 2 * product_seconds(step, constants, by_matrix_units)
        return seconds + (forward + backward) * constants.launch + sums + multiplied
    programs = cdiv(step.batch, tile) * cdiv(step.hidden, units) * step.directions
    rate = min(constants.read, constants.read_by_all / min(programs, step.processors))
    weights = step.gates * units * step.itemsize
    multiplied = product_seconds(step, constants) / (1 if step.by_matrix_units else MULTIPLYING)
    for factors in (tile * step.sumsize, tile * step.gates * step.itemsize):
        read = cdiv(programs, step.processors) * step.hidden * (factors + weights) / rate
        seconds += constants.launch + max(read, multiplied)
    return seconds


def torch_seconds(step: Step, constants: Constants = UNMEASURED) -> float:
    """A step forward and a step backward of torch's layer, where cuDNN computes it by its standard algorithm."""
    streamed = step.numbers * step.gates * step.itemsize / constants.memory  # read or written, all in storage
    sums = sum(step.again(each * step.numbers * step.itemsize, constants) for each in (step.gates, 1))
    return 2 * (constants.standard + product_seconds(step, constants) + 2 * streamed) + sums


def product_seconds(step: Step, constants: Constants = UNMEASURED, by_matrix_units: bool | None = None) -> float:
    """The recurrent product of a step by a kernel of its own, on all multiprocessors."""
    weights = step.directions * step.gates * step.hidden**2
    by_all = step.rate(constants, by_matrix_units) * step.processors
    return max(step.batch * weights / by_all, weights * step.itemsize / constants.read_by_all)
