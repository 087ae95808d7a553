"""The constants of the kernels' cost model, measured: what a GPU takes for each part of a step.

A row of ``python -m bench gpu --part constants`` says in ``detail["constant"]`` which of
:class:`fastrnn.kernels.model.Constants` it is, and in ``detail["value"]`` its value in the model's unit. Last comes
what is left of a layer's step when all else that the model knows is taken away. ``python -m bench gpu-decide`` writes
the values of results where the plan finds them.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import results
from bench.calls import calls
from bench.gpu import contestants, latency, measure
from bench.results import Row
from fastrnn.kernels import model
from fastrnn.kernels.measured import Work
from fastrnn.kernels.model import Constants
from fastrnn.kernels.plan import DeviceFacts, Plan, grid_plan, resident_plan

STEPS = 10_000  # of a kernel that does one thing over and over
READ = (1 << 10, 1 << 14)  # numbers of 4 bytes that a step reads, few and many: the state of a batch tile is such
SHARED = (2, 1 << 13)  # parts, and numbers of 4 bytes in each: a step reads a part
MATRIX = (16, 64, 64)  # M, K and N of a warp's product
ORDINARY = (16, 32, 32)
WARPS = 8
SEQUENCE = 2048  # steps of the layers whose rest is measured
RESIDENT, SPREAD = 64, 512  # their hidden units, by the resident strategy and by the grid's
BATCH = 16
GATES = 4  # of their cell, the LSTM
STRATEGIES = {"rest": "resident", "rest_in_registers": "grid, registers, barrier"}  # that constants are measured by

Found = Mapping[str, float]  # constants that are measured by now
Measure = Callable[[float, Found], list[Row]]  # the last row is the constant's


def rows(seconds: float, left_out: Mapping[str, str] | None = None) -> Iterator[Row]:
    """A row for each constant, and what it follows from; without times, but with the reason, where it has no value.

    Args:
        seconds: of timing each.
        left_out: strategies that nothing is computed by, with the reasons (:mod:`bench.gpu.strategies`).
    """
    if find_spec("triton") is None or contestants.DEVICE != "cuda":
        return
    from fastrnn.kernels import barrier

    found: dict[str, float] = {}
    for name, measured in MEASURES.items():
        try:
            if (needed := STRATEGIES.get(name)) in (left_out or {}):
                raise LookupError(f"{needed} is left out")
            made = measured(seconds, found)
            barrier.check(_device())  # where programs waited in vain, the time is that of giving up
            found[name] = made[-1].detail["value"]
        except Exception as error:  # whatever a compiler or a launch raises: the others are to be measured all the same
            reason = {"constant": name, "not_measured": f"{name}: {measure.first_line(error)}"}
            made = [latency.of_times(f"constant of the model: {name}", {}, reason)]
        yield from made


def _constant(name: str, row: Row, value: float) -> Row:
    if value <= 0:
        raise ValueError(f"the model would need {value:.3g}")
    row.detail.update(constant=name, value=value, rate=f"{name} = {value:.3g}")
    return row


def _barrier(seconds: float, found: Found) -> list[Row]:
    from bench.gpu.launched import meet
    from fastrnn.kernels import barrier

    device = _device()
    programs = barrier.most_programs(device) or 1
    row = latency.row(
        f"step with a barrier of all {programs} programs", lambda: meet(programs, STEPS, device), seconds, calls=STEPS
    )
    return [_constant("barrier", row, row.times["torch"].median)]


def _launch(seconds: float, found: Found) -> list[Row]:
    from bench.gpu.launched import touch

    x = torch.zeros(1, device=contestants.DEVICE)
    row = latency.row("launch: Triton, in a graph", lambda: touch(x), seconds, chain=True)
    return [_constant("launch", row, row.times["torch"].median)]


def _read(name: str, by_all: bool, seconds: float, found: Found) -> list[Row]:
    """Bytes over the time that many take more than few: a barrier's time has the way of the first in it already."""
    from bench.gpu.launched import read
    from fastrnn.kernels import barrier

    device = _device()
    programs = (barrier.most_programs(device) or 1) if by_all else 1
    made = []
    for numbers in READ:
        zeros = torch.zeros(numbers, dtype=torch.int32, device=device)
        what = f"read of {4 * numbers >> 10} KiB behind another one, {programs} program{'s' if by_all else ''}"
        made.append(latency.row(what, partial(read, zeros, programs, STEPS), seconds, calls=STEPS))
    few, many = (row.times["torch"].median for row in made)
    if many <= few:
        raise ValueError(f"to read {READ[1]} numbers took no longer than {READ[0]}")
    return [made[0], _constant(name, made[1], programs * 4 * (READ[1] - READ[0]) / (many - few))]


