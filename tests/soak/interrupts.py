"""Signals in the middle of calls: ``interrupts.py SECONDS [MOST]``.

Handlers run after the call that they came in, KeyboardInterrupt and other exceptions leave it whole, and the next call
is right.
"""

import random
import signal
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

import torch
from clock import Clock
from layers import draw, fast, run

import fastrnn


class Alarm(Exception):
    """What the handler raises."""


def soak(clock: Clock) -> None:
    def raises(*_: object) -> None:
        raise Alarm

    counted = [0]

    def counts(*_: object) -> None:
        counted[0] += 1

    torch.manual_seed(0)
    torch.set_num_threads(2)
    net, x = fastrnn.LSTM(16, 96, num_layers=2), torch.randn(80, 6, 16)
    problem, of, caught = draw("lstm", 30, 6, 5, 48, layout="lengths"), random.Random(0), 0

    def module() -> list[torch.Tensor]:
        with torch.no_grad():
            return [net(x)[0]]

    tasks = [module, lambda: list(run(fast(), problem).values()), lambda: list(run(fast("lean"), problem).values())]
    expected = [task() for task in tasks]
    handlers = [(signal.SIGALRM, raises), (signal.SIGALRM, counts), (signal.SIGALRM, signal.default_int_handler)]
    for number in clock:
        which, (name, handler) = of.randrange(len(tasks)), handlers[number % 3]
        signal.signal(name, handler)
        signal.setitimer(signal.ITIMER_REAL, of.uniform(0.0001, 0.02), 0.001 if handler is counts else 0)
        try:
            for _ in range(4):
                assert all(map(torch.equal, tasks[which](), expected[which]))
        except (Alarm, KeyboardInterrupt):
            caught += 1
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(name, signal.SIG_IGN)
        except (Alarm, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0)
            caught += 1
        torch.set_grad_enabled(True)  # torch.no_grad, in Python, may have been left at any of its lines
        assert all(map(torch.equal, tasks[which](), expected[which])), number
    clock.report(f"{caught} exceptions, {counted[0]} handlers that returned")


if __name__ == "__main__":
    soak(Clock())
