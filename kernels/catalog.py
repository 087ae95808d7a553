"""Every kernel as it is compiled: for checks ahead of time, where no GPU is needed.

The tiles, warps and stages are those that :func:`fastrnn.kernels.plan.plan_kernels` gives each target, the constants
those of the launches themselves. Two forms of each kernel: ``dense``, without what is optional, and ``all``, with
everything at once (packed sequences, resets, an initial state, gradients of the cell states). Beside small batches of
typical sizes there are large ones, whose tiles are others or come in turns, in the second form.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from fastrnn.kernels import barrier, gluon_grid, grid, grid_backward, model, resident, states, stepwise
from fastrnn.kernels.call import width
from fastrnn.kernels.measured import Work
from fastrnn.kernels.plan import DeviceFacts, Plan, grid_plan, plan_kernels
from fastrnn.reference import CELLS, Cell

TARGETS = {
    "sm_80": DeviceFacts("A100", "nvidia", (8, 0), 108, 163 * 1024, 40 * 2**20),
    "sm_90": DeviceFacts("H100", "nvidia", (9, 0), 132, 227 * 1024, 50 * 2**20),
    "sm_120": DeviceFacts("RTX 5090", "nvidia", (12, 0), 170, 99 * 1024, 96 * 2**20),
    "gfx942": DeviceFacts("MI300X", "amd", (9, 4), 304, 64 * 1024, 4 * 2**20),
}
# Name in a catalog entry: dtype of storage, whether tf32 is allowed, the sizes H to compile for.
NUMBERS: dict[str, tuple[torch.dtype, bool, tuple[int, ...]]] = {
    "fp32": (torch.float32, False, (20, 64, 512)),
    "tf32": (torch.float32, True, (64, 512)),
    "bf16": (torch.bfloat16, False, (20, 64, 128, 512, 1024)),
    "fp16": (torch.float16, False, (64, 128)),
    "fp64": (torch.float64, False, (32, 512)),
}
BATCH, MOST_BATCH = 16, 1 << 14  # of the latter, tiles come in turns on every GPU
GRID_NUMBERS, GRID_HIDDEN = ("bf16", "tf32", "fp32"), (256, 512, 768, 1024)
# What else is asked for, of these cells: steps of batches in the thousands, or single ones, by numbers, H and B; and
# grids, by numbers, H, and whether batch tiles come in turns.
MORE_CELLS = ("lstm", "gru")
MORE_STEPS = (("bf16", 256, 4096), ("tf32", 256, 4096), ("fp32", 256, 4096), ("tf32", 512, 64), ("bf16", 640, 32))
MORE_GRIDS = (
    ("fp16", (256,), False),
    ("bf16", (256, 512, 768, 1024), True),
    ("tf32", (256, 512), True),
    ("fp32", (256,), True),
)
POLLED = ("bf16", (512, 1024), "sm_90")  # numbers, sizes and target of which data are polled as well
TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
STORAGE = ("w", "y", "dy", "dpre", "exchange")  # pointers to values of storage; others are to the compute dtype
TABLES = {"lengths_ptr": "*i32", "first_ptr": "*i64", "reset_ptr": "*i32"}
WORDS = ("counter_ptr", "error_ptr")  # of the barrier, int32
OPTIONAL = (*TABLES, "initial_ptr", "dcells_ptr", "borders_ptr")
CELL_STATE = ("c_ptr", "cells_ptr", "borders_ptr", "c_prev_ptr", "dc_ptr", "dcells_ptr")  # an LSTM's alone


class Entry(NamedTuple):
    """A kernel to compile.

    Attributes:
        name: ``kernel/cell/numbers/H/form``, and of stepwise kernels where the products come from.
        kernel: the jitted function.
        signature: the type of every argument that is not a constant, in Triton's words.
        constants: the value of every other one; None for a pointer that is absent.
        num_warps, num_stages: as launched.
        divisible: arguments that are multiples of 16 at each launch (pointers of torch's allocator).
        targets: keys of :data:`TARGETS` for which the plan is this one.
        options: further options of the launch.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, object]
    num_warps: int
    num_stages: int
    divisible: tuple[str, ...]
    targets: tuple[str, ...]
    options: dict[str, object]