def _memory(seconds: float, found: Found) -> list[Row]:
    """Of a copy, which reads and writes: a quarter of a GiB is more than any cache has."""
    source = torch.zeros(latency.COPIED, dtype=torch.uint8, device=contestants.DEVICE)
    target = torch.empty_like(source)
    row = latency.row(f"copy of {latency.COPIED >> 20} MiB of memory", lambda: target.copy_(source), seconds)
    return [_constant("memory", row, 2 * latency.COPIED / row.times["torch"].median)]


def _shared(seconds: float, found: Found) -> list[Row]:
    from bench.gpu.on_chip import read_shared

    x = torch.zeros(SHARED, dtype=torch.int32, device=contestants.DEVICE)
    what = f"read of {4 * SHARED[1] >> 10} KiB of shared memory"
    row = latency.row(what, lambda: read_shared(x, STEPS), seconds, calls=STEPS)
    return [_constant("shared", row, 4 * SHARED[1] / row.times["torch"].median)]


def _matrix(seconds: float, found: Found) -> list[Row]:
    from bench.gpu.on_chip import multiply_in_registers

    return [_product("matrix", multiply_in_registers, torch.bfloat16, MATRIX, seconds)]


def _ordinary(seconds: float, found: Found) -> list[Row]:
    from bench.gpu.launched import multiply

    return [_product("ordinary", multiply, torch.float32, ORDINARY, seconds)]


def _product(
    name: str,
    multiply: Callable[[Tensor, Tensor, int], Tensor],
    dtype: torch.dtype,
    sizes: tuple[int, int, int],
    seconds: float,
) -> Row:
    m, k, n = sizes
    x, w = (torch.rand(WARPS, *shape, device=contestants.DEVICE).to(dtype) for shape in ((m, k), (k, n)))
    what = f"product of {m}x{k} and {k}x{n} by each of {WARPS} warps, {str(dtype).removeprefix('torch.')}"
    row = latency.row(what, lambda: multiply(x, w, STEPS), seconds, calls=STEPS)
    return _constant(name, row, WARPS * m * k * n / row.times["torch"].median)


def _rest(seconds: float, found: Found) -> list[Row]:
    plan = resident_plan(_work(RESIDENT), _facts())
    if plan is None:
        raise LookupError(f"no program holds H={RESIDENT}")
    constants = _known(found, "shared", "matrix")
    modelled = model.resident_seconds(plan.tile, _step(RESIDENT), constants)
    return [_remainder("rest", plan, RESIDENT, modelled, constants.rest, seconds)]


def _rest_in_registers(seconds: float, found: Found) -> list[Row]:
    facts = _facts()
    limits = (facts.sm_count, facts.shared_memory_per_block)
    spreads = model.spreads(facts.vendor, facts.capability, GATES, GATES, BATCH, SPREAD, 2, 1, *limits)
    spread = next((spread for spread in spreads if spread.held == "registers"), None)
    if spread is None:
        raise LookupError(f"no way to spread H={SPREAD} holds weights in registers")
    constants = _known(found, "barrier", "read", "read_by_all", "matrix")
    modelled = model.grid_seconds(spread.tile, spread.units, spread.stages, spread.held, _step(SPREAD), constants)
    plan = grid_plan(spread, "ieee")
    return [_remainder("rest_in_registers", plan, SPREAD, modelled, constants.rest_in_registers, seconds)]


def _standard(seconds: float, found: Found) -> list[Row]:
    """What a step of torch's takes beside its product, where cuDNN's standard algorithm computes the layer."""
    constants, x = _known(found, "matrix", "read_by_all"), _input()
    stock = torch.nn.LSTM(1, SPREAD, dtype=torch.bfloat16, device=contestants.DEVICE)
    (call,) = calls({"torch": stock}, x, "training").values()
    row = latency.row(f"torch's LSTM step forward and backward, B{BATCH} H{SPREAD}", call, seconds, calls=SEQUENCE)
    product = model.product_seconds(_step(SPREAD), constants)
    return [_constant("standard", row, row.times["torch"].median / 2 - product)]


def _input() -> Tensor:
    return torch.randn(SEQUENCE, BATCH, 1, device=contestants.DEVICE).to(torch.bfloat16)


def _work(hidden: int) -> Work:
    return Work("lstm", SEQUENCE, BATCH, 1, hidden, torch.bfloat16)


def _step(hidden: int) -> model.Step:
    facts = _facts()
    return model.Step(GATES, BATCH, hidden, 1, 2, True, facts.sm_count, facts.l2_bytes, True)


