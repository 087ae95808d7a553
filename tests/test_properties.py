"""What holds for every layer that hypothesis thinks up, in every dtype, whichever gradients flow."""

from dataclasses import replace

import torch
from accuracy import assert_accurate, assert_same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layers import PARTS, Problem, fast, judged, one_thread, readable, run
from problems import laid, problems
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

# However slow the machine, to draw a problem is not what is tested.
THINK = settings(derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


@THINK
@given(st.data(), problems(), st.sampled_from(["full", "lean"]))
def test_any_layer(data: st.DataObject, problem: Problem, tape: str) -> None:
    """By the rule of the accuracy, through any of the outputs, for any of the inputs, wherever these lie."""
    has = [part for part in PARTS if part in ("y", "h_n") or (problem.cell == "lstm" and part == "c_n")]
    has += ["cells"] if problem.cells else []
    parts = data.draw(st.sets(st.sampled_from(has), min_size=1))
    names = sorted(problem.tensors())
    frozen = data.draw(st.sets(st.sampled_from(names), max_size=len(names) - 1))
    with one_thread():
        truth, theirs = (run(readable, p, parts, frozen) for p in (problem.to(torch.float64), problem))
    found, again = (run(fast(tape), p, parts, frozen) for p in (problem, data.draw(laid(problem))))
    assert_same(again, found)
    judged(problem, found, theirs)
    assert_accurate(found, theirs, truth)


@THINK
@given(problems(("lengths",), shortest=2), st.sampled_from(["full", "lean"]))
def test_padded_is_packed(problem: Problem, tape: str) -> None:
    """To the bit."""
    packed, _, order, unorder = pack_padded_sequence(problem.x, problem.lengths, enforce_sorted=False)
    batch_sizes = (problem.lengths > torch.arange(problem.lengths.max())[:, None]).sum(1)
    moved = {name: t[:, order] for name, t in problem.tensors().items() if name in ("h0", "c0")}
    other = replace(problem, lengths=None, batch_sizes=batch_sizes).put({"x": packed} | moved)
    if problem.reset is not None:
        other = replace(other, reset=problem.reset[: len(batch_sizes), order])
    ours, theirs = fast(tape)(problem), fast(tape)(other)
    steps = len(problem.x)
    for name, padded, flat in zip(PARTS, ours, theirs, strict=True):
        if name in ("y", "cells") and flat.shape != (0,):
            flat, _ = pad_packed_sequence(PackedSequence(flat, batch_sizes, order, unorder), total_length=steps)
        elif flat.shape != (0,):
            flat = flat[:, unorder]
        assert torch.equal(padded, flat), name


@THINK
@given(problems(("dense", "lengths"), shortest=2))
def test_rows_know_nothing_of_each_other(problem: Problem) -> None:
    """A row alone, cut to its length, is the row of the batch to the bit."""
    found = fast()(problem)
    for b in range(problem.x.shape[1]):
        length = len(problem.x) if problem.lengths is None else int(problem.lengths[b])
        alone = problem.row(b)
        reset = None if alone.reset is None else alone.reset[:length]
        mine = fast()(replace(alone, x=alone.x[:length], reset=reset, lengths=None))
        for name, whole, one in zip(PARTS, found, mine, strict=True):
            if one.shape != (0,):
                expected = whole[:length, [b]] if name in ("y", "cells") else whole[:, [b]]
                assert torch.equal(one, expected), name
                assert name not in ("y", "cells") or not whole[length:, b].any()


@THINK
@given(problems(shortest=4), st.integers(2, 10))
def test_a_sequence_may_be_cut(problem: Problem, at: int) -> None:
    """Forwards, the state after some steps begins the rest: to the bit, where storage does not round it."""
    if problem.batch_sizes is not None or problem.bidirectional or problem.x.dtype in (torch.bfloat16, torch.float16):
        return
    problem = replace(problem, lengths=None)
    at = min(at, len(problem.x) - 2)
    reset = (None, None) if problem.reset is None else (problem.reset[:at], problem.reset[at:])
    y, h_n, c_n, _ = fast()(problem)
    first = fast()(replace(problem, x=problem.x[:at], reset=reset[0]))
    assert torch.equal(first[0], y[:at])
    if at < len(problem.x):
        c0 = first[2] if problem.cell == "lstm" else None
        rest = fast()(replace(problem, x=problem.x[at:], reset=reset[1], h0=first[1], c0=c0))
        assert torch.equal(rest[0], y[at:])
        first = rest
    assert torch.equal(first[1], h_n)
    assert torch.equal(first[2], c_n)
