"""Any call of the contract, as hypothesis thinks it up: ``contract.py SECONDS [MOST]``.

Layers of every cell, size, dtype and layout, of any strides, with lengths, resets and states or without, on either
tape, through any outputs and for any inputs, on 1 to 8 threads; and modules: stacks, projections, dropout, packed,
unbatched. Each is judged by the rule of the accuracy; the instruction set is the process's (FASTRNN_CPU_ISA).
"""

import copy
import os
import random
import sys
from collections.abc import Callable, Collection
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import NamedTuple

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("FASTRNN_POISON", "1")

import accuracy
import hypothesis.strategies as st
import torch
from clock import Clock
from hypothesis import HealthCheck, Phase, given, seed, settings
from layers import DTYPES, PARTS, Problem, fast, judged, readable, run, yardstick
from problems import between, laid, one_of_each, problems, reseed
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn import _ops
from fastrnn._accuracy import allowed, bound, error

EACH = 50  # cases between two looks at the clock
RANGES = ((1, 7), (0, 5), (0, 9), (1, 21))
OTHERS = 25  # cases that tell luck from error
MUCH = 10  # times what the rule allows, which luck is not
Named = dict[str, Tensor]


class Trial(NamedTuple):
    """Results of a case: ours, torch's and the truth."""

    found: Named
    torchs: Named
    truth: Named


def judge(found: Named, truth: Named, theirs: Callable[[], Named], again: Callable[[], Trial], few: bool) -> None:
    """By the rule of the accuracy; of a few numbers, by half of their digits (see test_fuzz.py).

    What is within the rule's floor is right whatever torch's own error is: torch computes the others alone. Among so
    many cases some of torch's results are nearly exact by luck. What is off then, not by much, is right if over
    ``OTHERS`` cases with the same numbers elsewhere (``again``) the mean error is within the rule.
    """
    assert found.keys() == truth.keys(), (found.keys(), truth.keys())
    doubtful = []
    for name, true in truth.items():
        result, dtype = found[name], found[name].dtype
        assert result.shape == true.shape, name
        if few:
            limit = torch.finfo(dtype).eps ** 0.5 * max(1.0, float(true.abs().max()) if true.numel() else 0.0)
            assert not result.numel() or float((result.double() - true).abs().max()) <= limit, name
        elif not error(result, true) <= allowed(true.to(dtype), true, name.startswith("d")):
            doubtful.append(name)
    if doubtful:
        torchs = theirs()
        limits = {name: allowed(torchs[name], truth[name], name.startswith("d")) for name in doubtful}
        wrong = [name for name in doubtful if not error(found[name], truth[name]) <= limits[name]]
        if any(not error(found[name], truth[name]) <= MUCH * limits[name] for name in wrong):
            accuracy.assert_accurate(*({name: t[name] for name in wrong} for t in (found, torchs, truth)))
        if wrong:
            check_means(wrong, [again() for _ in range(OTHERS)])


def check_means(names: list[str], trials: list[Trial]) -> None:
    """The rule, of errors' means."""
    for name in names:
        ours, torchs = (mean(error(t[k][name], t.truth[name]) for t in trials) for k in (0, 1))
        limit = bound(torchs, trials[0].found[name].dtype, name.startswith("d"))
        assert ours <= limit, f"{name} is off by {ours:.2e} in the mean, torch by {torchs:.2e}: allowed {limit:.2e}"


def shuffled(t: Tensor) -> Tensor:
    return t.flatten()[torch.randperm(t.numel())].view(t.shape)


@st.composite
def calls(choose: st.DrawFn) -> tuple[Problem, Problem, str, Collection[str], Collection[str] | None, int]:
    """A problem, the same as it lies, its tape, the outputs that have gradients, what needs none, the threads."""
    problem = choose(problems(ranges=RANGES))
    has = [part for part in PARTS if part in ("y", "h_n") or (problem.cell == "lstm" and part == "c_n")]
    has += ["cells"] if problem.cells else []
    through = [some for count in range(1, len(has) + 1) for some in combinations(has, count)]
    names = sorted(problem.tensors())
    parts, tape, threads, trains, some = one_of_each(
        choose, through, ("full", "lean"), (1, 2, 3, 8), (False, True), range(2 ** len(names) - 1)
    )
    frozen = {name for k, name in enumerate(names) if some >> k & 1} if trains else None
    if problem.cell == "rnn_relu" and problem.x.dtype != torch.float64:
        frozen = None  # on which side of its kink a rounded sum falls is nobody's mistake
    return problem, choose(laid(problem)), tape, parts, frozen, threads


def outputs(layer: Callable[[Problem], tuple[Tensor | None, ...]], problem: Problem) -> Named:
    """Without gradients."""
    with torch.no_grad():
        found = dict(zip(PARTS, layer(problem), strict=False))
    wanted = PARTS if problem.cells else PARTS[:3] if problem.cell == "lstm" else PARTS[:2]
    return {name: t for name in wanted if (t := found[name]) is not None}


