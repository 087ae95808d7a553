"""The ways to compute a layer against each other: which are right on a device, and what they take."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.benchmark import Timer

from fastrnn import _cpu, _cuda, nn
from fastrnn._accuracy import allowed, away_from_the_kink, error
from fastrnn.kernels.measured import TORCH, TUNED, Record, Work
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
CELLS: Mapping[str, Callable[..., Module]] = {
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
    "rnn_tanh": nn.RNNCell,
    "rnn_relu": partial(nn.RNNCell, nonlinearity="relu"),
}
AnyPlan = Plan | _cpu.Plan
Facts = DeviceFacts | _cpu.Facts
Results = tuple[list[Tensor], list[Tensor]]  # outputs, gradients


@dataclass(frozen=True)
class Result:
    """What came out.

    Attributes:
        record: what the ways took that were right.
        left_out: the plans that were not, with the reason.
        chosen: of ours, the plan that is to be followed if torch is slower; None if none was right.
    """

    record: Record
    left_out: Mapping[AnyPlan, str] = field(default_factory=dict)
    chosen: AnyPlan | None = None


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
        make = make if work.layers else CELLS[work.cell]  # type: ignore[assignment]
        layer = make(work.inputs, work.hidden, dtype=work.dtype, device=device)
        # As the user's own layer has its weights, packed by torch where it packs them: torch 2.11 does not know how to
        # in bfloat16, has cuDNN pack them at every call, and that is what the user's calls take.
        layer.train(work.trains)  # while it trains, cuDNN writes what backward needs, wanted or not
        if work.cell == "rnn_relu":
            away_from_the_kink(layer)
        shape = (work.steps, work.batch, work.inputs) if work.layers else (work.batch, work.inputs)
        x: Tensor | PackedSequence = _random(work, device, *shape)
        if work.packed:
            lengths = torch.randint(max(1, work.steps // SHORTEST), work.steps + 1, (work.batch,), device="cpu")
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


class Lost(RuntimeError):
    """Nothing can be tried any more: a device computes nothing, or there is no process that could try."""


class Failed(Exception):
    """A plan failed in another process; the message is the reason in words."""


class Ways(Protocol):
    """A piece of work, to be computed by torch (None) or by a plan of ours, one at a time.

    Whatever a method raises is about that plan, but for :class:`Lost`.
    """

    def trial(self, plan: Any) -> float:
        """Seconds of a call, from a few; a plan's results have been looked at before."""

    def turn(self, plan: Any, once: float) -> float:
        """Seconds of a call, from as many as a turn has room for if one takes ``once``."""

    def check(self, plan: Any) -> None:
        """Look whether a plan's results are right, and the same in a second call."""


class Here:
    """The ways to compute a piece of work in this process.

    Args:
        work: what is to be computed.
        device: to compute on.
    """

    def __init__(self, work: Work, device: torch.device) -> None:
        self.device = device
        with torch.random.fork_rng([device] if device.type != "cpu" else []):
            torch.manual_seed(0)
            self.case = Case.of(work, device)
        # which would take one thread by itself
        self.timer = Timer("run()", globals={"run": self.case.run}, num_threads=torch.get_num_threads())
        with self._by(None):
            self.theirs, self.truth = self.case.run(), self.case.to(torch.float64).run()

    def trial(self, plan: AnyPlan | None) -> float:
        """As :class:`Ways` has it; the calls before those that are timed have compiled what there is to compile."""
        with self._by(plan):
            if plan is not None:
                self._check()
            return median(self.timer.timeit(1).mean for _ in range(TRIALS))

    def turn(self, plan: AnyPlan | None, once: float) -> float:
        """As :class:`Ways` has it."""
        with self._by(plan):
            return self.timer.timeit(math.ceil(TURN / once)).mean

    def check(self, plan: AnyPlan) -> None:
        """As :class:`Ways` has it."""
        with self._by(plan):
            self._check()

    @contextmanager
    def _by(self, plan: AnyPlan | None) -> Iterator[None]:
        """Compute by a way, and see whether the device still computes after what went wrong."""
        try:
            with way(plan):
                yield
                if plan is not None and plan.strategy == "grid" and _cuda.HAS_TRITON:
                    from fastrnn.kernels import barrier

                    barrier.check(self.device)  # which a later plan's launch would do else
        except Exception as problem:
            if self.device.type == "cuda":
                try:
                    torch.cuda.synchronize(self.device)
                except Exception:  # a fault in a kernel, after which every call fails
                    why = f"fastrnn: {self.device} computes nothing any more in this process"
                    raise Lost(why) from problem
            raise

    def _check(self) -> None:
        """Look whether results are right, and the same in a second call.

        Raises:
            ArithmeticError: they are not.
        """
        found = (self.case.run(), self.case.run(), self.theirs, self.truth)
        for gradient, results in enumerate(zip(*found, strict=True)):
            for ours, same, torchs, true in zip(*results, strict=True):
                off, limit = error(ours, true), allowed(torchs, true, bool(gradient))
                if off > limit:
                    what = "a gradient" if gradient else "an output"
                    raise ArithmeticError(f"{what} is off by {off:.1e}, and {limit:.1e} is allowed")
                if not torch.equal(ours, same):
                    raise ArithmeticError("another result in a second call")