def entries() -> Iterator[Entry]:
    """Every kernel, cell, kind of number and typical size."""
    for numbers, (dtype, tf32, sizes) in NUMBERS.items():
        for hidden in sizes:
            for form in ("dense", "all"):
                for cell in CELLS.values():
                    for plan, targets in _plans(cell, dtype, tf32, hidden):
                        yield from _recurrences(
                            cell, dtype, f"{cell.name}/{numbers}/{hidden}", form, hidden, plan, targets
                        )
                if numbers != "tf32":
                    yield from _elementwise(dtype, numbers, hidden, form)
    for numbers in GRID_NUMBERS:
        dtype, tf32, _ = NUMBERS[numbers]
        for hidden in GRID_HIDDEN:
            for cell in CELLS.values():
                for plan, targets in _grid_plans(cell, dtype, tf32, hidden):
                    for form in ("dense", "all"):
                        yield from _grid(cell, dtype, f"{cell.name}/{numbers}/{hidden}", form, hidden, plan, targets)
                    if numbers == POLLED[0] and hidden in POLLED[1] and POLLED[2] in targets:
                        name, polling = f"{cell.name}/{numbers}/{hidden}", replace(plan, exchange="data")
                        yield from _grid(cell, dtype, name, "all", hidden, polling, (POLLED[2],))
    yield from _more()


def _more() -> Iterator[Entry]:
    for cell in map(CELLS.__getitem__, MORE_CELLS):
        for numbers, hidden, batch in MORE_STEPS:
            dtype, tf32, _ = NUMBERS[numbers]
            for plan, targets in _plans(cell, dtype, tf32, hidden, batch):
                name = f"{cell.name}/{numbers}/{hidden}"
                for entry in _recurrences(cell, dtype, name, "all", hidden, plan, targets):
                    yield entry._replace(name=f"{entry.name}, {plan.tile} rows, {plan.units} units")
        for numbers, sizes, in_turns in MORE_GRIDS:
            dtype, tf32, _ = NUMBERS[numbers]
            for hidden in sizes:
                for plan, targets in _grid_plans(cell, dtype, tf32, hidden, MOST_BATCH if in_turns else BATCH):
                    if TARGETS[targets[0]].vendor == "nvidia":
                        yield from _grid(cell, dtype, f"{cell.name}/{numbers}/{hidden}", "all", hidden, plan, targets)


def _plans(
    cell: Cell, dtype: torch.dtype, tf32: bool, hidden: int, batch: int = BATCH
) -> Iterator[tuple[Plan, tuple[str, ...]]]:
    """The different plans that the targets have, with the targets that have each; for few steps, hence no grid's."""
    found: dict[Plan, list[str]] = {}
    for target, facts in _targets(tf32):
        plan = plan_kernels(Work(cell.name, 1, batch, hidden, hidden, dtype, tf32=tf32), facts)
        plan = replace(plan, product="fused")  # each is compiled for both
        found.setdefault(plan, []).append(target)
    for plan, targets in found.items():
        yield plan, tuple(targets)


def _grid_plans(
    cell: Cell, dtype: torch.dtype, tf32: bool, hidden: int, batch: int = BATCH
) -> Iterator[tuple[Plan, tuple[str, ...]]]:
    """The same of the grid strategy: every plan to choose from. The number of groups is no constant of a kernel."""
    found: dict[tuple[Plan, str], list[str]] = {}
    for target, facts in _targets(tf32):
        sizes = (cell.gates, width(cell), batch, hidden, dtype.itemsize, 1)
        limits = (facts.sm_count, facts.shared_memory_per_block)
        for spread in model.spreads(facts.vendor, facts.capability, *sizes, *limits):
            plan = grid_plan(spread, "tf32" if tf32 else "ieee")
            plan = replace(plan, groups=min(plan.groups, 1))
            found.setdefault((plan, facts.vendor), []).append(target)
    for (plan, _), targets in found.items():
        yield plan, tuple(targets)


def _targets(tf32: bool) -> Iterator[tuple[str, DeviceFacts]]:
    for target, facts in TARGETS.items():
        if facts.vendor == "nvidia" or not tf32:
            yield target, facts


