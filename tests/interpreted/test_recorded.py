"""The stepwise strategy's launches, recorded: replays compute what launches would have, with new numbers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import recorder
import torch
from accuracy import assert_same
from layers import Problem, draw
from recorder import Graph, Kernel
from torch import Tensor

from fastrnn.kernels import graphs, layer, stepwise
from fastrnn.kernels.plan import Plan

PLAIN = Plan("stepwise", "a test", units=16, depth=16)
RECORDED = replace(PLAIN, graphs=True)
STEPS = 3


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> tuple[Kernel, ...]:
    """The kernels, of which graphs can be made, and nothing recorded yet."""
    recorder.install(monkeypatch)
    monkeypatch.setattr(stepwise, "recordings", graphs.Recordings())
    made = Kernel(stepwise.step_forward), Kernel(stepwise.step_backward)
    for kernel in made:
        monkeypatch.setattr(stepwise, kernel.kernel.__name__, kernel)
    return made


class Arena:
    """Memory that is handed out in the same order each time, as free blocks are for calls of one shape."""

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []

    @contextmanager
    def use(self) -> Iterator[None]:
        free = iter(self.blocks)

        def laid(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def lay(*args: object, **options: object) -> Tensor:
                made = make(*args, **options)
                if made.numel() == 0:  # the interpreter has some of its own
                    return made
                block = next(free, None)
                if block is None:
                    self.blocks.append(made)
                    return made
                return block.copy_(made)

            return lay

        with pytest.MonkeyPatch.context() as patch:
            for owner, names in ((torch, ("empty_like", "stack")), (Tensor, ("new_empty", "new_zeros"))):
                for name in names:
                    patch.setattr(owner, name, laid(getattr(owner, name)))
            yield


def arriving(p: Problem) -> dict[str, Tensor]:
    """What backward is given, of the shapes of outputs."""
    shapes = {"y": p.x.shape[:-1], "h_n": (2, p.h0.shape[1])} | ({"cells": p.x.shape[:-1]} if p.cells else {})
    return {name: torch.randn(*shape, (2 if name != "h_n" else 1) * p.h0.shape[2]) for name, shape in shapes.items()}


def compute(plan: Plan, p: Problem, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs and gradients, copied from where they lie."""
    args = (p.x, p.h0, p.c0, list(p.weights), p.bidirectional, p.batch_sizes, p.lengths, p.reset)
    y, h_n, c_n, cells, tape = layer.forward(plan, p.cell, *args, "full", p.cells)
    upstream = (given["y"], given["h_n"], None, given.get("cells"))
    dx, dh0, dc0, *dweights = layer.backward(plan, p.cell, *upstream, *args, y, cells, tape, "full", *[True] * 4)
    found = {"y": y, "h_n": h_n, "c_n": c_n, "cells": cells, "dx": dx, "dh0": dh0, "dc0": dc0}
    found |= {f"dweights {i}": g for i, g in enumerate(dweights)}
    return {name: t.clone() for name, t in found.items()}


@pytest.mark.parametrize("layout", ["dense", "lengths", "packed"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_a_replay_computes_with_new_numbers(cell: str, layout: str, kernels: tuple[Kernel, ...]) -> None:
    p, arena = draw(cell, STEPS, 4, 5, 20, bidirectional=True, layout=layout, cells=True), Arena()
    given = arriving(p)
    for time in range(4):
        for t in (*p.tensors().values(), *given.values()):
            t.normal_()
        true = compute(PLAIN, p, given)
        before = [kernel.launched for kernel in kernels]
        with arena.use():
            found = compute(RECORDED, p, given)
        assert_same(found, true)
        launched = [kernel.launched - count for kernel, count in zip(kernels, before, strict=True)]
        assert launched == ([STEPS, STEPS + 1] if time == 0 else [0, 0])
    assert Graph.replays == 2 * 3


def test_tensors_that_lie_elsewhere_are_not_replayed(kernels: tuple[Kernel, ...]) -> None:
    p, arena = draw("gru", STEPS, 4, 5, 20, bidirectional=True), Arena()
    given = arriving(p)
    for time in range(3):
        p = p.put({"x": p.x * 2, "h0": p.h0 * 2})
        if time == 2:
            arena = Arena()
        with arena.use():
            found = compute(RECORDED, p, given)
        assert_same(found, compute(PLAIN, p, given))
    assert Graph.replays == 2
    assert all(kernel.launched for kernel in kernels)


def test_other_lengths_of_as_many_rows() -> None:
    """A replay reads them where they lie; other numbers of steps or sequences are other launches."""
    dense = draw("lstm", STEPS, 4, 5, 20, bidirectional=True)
    arena, given = Arena(), arriving(replace(dense, x=dense.x.reshape(12, 5)[:8]))
    for sizes in ([4, 3, 1], [4, 3, 1], [4, 2, 2], [4, 3, 1], [4, 4]):
        p = replace(dense, x=dense.x.reshape(12, 5)[:8], batch_sizes=torch.tensor(sizes))
        with arena.use():
            found = compute(RECORDED, p, given)
        assert_same(found, compute(PLAIN, p, given))
    assert Graph.replays == 4


def test_products_by_torch_are_not_recorded() -> None:
    p, arena = draw("gru", STEPS, 4, 5, 20, bidirectional=True), Arena()
    for _ in range(3):
        with arena.use():
            compute(replace(RECORDED, product="torch"), p, arriving(p))
    assert Graph.replays == 0
