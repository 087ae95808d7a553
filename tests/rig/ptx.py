"""Whether programs wait for each other as they should: what an interpreter, whose memory has an order, cannot show.

A grid barrier: the threads of a block store; a barrier of the block; one thread releases. One thread acquires; a
barrier of the block; the threads load. PTX has every link of this chain as an instruction, and each can be missing:
triton before 3.9 puts no barrier before a release, and ``tl.load(volatile=True)`` acquires nothing.

Polling data that are their own flags: no order of memory is needed, but every number has to be loaded anew each time.
"""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from bench.assembly import PTX, Instruction, Listing

BLOCK_BARRIER = re.compile(r"(bar|barrier)(\.cta|\.cluster)?\.(sync|red|wait)")
RELEASE = re.compile(r"(atom|red|st|fence)\.[\w.:]*(release|acq_rel)")
ACQUIRE = re.compile(r"(atom|red|ld|fence)\.[\w.:]*(acquire|acq_rel)")
READ = re.compile(r"ld\.[\w.:]*global")
WRITE = re.compile(r"(st|atom|red)\.[\w.:]*global")
VOLATILE = re.compile(r"ld\.volatile\.[\w.:]*global(?:\.v(\d))?\.b(\d+)")
ORDERED = re.compile(r"(atom|red|membar|fence)\b|[\w.:]*\.(release|acquire|acq_rel)\b")
WIDE = re.compile(r".*\.(gpu|sys)\b")


class BarrierError(AssertionError):
    """A grid barrier that does not order memory, with the lines of PTX that show it."""


class PollingError(AssertionError):
    """Polling that may read what is not there yet, or go on for ever, or that orders memory as well."""


@dataclass(frozen=True)
class GridBarrier:
    """The instructions by which a kernel's blocks wait for each other."""

    releases: tuple[Instruction, ...]
    acquires: tuple[Instruction, ...]


def check_grid_barrier(ptx: str) -> GridBarrier:
    """Follow every path of a kernel through its releases and acquires.

    Raises:
        BarrierError: nothing is released or acquired; not for the whole GPU; a store may come after the release of its
            block; a load may come before the acquire of its block; a block may release twice without an acquire.
    """
    listing = Listing(ptx, PTX)
    releases, acquires = _found(listing, RELEASE), _found(listing, ACQUIRE)
    if not releases or not acquires:
        missing = "acquired" if releases else "released"
        polls = _found(listing, re.compile(r"ld\.volatile"))
        hint = f", although line {_show(listing, polls[0])} polls" if polls else ""
        raise BarrierError(f"nothing is {missing}{hint}")
    for index in [*releases, *acquires]:
        if not WIDE.match(listing.instructions[index].opcode):
            raise BarrierError(f"not for the whole GPU: line {_show(listing, index)}")
    for release in releases:
        store = _reached(listing, release, listing.predecessors, WRITE, stop=BLOCK_BARRIER, but=RELEASE)
        if store is not None:
            raise BarrierError(
                f"no barrier of the block between a store, line {_show(listing, store)}, "
                f"and its release, line {_show(listing, release)}"
            )
        again = _reached(listing, release, listing.successors, RELEASE, stop=ACQUIRE)
        if again is not None:
            raise BarrierError(f"released again without an acquire: line {_show(listing, again)}")
    for acquire in acquires:
        for access in (READ, WRITE):
            other = _reached(listing, acquire, listing.successors, access, stop=BLOCK_BARRIER, but=ACQUIRE)
            if other is not None:
                raise BarrierError(
                    f"no barrier of the block between an acquire, line {_show(listing, acquire)}, "
                    f"and an access, line {_show(listing, other)}"
                )
    instructions = listing.instructions
    return GridBarrier(tuple(instructions[i] for i in releases), tuple(instructions[i] for i in acquires))


def check_polling(ptx: str) -> tuple[int, ...]:
    """Find the loops in which a kernel polls: the bytes that a thread loads each time through each, in order.

    Raises:
        PollingError: nothing is polled; a loop that polls also loads what is not loaded anew; what was asked for before
            the loops is not as much as they ask for again; something orders memory, which would take the time that
            polling is to save.
    """
    listing = Listing(ptx, PTX)
    for ordered in _found(listing, ORDERED):
        raise PollingError(f"memory is ordered, line {_show(listing, ordered)}")
    volatile = {index: _bytes(listing.instructions[index]) for index in _found(listing, VOLATILE)}
    if not volatile:
        raise PollingError("nothing is polled")
    with_polls = [loop for loop in listing.loops if not loop.isdisjoint(volatile)]
    polling = [loop for loop in with_polls if not any(other < loop for other in with_polls)]
    for loop in polling:
        for index in sorted(loop):
            if READ.match(listing.instructions[index].opcode) and index not in volatile:
                raise PollingError(f"a load that polls is not volatile, line {_show(listing, index)}")
    polled = [sum(volatile.get(index, 0) for index in loop) for loop in sorted(polling, key=min)]
    asked = sum(volatile.values()) - sum(polled)
    if asked != sum(polled):
        raise PollingError(f"{asked} bytes are asked for, and {sum(polled)} polled")
    return tuple(polled)


def _bytes(load: Instruction) -> int:
    count, bits = VOLATILE.match(load.opcode).groups()
    return int(count or 1) * int(bits) // 8


def _found(listing: Listing, kind: re.Pattern[str]) -> list[int]:
    return [index for index, instruction in enumerate(listing.instructions) if kind.match(instruction.opcode)]


def _reached(
    listing: Listing,
    start: int,
    neighbours: Sequence[Sequence[int]],
    kind: re.Pattern[str],
    *,
    stop: re.Pattern[str],
    but: re.Pattern[str] | None = None,
) -> int | None:
    """The nearest instruction of a kind on a path from ``start`` that meets none to ``stop`` at, nor is of ``but``."""
    seen: set[int] = set()
    pending = deque(neighbours[start])
    while pending:
        index = pending.popleft()
        opcode = listing.instructions[index].opcode
        if index in seen or stop.match(opcode):
            continue
        if kind.match(opcode) and not (but and but.match(opcode)):
            return index
        seen.add(index)
        pending.extend(neighbours[index])
    return None


def _show(listing: Listing, index: int) -> str:
    instruction = listing.instructions[index]
    return f"{instruction.line}: {instruction}"
