"""What was measured on this CPU of the ways to compute a layer, and what follows for a call.

The ways are torch's layer, and the C++ engine's with threads that split it as the engine plans by itself or otherwise.
The engine is told what was measured (csrc/cpu/tuned.h), for calls that Python only hands on.
"""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from pathlib import Path

import torch

from fastrnn import _C
from fastrnn._dynamo import constant
from fastrnn.kernels import measured
from fastrnn.kernels.measured import TORCH, Record, Work, seconds_of

USUAL, ROWS, UNITS = "usual", "rows", "units"
MARGIN = 1.03  # by which another way has to be faster than the engine's usual one: noise is not to decide
TUNED = "tuned on this CPU"
LONG = 16  # steps from which on what is done once is a small part
ANY = 1 << 60  # more than there is of anything
CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")  # of what torch is built on


@dataclass(frozen=True)
class Plan:
    """A way to compute a layer.

    Attributes:
        strategy: ``"usual"``, as the engine plans by itself; ``"rows"`` or ``"units"``, which threads split then; or
            ``"torch"`` for torch's own layer.
        reason: why, in words.
        teams: of threads, one for each direction, or 1.
        shares: threads of a team; of one, the strategy is ``"rows"``.
    """

    strategy: str
    reason: str = ""
    teams: int = 1
    shares: int = 1

    def __str__(self) -> str:
        if self.strategy in (USUAL, TORCH):
            return self.strategy
        teams = "a team of threads a direction, " if self.teams > 1 else ""
        if self.shares == 1:
            return f"{teams}one thread" + " each" * (self.teams > 1)
        return f"{teams}{self.strategy} split over {self.shares} threads"


@dataclass(frozen=True)
class Facts:
    """What tuning on a CPU is known by.

    Attributes:
        threads: torch's.
        cores: that they have.
        records: what work took with them.
    """

    threads: int
    cores: int
    records: tuple[Record, ...] = ()


def facts() -> Facts:
    """Those of this process, with as many threads as torch has now."""
    threads = torch.get_num_threads()
    cores = min(threads, _C.cpu_cores())
    return Facts(threads, cores, _records().get((threads, cores), ()))


@constant
def matters() -> bool:
    """Whether a plan has to be asked who computes an ordinary call: anything was measured, or nobody has looked yet."""
    return _C.cpu_tuned()


def plan(work: Work) -> Plan | None:
    """Who computes a call, and why, as far as that was measured or is forced; else None."""
    if _forced is not None:
        return _forced
    _records()
    if not _C.cpu_tuned():
        return None
    threads = torch.get_num_threads()
    return _plan(work, threads, min(threads, _C.cpu_cores()))


@lru_cache(1024)
def _plan(work: Work, threads: int, cores: int) -> Plan | None:
    record = _find(_records().get((threads, cores), ()), work)
    return None if record is None else _faster(record)


def _find(records: Sequence[Record], work: Work) -> Record | None:
    """The record that holds for a call.

    A single step is computed otherwise than more of them, and of a few, what is done once counts: a record of those
    holds for up to twice as many.
    """

    def is_alike(mine: Work) -> bool:
        few = mine.steps < LONG and work.steps > 2 * mine.steps
        return (mine.steps == 1) == (work.steps == 1) and not few

    return measured.find([record for record in records if is_alike(record.work)], work, whole=True)


def _faster(record: Record) -> Plan:
    """What was faster by more than noise; ours is split as the engine finds for each layer."""
    where = f"{record.source} at (B, T, I, H) = {record.work.sizes}"
    torchs, ours = seconds_of(record, TORCH), seconds_of(record, str(dict(record.choices).get("strategy")))
    if torchs is None or ours is None:
        return Plan(TORCH, f"the C++ engine was not right, {where}")
    if torchs * MARGIN < ours:
        return Plan(TORCH, f"{ours / torchs:.2f} times as fast as the C++ engine, {where}")
    return Plan(USUAL, f"{torchs / ours:.2f} times as fast as torch, {where}")


def candidates(work: Work, facts: Facts) -> Iterator[Plan]:
    """Every way of ours that might be the fastest; of those that come to the same, one."""
    counts = sorted({1, facts.cores, *(1 << k for k in range(facts.cores.bit_length() - 1))})
    plans = [Plan(USUAL)]
    for teams in range(1, work.directions + 1):
        plans += [
            Plan(strategy, "", teams, shares)
            for shares in counts
            for strategy in ((ROWS, UNITS) if shares > 1 else (ROWS,))
            if teams * shares <= facts.cores and (teams == 1 or facts.cores % teams == 0)
        ]
    seen = set()
    for candidate in plans:
        with forced(candidate):
            how = tuple(kernel(work, facts.threads, backward) for backward in {False, work.trains})
        if how not in seen:
            seen.add(how)
            yield candidate


