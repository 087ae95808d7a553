"""Tuning that nobody asks for by name: new work on a GPU is tuned in the background of the program that has it.

The caller's process computes nothing for it. A thread of it talks to the process that tries the plans
(:mod:`fastrnn._elsewhere`) and mostly waits; it does not touch the GPU, for what it did there would end up in a CUDA
graph that another thread captures. For the same reason what it has found is used from a call on that is not captured.
"""

import atexit
import fcntl
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING

import torch

from fastrnn import _cuda
from fastrnn._dynamo import tracing
from fastrnn._settings import Opening, opening
from fastrnn._switch import Switch, of_environment
from fastrnn.kernels import measured, plan
from fastrnn.kernels.graphs import capturing
from fastrnn.kernels.measured import Record, Work
from fastrnn.kernels.plan import DeviceFacts, Plan, device_facts

if TYPE_CHECKING:
    from fastrnn._elsewhere import Elsewhere

__all__ = ["autotune", "is_autotune_enabled"]

VARIABLE = "FASTRNN_AUTOTUNE"
PATIENCE = 3  # works in a row whose tuning fails before no more are tried
TUNING, FOUND, USED, FAILED = "tuning", "found", "used", "failed"


_enabled = of_environment(VARIABLE)


class autotune(Switch):
    """Whether work that is new on a GPU is tuned in the background; off by default.

    It is for layers what ``torch.backends.cudnn.benchmark`` is for convolutions. The first call of new work (a layer's
    sizes, dtype and so on, in inference or in training) is planned as ever: torch's layer computes all that torch has.
    Meanwhile another process tries all plans of fastrnn's kernels, as :func:`fastrnn.tune` does; what is right and
    fastest is kept in the user's cache, and from the call after that on it is used. Where an earlier program has tuned
    the work, there is nothing to do. ``FASTRNN_AUTOTUNE=1`` turns it on as well.

    The other process takes some hundred MB of the GPU's memory beside what the layer takes, a core for compiling, which
    lasts minutes the first time, and a share of the GPU while it measures. Several processes on a machine take turns.
    A program that ends does not wait for it. Results are not the same bits before and after, as with any other plan.
    On a CPU nothing is tuned in the background, where it would take the cores that the program computes on and measure
    both: :func:`fastrnn.tune` does it.

    Nothing is tuned, and what has been found since is not used, while a CUDA graph is captured. What ``torch.compile``
    has compiled keeps the plans of that time. Fewer than 8 steps are left to torch, and cells. If tuning fails, a
    warning says why, once, and work is planned as it was before; :func:`fastrnn.explain` says what is being tuned.

    Args:
        mode: whether to. It holds from now on or, as a context manager, within: for all threads.

    Raises:
        TypeError: ``mode`` is not a bool.

    Examples::

        >>> with fastrnn.autotune(True):
        ...     output, state = fastrnn.LSTM(10, 20)(torch.randn(5, 3, 10))
        >>> fastrnn.is_autotune_enabled()
        False
    """

    @staticmethod
    def _exchange(mode: bool) -> bool:
        global _enabled
        before, _enabled = _enabled, mode
        return before


def is_autotune_enabled() -> bool:
    """Whether work that is new on a GPU is tuned in the background."""
    return _enabled


@dataclass
class _Entry:
    """A piece of work that is tuned, and how far that is."""

    work: Work
    index: int
    facts: DeviceFacts
    opening: Opening
    state: str = TUNING
    why: str = ""