def check_call(problem: Problem, lying: Problem, tape: str, parts: object, frozen: object, threads: int) -> None:
    compute = outputs if frozen is None else lambda layer, p: run(layer, p, parts, frozen)

    def ours(p: Problem) -> Named:
        torch.set_num_threads(threads)
        found = compute(fast(tape), p)
        torch.set_num_threads(1)
        judged(problem, found)
        return found

    def theirs(p: Problem) -> Named:
        found = compute(yardstick(p), p)
        judged(problem, found)
        return found

    def truth(p: Problem) -> Named:
        return compute(readable, p.to(torch.float64))

    def again() -> Trial:
        other = problem.put({name: shuffled(t) for name, t in problem.tensors().items()})
        for name, t in other.tensors().items():
            lying.tensors()[name].copy_(t)  # which stays where it lies
        return Trial(ours(lying), theirs(other), truth(other))

    sizes = (problem.x.shape[-1] < 2, problem.weights[1].shape[1] < 4, problem.x.shape[:-1].numel() < 4)
    judge(ours(lying), truth(problem), lambda: theirs(problem), again, any(sizes))


@st.composite
def modules(choose: st.DrawFn) -> tuple[nn.Module, nn.Module, tuple[object, ...], int]:
    """A module of fastrnn, torch.nn's with the same parameters, what both are given, and the threads."""
    reseed(choose(between(0, 2**32)))
    name, layers, directions, dtype, threads, layout = one_of_each(
        *(choose, ("RNN", "LSTM", "GRU"), (1, 2, 3), (1, 2), DTYPES[:2], (1, 2, 3, 8)),
        ("batched", "packed", "unbatched"),
    )
    steps, batch, inputs, hidden, projects = one_of_each(
        choose, range(1, 7), range(2, 6), range(2, 10), range(4, 22), range(80)
    )
    either = (False, True)
    bias, batch_first, dropout, has_state, tape = one_of_each(
        choose, either, either, (0.0, 1.0), either, ("full", "lean")
    )
    options = {"num_layers": layers, "bidirectional": directions == 2, "bias": bias, "batch_first": batch_first}
    options |= {"dropout": dropout if layers > 1 else 0.0, "dtype": dtype}
    projected = 1 + projects % (hidden - 1) if name == "LSTM" and projects < 20 else 0
    ours, theirs = (
        getattr(package, name)(inputs, hidden, **options, **({"proj_size": projected} if projected else {}))
        for package in (fastrnn, nn)
    )
    theirs.load_state_dict(ours.state_dict())
    ours.tape = tape
    x = torch.randn(steps, batch, inputs, dtype=dtype)
    state = [torch.randn(layers * directions, batch, n, dtype=dtype) for n in (projected or hidden, hidden)]
    if layout == "unbatched":
        x, state = x[:, 0], [s[:, 0] for s in state]
    elif batch_first:
        x = x.transpose(0, 1)
    given: tuple[object, ...] = (x,)
    if layout == "packed":
        lengths = torch.tensor(choose(st.lists(between(1, steps), min_size=batch, max_size=batch)))
        given = (pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False),)
    if has_state:
        given += (tuple(state) if name == "LSTM" else state[0],)
    return ours, theirs, given, threads


def elsewhere(value: object) -> object:
    """Inputs, however nested, with their numbers shuffled."""
    if isinstance(value, PackedSequence):
        return value._replace(data=shuffled(value.data))
    return tuple(map(elsewhere, value)) if isinstance(value, tuple) else shuffled(value)


def check_module(ours: nn.Module, theirs: nn.Module, given: tuple[object, ...], threads: int) -> None:
    def trial(*inputs: object) -> Trial:
        torch.set_num_threads(threads)
        found = accuracy.run(ours, *inputs)
        torch.set_num_threads(1)
        truth = accuracy.run(copy.deepcopy(theirs).double(), *accuracy.in_float64(inputs))
        names = sorted(found.keys() & truth.keys())
        torchs = accuracy.run(theirs, *inputs)
        return Trial(*({name: named[name] for name in names} for named in (found, torchs, truth)))

    def again() -> Trial:
        with torch.no_grad():
            for p in theirs.parameters():
                p.copy_(shuffled(p))
        ours.load_state_dict(theirs.state_dict())
        return trial(*elsewhere(given))

    found, torchs, truth = trial(*given)
    torch.set_num_threads(threads)
    with torch.no_grad():
        values = dict(zip(("y", "h_n", "c_n"), accuracy.flatten(ours(*given)), strict=False))
    for results in (found, values):
        names = results.keys() & truth.keys()
        judge({n: results[n] for n in names}, {n: truth[n] for n in names}, lambda: torchs, again, few=False)


def soak(clock: Clock) -> None:
    start, done = random.SystemRandom().randrange(1 << 31), [0]
    for number in clock:
        if done[0] >= clock.most:
            break
        how = settings(
            max_examples=EACH,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        )

        def call(case: tuple[object, ...]) -> None:
            done[0] += 1
            check_call(*case)

        def module(case: tuple[object, ...]) -> None:
            done[0] += 1
            check_module(*case)

        strategy, check = (modules(), module) if number % 4 == 3 else (calls(), call)
        try:
            seed(start + number)(how(given(strategy)(check)))()
        except BaseException:
            print(f"seed {start + number} with {_ops.cpu_isa()}", file=sys.stderr)
            raise
    clock.cases = done[0]
    clock.report(_ops.cpu_isa())


if __name__ == "__main__":
    soak(Clock())
