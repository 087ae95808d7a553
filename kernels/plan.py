"""Which kernel computes a layer on a GPU, with which tiles: a pure function of cell, sizes, dtype and device facts.

Nothing here needs a GPU or Triton. A plan goes by what was measured (:mod:`fastrnn.kernels.measured`): by the fastest
way to compute such work, tuned on the user's GPU or recorded on another like it, or else by a model of cost whose
constants were measured on such a GPU. No GPU has been measured by the developers yet. So, where the user has not
either, :func:`plan` leaves to torch (cuDNN, MIOpen) all that torch has, and its reasons say "unmeasured" where the
kernels are chosen for what torch does not have; :func:`forced` has them compute the rest. Tiles and warps come from
ahead-of-time compilation: the configurations here are those that spill no register (:mod:`fastrnn.kernels.catalog`
names them all).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache

import torch

from fastrnn._dynamo import constant, tracing
from fastrnn.kernels import cudnn, measured, model
from fastrnn.kernels.device import driver_version, multiprocessors
from fastrnn.kernels.measured import TORCH, Record, Work
from fastrnn.kernels.model import Constants
from fastrnn.kernels.tiles import cdiv, padded
from fastrnn.reference import CELLS

# The widest padded H whose W_hh a program holds without spilling, by bytes per element.
RESIDENT_WIDTH = {2: 128, 4: 64, 8: 32}
# The most columns of padded W_hh' that four warps compute without spilling, by bytes per element; else there are eight.
FOUR_WARPS_COLUMNS = {2: 256, 4: 96, 8: 16}
FEWEST_STEPS = 8  # below, there is no loop to speak of, and torch's call is the cheaper one
TILE = 16  # rows of a batch tile: the least that the matrix units take
MEASURED = "with constants measured on such a GPU"
MARGIN = 1.25  # by which the model of the hardware may be off
WHY = {
    "resident": "W_hh stays on chip for all steps: faster by a model of the hardware",
    "grid": "W_hh, spread over programs, stays on chip: faster by a model of the hardware",
    "stepwise": "W_hh is too large for one program to hold",
}
MIGHT = {
    "resident": "W_hh could stay on chip for all steps",
    "grid": "W_hh, spread over programs, could stay on chip for all steps",
    "stepwise": "W_hh is too large for one program to hold, and a kernel could compute a step",
}


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
        cudnn: the version of cuDNN that torch has, or None.
        records: what work took on it.
        constants: of the cost model, as measured on such a GPU; None where nobody has measured them.
        driver: version of CUDA that the driver has, as it numbers it; 0 for AMD's.
        no_grid: why programs may not wait for each other, or None where they may.
    """

    name: str
    vendor: str
    capability: tuple[int, int]
    sm_count: int
    shared_memory_per_block: int
    l2_bytes: int
    cudnn: int | None = None
    records: tuple[Record, ...] = ()
    constants: Constants | None = None
    driver: int = 0
    no_grid: str | None = None


@dataclass(frozen=True)
class Plan:
    """How to compute a layer.

    Attributes:
        strategy: ``"resident"``, ``"grid"``, ``"stepwise"``, or ``"torch"`` for torch's own layer.
        reason: why, in words.
        tile: rows of the batch in one program.
        units: hidden units in one program (stepwise, grid; there, of the pass forward: see
            :func:`fastrnn.kernels.model.backward_units`).
        depth: how much of H a product takes at a time; of a split one, each part of it (stepwise, grid).
        split: how many parts of a sum over H are apart, one for each warp, or 1 (grid).
        groups: of programs in each direction, which hold all of W_hh together and take batch tiles in turns, or 0 for
            one of each batch tile (grid).
        held: what weights stay in, ``"shared"`` memory or ``"registers"``, by kernels in Gluon (grid).
        exchange: how programs hand states to each other, at a ``"barrier"`` or by polling the ``"data"``, on NVIDIA's
            (grid). No plan says the latter by itself: no GPU has shown yet that it is right, and faster.
        product: ``"fused"``, or ``"torch"`` for products by cuBLAS (stepwise).
        together: how many gates a program multiplies as one, 1 or 2 (resident, forward).
        warps, stages: of a program, and of its pipelined loads (a resident program fetches ahead by itself: 1).
        precision: of products of float32: ``"ieee"``, ``"tf32"`` or ``"tf32x3"``.
        graphs: whether launches that repeat are replayed as one CUDA graph (stepwise, where the product is fused). No
            plan says so but where tuning has found that it is faster.
    """

    strategy: str
    reason: str
    tile: int = TILE
    units: int = 32
    depth: int = 64
    split: int = 1
    groups: int = 0
    held: str = "shared"
    exchange: str = "barrier"
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
        how += f", batch tiles in turns by {self.groups} groups" if self.strategy == "grid" and self.groups else ""
        how += ", data polled" if (self.strategy, self.exchange) == ("grid", "data") else ""
        recorded = self.graphs and self.strategy == "stepwise" and self.product == "fused"
        graphs = ", replayed as a graph" if recorded else ""
        return f"{self.strategy}, {self.tile} rows a program{how}, {self.warps} warps, {self.precision}{graphs}"


