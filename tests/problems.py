"""Problems of every kind for hypothesis, and the ways in which their tensors may lie in memory."""

from dataclasses import replace

import torch
from hypothesis import strategies as st
from layers import DTYPES, LAYOUTS, STRIDES, Problem, draw

from fastrnn.reference import CELLS

Ranges = tuple[tuple[int, int], ...]
# Steps, rows, inputs and units of problems of at least a few numbers.
SIZES: Ranges = ((1, 12), (2, 9), (2, 20), (4, 40))


@st.composite
def problems(
    choose: st.DrawFn, layouts: tuple[str, ...] = LAYOUTS, shortest: int = 1, ranges: Ranges = SIZES
) -> Problem:
    """A problem of at least a few numbers: of single ones the error, relative to their size, may be anything.

    A call of a single step sums in another order than the same step in a longer call: what compares calls of different
    numbers of steps asks for ``shortest`` sequences of 2.
    """
    torch.manual_seed(choose(st.integers(0, 2**32)))
    pick = lambda *values: choose(st.sampled_from(values))  # noqa: E731
    steps, *others = ranges
    sizes = [choose(st.integers(low, high)) for low, high in ((max(shortest, steps[0]), steps[1]), *others)]
    dtype = pick(*DTYPES)
    layout = pick(*layouts) if all(sizes) else "dense"  # torch packs no empty tensors
    flags = {name: pick(False, True) for name in ("bidirectional", "bias", "state", "reset", "cells")}
    problem = draw(pick(*CELLS), *sizes, dtype=dtype, layout=layout, **flags)
    if problem.lengths is not None:
        steps, batch = problem.x.shape[:2]
        lengths = choose(st.lists(st.integers(shortest, steps), min_size=batch, max_size=batch))
        problem = replace(problem, lengths=torch.tensor(lengths))
    if problem.reset is not None:
        problem = replace(problem, reset=torch.rand(problem.reset.shape) < pick(0.0, 0.1, 0.5, 1.0))
    return problem


@st.composite
def laid(choose: st.DrawFn, problem: Problem) -> Problem:
    """The same problem with its tensors lying in memory in any way."""
    kinds = ["as it is", *STRIDES]
    tensors = {
        name: t if (kind := choose(st.sampled_from(kinds))) == "as it is" else STRIDES[kind](t)
        for name, t in problem.tensors().items()
    }
    if problem.reset is not None and choose(st.booleans()):
        problem = replace(problem, reset=problem.reset.t().contiguous().t())
    return problem.put(tensors)