def contest(
    work: Work,
    facts: Facts,
    ways: Ways,
    seconds: float,
    watch: Callable[[str], None],
    verify: Callable[[Any], None] | None = None,
) -> Result:
    """Check every plan of ours against float64, by how far torch's layer is off, and time those that are right.

    Args:
        work: what is to be computed.
        facts: of the device.
        ways: to compute it.
        seconds: of timing the fastest plan of each strategy against torch, in turns.
        watch: called with what is to be done next, of :func:`parts` things.
        verify: called with the plan that is to be chosen; where it raises, the next one is.

    Raises:
        Lost: nothing can be tried any more.
        Exception: torch's layer could not compute it.
    """
    watch(f"{work}: {TORCH}")
    took = {TORCH: ways.trial(None)}
    best: dict[str, AnyPlan] = {}
    left_out: dict[AnyPlan, str] = {}
    for plan in plans(work, facts):
        watch(f"{work}: {plan.strategy}")
        with _or_else(plan, left_out):
            trial = ways.trial(plan)
            if trial < took.get(plan.strategy, math.inf):
                took[plan.strategy], best[plan.strategy] = trial, plan
    watch(f"{work}: in turns")
    taken = _in_turns(ways, best, took, seconds, left_out)
    for plan in best.values():  # each has computed it many times by now: is it still right?
        if plan not in left_out:
            with _or_else(plan, left_out):
                ways.check(plan)
    right = {name: median(turns) for name, turns in taken.items() if name == TORCH or best[name] not in left_out}
    chosen: AnyPlan | None = None
    for name in sorted((name for name in right if name != TORCH), key=lambda name: right[name] * _handicap(name)):
        if verify is not None:
            with _or_else(best[name], left_out):
                verify(best[name])
        if best[name] not in left_out:
            chosen = best[name]
            break
        del right[name]
    said = () if chosen is None else tuple(choices(chosen).items())
    source = _cpu.TUNED if isinstance(facts, _cpu.Facts) else TUNED
    return Result(Record(work, tuple(right.items()), said, source), left_out, chosen)


def plans(work: Work, facts: Facts) -> Iterator[AnyPlan]:
    """All of ours."""
    return _cpu.candidates(work, facts) if isinstance(facts, _cpu.Facts) else candidates(work, facts)


def _handicap(strategy: str) -> float:
    """What noise may have added to a way's time: a usual one is to be left for more than that."""
    return 1.0 if strategy == _cpu.USUAL else _cpu.MARGIN


def parts(work: Work, facts: Facts) -> int:
    """How many times :func:`contest` tells what it does."""
    return 2 + sum(1 for _ in plans(work, facts))


def words(problem: BaseException) -> str:
    """The reason why something failed, in a line."""
    message = str(problem).strip()
    if isinstance(problem, Failed):
        return message
    return f"{type(problem).__name__}: {(message or 'no message').splitlines()[0]}"


@contextmanager
def way(plan: AnyPlan | None) -> Iterator[None]:
    """Compute by a plan of ours, or by torch's layers."""
    if isinstance(plan, Plan):
        with forced(**choices(plan)):
            yield
    elif plan is not None:
        with _cpu.forced(plan):
            yield
    else:
        with forced(strategy=TORCH), _cpu.forced(_cpu.Plan(TORCH)):
            yield


def choices(plan: AnyPlan) -> dict[str, Any]:
    """What a plan says but for why."""
    return {name: value for name, value in asdict(plan).items() if name != "reason"}


def _random(work: Work, device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(work.dtype)


def _flat(returned: Any) -> list[Tensor]:
    if isinstance(returned, Tensor):  # of a cell, as the tuple of an LSTM's
        return [returned]
    y, state = returned
    return [y.data if isinstance(y, PackedSequence) else y, *(state if isinstance(state, tuple) else (state,))]


@contextmanager
def _or_else(plan: AnyPlan, left_out: dict[AnyPlan, str]) -> Iterator[None]:
    """Compute by a plan; whatever a compiler, a launch or a check raises, it is then left out."""
    try:
        yield
    except Lost:
        raise
    except Exception as problem:
        left_out[plan] = words(problem)


def _in_turns(
    ways: Ways, best: Mapping[str, AnyPlan], once: Mapping[str, float], seconds: float, left_out: dict[AnyPlan, str]
) -> dict[str, list[float]]:
    """Seconds of a call by each way, which alternate, so that what disturbs the machine disturbs them alike."""
    taken: dict[str, list[float]] = {TORCH: [], **{name: [] for name in best}}
    order, end = list(taken), time.perf_counter() + seconds
    while len(taken[TORCH]) < TRIALS or time.perf_counter() < end:
        for name in order:
            if name == TORCH:
                taken[name].append(ways.turn(None, once[name]))
            elif best[name] not in left_out:
                with _or_else(best[name], left_out):
                    taken[name].append(ways.turn(best[name], once[name]))
        order.reverse()
    return taken