SPREAD = ("tile", "units", "depth", "split", "held", "warps", "stages")  # attributes that say how a grid is spread
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


def is_forced() -> bool:
    """Whether something holds for every plan."""
    return bool(_forced)


Planner = Callable[[Work, DeviceFacts, str | None], Plan]

MOST_PLANS = 1024  # that are remembered
_plans: dict[tuple[object, ...], tuple[Plan, DeviceFacts]] = {}


def _remembered(make: Planner, work: Work, facts: DeviceFacts, why: str | None) -> Plan:
    """What ``make`` plans. It walks over all plans there are, and calls are many: what it has planned before is kept.

    Facts are known by their identity, for there may be thousands of records in them: whoever changes them makes others.
    """
    if tracing():  # sizes may be symbols, and this memory would become a part of a compiler's program
        return make(work, facts, why)
    key = (make, work, id(facts), why, *_forced.items())
    known = _plans.get(key)
    if known is None:
        if len(_plans) >= MOST_PLANS:
            _plans.clear()
        known = _plans[key] = (make(work, facts, why), facts)  # which keeps the identity from being another's
    return known[0]


def plan(work: Work, facts: DeviceFacts, beyond_torch: str | None = None) -> Plan:
    """Choose between torch's layers and our kernels.

    Args:
        work: a stack's call.
        facts: of the device.
        beyond_torch: the name of an argument in use that torch's layers do not have, or None: it keeps torch out.
    """
    return _remembered(_plan, work, facts, beyond_torch)


def plan_kernels(work: Work, facts: DeviceFacts, reason: str | None = None) -> Plan:
    """The best of our kernels, whatever torch has: the operators follow this.

    Args:
        work: a layer's call, or a stack's.
        facts: of the device.
        reason: why ours, if that is known.
    """
    return _remembered(_plan_kernels, work, facts, reason)


def _plan(work: Work, facts: DeviceFacts, beyond_torch: str | None) -> Plan:
    beyond = None if beyond_torch is None else f"torch's layers have no {beyond_torch}="
    kernels = _plan_kernels(work, facts, beyond)
    if _forced:
        return kernels
    why_not = why_no_kernels(work.dtype, facts)
    if why_not is not None:
        return Plan("torch", why_not)
    if beyond_torch is not None:
        return kernels
    record = measured.find(facts.records, work, whole=True)
    if record is not None:
        return _faster(record, kernels)
    if facts.vendor != "nvidia":
        return Plan("torch", f"our kernels are unmeasured on {facts.name}")
    if work.steps < FEWEST_STEPS:
        few = "a single step keeps nothing on chip" if work.steps == 1 else f"fewer than {FEWEST_STEPS} steps"
        return Plan("torch", f"{few}: torch takes less to call")
    if work.dtype == torch.float64:
        return Plan("torch", "the model of the hardware is silent on float64")
    if facts.constants is None:
        return Plan("torch", f"{MIGHT[kernels.strategy]}, but no GPU has shown yet that this is faster")
    return _by_model(kernels, work, facts)


def _plan_kernels(work: Work, facts: DeviceFacts, reason: str | None) -> Plan:
    record = None if _forced else measured.find(facts.records, work, whole=False)
    if record is not None and record.choices and _fits(record, work, facts):
        return _recorded(record, work, facts, reason)
    chosen = resident_plan(work, facts) or stepwise_plan(work, facts)
    # Where an exchange of states went wrong, numbers would be wrong: no plan has one by itself on a GPU of which not
    # even the barrier was measured, which is done by millions of them.
    by_itself = "grid" if facts.constants is not None and work.steps >= FEWEST_STEPS else chosen.strategy
    if _forced.get("strategy", by_itself) == "grid":
        chosen = _grid_or(chosen, work, facts)
    known = "unmeasured" if facts.constants is None else MEASURED
    chosen = replace(chosen, reason=f"{reason or WHY[chosen.strategy]} ({known})")
    return replace(chosen, **_forced) if _forced else chosen  # type: ignore[arg-type]


def candidates(work: Work, facts: DeviceFacts) -> Iterator[Plan]:
    """Every plan of ours that might be the fastest, whatever a model says."""
    on_chip = resident_plan(work, facts)
    if on_chip is not None:
        yield on_chip
    for spread in _spreads(work, facts):
        yield grid_plan(spread, precision(work, facts))
    stepwise = stepwise_plan(work, facts)
    for product, graphs in (("fused", False), ("fused", True), ("torch", False)):
        yield replace(stepwise, product=product, graphs=graphs)


