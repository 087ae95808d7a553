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

from fastrnn import _cuda, nn
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
    left_out: Mapping[Plan, str] = field(default_factory=dict)


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
        left_out: dict[Plan, str] = {}
        for plan in candidates(work, facts):
            watch(f"{work}: {plan.strategy}")
            with _or_else(plan, left_out, device):
                _check(case, theirs, truth)
                trial = _trial(case)
            if plan not in left_out and trial < took.get(plan.strategy, math.inf):
                took[plan.strategy], best[plan.strategy] = trial, plan
        watch(f"{work}: in turns")
        taken = _in_turns(case, best, took, seconds, left_out, device)
        for plan in best.values():  # each has computed it many times by now: is it still right?
            with _or_else(plan, left_out, device):
                _check(case, theirs, truth)
    right = {name: median(turns) for name, turns in taken.items() if name == TORCH or best[name] not in left_out}
    fastest = min((name for name in right if name != TORCH), key=right.__getitem__, default=None)
    chosen = () if fastest is None else tuple(choices(best[fastest]).items())
    return Result(Record(work, tuple(right.items()), chosen), left_out)


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


@contextmanager
def _or_else(plan: Plan, left_out: dict[Plan, str], device: torch.device) -> Iterator[None]:
    """Compute by a plan; whatever a compiler, a launch or a check raises, it is then left out."""
    try:
        with way(plan):
            yield
            if plan.strategy == "grid" and _cuda.HAS_TRITON:
                from fastrnn.kernels import barrier

                barrier.check(device)  # which a later plan's launch would do else
    except Exception as problem:
        left_out[plan] = f"{type(problem).__name__}: {(str(problem).strip() or 'no message').splitlines()[0]}"
        if device.type == "cuda":
            try:
                torch.cuda.synchronize(device)
            except Exception:  # a fault in a kernel, after which every call fails
                raise RuntimeError(f"fastrnn: {device} computes nothing any more in this process") from problem


def _check(case: Case, theirs: Results, truth: Results) -> None:
    """Look whether results are right, and the same in a second call.

    Raises:
        ArithmeticError: they are not.
    """
    for gradient, results in enumerate(zip(case.run(), case.run(), theirs, truth, strict=True)):
        for ours, same, torchs, true in zip(*results, strict=True):
            off, limit = error(ours, true), allowed(torchs, true, bool(gradient))
            if off > limit:
                what = "a gradient" if gradient else "an output"
                raise ArithmeticError(f"{what} is off by {off:.1e}, and {limit:.1e} is allowed")
            if not torch.equal(ours, same):
                raise ArithmeticError("another result in a second call")


def _trial(case: Case) -> float:
    """Seconds of a call, from a few; the calls before have compiled what there is to compile."""
    timer = Timer("run()", globals={"run": case.run})
    return median(timer.timeit(1).mean for _ in range(TRIALS))


def _in_turns(
    case: Case,
    best: Mapping[str, Plan],
    once: Mapping[str, float],
    seconds: float,
    left_out: dict[Plan, str],
    device: torch.device,
) -> dict[str, list[float]]:
    """Seconds of a call by each way, which alternate, so that what disturbs the machine disturbs them alike."""
    timer, end = Timer("run()", globals={"run": case.run}), time.perf_counter() + seconds
    taken: dict[str, list[float]] = {TORCH: [], **{name: [] for name in best}}
    order = list(taken)

    def turn(name: str) -> None:
        taken[name].append(timer.timeit(math.ceil(TURN / once[name])).mean)

    while len(taken[TORCH]) < TRIALS or time.perf_counter() < end:
        for name in order:
            if name == TORCH:
                with way(None):
                    turn(name)
            elif best[name] not in left_out:
                with _or_else(best[name], left_out, device):
                    turn(name)
        order.reverse()
    return taken