def _facts() -> DeviceFacts:
    from fastrnn import _cuda

    return _cuda.facts_of(_device())


def _device() -> torch.device:
    """With its number, as tensors on it have it."""
    return torch.empty((), device=contestants.DEVICE).device


def _known(found: Found, *names: str) -> Constants:
    """Measured constants, of which these are needed."""
    missing = [name for name in names if name not in found]
    if missing:
        raise LookupError(f"it follows from {', '.join(missing)}, not measured")
    return Constants(**found)


def _remainder(name: str, plan: Plan, hidden: int, modelled: float, rest: float, seconds: float) -> Row:
    """Half of what a step forward and one backward take longer than the model says, which has ``rest`` in each."""
    what = f"LSTM step forward and backward, B{BATCH} H{hidden}, {plan}"
    row = latency.row(what, recurrence(plan, hidden), seconds, calls=SEQUENCE)
    return _constant(name, row, rest + (row.times["torch"].median - modelled) / 2)


def recurrence(plan: Plan, hidden: int) -> Callable[[], None]:
    """All steps of an LSTM in bfloat16, forward and backward, by a plan's kernels: no product over all steps."""
    from fastrnn.kernels import layer
    from fastrnn.kernels.call import Call

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, device=contestants.DEVICE).to(dtype)

    half, all_steps, all_rows = torch.bfloat16, (SEQUENCE, BATCH, hidden), (1, SEQUENCE * BATCH)
    weights = [random(GATES * hidden, 1, dtype=half), random(GATES * hidden, hidden, dtype=half) / hidden**0.5]
    call = Call.of("lstm", random(SEQUENCE, BATCH, 1, dtype=half), None, None, weights, False, None, None, None)
    pre, c_before = random(*all_rows, GATES * hidden), random(*all_rows, hidden)
    y, dy, cells = random(*all_steps, dtype=half), random(*all_steps, dtype=half), random(*all_steps)
    dpre = random(*all_rows, GATES * hidden, dtype=half)
    forward, backward = layer.FORWARD[plan.strategy], layer.BACKWARD[plan.strategy]

    def run() -> None:
        h, c, dh, dc = (call.carried(None) for _ in range(4))
        forward(plan, call, pre, h, c, y, cells, None, 0, SEQUENCE, True)  # which leaves the gates in pre
        backward(plan, call, pre, cells, c_before, dy, None, dpre, dh, dc, 0, SEQUENCE, True)

    return run


MEASURES: dict[str, Measure] = {
    "barrier": _barrier,
    "launch": _launch,
    "read": partial(_read, "read", False),
    "read_by_all": partial(_read, "read_by_all", True),
    "memory": _memory,
    "shared": _shared,
    "matrix": _matrix,
    "ordinary": _ordinary,
    "standard": _standard,
    "rest": _rest,
    "rest_in_registers": _rest_in_registers,
}


def measured(rows: Sequence[Row]) -> dict[str, float]:
    """The constants that rows have values of, by name; the last one where there are several.

    Raises:
        ResultsError: the rows have none, or those of different GPUs, or one that no GPU can have.
    """
    own = [row for row in rows if "value" in row.detail and row.detail.get("constant") is not None]
    if not own:
        raise results.ResultsError(
            "no row is a constant of the model: `python -m bench gpu --part constants` makes them"
        )
    devices = sorted({row.provenance.device.name if row.provenance.device else "a CPU" for row in own})
    if len(devices) > 1:
        raise results.ResultsError(f"the constants are of different devices: {', '.join(devices)}")
    found = {row.detail["constant"]: row.detail["value"] for row in own}
    try:
        Constants(**found)
    except (TypeError, ValueError) as error:
        raise results.ResultsError(f"not constants of the model: {error}") from error
    return found


def constants_of(rows: Sequence[Row]) -> Constants:
    """The model's constants with what rows have measured; the others keep their unmeasured defaults.

    Raises:
        ResultsError: as :func:`measured`.
    """
    return Constants(**measured(rows))


def write(path: Path, found: Found) -> None:
    """Make the key ``"constants"`` of a JSON object, in a new file or beside the other keys of an old one.

    Raises:
        ResultsError: the file holds something else.
    """
    content: Any = {}
    if path.exists():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise results.ResultsError(f"{path}: not JSON ({error})") from error
        if not isinstance(content, dict):
            raise results.ResultsError(f"{path}: expected a JSON object, got {type(content).__name__}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | {"constants": dict(found)}, indent=2) + "\n", encoding="utf-8")
