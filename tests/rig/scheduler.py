"""Programs of a launch that run at the same time, as far as each can tell, in an order drawn from a seed.

Each program is a thread, and one of them runs at a time: whoever has the baton. It is handed on where programs can see
each other, at accesses of memory, so that any order of accesses may come about, and each comes about again by its seed.
"""

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Index = tuple[int, int, int]
ORDINARY = 1 / 20  # of a poll: what an access that is not one counts as a sign of a spin


class Deadlock(RuntimeError):
    """Programs that poll, and nobody left who could change what they read."""


class _Abandoned(BaseException):
    """Unwinds a program when another one has failed."""


class _Program(threading.Thread):
    def __init__(self, index: Index, run: Callable[[], None], scheduler: "Scheduler", weight: float):
        super().__init__(name=f"program {index}", daemon=True)
        self.index = index
        self.body = run
        self.scheduler = scheduler
        self.weight = weight
        self.polls = 0.0  # since memory last changed
        self.baton = threading.Semaphore(0)

    def run(self) -> None:
        error = None
        try:
            # Arithmetic on a GPU gives inf and NaN without a warning; numpy's setting is one of a thread.
            with np.errstate(all="ignore"):
                self.body()
        except BaseException as caught:
            error = caught
        self.scheduler.finished(self, error)


class Scheduler:
    """Runs the programs of one launch.

    Args:
        programs: their indices in the grid, and what they run.
        seed: of the order. Programs differ in how often their turn comes, up to thirty times: one that lags far behind
            the others shows what they overwrite too early.
        everywhere: whether the baton may be handed on at ordinary loads and stores as well; always at atomics and
            volatile loads.
        patience: polls of every program that has not ended, with no change of memory, until a spin is said to have no
            end. A program that is busy with something else keeps the others waiting for as long as it takes.
        resume: told the index of the program that goes on.
    """

    def __init__(
        self,
        programs: Sequence[tuple[Index, Callable[[], None]]],
        *,
        seed: int,
        everywhere: bool,
        patience: int,
        resume: Callable[[Index], Any],
    ):
        self._random = random.Random(seed)
        self._live = [_Program(*program, self, 30 ** -self._random.random()) for program in programs]
        self._everywhere = everywhere
        self._patience = patience
        self._resume = resume
        self._done = threading.Semaphore(0)
        self._error: BaseException | None = None
        self._running = self._live[0]
        self.switches = 0

    def run(self) -> None:
        """Return when all programs have ended.

        Raises:
            Deadlock: they never will.
            Exception: the first that a program raised.
        """
        try:
            self._hand_over(self._choose())
            self._done.acquire()
        finally:
            self._abandon()
        if self._error is not None:
            raise self._error

    def access(self, poll: bool) -> None:
        """A program is about to access memory; a poll may be part of a spin."""
        running = self._running
        running.polls += 1 if poll else ORDINARY
        if running.polls > self._patience and all(program.polls > self._patience for program in self._live):
            raise Deadlock(f"all that are left, {len(self._live)} programs, have polled {self._patience} times in vain")
        # whoever has loaded for so long may be in a spin that is not volatile: it must not keep the baton for ever
        if poll or self._everywhere or running.polls > self._patience:
            chosen = self._choose()
            if chosen is not running:
                self._hand_over(chosen)
                running.baton.acquire()
                if self._error is not None:
                    raise _Abandoned

    def changed(self) -> None:
        """A program has changed memory: whoever waits may go on."""
        for program in self._live:
            program.polls = 0.0

    def finished(self, program: _Program, error: BaseException | None) -> None:
        """A program has ended, in its own thread."""
        self._live.remove(program)
        if isinstance(error, _Abandoned):
            return
        self._error = error
        if error is None and self._live:
            self._hand_over(self._choose())
        else:
            self._done.release()

    def _choose(self) -> _Program:
        if len(self._live) == 1:
            return self._live[0]
        return self._random.choices(self._live, [program.weight for program in self._live])[0]

    def _hand_over(self, program: _Program) -> None:
        self.switches += 1
        self._running = program
        self._resume(program.index)
        if program.ident is None:
            program.start()
        else:
            program.baton.release()

    def _abandon(self) -> None:
        """Unwind whoever waits for a baton that will not come."""
        for program in [program for program in self._live if program.ident is not None]:
            self._error = self._error or KeyboardInterrupt()
            program.baton.release()
            program.join()
