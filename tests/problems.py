"""Problems of every kind for hypothesis, and the ways in which their tensors may lie in memory."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import Any

import torch
from hypothesis import strategies as st
from layers import DTYPES, LAYOUTS, STRIDES, Problem, draw

from fastrnn.reference import CELLS

Ranges = tuple[tuple[int, int], ...]
# Steps, rows, inputs and units of problems of at least a few numbers.
SIZES: Ranges = ((1, 12), (2, 9), (2, 20), (4, 40))
FLAGS = ("bidirectional", "bias", "state", "reset", "cells")

# Each made once: hypothesis examines every strategy that it meets.
between = lru_cache(maxsize=None)(st.integers)


def one_of_each(choose: st.DrawFn, *choices: Sequence[Any]) -> list[Any]:
    """A value of each, up to six by one number: hypothesis takes longer to draw than the engine to compute a case.

    Of more than 24 bits it would prefer small numbers.
    """
    found = []
    for start in range(0, len(choices), 6):
        some = choices[start : start + 6]
        number = choose(between(0, prod(map(len, some)) - 1))
        for values in some:
            number, at = divmod(number, len(values))
            found.append(values[at])
    return found


def reseed(seed: int) -> None:
    """torch.manual_seed for the CPU alone: for devices that are not there it takes as long as a small layer."""
    torch.default_generator.manual_seed(seed)


@st.composite
def problems(
    choose: st.DrawFn, layouts: tuple[str, ...] = LAYOUTS, shortest: int = 1, ranges: Ranges = SIZES
) -> Problem:
    """A problem of at least a few numbers: of single ones the error, relative to their size, may be anything.

    A call of a single step sums in another order than the same step in a longer call: what compares calls of different
    numbers of steps asks for ``shortest`` sequences of 2.
    """
    reseed(choose(between(0, 2**32)))
    steps, *others = ranges
    sizes = one_of_each(choose, *(range(low, high + 1) for low, high in ((max(shortest, steps[0]), steps[1]), *others)))
    cell, dtype, layout, resets = one_of_each(choose, list(CELLS), DTYPES, layouts, (0.0, 0.1, 0.5, 1.0))
    values = one_of_each(choose, *[(False, True)] * len(FLAGS))
    layout = layout if all(sizes) else "dense"  # torch packs no empty tensors
    problem = draw(cell, *sizes, dtype=dtype, layout=layout, **dict(zip(FLAGS, values, strict=True)))
    if problem.lengths is not None:
        steps, batch = problem.x.shape[:2]
        lengths = choose(st.lists(between(shortest, steps), min_size=batch, max_size=batch))
        problem = replace(problem, lengths=torch.tensor(lengths))
    if problem.reset is not None:
        problem = replace(problem, reset=torch.rand(problem.reset.shape) < resets)
    return problem


@st.composite
def laid(choose: st.DrawFn, problem: Problem) -> Problem:
    """The same problem with its tensors lying in memory in any way."""
    named, lying = problem.tensors(), {"as it is": lambda t: t, **STRIDES}
    *kinds, by_rows = one_of_each(choose, *[list(lying)] * len(named), (False, True))
    if problem.reset is not None and by_rows:
        problem = replace(problem, reset=problem.reset.t().contiguous().t())
    return problem.put({name: lying[kind](t) for (name, t), kind in zip(named.items(), kinds, strict=True)})
