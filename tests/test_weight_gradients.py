"""Sums over all rows of all steps, which weight gradients are, round no more than short ones do."""

from dataclasses import replace

import pytest
import torch
from accuracy import assert_accurate
from layers import Problem, draw, fast, one_thread, run, stock
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_products_are_the_engines_own(cell: str, dtype: torch.dtype) -> None:
    """Whatever the sizes: torch's round each chunk's to the layer's type, and oneDNN keeps code for every size."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for sizes in ((1, 1, 1, 1), (7, 2, 20, 48), (3, 29, 100, 120), (211, 7, 65, 97)):
            run(fast(), draw(cell, *sizes, dtype=dtype))
    names = {event.name for event in seen.events()}
    assert "fastrnn::layer_backward" in names
    assert not names & {"aten::mm", "aten::addmm", "aten::bmm", "aten::matmul", "aten::linear"}


@TAPES
@pytest.mark.parametrize(("steps", "batch"), [(4, 513), (4, 600), (4, 1024), (150, 16), (2100, 1), (260, 9)])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_sums_of_bfloat16_that_cancel(cell: str, steps: int, batch: int, tape: str) -> None:
    """A batch sorted by label, or a signal that turns: parts of the sum, rounded, would leave their errors in it."""
    problem = draw(cell, steps, batch, 40, 48, state=False, dtype=torch.bfloat16)
    problem = replace(problem, x=(torch.randn(problem.x.shape) * 0.3 + 1).to(torch.bfloat16))
    over, count = ((None, slice(None)), batch) if batch > steps else ((slice(None), None), steps)
    sign = torch.where(torch.arange(count) < count // 2, 0.5, -0.5)
    dy = {"y": sign[(*over, None)].expand(steps, batch, 48)}
    with one_thread():
        of = {d: {k: t.to(d) for k, t in dy.items()} for d in (torch.bfloat16, torch.float64)}
        true, theirs = run(stock, problem.to(torch.float64), of[torch.float64]), run(stock, problem, of[torch.bfloat16])
    ours = run(fast(tape), problem, of[torch.bfloat16])
    assert_accurate(
        *({name: t for name, t in found.items() if name.startswith("dw")} for found in (ours, theirs, true))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_the_same_bits_by_any_number_of_threads(cell: str, dtype: torch.dtype) -> None:
    for sizes in ((40, 20, 130, 75), (3, 300, 17, 190), (1500, 1, 200, 64)):
        problem = draw(cell, *sizes, bidirectional=sizes[1] == 20, dtype=dtype)
        with one_thread():
            expected = run(fast(), problem)
        found = run(fast(), problem)
        for name in (n for n in expected if n.startswith(("dw", "db"))):
            assert torch.equal(found[name], expected[name]), (sizes, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", ["rnn_relu", "lstm", "gru"])
def test_odd_sizes(cell: str, dtype: torch.dtype) -> None:
    """Rows, inputs and units beside whole vectors, panels, tiles and blocks; columns of x and of h in one vector."""
    for rows in (1, 31, 64, 65, 257, 513, 1030):
        for inputs, hidden in ((1, 17), (15, 49), (17, 15), (33, 32), (64, 63), (130, 97)):
            problem = draw(cell, 1 if rows % 2 else 2, rows if rows % 2 else rows // 2, inputs, hidden, dtype=dtype)
            with one_thread():
                true, theirs = run(stock, problem.to(torch.float64)), run(stock, problem)
            assert_accurate(run(fast(), problem), theirs, true)


def test_no_rows() -> None:
    problem = draw("gru", 3, 0, 5, 7)
    found = run(fast(), problem)
    assert all(not t.any() for name, t in found.items() if name.startswith(("dw", "db")))
