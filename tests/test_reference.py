"""The reference is what torch.nn computes in float64, and where torch.nn stops, what it computes piece by piece."""

from dataclasses import replace

import pytest
import torch
from accuracy import assert_accurate
from layers import LAYOUTS, Problem, draw, readable, run, stock
from torch import Tensor, nn

from fastrnn.reference import CELLS, compute_dtype, layer, split_weights

ALL = pytest.mark.parametrize("cell", CELLS)
DIRECTIONS = pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "both"])
MODULES = {
    "rnn_tanh": lambda *sizes, **options: nn.RNNCell(*sizes, **options),
    "rnn_relu": lambda *sizes, **options: nn.RNNCell(*sizes, nonlinearity="relu", **options),
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The rule of the accuracy, where torch.nn's float64 result is the truth: a few roundings at the most."""
    assert_accurate(ours, theirs, theirs)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@ALL
def test_a_step_is_that_of_torchs_cell(cell: str, bias: bool) -> None:
    module = MODULES[cell](5, 6, bias=bias, dtype=torch.float64)
    x, h, c = (torch.randn(3, n, dtype=torch.float64) for n in (5, 6, 6))
    has_c = CELLS[cell].has_c
    theirs = module(x, (h, c) if has_c else h)
    weights = split_weights(list(module.parameters()), False)[0]
    ours = CELLS[cell].step(x, (h, c) if has_c else (h,), weights)
    names = ("h", "c") if has_c else ("h",)
    assert_equal(dict(zip(names, ours, strict=True)), dict(zip(names, theirs if has_c else [theirs], strict=True)))


@pytest.mark.parametrize("given", ["all", "no state", "no bias", "x and weights"])
@pytest.mark.parametrize("layout", LAYOUTS)
@DIRECTIONS
@ALL
def test_a_layer_is_that_of_torch(cell: str, bidirectional: bool, layout: str, given: str) -> None:
    """Outputs and gradients; packed and padded sequences against what torch.nn makes of them."""
    options = {"state": given in ("all", "no bias"), "bias": given in ("all", "no state")}
    problem = draw(cell, bidirectional=bidirectional, layout=layout, dtype=torch.float64, **options)
    assert_equal(run(readable, problem), run(stock, problem))


@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (1, 4), (6, 1), (4, 0)])
@DIRECTIONS
@ALL
def test_small_layers(cell: str, bidirectional: bool, steps: int, batch: int) -> None:
    problem = draw(cell, steps, batch, 3, 2, bidirectional=bidirectional, dtype=torch.float64)
    ours = run(readable, problem)
    assert_equal(ours, run(stock, problem))
    assert ours["y"].shape == (steps, batch, 4 if bidirectional else 2)


def pieces(p: Problem) -> tuple[Tensor | None, ...]:
    """``reset`` by torch.nn's means: each row alone, each stretch between two resets a call of its own."""
    rows = [one_row(p, b) for b in range(p.x.shape[1])]
    y = nn.utils.rnn.pad_sequence([y for y, _ in rows])
    y = torch.cat([y, y.new_zeros(len(p.x) - len(y), *y.shape[1:])])
    return y, *(torch.cat(s, 1) for s in zip(*(finals for _, finals in rows), strict=True))


def one_row(p: Problem, b: int) -> tuple[Tensor, list[Tensor]]:
    length = len(p.x) if p.lengths is None else int(p.lengths[b])
    cuts = [t for t in range(1, length) if p.reset[t, b]]
    stretches = list(zip([0, *cuts], [*cuts, length], strict=True))
    states = [s[:, b : b + 1] for s in (p.h0, p.c0) if s is not None]
    outputs, finals = [], []
    for start, end in stretches:
        # A stretch starts from the given state only at the sequence's own end, and forwards only if nothing reset it.
        keep = torch.tensor([start == 0 and not p.reset[0, b], end == length][: states[0].shape[0]])
        initial = [torch.where(keep[:, None, None], s, torch.zeros_like(s)) for s in states]
        piece = replace(p, x=p.x[start:end, b : b + 1], h0=initial[0], c0=(*initial, None)[1], lengths=None, reset=None)
        y, *after = stock(piece)
        outputs.append(y[:, 0])
        finals.append(after)
    # Forwards the last stretch's state comes out, backwards the first one's.
    return torch.cat(outputs), [torch.cat([z[:1], a[1:]]) for a, z in zip(finals[0], finals[-1], strict=True)]


