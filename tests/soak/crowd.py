"""A hundred threads of Python that call at once: ``crowd.py SECONDS [MOST]``. Each has its own results, to the bit."""

import random
import sys
import threading
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

import torch
from clock import Clock
from layers import LAYOUTS, draw, fast, run

import fastrnn
from fastrnn.reference import CELLS

THREADS = 100


def tasks() -> list:
    """Functions that compute, each a call of its kind: modules by the shortcut, long and short, and operators."""
    found = []
    for k, (steps, batch, hidden) in enumerate([(1, 1, 16), (7, 3, 20), (40, 8, 64), (120, 4, 96), (2, 9, 33)]):
        for name in ("LSTM", "GRU", "RNN"):
            net = getattr(fastrnn, name)(5, hidden, num_layers=1 + k % 2, bidirectional=k % 3 == 1)
            x = torch.randn(steps, batch, 5)

            def module(net: torch.nn.Module = net, x: torch.Tensor = x) -> list[torch.Tensor]:
                with torch.no_grad():
                    return [net(x)[0]]

            found.append(module)
    for k, cell in enumerate(CELLS):
        problem = draw(cell, 9, 6, 5, 24, bidirectional=k % 2 == 0, layout=LAYOUTS[k % 3], reset=k > 1)
        for tape in ("full", "lean"):
            found.append(lambda tape=tape, problem=problem: list(run(fast(tape), problem).values()))
    return found


def soak(clock: Clock) -> None:
    torch.manual_seed(0)
    work, errors, calls = tasks(), [], [0] * THREADS
    torch.set_num_threads(2)
    expected = [task() for task in work]

    def caller(k: int) -> None:
        of = random.Random(k)
        try:
            torch.set_num_threads(1 + k % 2)
            while not (clock.over() or errors or sum(calls) >= clock.most):
                i = of.randrange(len(work))
                if not all(map(torch.equal, work[i](), expected[i])):
                    errors.append(f"task {i} in thread {k}: other numbers")
                calls[k] += 1
        except Exception as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=caller, args=(k,)) for k in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[:3]
    clock.cases = sum(calls)
    clock.report(f"{THREADS} threads")


if __name__ == "__main__":
    soak(Clock())
