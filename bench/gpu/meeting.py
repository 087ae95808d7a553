"""What it takes on a GPU that programs hand numbers to each other, and whether it holds for millions of steps."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import torch

from bench.gpu import contestants, latency, measure
from bench.results import Row

PROGRAMS = (16, 64, 128)  # or as many as run at the same time
STEPS = 10_000
LONG = 10_000_000  # steps with a barrier
POLLED = 2_000_000  # steps with data polled, in launches of STEPS
TILE = 128  # numbers of a program at a step where data are polled for long: 16 rows of 8 units
COPIED = 2**28  # bytes that are copied again and again beside them
HOW = {"barrier": "with a barrier", "data": "with data polled"}


def rows(seconds: float, steps: int = STEPS, long: int = LONG, polled: int = POLLED) -> Iterator[Row]:
    """For each exchange the time of a step by several numbers of programs; then, of each, many steps.

    Where a program has read what was not there yet, or waited in vain, the row of many steps is without times.
    """
    if find_spec("triton") is None or contestants.DEVICE != "cuda":
        return
    from bench.gpu.launched import meet
    from fastrnn.kernels import barrier

    device = torch.device("cuda", torch.cuda.current_device())
    most = barrier.most_programs(device) or 1
    counts = sorted({min(programs, most) for programs in PROGRAMS})
    at_length: dict[str, tuple[int, int, Callable[[], int]]] = {  # which wait for the end
        "barrier": (counts[-1], long, lambda: int(meet(counts[-1], long, device).sum())),
        "data": (most, polled, lambda: poll_under_load(most, polled, steps, device)),
    }
    for how, words in HOW.items():
        for programs in counts:
            what = f"step {words} of {programs} programs"
            yield latency.row(what, partial(meet, programs, steps, device, how), seconds, calls=steps)
    for how, words in HOW.items():
        programs, many, wrong = at_length[how]
        what = f"step {words} of {programs} programs, of {many}, all right"
        try:
            if found := wrong():
                raise ArithmeticError(f"{found} wrong numbers")
            barrier.check(device)
        except Exception as error:  # whatever a launch raises: the other exchange is to be measured all the same
            yield latency.of_times(what, {}, {"not_measured": f"{what}: no: {measure.first_line(error)}"})
        else:
            yield latency.row(what, partial(meet, programs, steps, device, how), seconds, calls=steps)


def poll_under_load(programs: int, steps: int, at_once: int, device: torch.device) -> int:
    """How many numbers are wrong if ``programs`` poll each other's tiles for so many steps, ``at_once`` in a launch.

    All the while another stream copies memory, past the second-level cache and through it.
    """
    from bench.gpu.launched import meet

    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target, beside = torch.empty_like(source), torch.cuda.Stream(device)
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    beside.wait_stream(torch.cuda.current_stream(device))
    for _ in range(0, steps, at_once):
        wrong += meet(programs, at_once, device, "data", TILE).sum()
        met = torch.cuda.Event()
        met.record()
        with torch.cuda.stream(beside):
            while not met.query():
                target.copy_(source)
                beside.synchronize()  # one at a time, or thousands would be waiting when the programs have met
    return int(wrong)
