"""What a barrier of all programs takes on a GPU, and whether it holds for millions of steps."""

from collections.abc import Iterator
from importlib.util import find_spec

import torch

from bench.gpu import contestants, latency
from bench.results import Row

PROGRAMS = (16, 64, 128)  # or as many as run at the same time
STEPS = 10_000
LONG = 10_000_000


def rows(seconds: float, steps: int = STEPS, long: int = LONG) -> Iterator[Row]:
    """The time of a step for several numbers of programs; then, once, many steps.

    Raises:
        RuntimeError: a program read what was not there yet, or waited in vain.
    """
    if find_spec("triton") is None or contestants.DEVICE != "cuda":
        return
    from bench.gpu.launched import meet
    from fastrnn.kernels import barrier

    device = torch.device("cuda", torch.cuda.current_device())
    most = barrier.most_programs(device) or 1
    counts = sorted({min(programs, most) for programs in PROGRAMS})
    for programs in counts:
        what = f"step with a barrier of {programs} programs"
        yield latency.row(what, lambda programs=programs: meet(programs, steps, device), seconds, calls=steps)
    wrong = int(meet(counts[-1], long, device).sum())  # which waits for the end
    barrier.check(device)
    if wrong:
        raise RuntimeError(f"{wrong} wrong numbers in {long} steps with a barrier of {counts[-1]} programs")
    what = f"step with a barrier of {counts[-1]} programs, of {long}, all right"
    yield latency.row(what, lambda: meet(counts[-1], steps, device), seconds, calls=steps)
