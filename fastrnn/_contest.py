"""The ways to compute a layer on a GPU against each other: which are right there, and what they take."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.benchmark import Timer

from fastrnn import nn
from fastrnn._accuracy import allowed, away_from_the_kink, error
from fastrnn.kernels.measured import TORCH, Record, Work
from fastrnn.kernels.plan import DeviceFacts, Plan, candidates, forced

TRIALS = 5  # of each plan, to find the best of a strategy
TURN = 5e-3  # seconds that a turn lasts at least
SHORTEST = 10  # of sequences that differ in length, the shortest has this part of the steps
LAYERS: Mapping[str, Callable[..., Module]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn_tanh": nn.RNN,
    "rnn_relu": partial(nn.RNN, nonlinearity="relu"),
}


Results = tuple[list[Tensor], list[Tensor]]  # outputs, gradients


@dataclass(frozen=True)
class Result:
    """What came out.

    Attributes:
        record: what the ways took that were right.
        left_out: the plans that were not, with the reason.
    """

    record: Record
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A layer and what it is given; gradients of outputs, where they are wanted."""

    layer: Module
    x: Tensor | PackedSequence
    upstream: tuple[Tensor, ...] | None

    @classmethod
    def of(cls, work: Work, device: torch.device) -> "Case":
        """Draw one."""
        make = partial(LAYERS[work.cell], num_layers=work.layers, bidirectional=work.directions == 2)
        layer = make(work.inputs, work.hidden, dtype=work.dtype, device=device)
        if work.cell == "rnn_relu":
            away_from_the_kink(layer)
        x: Tensor | PackedSequence = _random(work, device, work.steps, work.batch, work.inputs)
        if work.packed:
            lengths = torch.randint(max(1, work.steps // SHORTEST), work.steps + 1, (work.batch,))
            lengths[0] = work.steps
            x = pack_padded_sequence(x, lengths, enforce_sorted=False)  # type: ignore[arg-type]
        if not work.trains:
            layer.requires_grad_(False)
            return cls(layer, x, None)
        with torch.no_grad():
            outputs = _flat(layer(x))
        return cls(layer, x, tuple(_random(work, device, *y.shape) for y in outputs))

    def to(self, dtype: torch.dtype) -> "Case":
        """The same numbers in another dtype."""
        upstream = None if self.upstream is None else tuple(t.to(dtype) for t in self.upstream)
        return Case(copy.deepcopy(self.layer).to(dtype), self.x.to(dtype), upstream)

    def run(self) -> Results:
        """A call: outputs and, where they are wanted, gradients of the input and of all weights."""
        if self.upstream is None:
            with torch.inference_mode():
                return _flat(self.layer(self.x)), []
        data = (self.x.data if isinstance(self.x, PackedSequence) else self.x).detach().requires_grad_()
        outputs = _flat(self.layer(self.x._replace(data=data) if isinstance(self.x, PackedSequence) else data))
        leaves = [data, *self.layer.parameters()]
        return outputs, list(torch.autograd.grad(outputs, leaves, self.upstream))


def contest(
    work: Work, facts: DeviceFacts, device: torch.device, seconds: float, watch: Callable[[str], None]
) -> Result:
    """Check every plan of ours against float64, by how far torch's layer is off, and time those that are right.

    Args:
        work: what is to be computed.
        facts: of the device.
        device: to compute on.
        seconds: of timing the fastest plan of each strategy against torch, in turns.
        watch: called with what is to be done next, of :func:`parts` things.

    Raises:
        RuntimeError: the device computes nothing any more; or torch's layer could not compute it.
    """
    with torch.random.fork_rng([device] if device.type != "cpu" else []):
        torch.manual_seed(0)
        case = Case.of(work, device)
        watch(f"{work}: {TORCH}")
        with way(None):
            theirs, truth = case.run(), case.to(torch.float64).run()
            took = {TORCH: _trial(case)}
        best: dict[str, Plan] = {}
        left_out: dict[str, str] = {}
        for plan in candidates(work, facts):
            watch(f"{work}: {plan.strategy}")
            wrong = _why_wrong(case, plan, theirs, truth, device)
            if wrong:
                left_out[str(plan)] = wrong
                continue
            with way(plan):
                trial = _trial(case)
            if trial < took.get(plan.strategy, math.inf):
                took[plan.strategy], best[plan.strategy] = trial, plan
        watch(f"{work}: in turns")
        times = _in_turns(case, {TORCH: None, **best}, took, seconds)
        for strategy, plan in best.items():  # now that each has computed it many times
            wrong = _why_wrong(case, plan, theirs, truth, device)
            if wrong:
                left_out[str(plan)] = wrong
                del times[strategy]
    ours = [strategy for strategy in times if strategy != TORCH]
    fastest = min(ours, key=times.__getitem__, default=None)
    chosen = () if fastest is None else tuple(choices(best[fastest]).items())
    return Result(Record(work, tuple(times.items()), chosen), left_out)


def parts(work: Work, facts: DeviceFacts) -> int:
    """How many times :func:`contest` tells what it does."""
    return 2 + sum(1 for _ in candidates(work, facts))


@contextmanager
def way(plan: Plan | None) -> Iterator[None]:
    """Compute by a plan of ours, or by torch's layers."""
    with forced(**({"strategy": TORCH} if plan is None else choices(plan))):
        yield


def choices(plan: Plan) -> dict[str, Any]:
    """What a plan says but for why."""
    return {name: value for name, value in asdict(plan).items() if name != "reason"}


def _random(work: Work, device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(work.dtype)


def _flat(returned: Any) -> list[Tensor]:
    y, state = returned
    return [y.data if isinstance(y, PackedSequence) else y, *(state if isinstance(state, tuple) else (state,))]


def _why_wrong(case: Case, plan: Plan, theirs: Results, truth: Results, device: torch.device) -> str:
    """Why a plan is no way to compute it, or nothing."""
    try:
        with way(plan):
            return _difference(case.run(), case.run(), theirs, truth)
    except Exception as problem:  # whatever a compiler or a launch raises
        _raise_if_lost(device, problem)
        return f"{type(problem).__name__}: {(str(problem).strip() or 'no message').splitlines()[0]}"


def _difference(found: Results, again: Results, theirs: Results, truth: Results) -> str:
    """What is wrong with results, if something is."""
    for gradient, results in enumerate(zip(found, again, theirs, truth, strict=True)):
        for ours, same, torchs, true in zip(*results, strict=True):
            off, limit = error(ours, true), allowed(torchs, true, bool(gradient))
            if off > limit:
                what = "a gradient" if gradient else "an output"
                return f"{what} is off by {off:.1e}, and {limit:.1e} is allowed"
            if not torch.equal(ours, same):
                return "another result in a second call"
    return ""


def _trial(case: Case) -> float:
    """Seconds of a call, from a few; the calls before have compiled what there is to compile."""
    timer = Timer("run()", globals={"run": case.run})
    return median(timer.timeit(1).mean for _ in range(TRIALS))


def _in_turns(
    case: Case, ways: Mapping[str, Plan | None], once: Mapping[str, float], seconds: float
) -> dict[str, float]:
    """Seconds of a call by each way, which alternate, so that what disturbs the machine disturbs them alike."""
    timer, end = Timer("run()", globals={"run": case.run}), time.perf_counter() + seconds
    taken: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    while len(taken[TORCH]) < TRIALS or time.perf_counter() < end:
        for name in order:
            with way(ways[name]):
                taken[name].append(timer.timeit(math.ceil(TURN / once[name])).mean)
        order.reverse()
    return {name: median(turns) for name, turns in taken.items()}


def _raise_if_lost(device: torch.device, problem: Exception) -> None:
    """Raise where a fault in a kernel has left the device such that every call fails."""
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except Exception:
            raise RuntimeError(f"fastrnn: {device} computes nothing any more in this process") from problem
