"""Which kernel computes a layer on a GPU, with which tiles: a pure function of cell, sizes, dtype and device facts.

Nothing here needs a GPU or Triton. No kernel of this package has been measured on a GPU yet, so :func:`plan` is
conservative: it leaves to torch (cuDNN, MIOpen) all that torch has, and its reasons say "unmeasured" where the kernels
are chosen for what torch does not have; :func:`forced` has them compute the rest. Tiles and warps come from
ahead-of-time compilation: the configurations here are those that spill no register (:mod:`fastrnn.kernels.catalog`
names them all).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch

from fastrnn.kernels import model
from fastrnn.kernels.tiles import cdiv, padded
from fastrnn.reference import CELLS

# The widest padded H whose W_hh a program holds without spilling, by bytes per element.
RESIDENT_WIDTH = {2: 128, 4: 64, 8: 32}
# The most columns of padded W_hh' that four warps compute without spilling, by bytes per element; else there are eight.
FOUR_WARPS_COLUMNS = {2: 256, 4: 96, 8: 16}
FEWEST_STEPS = 8  # below, there is no loop to speak of, and torch's call is the cheaper one
TILE = 16  # rows of a batch tile: the least that the matrix units take
CUBLAS_ROWS, CUBLAS_WIDTH = 64, 1024  # from here on both, a step's product is left to cuBLAS


@dataclass(frozen=True)
class DeviceFacts:
    """What a plan needs to know of a GPU.

    Attributes:
        name: as its maker calls it.
        vendor: ``"nvidia"`` or ``"amd"``.
        capability: CUDA's compute capability; of AMD's devices what torch makes of gfx numbers, not used.
        sm_count: multiprocessors (compute units).
        shared_memory_per_block: bytes that a block may have if it asks.
        l2_bytes: size of the second-level cache.
    """

    name: str
    vendor: str
    capability: tuple[int, int]
    sm_count: int
    shared_memory_per_block: int
    l2_bytes: int


@dataclass(frozen=True)
class Plan:
    """How to compute a layer.

    Attributes:
        strategy: ``"resident"``, ``"grid"``, ``"stepwise"``, or ``"torch"`` for torch's own layer.
        reason: why, in words.
        tile: rows of the batch in one program.
        units: hidden units in one program (stepwise, grid).
        depth: how much of H a product takes at a time; of a split one, each part of it (stepwise, grid).
        split: how many parts of a sum over H are apart, one for each warp, or 1 (grid).
        held: what weights stay in, ``"shared"`` memory or ``"registers"``, by kernels in Gluon (grid).
        product: ``"fused"``, or ``"torch"`` for products by cuBLAS (stepwise).
        together: how many gates a program multiplies as one, 1 or 2 (resident, forward).
        warps, stages: of a program, and of its pipelined loads (a resident program fetches ahead by itself: 1).
        precision: of products of float32: ``"ieee"``, ``"tf32"`` or ``"tf32x3"``.
        graphs: whether launches that repeat are replayed as one CUDA graph (stepwise, where the product is fused). No
            plan says so by itself: no GPU has shown yet that this is faster.
    """

    strategy: str
    reason: str
    tile: int = TILE
    units: int = 32
    depth: int = 64
    split: int = 1
    held: str = "shared"
    product: str = "fused"
    together: int = 2
    warps: int = 4
    stages: int = 2
    precision: str = "ieee"
    graphs: bool = False

    def __str__(self) -> str:
        if self.strategy == "torch":
            return "torch"
        how = f", {self.units} units" if self.strategy in ("stepwise", "grid") else ""
        how += f", {self.product} product" if self.strategy == "stepwise" else ""
        how += ", weights in registers" if (self.strategy, self.held) == ("grid", "registers") else ""
        recorded = self.graphs and self.strategy == "stepwise" and self.product == "fused"
        graphs = ", replayed as a graph" if recorded else ""
        return f"{self.strategy}, {self.tile} rows a program{how}, {self.warps} warps, {self.precision}{graphs}"


# Whether plans that nobody forces may have programs exchange states, which is the grid strategy. Where it went wrong,
# numbers would be wrong; that it is right on a device, and faster, no GPU has shown yet.
EXCHANGES = False

_forced: dict[str, object] = {}


@contextmanager
def forced(**choices: object) -> Iterator[None]:
    """Within, every plan says what is given here: ``strategy="stepwise", units=16`` say.

    It holds for the whole process, for autograd runs backward on threads of its own. What a kernel cannot do is not
    checked: this is for tests and measurements.

    Raises:
        TypeError: a choice is not an attribute of :class:`Plan`.
    """
    replace(Plan("torch", "forced"), **choices)  # type: ignore[arg-type]
    before = dict(_forced)
    _forced.update({"reason": "forced"} | choices)
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


def plan(
    cell: str,
    steps: int,
    batch: int,
    inputs: int,
    hidden: int,
    dtype: torch.dtype,
    directions: int,
    facts: DeviceFacts,
    *,
    allow_tf32: bool = False,
    beyond_torch: str | None = None,
) -> Plan:
    """Choose between torch's layer and our kernels.

    Args:
        cell: a key of :data:`fastrnn.reference.CELLS`.
        steps, batch, inputs, hidden, directions: T, B, I, H, D.
        dtype: of storage.
        facts: of the device.
        allow_tf32: whether products of float32 may be rounded to tf32.
        beyond_torch: the name of an argument in use that torch's layers do not have, or None: it keeps torch out.
    """
    beyond = None if beyond_torch is None else f"torch's layers have no {beyond_torch}= (unmeasured)"
    sizes = (cell, steps, batch, inputs, hidden, dtype, directions)
    kernels = plan_kernels(*sizes, facts, allow_tf32=allow_tf32, reason=beyond)
    if _forced:
        return kernels
    why_not = _why_no_kernels(dtype, facts)
    if why_not is not None:
        return Plan("torch", why_not)
    if beyond_torch is not None:
        return kernels
    if facts.vendor != "nvidia":
        return Plan("torch", f"our kernels are unmeasured on {facts.name}")
    if kernels.strategy != "resident":
        other = "spread over many it could stay on chip, but no GPU has shown yet that this is faster"
        if kernels.strategy != "grid":
            other = "a kernel per step is unmeasured"
        return Plan("torch", f"W_hh is too large for one program to hold, and {other}")
    if steps < FEWEST_STEPS:
        return Plan("torch", f"fewer than {FEWEST_STEPS} steps: torch takes less to call")
    if dtype == torch.float64:
        return Plan("torch", "the model of the hardware is silent on float64")
    return Plan("torch", "W_hh could stay on chip for all steps, but no GPU has shown yet that this is faster")


def plan_kernels(
    cell: str,
    steps: int,
    batch: int,
    inputs: int,
    hidden: int,
    dtype: torch.dtype,
    directions: int,
    facts: DeviceFacts,
    *,
    allow_tf32: bool = False,
    reason: str | None = None,
) -> Plan:
    """The best of our kernels, whatever torch has: the operators follow this.

    Arguments as of :func:`plan`; ``reason`` is why ours, if that is known.
    """
    precision = "tf32" if allow_tf32 and dtype == torch.float32 and facts.vendor == "nvidia" else "ieee"
    size = dtype.itemsize
    holds = padded(hidden) <= RESIDENT_WIDTH[size] and (size < 8 or facts.vendor == "nvidia")
    if holds and resident_memory(cell, hidden, size) <= facts.shared_memory_per_block:
        few = padded(hidden) <= 64 and CELLS[cell].gates * padded(hidden) <= FOUR_WARPS_COLUMNS[size]
        reason = reason or "W_hh stays on chip for all steps: faster by a model of the hardware (unmeasured)"
        # Without matrix units there are no layouts to change, and two gates at a time spill; on AMD it saves none.
        by_units = facts.vendor == "nvidia" and (dtype != torch.float32 or precision == "tf32")
        together = 2 if by_units and CELLS[cell].gates > 1 else 1
        warps = 4 if few else 8
        chosen = Plan("resident", reason, together=together, warps=warps, stages=1, precision=precision)
    else:
        tile = TILE if batch <= 16 else 32 if batch <= 32 or size > 2 else 64
        crowded = cdiv(batch, tile) * cdiv(hidden, 32) * directions >= facts.sm_count
        by_cublas = batch >= CUBLAS_ROWS and hidden >= CUBLAS_WIDTH
        chosen = Plan(
            "stepwise",
            reason or "W_hh is too large for one program to hold (unmeasured)",
            tile=tile,
            units=32 if crowded and size < 8 else 16,
            depth={2: 64, 4: 32, 8: 16}[size],
            product="torch" if by_cublas else "fused",
            stages={2: 3, 4: 2, 8: 1}[size],  # deeper or wider, float64 spills
            precision=precision,
        )
    by_itself = "grid" if EXCHANGES and steps >= FEWEST_STEPS else chosen.strategy
    if _forced.get("strategy", by_itself) == "grid":
        chosen = _grid_or(chosen, cell, batch, hidden, dtype, directions, facts, reason)
    return replace(chosen, **_forced) if _forced else chosen  # type: ignore[arg-type]


def _grid_or(
    other: Plan, cell: str, batch: int, hidden: int, dtype: torch.dtype, directions: int, facts: DeviceFacts,
    reason: str | None,
) -> Plan:  # fmt: skip
    """The best plan of the grid strategy, if there is one and it is forced or, by the model, faster than the other."""
    spec, size = CELLS[cell], dtype.itemsize
    product = model.Product(size, size == 2 or other.precision == "tf32")
    if other.strategy == "resident":
        least = model.resident_seconds(spec.gates, other.tile, hidden, product)
    else:
        least = model.stepwise_seconds(spec.gates, batch, hidden, directions, product, facts.sm_count)
    if "strategy" in _forced:
        least = math.inf
    chosen = other
    limits = (facts.sm_count, facts.shared_memory_per_block)
    width = max(spec.tape, 1)
    for spread in model.spreads(facts.vendor, spec.gates, width, batch, hidden, size, directions, *limits):
        seconds = model.grid_seconds(spread, spec.gates, hidden, product)
        if seconds < least:
            least, chosen = seconds, grid_plan(spread, other.precision, reason)
    return chosen


def grid_plan(spread: model.Spread, precision: str, reason: str | None = None) -> Plan:
    """The plan that spreads a layer so."""
    return Plan(
        "grid",
        reason or "W_hh, spread over programs, stays on chip: faster by a model of the hardware (unmeasured)",
        tile=spread.tile,
        units=spread.units,
        depth=spread.depth,
        split=spread.split,
        held=spread.held,
        warps=spread.warps,
        stages=spread.stages,
        precision=precision,
    )


def resident_memory(cell: str, hidden: int, itemsize: int) -> int:
    """Bytes of shared memory that a resident program takes at most (known from compilation for sm_90).

    W_hh, a batch tile of the gates or of their gradients, one of a state, and some for changes of layout.
    """
    spec, width = CELLS[cell], padded(hidden)
    return itemsize * width * (spec.gates * width + (max(spec.tape, 1) + 1) * TILE) + 2048


def _why_no_kernels(dtype: torch.dtype, facts: DeviceFacts) -> str | None:
    """None where our kernels run, else why not."""
    if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        return f"our kernels take float32, float64, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if facts.vendor == "nvidia" and facts.capability < (8, 0):
        major, minor = facts.capability
        return f"our kernels are for compute capability 8.0 and newer, and {facts.name} has {major}.{minor}"
    return None


def read_facts(index: int) -> DeviceFacts:
    """The facts of CUDA (or ROCm) device ``index``."""
    properties = torch.cuda.get_device_properties(index)
    return DeviceFacts(
        name=properties.name,
        vendor="nvidia" if torch.version.hip is None else "amd",
        capability=(properties.major, properties.minor),
        sm_count=properties.multi_processor_count,
        shared_memory_per_block=getattr(
            properties, "shared_memory_per_block_optin", properties.shared_memory_per_block
        ),
        l2_bytes=properties.L2_cache_size,
    )


device_facts = cache(read_facts)


def tf32_allowed() -> bool:
    """What torch's own recurrent layers may do with float32: ``torch.backends.cudnn.allow_tf32`` and its successors."""
    return getattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee") == "tf32"
