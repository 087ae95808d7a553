"""Budgets of compiled kernels: what a kernel may take of a GPU, and what a step of its loop may do."""

import functools
from typing import NamedTuple

from bench import kernels
from bench.aot import Counts, Report
from rig import kept

SLACK = 8  # registers by which a thread may have more: assemblers hand them out in eights
Which = tuple[str, str]  # the name of a kernel, and a target


class Budget(NamedTuple):
    """At most so many, but for tensor-core instructions: exactly so many. Of the loop, or all where it was unrolled.

    The loop of a resident or a grid kernel goes through time, and its loads are those of a step: W_hh would be more.
    One or two of a resident kernel's backward are never done (see :func:`fastrnn.kernels.resident.as_loaded`).
    ``shared`` is in bytes; where it and ``instructions`` are None, the target's limit is theirs.
    """

    registers: int
    loads: int
    barriers: int
    tensor: int
    instructions: int | None = None
    shared: int | None = None


def counts(report: Report) -> Counts:
    return report.loop() if report.loops else report.whole


def over(report: Report, budget: Budget) -> list[str]:
    """What a kernel has too much of."""
    found, limits = counts(report), report.limits
    instructions = found.instructions if budget.instructions is None else budget.instructions
    return [
        f"{what}: {value}, at most {most}"
        for what, value, most in (
            ("bytes spilled", report.spills + report.stack, 0),
            ("local memory accesses", report.whole.local, 0),
            ("bytes of shared memory", report.shared, limits.shared if budget.shared is None else budget.shared),
            ("registers", report.registers, min(limits.registers, budget.registers + SLACK)),
            ("registers of all threads", report.block_registers, limits.block_registers),
            ("global loads", found.global_loads, budget.loads),
            ("barriers", found.barriers, budget.barriers),
            ("tensor-core instructions", abs(found.tensor_cores() - budget.tensor), 0),
            ("instructions", found.instructions, instructions),
        )
        if value > most
    ]


@functools.cache
def compiled(which: Which) -> kernels.Row:
    """A kernel of the catalogue, compiled."""
    entry, index = _places()[which]
    return kept.compiled(entry, (kernels.CATALOG, index, which[1]))


@functools.cache
def _places() -> dict[Which, tuple[kernels.Entry, int]]:
    return {
        (entry.name, target): (entry, index)
        for index, entry in enumerate(kernels.catalog())
        for target in entry.targets
    }
