"""What a step of time takes on a GPU, by a model of it: what the plan goes by where nothing has been measured.

The model adds what cannot overlap: a barrier or a launch, the way of the state through the second-level cache, the
product by matrix units or by ordinary ones, and the rest of a step's chain of instructions. Every constant is a guess
from the hardware's data sheets and from what others have published of an H100; no GPU has measured one of them for
these kernels. They are upper-case names here, and nowhere else, so that a measurement has one place to go to.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fastrnn.kernels.tiles import cdiv, padded

# Seconds, and rates per second and multiprocessor, of an H100; unmeasured.
BARRIER = 1.2e-6  # of all programs, from the first store to the last load
LAUNCH = 4e-6  # of a kernel behind another one
REST = 0.6e-6  # gates, reductions and barriers of a block
REST_IN_REGISTERS = 0.4e-6  # the same where weights stay in registers, and sums need fewer barriers
READ = 64 * 1.7e9  # bytes from the second-level cache
READ_BY_ALL = 5.5e12  # the same, by all multiprocessors at once
SHARED = 128 * 1.7e9  # bytes from shared memory
MATRIX = 1270 * 1.7e9  # products of 16-bit numbers by matrix units; of tf32, half as many
ORDINARY = 128 * 1.7e9  # products in float32; in float64, half as many

# Rows and units of a program of the grid strategy, by vendor and bytes of an element: those that spill no register
# (known from compilation), the fewest units first.
SHAPES = {
    ("nvidia", 2): ((16, 8), (32, 8), (16, 16), (32, 16)),
    ("nvidia", 4): ((16, 8), (16, 16)),
    ("amd", 2): ((16, 16), (32, 16)),
}
# The same of kernels that hold weights in registers, of 16-bit numbers on NVIDIA's: with the most hidden units for
# which none is spilled, of cells of four gates and of fewer.
SHAPES_IN_REGISTERS = {
    (16, 8): (1024, 1024),
    (16, 16): (768, 1024),
    (32, 8): (512, 1024),
    (32, 16): (512, 512),
}
FOUR_WARPS_WIDTH, FOUR_WARPS_SUMS = 256, 256  # the most units, and the most rows times units, that four warps sum up
MOST_HIDDEN = 1024
DEPTH = 32  # of the sum, for each warp at a time


@dataclass(frozen=True)
class Product:
    """How factors are multiplied: their size, and whether by matrix units."""

    itemsize: int
    by_matrix_units: bool

    @property
    def rate(self) -> float:
        """Products per second and multiprocessor."""
        if self.by_matrix_units:
            return MATRIX / (self.itemsize / 2)
        return ORDINARY / (self.itemsize / 4)


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


def spreads(
    vendor: str, gates: int, width: int, batch: int, hidden: int, itemsize: int, directions: int, most: int, memory: int
) -> Iterator[Spread]:
    """Every way to spread W_hh over at most ``most`` programs with so many bytes of shared ``memory`` each.

    Args:
        vendor: of the device.
        gates, width: G, and W, the pre-activations of a unit.
        batch, hidden, directions: B, H, D.
        itemsize: bytes of an element.
        most: as many as run at the same time.
        memory: bytes that a program may have.
    """
    for tile, units in SHAPES.get((vendor, itemsize), ()):
        programs = cdiv(batch, tile) * cdiv(hidden, units) * directions
        if programs > most or hidden > MOST_HIDDEN:
            continue
        warps = 4 if hidden <= FOUR_WARPS_WIDTH and tile * units <= FOUR_WARPS_SUMS else 8
        stages = 2 if tile * units <= 256 else 1  # two of them spill there
        length = cdiv(hidden, warps * DEPTH) * warps * DEPTH
        state, sums = itemsize * length * tile, 4 * warps * tile * units
        in_registers = SHAPES_IN_REGISTERS[tile, units][gates < 4] if (vendor, itemsize) == ("nvidia", 2) else 0
        if hidden <= in_registers and state + sums * width + 256 <= memory:
            yield Spread(tile, units, DEPTH, warps, warps, stages, "registers", programs)
        if vendor == "amd":  # whose compiler has weights in registers: memory is for the sums of all warps
            taken = sums * width
        else:
            forward = itemsize * length * width * units + state
            backward = itemsize * length * gates * units + min(stages, gates) * state
            if backward > memory:
                stages, backward = 1, backward - (min(stages, gates) - 1) * state
            taken = max(forward, backward)
        if taken <= memory:
            yield Spread(tile, units, DEPTH, warps, warps, stages, "shared", programs)


def grid_seconds(spread: Spread, gates: int, hidden: int, product: Product) -> float:
    """A step forward and a step backward of the grid strategy."""
    rate = min(READ, READ_BY_ALL / spread.programs)
    seconds = 0.0
    for factors in (1, gates):  # the state, or the gradients of all gates
        read = spread.tile * factors * hidden * product.itemsize / rate
        weights = gates * spread.units * hidden
        multiplied, rest = spread.tile * weights / product.rate, REST_IN_REGISTERS
        if spread.held == "shared":
            multiplied, rest = max(multiplied, weights * product.itemsize / SHARED), REST
        seconds += BARRIER + rest + read / (spread.stages if factors > 1 else 1) + multiplied
    return seconds


def resident_seconds(gates: int, tile: int, hidden: int, product: Product) -> float:
    """A step forward and a step backward of the resident strategy."""
    width = padded(hidden)
    weights = gates * width * width
    return 2 * (REST + max(tile * weights / product.rate, weights * product.itemsize / SHARED))


def stepwise_seconds(gates: int, batch: int, hidden: int, directions: int, product: Product, processors: int) -> float:
    """A step forward and a step backward of the stepwise strategy."""
    weights = directions * gates * hidden * hidden
    multiplied = max(batch * weights / product.rate / processors, weights * product.itemsize / READ_BY_ALL)
    return 2 * (LAUNCH + REST + multiplied)
