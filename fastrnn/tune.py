"""Measure the ways to compute layers on this very machine, and keep the fastest of them for all later plans."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Module

from fastrnn import _cpu, _cuda
from fastrnn._requests import Request, observe_calls
from fastrnn._validate import autocast_enabled
from fastrnn.engine import cpu_work_of, why_not_ours, work_of
from fastrnn.explain import table
from fastrnn.kernels import measured
from fastrnn.kernels.measured import TORCH, Work, seconds_of
from fastrnn.kernels.plan import DeviceFacts, Plan, device_facts

if TYPE_CHECKING:
    from fastrnn._contest import Result

__all__ = ["Tuning", "tune"]

SECONDS = 1.0  # of timing each piece of work
HEAD = ("work", "torch", "ours", "times as fast", "plan")


@dataclass(frozen=True)
class Tuning:
    """What was measured; prints as a table.

    Attributes:
        results: one for each piece of work.
    """

    results: "tuple[Result, ...]"

    def __str__(self) -> str:
        lines = [table([HEAD, *map(_row, self.results)])]
        for result in self.results:
            lines += [f"not right for {result.record.work}: {plan} ({why})" for plan, why in result.left_out.items()]
        return "\n".join(lines)


def tune(model: Module, /, *inputs: Any, **kwargs: Any) -> Tuning:
    """Measure, for each of a model's recurrent layers, which way to compute it is the fastest there.

    The model is run once on ``inputs``, as :func:`fastrnn.explain` does, to see what its layers are given. For each, a
    layer of the same sizes and dtype is then computed by torch (oneDNN, cuDNN, MIOpen) and by all plans of fastrnn's
    that fit: in inference and, unless gradients are disabled, in training, forward and backward. Plans whose results
    are not as near to float64 as torch's (twice its error, three times for gradients), or differ from one call to the
    next, are left out. The fastest of the others is kept in the user's cache (the file is
    ``fastrnn.kernels.measured.cache_file()``, in ``$FASTRNN_CACHE`` or ``~/.cache/fastrnn``) and from then on planned
    for layers like it: of the same sizes, with up to as many rows, but more than half, and at least half the steps.
    That is for this model of GPU, its driver, and these versions of torch, triton and fastrnn; or for this model of
    CPU, the instruction sets that fastrnn and torch use, the number of threads and of the cores that they have, and
    these versions.

    On a CPU, the plans are the ways to split a layer between threads, which change no bit of a result, and torch is
    followed where it is faster by more than 3 %, as noise may be. A row's output may then depend on the batch, as it
    does with torch.nn; :class:`fastrnn.own_numbers` keeps torch out whatever was found. Cells are tuned as well. What
    is compiled, exported or transformed is fastrnn's own in any case, and so are gradients of layers with a lean tape.

    On a GPU, plans are tried in a process of their own, which needs some hundred MB of its memory beside what the layer
    takes: one that crashes, hangs or cannot be compiled is left out with the reason, and this process goes on as if
    nothing had been. The one that is chosen is then computed once in this process as well, and looked at again.

    It takes a second for each piece of work and, the first time on a GPU, minutes for compiling. ``python -m fastrnn
    tune`` does the same for sizes that are named, and :class:`fastrnn.autotune` without being asked, on GPUs.

    Args:
        model: a module, or a layer itself.
        inputs, kwargs: what to call it with.

    Returns:
        A :class:`Tuning`; print it.

    Raises:
        TypeError: ``model`` is not a :class:`torch.nn.Module`.
        ValueError: no layer of fastrnn's was given tensors that its engine could compute.
        RuntimeError: plans cannot be tried in another process (a GPU in exclusive mode takes one alone: see
            ``python -m fastrnn tune --here``), or torch's layer fails. What was measured before is kept.

    Examples::

        >>> fastrnn.tune(torch.nn.LSTM(10, 20), torch.randn(5, 3, 10))
        Traceback (most recent call last):
        ...
        ValueError: fastrnn.tune: no recurrent layer of fastrnn's was given tensors that its engines compute

        >>> model = fastrnn.LSTM(10, 20)
        >>> print(fastrnn.tune(model, torch.randn(5, 3, 10)))  # doctest: +SKIP
        work                                                   torch     ours      times as fast  plan
        -----------------------------------------------------  --------  --------  -------------  -----
        lstm (B, T, I, H) = (3, 5, 10, 20), float32, inference  0.046 ms  0.011 ms  4.30           usual
        lstm (B, T, I, H) = (3, 5, 10, 20), float32, training   0.387 ms  0.245 ms  1.58           usual
    """
    modes = (False, True) if torch.is_grad_enabled() else (False,)
    return tune_works(works_of(model, inputs, kwargs, modes))


Works = Sequence[tuple[Work, torch.device]]


def works_of(model: Module, inputs: Sequence[Any], kwargs: Mapping[str, Any], modes: Sequence[bool]) -> Works:
    """What the layers of a model compute, in each of the modes: whether gradients are wanted."""
    found: dict[tuple[Work, torch.device], None] = {}

    def observe(name: str, request: Request) -> None:
        for trains in modes:
            work = _work_of(request, trains)
            if work is not None:
                found[work, request.x.device] = None

    observe_calls(model, inputs, kwargs, observe)
    if not found:
        raise ValueError("fastrnn.tune: no recurrent layer of fastrnn's was given tensors that its engines compute")
    return list(found)


def _work_of(request: Request, trains: bool) -> Work | None:
    """What a call computes, if there is something to choose."""
    stack, x, params = request.stack, request.x, request.params
    sizes = (request.steps, request.batch, stack.directions)
    if x.device.type == "cuda" and not request.is_cell and not stack.proj_size:
        return work_of(stack.cell, x, params, trains, *sizes, stack.num_layers, request.varied)
    halves = params[0].dtype != x.dtype and not autocast_enabled("cpu")
    if x.device.type != "cpu" or halves or x.numel() == 0 or why_not_ours(x, stack.proj_size):
        return None
    return cpu_work_of(
        stack.cell, x, params, trains, *sizes, 0 if request.is_cell else stack.num_layers, request.varied
    )


def facts_of(device: torch.device) -> _cpu.Facts | DeviceFacts:
    """What work is planned by on a device."""
    return _cpu.facts() if device.type == "cpu" else _cuda.facts_of(device)


def tune_works(works: Works, seconds: float = SECONDS, here: bool = False) -> Tuning:
    """The same for pieces of work, each on a device.

    Args:
        works: with their devices.
        seconds: how long the timing of one lasts.
        here: whether to try plans in this process, which one that is wrong may leave unable to compute.
    """
    from fastrnn import _contest  # with a timer of torch's that takes a quarter of a second to import

    results = []
    facts = [facts_of(device) for _, device in works]
    total = sum(_contest.parts(work, f) for (work, _), f in zip(works, facts, strict=True))
    with _progress(total) as advance:
        for (work, device), of_device in zip(works, facts, strict=True):
            if isinstance(of_device, _cpu.Facts):  # the engine's own code, which is tested with all of these plans
                result = _contest.contest(work, of_device, _contest.Here(work, device), seconds, advance)
                on = _cpu.identity(of_device.threads, of_device.cores)
            else:
                with torch.cuda.device(device):
                    if here:
                        ways = _contest.Here(work, device)
                        result = _contest.contest(work, of_device, ways, seconds, advance)
                    else:
                        result = _tried_elsewhere(work, of_device, device, seconds, advance)
                on = measured.identity(of_device.name, of_device.sm_count)
            results.append(result)
            measured.append(result.record, on, result.left_out)
    device_facts.cache_clear()
    _cpu.forget()
    return Tuning(tuple(results))


def _tried_elsewhere(
    work: Work, facts: DeviceFacts, device: torch.device, seconds: float, advance: Callable[[str], None]
) -> "Result":
    """What comes out of a piece of work in another process, with a last look at the chosen plan in this one."""
    from fastrnn._contest import Failed, Here, Lost, contest
    from fastrnn._elsewhere import Elsewhere
    from fastrnn._settings import opening

    here: list[Here] = []

    def verify(plan: Plan) -> None:
        here[:] = here or [Here(work, device)]
        here[0].check(plan)

    if device.type == "cuda":
        torch.cuda.empty_cache()  # the other process needs memory
    with closing(Elsewhere(opening(work, device))) as elsewhere:
        try:
            return contest(work, facts, elsewhere, seconds, advance, verify)
        except Failed as problem:
            raise Lost(f"fastrnn: torch's layer cannot compute {work}: {problem}") from None


def _row(result: "Result") -> tuple[str, ...]:
    record = result.record
    torchs = seconds_of(record, TORCH)
    ours = {name: seconds for name, seconds in record.seconds if name != TORCH}
    if torchs is None or not ours:
        return str(record.work), "", "none is right", "", "torch"
    least = min(ours.values())
    if isinstance(result.chosen, _cpu.Plan):
        least = ours[result.chosen.strategy]
        plan = str(result.chosen) if least <= torchs * _cpu.MARGIN else TORCH
    else:
        plan = str(result.chosen) if least < torchs else TORCH
    return str(record.work), f"{1e3 * torchs:.3f} ms", f"{1e3 * least:.3f} ms", f"{torchs / least:.2f}", plan


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on the terminal, where there is rich to draw it; else a line for each step, both to the error output."""
    if find_spec("rich") is None:
        done = 0

        def advance(what: str) -> None:
            nonlocal done
            done += 1
            print(f"{done} of {total}: {what}", file=sys.stderr, flush=True)

        yield advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=-1)  # it is told what begins, and counts what is done
        yield lambda what: bar.update(task, description=what, advance=1)
        bar.update(task, completed=total)
