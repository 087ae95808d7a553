"""Memory stays flat over calls of shapes that change: ``memory.py SECONDS [MOST]``.

With gradients and without, on either tape, in short dtypes, and from threads that come and go, which leave nothing of
theirs behind. What a thread may keep is bounded (csrc/workspace.h), so that a process is flat once it has seen every
shape: a lap goes through all of them, and what the later laps add is what leaks.
"""

import random
import sys
import threading
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

import torch
from clock import Clock
from layers import draw, fast, run

import fastrnn
from fastrnn.reference import CELLS

LAP, WARM = 500, 20
STEPS, BATCH = 60, 24  # at most
SIZES = ((7, 5), (40, 66))  # inputs and units of layers
ROOM = 24 << 20  # bytes that may be added after the warm laps: an allocator's own disorder


def resident() -> int:
    """Bytes of the process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def lap(of: random.Random) -> None:
    nets = [fastrnn.LSTM(8, 24, num_layers=2), fastrnn.GRU(8, 24, bidirectional=True), fastrnn.RNN(8, 24)]
    for _ in range(LAP):
        steps, batch, kind = of.randint(1, STEPS), of.randint(1, BATCH), of.randrange(8)
        if kind < 4:
            with torch.no_grad():
                of.choice(nets)(torch.randn(steps, batch, 8))
        elif kind < 6:
            of.choice(nets)(torch.randn(steps, batch, 8))[0].sum().backward()
        else:
            options = {
                "layout": of.choice(("dense", "lengths", "packed")),
                "reset": of.random() < 0.5,
                "bidirectional": of.random() < 0.5,
                "dtype": of.choice((torch.float32, torch.float64, torch.bfloat16, torch.float16)),
            }
            cell = of.choice(list(CELLS))
            problem = draw(cell, steps, batch, *of.choice(SIZES), **options)
            run(fast(of.choice(("full", "lean"))), problem)


def in_threads(of: random.Random) -> None:
    """Threads that come, compute what takes each some megabytes of its own, and go."""
    net, x = fastrnn.LSTM(64, 96), torch.randn(200, 32, 64)

    def call() -> None:
        with torch.no_grad():
            net(x)

    threads = [threading.Thread(target=call) for _ in range(of.randint(2, 4))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def soak(clock: Clock) -> None:
    torch.set_num_threads(1)
    before, calls, laps = 0, 0, 0
    for number in clock:
        of = random.Random(number % 2)  # the same shapes again and again
        torch.manual_seed(number)
        lap(of)
        for _ in range(5):
            in_threads(of)
        calls += LAP + 15
        laps += 1
        if laps == WARM:
            before = resident()
        if calls >= clock.most:
            break
    added = resident() - before
    clock.cases = calls
    if laps <= WARM:
        clock.report(f"not run to its end: more than {WARM} laps take more than these seconds")
        return
    mega = f"{added / 2**20:+.1f} MB to {before / 2**20:.0f} MB in {laps - WARM} laps"
    assert added < ROOM, mega
    clock.report(mega)


if __name__ == "__main__":
    soak(Clock())