@pytest.mark.parametrize("layout", ["dense", "lengths"])
@DIRECTIONS
@ALL
def test_reset_begins_a_new_sequence(cell: str, bidirectional: bool, layout: str) -> None:
    """Outputs, last states and gradients; resets at the first step, the last, in a row, and none."""
    problem = draw(cell, bidirectional=bidirectional, layout=layout, dtype=torch.float64)
    reset = torch.zeros(9, 5, dtype=torch.bool)
    reset[0, 1] = reset[3, 1] = reset[4, 1] = reset[8, 2] = reset[2, 3] = True
    reset[:, 4] = True
    problem = replace(problem, reset=reset)
    found = run(readable, problem)
    assert_equal(found, run(pieces, problem))
    without = run(readable, replace(problem, reset=None))
    assert torch.equal(found["y"][:, 0], without["y"][:, 0])
    assert not any(torch.equal(found["y"][:, b], without["y"][:, b]) for b in (1, 3, 4))


@DIRECTIONS
@ALL
def test_reset_of_packed_sequences(cell: str, bidirectional: bool) -> None:
    """The same as of padded ones, which :func:`pieces` checks."""
    padded = draw(cell, bidirectional=bidirectional, layout="lengths", reset=True, dtype=torch.float64)
    padded = replace(padded, lengths=padded.lengths.sort(descending=True).values)
    batch_sizes = (padded.lengths > torch.arange(9)[:, None]).sum(1)
    alive = padded.lengths > torch.arange(9)[:, None]
    packed = replace(padded, x=padded.x[alive], lengths=None, batch_sizes=batch_sizes)
    ours, theirs = run(readable, packed, ("h_n", "c_n")), run(readable, padded, ("h_n", "c_n"))
    for name in ("y", "dx"):
        theirs[name] = theirs[name][alive]
    assert_equal(ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
@DIRECTIONS
def test_cell_states_of_all_steps(bidirectional: bool, layout: str) -> None:
    """Those of step t are the last ones of the sequence that ends at t, or in the other direction begins there."""
    p = draw("lstm", bidirectional=bidirectional, layout=layout, cells=True, dtype=torch.float64)
    cells = readable(p)[3]
    lengths = p.lengths if layout == "lengths" else torch.full((5,), 9)
    x = p.x
    if layout == "packed":
        x, lengths = nn.utils.rnn.pad_packed_sequence(nn.utils.rnn.PackedSequence(p.x, p.batch_sizes))
        cells, _ = nn.utils.rnn.pad_packed_sequence(nn.utils.rnn.PackedSequence(cells, p.batch_sizes))
    for b in range(5):
        for t in range(9):
            if t >= lengths[b]:
                assert not cells[t, b].any()
                continue
            one = Problem("lstm", x[: t + 1, [b]], p.h0[:, [b]], p.c0[:, [b]], p.weights, bidirectional)
            expected = stock(one)[2][0, 0]
            if bidirectional:
                rest = replace(one, x=x[t : lengths[b], [b]])
                expected = torch.cat([expected, stock(rest)[2][1, 0]])
            assert_equal({"cells": cells[t, b]}, {"cells": expected})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@DIRECTIONS
@ALL
def test_sixteen_bits_are_storage(cell: str, bidirectional: bool, dtype: torch.dtype) -> None:
    """Arithmetic and state are float32; what comes out is rounded once, the cell states of all steps not at all."""
    problem = draw(cell, bidirectional=bidirectional, cells=True, dtype=dtype)
    ours, wide = readable(problem), readable(problem.to(torch.float32))
    for result, exact in zip(ours[:3], wide[:3], strict=True):
        assert (result is None) == (exact is None)
        assert result is None or torch.equal(result, exact.to(dtype))
    assert compute_dtype(dtype) == torch.float32
    assert cell != "lstm" or torch.equal(ours[3], wide[3])


@DIRECTIONS
@ALL
def test_where_tensors_lie_changes_no_bit(cell: str, bidirectional: bool) -> None:
    """A product of torch's may round in another way where a factor is not aligned to its vectors."""
    problem = draw(cell, bidirectional=bidirectional, cells=True)

    def shifted(t: Tensor) -> Tensor:
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    moved = problem.put({name: shifted(t) for name, t in problem.tensors().items()})
    for ours, theirs in zip(readable(problem), readable(moved), strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)


@ALL
def test_a_layer_is_differentiable_twice_and_changes_nothing(cell: str) -> None:
    problem = draw(cell, 3, 2, 2, 2, dtype=torch.float64, layout="lengths", reset=True, cells=True)
    before = {name: t.clone() for name, t in problem.tensors().items()}
    names, tensors = zip(*problem.tensors().items(), strict=True)

    def outputs(*given: Tensor) -> tuple[Tensor, ...]:
        return tuple(t for t in readable(problem.put(dict(zip(names, given, strict=True)))) if t is not None)

    leaves = [t.detach().requires_grad_() for t in tensors]
    assert torch.autograd.gradgradcheck(outputs, leaves)
    assert all(torch.equal(before[name], t) for name, t in problem.tensors().items())


def test_a_missing_weight_is_reported() -> None:
    problem = draw("gru")
    with pytest.raises(RuntimeError, match="a required tensor is missing"):
        layer("gru", problem.x, None, None, (None, problem.weights[1]))
