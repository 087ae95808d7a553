"""Measure the ways to compute layers on this very GPU, and keep the fastest of them for all later plans."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Module

from fastrnn import _cuda
from fastrnn._requests import Request, observe_calls
from fastrnn.engine import work_of
from fastrnn.explain import table
from fastrnn.kernels import measured
from fastrnn.kernels.measured import TORCH, Work, seconds_of
from fastrnn.kernels.plan import DeviceFacts, Plan, device_facts

if TYPE_CHECKING:
    from fastrnn._contest import Result

__all__ = ["Tuning", "tune"]

DEVICE = "cuda"  # the kind that there is something to choose on
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
    """Measure, for each of a model's recurrent layers, which way to compute it is the fastest on its GPU.

    The model is run once on ``inputs``, as :func:`fastrnn.explain` does, to see what its layers are given. For each, a
    layer of the same sizes and dtype is then computed by torch (cuDNN, MIOpen) and by all plans of fastrnn's kernels
    that fit: in inference and, unless gradients are disabled, in training, forward and backward. Plans whose results
    are not as near to float64 as torch's (twice its error, three times for gradients), or differ from one call to the
    next, are left out. The fastest of the others is kept in the user's cache (the file is
    ``fastrnn.kernels.measured.cache_file()``, in ``$FASTRNN_CACHE`` or ``~/.cache/fastrnn``) and from then on planned
    for layers like it: of the same sizes, with up to as many rows, but more than half, and at least half the steps.
    That is for this model of GPU, its driver, and these versions of torch, triton and fastrnn.

    Plans are tried in a process of their own, which needs some hundred MB of the GPU's memory beside what the layer
    takes: one that crashes, hangs or cannot be compiled is left out with the reason, and this process goes on as if
    nothing had been. The one that is chosen is then computed once in this process as well, and looked at again.

    It takes a second for each piece of work and, the first time, minutes for compiling. ``python -m fastrnn tune`` does
    the same for sizes that are named, and :class:`fastrnn.autotune` without being asked.

    Args:
        model: a module, or a layer itself, with its parameters on a GPU.
        inputs, kwargs: what to call it with.

    Returns:
        A :class:`Tuning`; print it.

    Raises:
        TypeError: ``model`` is not a :class:`torch.nn.Module`.
        ValueError: no layer of fastrnn's was given tensors on a GPU that its kernels could compute.
        RuntimeError: plans cannot be tried in another process (a GPU in exclusive mode takes one alone: see
            ``python -m fastrnn tune --here``), or torch's layer fails. What was measured before is kept.

    Examples::

        >>> fastrnn.tune(fastrnn.LSTM(10, 20), torch.randn(5, 3, 10))
        Traceback (most recent call last):
        ...
        ValueError: fastrnn.tune: no recurrent layer of fastrnn's was given tensors on a GPU
    """
    modes = (False, True) if torch.is_grad_enabled() else (False,)
    return tune_works(works_of(model, inputs, kwargs, modes))


Works = Sequence[tuple[Work, torch.device]]


def works_of(model: Module, inputs: Sequence[Any], kwargs: Mapping[str, Any], modes: Sequence[bool]) -> Works:
    """What the layers of a model compute on GPUs, in each of the modes: whether gradients are wanted."""
    found: dict[tuple[Work, torch.device], None] = {}

    def observe(name: str, request: Request) -> None:
        stack, x = request.stack, request.x
        if x.device.type == DEVICE and not request.is_cell and not stack.proj_size:
            sizes = (request.steps, request.batch, stack.directions, stack.num_layers, request.varied)
            for trains in modes:
                found[work_of(stack.cell, x, request.params, trains, *sizes), x.device] = None

    observe_calls(model, inputs, kwargs, observe)
    if not found:
        raise ValueError("fastrnn.tune: no recurrent layer of fastrnn's was given tensors on a GPU")
    return list(found)


def tune_works(works: Works, seconds: float = SECONDS, here: bool = False) -> Tuning:
    """The same for pieces of work, each on a device.

    Args:
        works: with their devices.
        seconds: how long the timing of one lasts.
        here: whether to try plans in this process, which one that is wrong may leave unable to compute.
    """
    from fastrnn import _contest  # with a timer of torch's that takes a quarter of a second to import

    results = []
    facts = [_cuda.facts_of(device) for _, device in works]
    total = sum(_contest.parts(work, f) for (work, _), f in zip(works, facts, strict=True))
    with _progress(total) as advance:
        for (work, device), of_device in zip(works, facts, strict=True):
            with torch.cuda.device(device):
                if here:
                    ways = _contest.Here(work, device)
                    result = _contest.contest(work, of_device, ways, seconds, advance)
                else:
                    result = _tried_elsewhere(work, of_device, device, seconds, advance)
            results.append(result)
            measured.append(result.record, measured.identity(of_device.name, of_device.sm_count), result.left_out)
    device_facts.cache_clear()
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

    if device.type == DEVICE:
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
    plan = str(Plan(reason="", **dict(record.choices))) if least < torchs else TORCH  # type: ignore[arg-type]
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