def precision(work: Work, facts: DeviceFacts) -> str:
    """Of products."""
    return "tf32" if work.tf32 and work.dtype == torch.float32 and facts.vendor == "nvidia" else "ieee"


def resident_plan(work: Work, facts: DeviceFacts) -> Plan | None:
    """The plan of the resident strategy, if a program can hold W_hh."""
    size, width, gates = work.dtype.itemsize, padded(work.hidden), CELLS[work.cell].gates
    if width > RESIDENT_WIDTH[size] or (size == 8 and facts.vendor != "nvidia"):
        return None
    if resident_memory(work.cell, work.hidden, size) > facts.shared_memory_per_block:
        return None
    # Without matrix units there are no layouts to change, and two gates at a time spill; on AMD it saves none.
    numbers = precision(work, facts)
    by_units = facts.vendor == "nvidia" and (work.dtype != torch.float32 or numbers == "tf32")
    few = width <= 64 and gates * width <= FOUR_WARPS_COLUMNS[size]
    together = 2 if by_units and gates > 1 else 1
    return Plan("resident", "", together=together, warps=4 if few else 8, stages=1, precision=numbers)


def stepwise_plan(work: Work, facts: DeviceFacts) -> Plan:
    """The plan of the stepwise strategy."""
    size, batch = work.dtype.itemsize, work.batch
    tile = TILE if batch <= 16 else 32 if batch <= 32 or size > 2 else 64
    crowded = cdiv(batch, tile) * cdiv(work.hidden, 32) * work.directions >= facts.sm_count
    plan = Plan(
        "stepwise",
        "",
        tile=tile,
        units=32 if crowded and size < 8 else 16,
        depth={2: 64, 4: 32, 8: 16}[size],
        warps=8 if tile == 64 and crowded else 4,
        stages={2: 3, 4: 2, 8: 1}[size],  # deeper or wider, float64 spills
        precision=precision(work, facts),
    )
    by_torch = replace(plan, product="torch")
    return by_torch if seconds(by_torch, work, facts) < seconds(plan, work, facts) else plan


def _spreads(work: Work, facts: DeviceFacts) -> Iterator[model.Spread]:
    """Every way to spread a layer over a grid; none on AMD's, whose barrier is not right (:mod:`.barrier`)."""
    if facts.vendor == "amd" or facts.no_grid is not None:
        return
    spec, limits = CELLS[work.cell], (facts.sm_count, facts.shared_memory_per_block)
    sizes = (spec.gates, max(spec.tape, 1), work.batch, work.hidden, work.dtype.itemsize, work.directions)
    yield from model.spreads(facts.vendor, facts.capability, *sizes, *limits)


def _grid_or(other: Plan, work: Work, facts: DeviceFacts) -> Plan:
    """The best plan of the grid strategy, if there is one and it is forced or, by the model, faster than the other."""
    if _forced.keys() >= {"strategy", *SPREAD}:
        return other  # there is nothing left to choose
    chosen, least = other, math.inf if "strategy" in _forced else seconds(other, work, facts)
    for spread in _spreads(work, facts):
        spread_out = grid_plan(spread, other.precision)
        took = seconds(spread_out, work, facts)
        if took < least:
            least, chosen = took, spread_out
    return chosen


def seconds(plan: Plan, work: Work, facts: DeviceFacts) -> float:
    """What a step forward and one backward of a layer take by the model: by a plan of ours, or by torch's."""
    gates, size, constants = CELLS[work.cell].gates, work.dtype.itemsize, facts.constants or model.UNMEASURED
    by_matrix_units = size == 2 or precision(work, facts) == "tf32"
    of_device = (facts.sm_count, facts.l2_bytes)
    torch_by_matrix_units = size == 2 or (size == 4 and work.tf32_products)
    sizes = (gates, work.batch, work.hidden, work.directions, size)
    step = model.Step(*sizes, by_matrix_units, *of_device, torch_by_matrix_units)
    if plan.strategy == "grid":
        return model.grid_seconds(plan.tile, plan.units, plan.stages, plan.held, step, constants, plan.groups)
    if plan.strategy == "resident":
        return model.resident_seconds(plan.tile, step, constants)
    if plan.strategy == TORCH:
        return model.torch_seconds(step, constants)
    return model.stepwise_seconds(plan.product, plan.tile, plan.units, step, constants)


