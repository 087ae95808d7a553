"""Timing in turns: contestants alternate within one process, so that what disturbs the machine disturbs them alike."""

import gc
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

TURN = 2e-3  # seconds a turn lasts at least: many short calls make one turn, long ones are a turn each
WARMUP = 3  # calls of each contestant before the first turn
WARMUP_SECONDS = 1.0  # fewer calls, if they take longer than this
REST = 0.01  # seconds in which threads that wait for work give up and sleep: libgomp's spin for 3 ms
LEAD = 0.02  # calls shorter than this are disturbed by having rested
SLOW = 4.0  # a contestant whose turn takes as many times the shortest one sits out turns,
SLOW_TURNS = 3  # except for the first few, once it has had its share of the time
T = TypeVar("T")
Clock = Callable[[Callable[[], object], int], float]  # makes a call as many times; the seconds of all of them


@dataclass(frozen=True)
class Times:
    """What one contestant's calls took, in seconds per call: quantiles over the turns."""

    median: float
    p20: float
    p80: float
    turns: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Times":
        """Summarise the seconds per call of each turn."""
        p20, median, p80 = np.quantile(seconds, (0.2, 0.5, 0.8)).tolist()
        return cls(median, p20, p80, len(seconds))


def in_turns(contestants: Sequence[T], turn: int) -> Sequence[T]:
    """The order of one turn: every other turn is run backwards (A B, B A, ...), so that none always follows another."""
    return contestants if turn % 2 == 0 else contestants[::-1]


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the timed code."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def by_host(call: Callable[[], object], repeat: int) -> float:
    """The clock of calls that are over when they return."""
    begin = time.perf_counter()
    for _ in range(repeat):
        call()
    return time.perf_counter() - begin


def measure(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    at_least: int = 7,
    apart: Collection[str] = (),
    clock: Clock = by_host,
) -> dict[str, Times]:
    """Time each call, in turns.

    Much slower contestants have fewer turns, lest they take the time of the others.

    Args:
        calls: the contestants by name.
        seconds: how long all of it should last, about.
        at_least: turns that are taken even if they last longer.
        apart: contestants with threads of their own. After a call, threads spin for a while, and would take the cores
            from those of the next contestant, were they not the same: there is a rest before the turn of these. Where
            one of them takes part, turns begin with a call that is not timed, which wakes the threads.
        clock: takes the time of a turn.

    Returns:
        The times of each contestant, in seconds per call.
    """
    with no_collection():
        once = {name: _warm(call, clock) for name, call in calls.items()}
        repeats = {name: max(1, math.ceil(TURN / once[name])) for name in calls}
        per_turn = {name: once[name] * repeats[name] for name in calls}
        leads = {name for name in calls if once[name] < LEAD and not set(apart).isdisjoint(calls)}
        slow = {name for name in calls if per_turn[name] > SLOW * min(per_turn.values())}
        taken: dict[str, list[float]] = {name: [] for name in calls}
        spent = dict.fromkeys(calls, 0.0)
        end = time.perf_counter() + seconds
        turn = 0
        while turn < at_least or time.perf_counter() < end:
            for name in in_turns(list(calls), turn):
                if name in slow and turn >= SLOW_TURNS and spent[name] * len(calls) > sum(spent.values()):
                    continue
                call, repeat = calls[name], repeats[name]
                if name in apart:
                    time.sleep(REST)
                if name in leads:
                    call()
                lasted = clock(call, repeat)
                spent[name] += lasted
                taken[name].append(lasted / repeat)
            turn += 1
    return {name: Times.of(seconds_per_call) for name, seconds_per_call in taken.items()}


def _warm(call: Callable[[], object], clock: Clock) -> float:
    """Warm a contestant up; the seconds of its fastest call."""
    fastest, end = math.inf, time.perf_counter() + WARMUP_SECONDS
    for _ in range(WARMUP):
        fastest = min(fastest, clock(call, 1))
        if time.perf_counter() > end:
            break
    return max(fastest, 1e-9)
