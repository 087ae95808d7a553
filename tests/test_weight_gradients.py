"""Sums over all rows of all steps, which weight gradients are, round no more than short ones do."""

from dataclasses import replace

import pytest
import torch
from accuracy import assert_accurate
from layers import ROUNDS, Problem, draw, fast, one_thread, run, stock
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fastrnn._accuracy import error
from fastrnn.reference import CELLS

TAPES = pytest.mark.parametrize("tape", ["full", "lean"])
DIRECTIONS = pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "both"])


def linear(steps: int, batch: int, inputs: int, hidden: int, bidirectional: bool = False) -> Problem:
    """A layer whose units are on and do not see each other: what arrives at y is what its weights' gradients sum."""
    drawn = draw("rnn_relu", steps, batch, inputs, hidden, bidirectional=bidirectional)
    zeros, on = torch.zeros(hidden, hidden), torch.full((hidden,), 64.0)
    w_ih, small = drawn.weights[0] / 8, torch.randint(-8, 9, drawn.x.shape) / 8
    return replace(drawn, x=small, weights=[w_ih, zeros, on, on] * (2 if bidirectional else 1))


def gradients(problem: Problem, tape: str, dy: Tensor) -> dict[str, Tensor]:
    found = run(fast(tape), problem, {"y": dy})
    return {name: t for name, t in found.items() if name.startswith(("dw_ih", "db"))}


def sums(problem: Problem, dy: Tensor) -> dict[str, Tensor]:
    """The same gradients in float64."""
    each = dy.double().flatten(0, 1).chunk(2 if problem.bidirectional else 1, -1)
    found = {}
    for end, part in zip(("", "_reverse"), each, strict=False):
        found[f"dw_ih{end}"] = part.t() @ problem.x.double().flatten(0, 1)
        found[f"db_ih{end}"] = found[f"db_hh{end}"] = part.sum(0)
    return found


@TAPES
@DIRECTIONS
@pytest.mark.parametrize("sizes", [(20_000, 1, 1, 1), (2_500, 9, 5, 16), (157, 128, 3, 37), (300, 70, 40, 20)], ids=str)
def test_small_terms_are_not_lost(sizes: tuple[int, ...], bidirectional: bool, tape: str) -> None:
    """One large term, and far from it small ones that a sum in float32 would round away one by one."""
    problem = linear(*sizes, bidirectional)
    problem = replace(problem, x=torch.ones_like(problem.x))
    dy = torch.zeros(sizes[0] * sizes[1], sizes[3] * (2 if bidirectional else 1))
    middle = len(dy) // 2
    dy[middle] = 2.0**24
    dy[: middle - 512 : 64] = dy[middle + 512 :: 64] = 0.75
    dy = dy.view(sizes[0], sizes[1], -1)
    for name, true in sums(problem, dy).items():
        assert torch.equal(gradients(problem, tape, dy)[name], true.float()), name


@pytest.mark.parametrize(
    "sizes",
    [
        *((9, 97, 3, 5), (16, 16, 7, 11), (20, 256, 5, 17), (33, 33, 1, 9), (1000, 1, 17, 33), (1024, 2, 5, 17)),
        *((4000, 3, 2, 64), (5000, 1, 15, 16), (300, 30, 33, 100), (64, 64, 200, 200), (700, 16, 16, 512)),
    ],
    ids=str,
)
def test_sums_are_short(sizes: tuple[int, ...]) -> None:
    """Terms are exact, so errors are those of the sum: a few roundings, however many terms there are."""
    problem = linear(*sizes)
    dy = torch.randn(*sizes[:2], sizes[3])
    true = sums(problem, dy)
    for tape in ("full", "lean"):
        for name, found in gradients(problem, tape, dy).items():
            assert error(found, true[name]) < 4 * torch.finfo(torch.float32).eps, (tape, name)


@pytest.mark.parametrize("layout", ["dense", "packed", "lengths"])
@pytest.mark.parametrize("cell", CELLS)
def test_as_accurate_as_torch(cell: str, layout: str) -> None:
    """Not of one draw, where luck decides, but of all together: half are nearer to the truth than torch's."""
    ratios = []
    for sizes in ((9, 97, 3, 5), (16, 16, 7, 11), (40, 30, 12, 24), (500, 2, 5, 17), (70, 10, 33, 65)):
        problem = draw(cell, *sizes, bidirectional=True, layout=layout)
        with one_thread():
            true, theirs = run(stock, problem.to(torch.float64)), run(stock, problem)
        for tape in ("full", "lean"):
            ours = run(fast(tape), problem)
            assert_accurate(ours, theirs, true)
            ratios += [error(ours[n], true[n]) / error(theirs[n], true[n]) for n in true if n.startswith("dw")]
    assert torch.tensor(ratios).median() < 1


@pytest.mark.skipif(not ROUNDS, reason="products of bfloat16 are for the CPUs that have them")
@pytest.mark.parametrize("cell", CELLS)
def test_products_of_bfloat16_have_few_sizes(cell: str) -> None:
    """Whatever the lengths are: 16 up to 128, eight for each doubling. oneDNN keeps code for every size it has met."""
    batches = [
        draw(cell, steps, batch, 20, 48, layout=("dense", "lengths", "packed")[batch % 3], dtype=torch.bfloat16)
        for steps, batch in ((1, 1), (7, 2), (19, 3), (3, 29), (23, 11), (37, 13), (61, 21), (211, 7))
        for _ in range(5)
    ]
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        for problem in batches:
            run(fast(), problem)
    products = [e.input_shapes for e in seen.events() if e.name == "aten::mm"]
    rows = {int(left[1]) for left, *_ in products}
    assert rows
    assert all(n % max(8, 2 ** ((n - 1).bit_length() - 4)) == 0 for n in rows), rows


@pytest.mark.parametrize("tape", ["full", "lean"])
@pytest.mark.parametrize("batch", [513, 600, 1024])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_sums_of_bfloat16_that_cancel(cell: str, batch: int, tape: str) -> None:
    """A batch sorted by label: parts of the sum over its rows, each rounded to bfloat16, would leave their errors."""
    problem = draw(cell, 4, batch, 40, 48, state=False, dtype=torch.bfloat16)
    problem = replace(problem, x=(torch.randn(problem.x.shape) * 0.3 + 1).to(torch.bfloat16))
    sign = torch.where(torch.arange(batch) < batch // 2, 0.5, -0.5)
    dy = {"y": sign[None, :, None].expand(4, batch, 48)}
    with one_thread():
        of = {d: {k: t.to(d) for k, t in dy.items()} for d in (torch.bfloat16, torch.float64)}
        true, theirs = run(stock, problem.to(torch.float64), of[torch.float64]), run(stock, problem, of[torch.bfloat16])
    ours = run(fast(tape), problem, of[torch.bfloat16])
    assert_accurate(
        *({name: t for name, t in found.items() if name.startswith("dw")} for found in (ours, theirs, true))
    )
