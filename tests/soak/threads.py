"""Passes that threads share: ``threads.py SECONDS [MOST]``. Rows or units are split, a team computes a direction.

However many threads there are, the results are those of one, to the bit; of the weights' gradients, whose parts are
added in another order, to within rounding. Half of the calls share their work whatever the cores are doing. Under
ThreadSanitizer, which sees the engine's threads and their barriers.
"""

import random
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

import torch
from clock import Clock
from layers import DTYPES, LAYOUTS, draw, fast, run

import fastrnn
from fastrnn import _C
from fastrnn._accuracy import error
from fastrnn.reference import CELLS


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return error(found, expected.double()) <= 64 * torch.finfo(found.dtype).eps


def soak(clock: Clock) -> None:
    of, plans = random.Random(), Counter()
    for number in clock:
        torch.manual_seed(of.randrange(1 << 31))
        cell, directions, threads = of.choice(list(CELLS)), of.choice((1, 2)), of.choice((2, 3, 4, 8))
        batch, hidden = of.choice(((of.randint(1, 3), of.randint(200, 300)), (of.randint(17, 40), of.randint(60, 130))))
        sizes = (of.randint(2, 12), batch, of.randint(1, 20), hidden)
        _C.cpu_assume(threads if number // 2 % 2 else 0, False)
        plans[_C.cpu_plan(cell, *sizes, directions, "float32", threads).partition(", ")[2]] += 1
        if number % 4 == 3:
            name = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "lstm": "LSTM", "gru": "GRU"}[cell]
            net = getattr(fastrnn, name)(sizes[2], hidden, num_layers=2, bidirectional=directions == 2)
            x = torch.randn(*sizes[:3])

            def call(net: torch.nn.Module = net, x: torch.Tensor = x) -> dict[str, torch.Tensor]:
                with torch.no_grad():
                    return {"y": net(x)[0]}
        else:
            options = {"layout": of.choice(LAYOUTS), "dtype": of.choice(DTYPES), "reset": of.random() < 0.5}
            problem, tape = draw(cell, *sizes, bidirectional=directions == 2, **options), of.choice(("full", "lean"))

            def call(problem: object = problem, tape: str = tape) -> dict[str, torch.Tensor]:
                return run(fast(tape), problem)

        torch.set_num_threads(1)
        expected = call()
        torch.set_num_threads(threads)
        found = call()
        for name, t in expected.items():
            same = near(found[name], t) if name.startswith(("dw", "db")) else torch.equal(found[name], t)
            assert same, (name, cell, sizes, directions, threads)
    split = sum(count for plan, count in plans.items() if "split" in plan or "team" in plan)
    clock.report(f"{split} of {sum(plans.values())} forward passes were shared, in {len(plans)} ways")


if __name__ == "__main__":
    soak(Clock())