def _grid(
    cell: Cell, dtype: torch.dtype, name: str, form: str, hidden: int, plan: Plan, targets: tuple[str, ...]
) -> Iterator[Entry]:
    whole = form == "dense"
    vendor = TARGETS[targets[0]].vendor
    forward, backward = grid.grid_forward, grid_backward.grid_backward
    if plan.held == "registers":
        forward, backward = gluon_grid.gluon_grid_forward, gluon_grid.gluon_grid_backward
    all_registers = grid_backward.takes_all_registers(plan, cell.gates, hidden, dtype.itemsize)
    kernels = [(forward, grid.forward_constants(plan, cell, hidden, whole), barrier.options(vendor))]
    if grid_backward.backward_plan(plan) == plan:  # else it is another plan's
        constants = grid_backward.backward_constants(plan, cell, hidden, whole)
        kernels.append((backward, constants, barrier.options(vendor, all_registers)))
    for kernel, constants, options in kernels:
        full_name = f"{kernel.__name__}/{name}/{form}/{plan.tile} rows, {plan.units} units"
        full_name += ", in turns" if plan.groups else ""
        full_name += ", data polled" if plan.exchange == "data" else ""
        entry = _entry(full_name, kernel, cell, dtype, constants, plan.warps, barrier.STAGES, form, targets, ())
        yield entry._replace(options=options)


def _recurrences(
    cell: Cell, dtype: torch.dtype, name: str, form: str, hidden: int, plan: Plan, targets: tuple[str, ...]
) -> Iterator[Entry]:
    strategy = {"resident": resident, "stepwise": stepwise}[plan.strategy]
    prefix = {"resident": "resident", "stepwise": "step"}[plan.strategy]
    whole = form == "dense"  # the full tape; chunks of time have the other constant
    for direction in ("forward", "backward"):
        kernel = getattr(strategy, f"{prefix}_{direction}")
        constants = getattr(strategy, f"{direction}_constants")(plan, cell, hidden, whole)
        for product in ("fused", "torch") if plan.strategy == "stepwise" else (plan.strategy,):
            absent = () if product == "torch" else ("recurrent_ptr",)
            full_name = f"{prefix}_{direction}/{name}/{form}" + (f"/{product} product" if prefix == "step" else "")
            yield _entry(full_name, kernel, cell, dtype, constants, plan.warps, plan.stages, form, targets, absent)


def _elementwise(dtype: torch.dtype, numbers: str, hidden: int, form: str) -> Iterator[Entry]:
    targets, launched = tuple(TARGETS), (states.WARPS, states.STAGES)
    before = states.before_constants(hidden)
    name = f"states_before/{numbers}/{hidden}/{form}"
    yield _entry(name, states.states_before, None, dtype, before, *launched, form, targets, ())
    for cell in CELLS.values():
        if cell.tape:
            again = states.again_constants(cell, hidden)
            name = f"gates_again/{cell.name}/{numbers}/{hidden}/{form}"
            yield _entry(name, states.gates_again, cell, dtype, again, *launched, form, targets, (), ("borders_ptr",))


def _entry(
    name: str,
    kernel: Any,
    cell: Cell | None,
    dtype: torch.dtype,
    constants: dict[str, object],
    warps: int,
    stages: int,
    form: str,
    targets: tuple[str, ...],
    absent: tuple[str, ...],
    present: tuple[str, ...] = (),
) -> Entry:
    storage, compute = f"*{TYPES[dtype]}", "*fp64" if dtype == torch.float64 else "*fp32"
    signature: dict[str, str] = {}
    constants = dict(constants)
    for arg in kernel.arg_names:
        stem = arg.removesuffix("_ptr")
        if arg in constants:
            continue
        if stem == arg:
            signature[arg] = "i32"
        elif (
            arg in absent
            or (form == "dense" and arg in OPTIONAL and arg not in present)
            or (cell is not None and not cell.has_c and arg in CELL_STATE)
            or (cell is not None and not cell.tape and arg == "gates_ptr")
        ):
            constants[arg] = None
        elif arg in TABLES or arg in WORDS:
            signature[arg] = TABLES.get(arg, "*i32")
        elif cell is None or (stem == "state" and not cell.has_c):
            signature[arg] = storage
        else:
            signature[arg] = storage if stem in STORAGE else compute
    pointers = tuple(arg for arg, kind in signature.items() if kind[0] == "*" and arg not in (*TABLES, "error_ptr"))
    return Entry(name, kernel, signature, constants, warps, stages, pointers, targets, {})
