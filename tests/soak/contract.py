"""Any call of the contract, as hypothesis thinks it up: ``contract.py SECONDS [MOST]``.

Layers of every cell, size, dtype and layout, of any strides, with lengths, resets and states or without, on either
tape, through any outputs and for any inputs, on 1 to 8 threads; and modules: stacks, projections, dropout, packed,
unbatched. Each is judged by the rule of the accuracy; the instruction set is the process's (FASTRNN_CPU_ISA).
"""

import os
import random
import sys
from collections.abc import Callable, Collection
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("FASTRNN_POISON", "1")

import accuracy
import hypothesis.strategies as st
import torch
from clock import Clock
from hypothesis import HealthCheck, Phase, given, seed, settings
from layers import DTYPES, PARTS, Problem, fast, judged, readable, run, yardstick
from problems import laid, problems
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import _ops
from fastrnn._accuracy import allowed, error

EACH = 50  # cases between two looks at the clock
RANGES = ((1, 7), (0, 5), (0, 9), (1, 21))
Named = dict[str, Tensor]


def judge(found: Named, truth: Named, theirs: Callable[[], Named], few: bool) -> None:
    """By the rule of the accuracy; of a few numbers, by half of their digits (see test_fuzz.py).

    What is within the rule's floor is right whatever torch's own error is: torch computes the others alone.
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
        accuracy.assert_accurate(*({name: t[name] for name in doubtful} for t in (found, torchs, truth)))


@st.composite
def calls(choose: st.DrawFn) -> tuple[Problem, Problem, str, Collection[str], Collection[str] | None, int]:
    """A problem, the same as it lies, its tape, the outputs that have gradients, what needs none, the threads."""
    problem = choose(problems(ranges=RANGES))
    has = [part for part in PARTS if part in ("y", "h_n") or (problem.cell == "lstm" and part == "c_n")]
    has += ["cells"] if problem.cells else []
    parts = choose(st.sets(st.sampled_from(has), min_size=1))
    names = sorted(problem.tensors())
    frozen: Collection[str] | None = choose(st.none() | st.sets(st.sampled_from(names), max_size=len(names) - 1))
    if problem.cell == "rnn_relu" and problem.x.dtype != torch.float64:
        frozen = None  # on which side of its kink a rounded sum falls is nobody's mistake
    tape, threads = choose(st.sampled_from(["full", "lean"])), choose(st.sampled_from([1, 2, 3, 8]))
    return problem, choose(laid(problem)), tape, parts, frozen, threads


def outputs(layer: Callable[[Problem], tuple[Tensor | None, ...]], problem: Problem) -> Named:
    """Without gradients."""
    with torch.no_grad():
        found = dict(zip(PARTS, layer(problem), strict=False))
    wanted = PARTS if problem.cells else PARTS[:3] if problem.cell == "lstm" else PARTS[:2]
    return {name: t for name in wanted if (t := found[name]) is not None}


def check_call(problem: Problem, lying: Problem, tape: str, parts: object, frozen: object, threads: int) -> None:
    compute = outputs if frozen is None else lambda layer, p: run(layer, p, parts, frozen)
    torch.set_num_threads(threads)
    found = compute(fast(tape), lying)
    torch.set_num_threads(1)
    judged(problem, found)

    def theirs() -> Named:
        torchs = compute(yardstick(problem), problem)
        judged(problem, torchs)
        return torchs

    sizes = (problem.x.shape[-1] < 2, problem.weights[1].shape[1] < 4, problem.x.shape[:-1].numel() < 4)
    judge(found, compute(readable, problem.to(torch.float64)), theirs, any(sizes))


@st.composite
def modules(choose: st.DrawFn) -> tuple[nn.Module, nn.Module, tuple[object, ...], int]:
    """A module of fastrnn, torch.nn's with the same parameters, what both are given, and the threads."""
    pick = lambda *values: choose(st.sampled_from(values))  # noqa: E731
    torch.manual_seed(choose(st.integers(0, 2**32)))
    name, layers, directions, dtype = pick("RNN", "LSTM", "GRU"), pick(1, 2, 3), pick(1, 2), pick(*DTYPES[:2])
    inputs, hidden = choose(st.integers(2, 9)), choose(st.integers(4, 21))
    options = {"num_layers": layers, "bidirectional": directions == 2, "bias": pick(True, False)}
    options |= {"batch_first": pick(False, True), "dropout": pick(0.0, 1.0) if layers > 1 else 0.0, "dtype": dtype}
    projected = choose(st.integers(1, hidden - 1)) if name == "LSTM" and pick(False, False, False, True) else 0
    ours, theirs = (
        getattr(package, name)(inputs, hidden, **options, **({"proj_size": projected} if projected else {}))
        for package in (fastrnn, nn)
    )
    theirs.load_state_dict(ours.state_dict())
    ours.tape = pick("full", "lean")
    steps, batch, layout = choose(st.integers(1, 6)), choose(st.integers(2, 5)), pick("batched", "packed", "unbatched")
    x = torch.randn(steps, batch, inputs, dtype=dtype)
    state = [torch.randn(layers * directions, batch, n, dtype=dtype) for n in (projected or hidden, hidden)]
    if layout == "unbatched":
        x, state = x[:, 0], [s[:, 0] for s in state]
    elif options["batch_first"]:
        x = x.transpose(0, 1)
    given: tuple[object, ...] = (x,)
    if layout == "packed":
        lengths = torch.tensor(choose(st.lists(st.integers(1, steps), min_size=batch, max_size=batch)))
        given = (pack_padded_sequence(x, lengths, options["batch_first"], enforce_sorted=False),)
    if pick(False, True):
        given += (tuple(state) if name == "LSTM" else state[0],)
    return ours, theirs, given, pick(1, 2, 3, 8)


def check_module(ours: nn.Module, theirs: nn.Module, given: tuple[object, ...], threads: int) -> None:
    torch.set_num_threads(threads)
    found = accuracy.run(ours, *given)
    with torch.no_grad():
        values = dict(zip(("y", "h_n", "c_n"), accuracy.flatten(ours(*given)), strict=False))
    torch.set_num_threads(1)
    torchs, exact = accuracy.run(theirs, *given), theirs.double()
    truth = accuracy.run(exact, *accuracy.in_float64(given))
    for results in (found, values):
        names = results.keys() & truth.keys()
        judge({n: results[n] for n in names}, {n: truth[n] for n in names}, lambda: torchs, few=False)


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
