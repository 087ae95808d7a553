"""Memory runs out at every place in turn: ``allocation.py SECONDS [MOST [CALL ...]]``, allocation.so loaded before it.

Of each call, the first piece of memory that the engine asks for is refused, then the second, and so on; then each and
all after it. The call raises MemoryError or RuntimeError, or does without, and its thread has as many threads at its
disposal as before; the next call is right. Nothing leaks where a tensor or a workspace is refused. Where a handle of a
few bytes is, torch's own conversion of arguments loses those that it has not come to: every other lap is without them,
and those are watched. Calls are made in threads that keep nothing from a call before.
"""

import ctypes
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

import torch
from clock import Clock
from layers import draw, fast, run

import fastrnn
from fastrnn import _C

Named = dict[str, torch.Tensor]
SHIM = ctypes.CDLL(None)
THREADS = 2
HANDLE = 512  # bytes that torch's handles are smaller than
ROOM = 8 << 20  # bytes that laps may add: threads come and go


def watch(*libraries: str) -> None:
    """Have the memory counted that the code of these libraries asks for."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, permissions, *_, path = line.split()
        if "x" in permissions and path.endswith(libraries):
            SHIM.soak_watch(*(ctypes.c_size_t(int(end, 16)) for end in where.split("-")))


def calls() -> dict[str, Callable[[], Named]]:
    """A call of every kind that has memory of its own."""
    net, x = fastrnn.LSTM(5, 24, num_layers=2), torch.randn(6, 3, 5)

    def module() -> Named:
        with torch.no_grad():
            y, (h, c) = net(x)
        return {"y": y, "h": h, "c": c}

    padded = draw("lstm", 5, 6, 5, 20, bidirectional=True, layout="lengths", reset=True)
    short = draw("lstm", 5, 6, 5, 20, bidirectional=True, dtype=torch.bfloat16)
    packed = draw("gru", 5, 6, 5, 20, layout="packed", dtype=torch.float64)
    units = draw("gru", 3, 2, 5, 256, dtype=torch.bfloat16)
    return {
        "module": module,
        "full tape": lambda: run(fast(), padded),
        "lean tape": lambda: run(fast("lean"), padded),
        "bfloat16": lambda: run(fast("lean"), short),
        "packed": lambda: run(fast(), packed),
        "units": lambda: run(fast(), units, frozen=set(units.tensors()) - {"h0"}),
    }


def in_a_thread(call: Callable[[], Named]) -> Named:
    """The call in a thread that keeps no memory from one before."""
    found: list[object] = []
    threads: list[int] = []

    def caller() -> None:
        try:
            found.append(call())
        except (MemoryError, RuntimeError) as error:
            found.append(error)
        threads.append(torch.get_num_threads())

    thread = threading.Thread(target=caller)
    thread.start()
    thread.join()
    assert threads == [THREADS], f"{threads} threads after a call"
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def refuse(first: int, last: int, least: int) -> None:
    SHIM.soak_refuse(ctypes.c_long(first), ctypes.c_long(last), ctypes.c_size_t(least))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def lap(clock: Clock, ends: Counter[str], least: int) -> None:
    chosen = calls()
    for name in sys.argv[3:] or chosen:
        call = chosen[name]
        expected = in_a_thread(call)
        for forever in (False, True):
            refused = number = 1
            while refused and not clock.over():
                refuse(number, 1 << 40 if forever else number, least)
                try:
                    in_a_thread(call)
                    end = "did without"
                except (MemoryError, RuntimeError) as error:
                    end = type(error).__name__
                refused = SHIM.soak_refused()
                refuse(0, -1, 0)
                found = in_a_thread(call)
                same = [torch.equal(found[key], expected[key]) for key in expected]
                assert all(same), f"{name}: other numbers after refusal {number}"
                if refused:
                    ends[end] += 1
                    clock.cases += 1
                number += 1


def soak(clock: Clock) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    in_a_thread(calls()["module"])  # torch has read its settings by then
    watch(Path(_C.__file__).name, "libc10.so")
    ends: Counter[str] = Counter()
    laps, before, added = 0, 0, 0
    while not laps or (not clock.over() and clock.cases < clock.most):
        lap(clock, ends, 0)
        before = resident() if laps else 0
        lap(clock, ends, HANDLE)
        added += resident() - before if laps else 0
        laps += 2
    note = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    assert added < ROOM, f"{added} bytes more after {laps} laps"
    assert ends["MemoryError"] + ends["RuntimeError"] > 0, "nothing was refused: is allocation.so loaded?"
    clock.report(note)


if __name__ == "__main__":
    soak(Clock())