def _by_model(kernels: Plan, work: Work, facts: DeviceFacts) -> Plan:
    """Ours, if it is faster by more than the model may be off."""
    passes = (True, False) if work.trains else (True,)
    device = (facts.capability, facts.sm_count, facts.cudnn)
    if {cudnn.algorithm(work, forward, *device) for forward in passes} != {cudnn.Algorithm.STANDARD}:
        return Plan("torch", "the model of the hardware knows nothing of how torch computes this")
    ours, torchs = seconds(kernels, work, facts), seconds(Plan(TORCH, ""), work, facts)
    how = f"as torch by a model of the hardware, {MEASURED}"
    if ours * MARGIN > torchs:
        return Plan("torch", f"the {kernels.strategy} strategy is not {MARGIN} times as fast {how}")
    return replace(kernels, reason=f"{torchs / ours:.1f} times as fast {how}")


def groups(plan: Plan, batch: int) -> int:
    """How many groups of programs the grid strategy has in each direction: batch tiles that are computed at once."""
    tiles = cdiv(batch, plan.tile)
    return min(plan.groups or tiles, tiles)


def programs(plan: Plan, work: Work) -> int:
    """How many programs the grid strategy has."""
    return groups(plan, work.batch) * cdiv(work.hidden, plan.units) * work.directions


def _fits(record: Record, work: Work, facts: DeviceFacts) -> bool:
    """Whether what was chosen for other work can compute this: all programs of a grid have to run at once."""
    chosen = _recorded(record, work, facts, None)
    return chosen.strategy != "grid" or (facts.no_grid is None and programs(chosen, work) <= facts.sm_count)


def _recorded(record: Record, work: Work, facts: DeviceFacts, reason: str | None) -> Plan:
    """The plan of ours that was the fastest, for this work; no record decides about roundings."""
    why = f"the fastest of our strategies, {record.source} at (B, T, I, H) = {record.work.sizes}"
    chosen = replace(Plan("", f"{reason}; {why}" if reason else why), **dict(record.choices))  # type: ignore[arg-type]
    return replace(chosen, precision=precision(work, facts))


def _faster(record: Record, kernels: Plan) -> Plan:
    """What was faster: torch or, as planned for this work, ours."""
    torchs, ours = measured.seconds_of(record, TORCH), measured.seconds_of(record, kernels.strategy)
    where = f"{record.source} at (B, T, I, H) = {record.work.sizes}"
    if torchs is None or ours is None:
        return Plan("torch", f"none of our strategies that fit it was right, {where}")
    if torchs <= ours:
        return Plan("torch", f"{ours / torchs:.2f} times as fast as the {kernels.strategy} strategy, {where}")
    return replace(kernels, reason=f"{torchs / ours:.2f} times as fast as torch, {where}")


def grid_plan(spread: model.Spread, precision: str) -> Plan:
    """The plan that spreads a layer so."""
    return Plan(
        "grid",
        "",
        tile=spread.tile,
        units=spread.units,
        depth=spread.depth,
        split=spread.split,
        groups=spread.groups,
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


def why_no_kernels(dtype: torch.dtype, facts: DeviceFacts) -> str | None:
    """None where our kernels run, else why not."""
    if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        return f"our kernels take float32, float64, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if facts.vendor == "nvidia" and facts.capability < (8, 0):
        major, minor = facts.capability
        return f"our kernels are for compute capability 8.0 and newer, and {facts.name} has {major}.{minor}"
    return None


@cache
def device_facts(index: int) -> DeviceFacts:
    """The facts of CUDA (or ROCm) device ``index``."""
    properties = torch.cuda.get_device_properties(index)
    processors = multiprocessors(properties)
    return DeviceFacts(
        name=properties.name,
        vendor="nvidia" if torch.version.hip is None else "amd",
        capability=(properties.major, properties.minor),
        sm_count=processors,
        shared_memory_per_block=getattr(
            properties, "shared_memory_per_block_optin", properties.shared_memory_per_block
        ),
        l2_bytes=properties.L2_cache_size,
        cudnn=torch.backends.cudnn.version(),
        records=measured.of_gpu(properties.name, processors, [field.name for field in fields(Plan)]),
        constants=measured.constants_of(properties.name),
        driver=driver_version(),
    )


@constant
def tf32_allowed(dtype: torch.dtype) -> bool:
    """Whether it is float32, and torch's own recurrent layers may round products of it to tf32.

    That is ``torch.backends.cudnn.allow_tf32`` and its successors.
    """
    return dtype == torch.float32 and getattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee") == "tf32"


@constant
def tf32_products(dtype: torch.dtype) -> bool:
    """Whether it is float32, and torch's products of matrices may round it to tf32: a setting of its own.

    That is ``torch.backends.cuda.matmul.allow_tf32`` and its successors.
    """
    return dtype == torch.float32 and getattr(torch.backends.cuda.matmul, "fp32_precision", "ieee") == "tf32"