class _Tuner:
    """What this process has tuned, one piece of work after another."""

    def __init__(self) -> None:
        self.entries: dict[tuple[Work, int], _Entry | None] = {}  # None: nothing is to be done about it
        self.lock = threading.Lock()
        self.queue: SimpleQueue[_Entry] = SimpleQueue()
        self.thread: threading.Thread | None = None
        self.elsewhere: Elsewhere | None = None
        self.ended = False
        self.failures = 0
        self.warned = False

    def entry(self, work: Work, device: torch.device, facts: DeviceFacts) -> _Entry | None:
        """Of work that is to be tuned; if it is new it is from now on, whatever has come of it when this returns."""
        index = torch.cuda.current_device() if device.index is None else device.index
        with self.lock:
            if (work, index) in self.entries:
                return self.entries[work, index]
            entry = self.entries[work, index] = self._like(work, index)
            if entry is not None or self.failures >= PATIENCE or not _is_new(work, facts):
                return entry
            if capturing(device):
                del self.entries[work, index]  # another call may come that is not
                return None
            entry = self.entries[work, index] = _Entry(work, index, facts, opening(work, device))
            begun = replace(entry)  # what comes of it is for the next call, however soon it comes
            self.queue.put(entry)
            self._start()
            return begun

    def known(self, work: Work, device: torch.device) -> _Entry | None:
        """The same, without anything being begun."""
        index = torch.cuda.current_device() if device.index is None else device.index
        with self.lock:
            return self.entries.get((work, index)) or self._like(work, index)

    def _like(self, work: Work, index: int) -> _Entry | None:
        """That of other work, of which the record will hold for this as well."""
        for entry in self.entries.values():
            if entry is not None and entry.index == index and _holds_for(entry.work, work):
                return entry
        return None

    def _start(self) -> None:
        if self.thread is None:
            self.thread = threading.Thread(target=self._run, name="fastrnn.autotune", daemon=True)
            self.thread.start()
            atexit.register(self.end)

    def end(self) -> None:
        """Let the program end now."""
        self.ended = True
        if self.elsewhere is not None:
            self.elsewhere.end()

    def _run(self) -> None:
        while True:
            entry = self.queue.get()
            try:
                self._tune(entry)
                self.failures, entry.state = 0, FOUND
            except Exception as problem:
                from fastrnn._contest import words

                self.failures, entry.why, entry.state = self.failures + 1, words(problem), FAILED

    def _tune(self, entry: _Entry) -> None:
        from fastrnn._contest import Lost, contest
        from fastrnn._elsewhere import Elsewhere
        from fastrnn.tune import SECONDS

        work, name, processors = entry.work, entry.facts.name, entry.facts.sm_count
        with _turn(), closing(Elsewhere(entry.opening)) as elsewhere:
            known = measured.of_gpu(name, processors, [field.name for field in fields(Plan)])
            if measured.find(known, work, whole=True):
                return  # another process has tuned it
            self.elsewhere = elsewhere
            if self.ended:
                raise Lost("fastrnn: the program ends")

            def verify(chosen: Plan) -> None:
                elsewhere.close()  # in a process that has done nothing before, as the caller's
                elsewhere.check(chosen)

            result = contest(work, entry.facts, elsewhere, SECONDS, lambda what: None, verify)
            measured.append(result.record, measured.identity(name, processors), result.left_out)

    def warn(self, entry: _Entry) -> None:
        """Say once that tuning failed, in a thread of the caller's."""
        if not self.warned:
            self.warned = True
            what = f"fastrnn: {entry.work} could not be tuned, and is planned as before: {entry.why}"
            warnings.warn(what, stacklevel=2)


_tuner = _Tuner()
_observing = threading.local()


def _forget() -> None:
    """In the child of a fork, which has the thread's parent's memory but not the thread."""
    global _tuner
    atexit.unregister(_tuner.end)  # which could wait for a lock that nobody gives back, and the process is the parent's
    _tuner = _Tuner()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def observing() -> Iterator[None]:
    """Within, calls begin no tuning: a model is run to see what its layers are given."""
    before, _observing.on = getattr(_observing, "on", False), True
    try:
        yield
    finally:
        _observing.on = before


def facts_for(work: Work, device: torch.device, called: bool) -> tuple[DeviceFacts, str]:
    """The facts that work is planned by, and what autotune has to say of it; it may begin to be tuned.

    Args:
        work: to be planned.
        device: a GPU.
        called: whether it is a call's, with sizes that are known.
    """
    facts = _cuda.facts_of(device)
    if not _enabled or tracing() or not called or plan.is_forced():
        return facts, ""
    observes = getattr(_observing, "on", False)
    entry = _tuner.known(work, device) if observes else _tuner.entry(work, device, facts)
    if entry is None:
        return facts, "; a call lets autotune try our kernels" if observes and _is_new(work, facts) else ""
    if entry.state == FOUND:
        if capturing(device):  # which a kernel's first call may break
            records = tuple(record for record in facts.records if record.work != entry.work)
            return replace(facts, records=records), "; tuned since, but not used in a capture before it was in a call"
        entry.state = USED
        device_facts.cache_clear()
        facts = _cuda.facts_of(device)
    if entry.state == FAILED:
        if not observes:
            _tuner.warn(entry)
        return facts, f"; autotune failed: {entry.why}"
    return facts, "; being tuned" if entry.state == TUNING else ""


def _is_new(work: Work, facts: DeviceFacts) -> bool:
    """Whether there is something to find out: kernels that could be faster, and no record of which are."""
    if work.steps < plan.FEWEST_STEPS or work.batch == 0 or plan.why_no_kernels(work.dtype, facts) is not None:
        return False
    return measured.find(facts.records, work, whole=True) is None


def _holds_for(tuned: Work, work: Work) -> bool:
    return measured.holds_for(Record(tuned, (), ()), work, whole=True)


@contextmanager
def _turn() -> Iterator[None]:
    """One process after another: they would measure each other, and two of them tune the same.

    Raises:
        OSError: the cache's folder cannot be written to.
    """
    path = measured.cache_file().with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        with suppress(OSError):  # there are file systems without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