def kernel(work: Work, threads: int, backward: bool = False) -> str:
    """How the engine would compute a layer of it now: instruction set and threads."""
    kind = (work.directions, str(work.dtype).removeprefix("torch."), threads, work.trains, work.packed, backward)
    return _C.cpu_plan(work.cell, work.steps, work.batch, work.inputs, work.hidden, *kind)


_forced: Plan | None = None


@contextmanager
def forced(way: Plan | None) -> Iterator[None]:
    """Within, everything on the CPU is computed so, in all threads; None leaves it as it is."""
    global _forced
    before = _forced
    _force(way or before)
    try:
        yield
    finally:
        _force(before)


def _force(way: Plan | None) -> None:
    global _forced
    _forced = way
    if way is None:
        _C.cpu_force(0, 0, 0, False)
    elif way.strategy in (USUAL, TORCH):
        _C.cpu_force(2 if way.strategy == TORCH else 1, 0, 0, False)
    else:
        _C.cpu_force(1, way.teams, way.shares, way.strategy == UNITS)


def identity(threads: int, cores: int) -> dict[str, str]:
    """What tuning holds for: this CPU with as many threads, so many of which have cores, and what computes on it."""
    return _machine() | {"threads": str(threads), "cores": str(cores)}


def _machine() -> dict[str, str]:
    from fastrnn import __version__

    caps = [f"{name}={os.environ[name]}" for name in CAPS if os.environ.get(name)]
    onednn = "on" if torch._C._get_mkldnn_enabled() else "off"
    return {
        "cpu": _name(),
        "isa": _C.cpu_isa(),
        "torch's": ", ".join([torch.backends.cpu.get_cpu_capability(), f"oneDNN {onednn}", *caps]),
        "torch": torch.__version__,
        "fastrnn": __version__,
    }


@cache
def _name(path: Path = Path("/proc/cpuinfo")) -> str:
    """A CPU's model, by numbers as well where there are any: virtual machines have names that say little."""
    found: dict[str, str] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    except (OSError, UnicodeDecodeError):
        pass
    numbers = ("cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant")
    known = ", ".join(f"{name.removeprefix('CPU ')} {found[name]}" for name in numbers if found.get(name))
    name = found.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({known})" if known else name


@cache
def _records() -> Mapping[tuple[int, int], tuple[Record, ...]]:
    """What was measured on this CPU, by threads and cores. The engine is told at once."""
    by_threads: dict[tuple[int, int], list[Record]] = {}
    attributes = [field.name for field in fields(Plan)]
    for on, record in measured.read_with(measured.cache_file(), _machine(), attributes, TUNED):
        by_threads.setdefault((int(on["threads"]), int(on["cores"])), []).append(record)
    found = {key: measured.latest(records) for key, records in by_threads.items()}
    _tell(found)
    return found


def count() -> int:
    """How many pieces of work were tuned on this CPU, with as many threads as there are now."""
    return len(facts().records)


def forget() -> None:
    """Look again for what was measured."""
    _records.cache_clear()
    _plan.cache_clear()
    _records()


def _ranges(work: Work, whole: bool) -> tuple[tuple[int, int], ...]:
    """The least and the most T, B, I and H that a record of work holds for, as :func:`_find` has it."""
    steps, rows, inputs = work.steps, work.batch, work.inputs
    once = (1, 1) if steps == 1 else (max(2, (steps + 1) // 2), 2 * steps if steps < LONG else ANY)
    alike = ((inputs + 1) // 2, 2 * inputs) if whole else (0, ANY)
    return once, (rows // 2 + 1, rows), alike, (work.hidden, work.hidden)


def _tell(found: Mapping[tuple[int, int], tuple[Record, ...]]) -> None:
    calls, layers = [], []
    for (threads, cores), records in found.items():
        for record in records:
            work, choices = record.work, dict(record.choices)
            kind = (work.cell, str(work.dtype).removeprefix("torch."), work.directions)
            modes = (int(work.trains), int(work.packed), threads, cores)
            by_torch, split = _faster(record).strategy == TORCH, (0, 0, False)
            if choices.get("strategy") in (ROWS, UNITS):
                split = (choices["teams"], choices["shares"], choices["strategy"] == UNITS)  # type: ignore[assignment]
            of_calls, of_layers = (zip(*_ranges(work, whole), strict=True) for whole in (True, False))
            calls.append((*kind, work.layers, *modes, *of_calls, work.steps, by_torch, *split))
            layers.append((*kind, 0, *modes, *of_layers, work.steps, False, *split))
    _C.cpu_tell(calls, layers)
