"""Any shape, stride, length and reset that hypothesis thinks of: the engine computes what the reference computes."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from fastrnn import _autograd, _ops, reference
from fastrnn.reference import CELLS

NAMES = ("y", "h_n", "c_n", "cells")
SETTINGS = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],  # on however slow a machine
)


@st.composite
def calls(draw: st.DrawFn) -> dict[str, object]:
    """The arguments of a layer's call, in float64; x and the weights with whatever strides."""
    # What matters most is drawn first: hypothesis tends to leave what comes late at its simplest.
    resets = draw(st.sampled_from([0.3, 0.3, 1.0, None]))
    directions, cell = draw(st.sampled_from([2, 1])), draw(st.sampled_from(sorted(CELLS)))
    layout = draw(st.sampled_from(["dense", "lengths", "packed"]))
    steps, batch = draw(st.integers(1, 9) | st.sampled_from([64, 65])), draw(st.integers(1, 9))
    features, hidden = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def tensor(*shape: int) -> Tensor:
        """Contiguous, or a permuted, sliced or expanded view."""
        kind = draw(st.sampled_from(["contiguous", "permuted", "sliced", "expanded"]))
        if kind == "permuted":
            order = draw(st.permutations(range(len(shape))))
            t = torch.randn([shape[i] for i in order], generator=generator, dtype=torch.float64)
            return t.permute([order.index(i) for i in range(len(shape))])
        if kind == "sliced":
            return torch.randn([2 * n for n in shape], generator=generator, dtype=torch.float64)[
                (slice(1, None, 2),) * len(shape)
            ]
        if kind == "expanded" and len(shape) > 1:
            return torch.randn(1, *shape[1:], generator=generator, dtype=torch.float64).expand(shape)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    lengths = torch.tensor(draw(st.lists(st.integers(1, steps), min_size=batch, max_size=batch)))
    batch_sizes = None
    if layout == "packed":
        lengths = lengths.sort(descending=True).values
        lengths[0] = steps
        batch_sizes = (lengths > torch.arange(steps)[:, None]).sum(1)
    x = tensor(int(lengths.sum()), features) if layout == "packed" else tensor(steps, batch, features)
    gates, bias = CELLS[cell].gates, draw(st.booleans())
    weights = []
    for _ in range(directions):
        shapes = [(gates * hidden, features), (gates * hidden, hidden)] + [(gates * hidden,)] * (2 if bias else 0)
        weights += [tensor(*shape) * hidden**-0.5 for shape in shapes]
    initial = draw(st.booleans())
    reset = None if resets is None else torch.rand(steps, batch, generator=generator) < resets
    return {
        "cell": cell,
        "x": x,
        "h0": tensor(directions, batch, hidden) if initial else None,
        "c0": tensor(directions, batch, hidden) if initial and CELLS[cell].has_c else None,
        "weights": weights,
        "bidirectional": directions == 2,
        "batch_sizes": batch_sizes,
        "lengths": lengths if layout == "lengths" else None,
        "reset": reset,
    }


def run(call: dict[str, object], tape: str | None) -> dict[str, Tensor]:
    """Outputs and gradients of a call: on the engine with ``tape``, on the reference with None."""
    leaves: dict[str, Tensor] = {}

    def leaf(name: str, t: Tensor) -> Tensor:
        leaves[f"d{name}"] = t = t.detach().requires_grad_()
        return t

    x = leaf("x", call["x"])
    h0, c0 = (leaf(name, call[name]) if call[name] is not None else None for name in ("h0", "c0"))
    weights = [leaf(f"w{i}", w) for i, w in enumerate(call["weights"])]
    shape = {name: call[name] for name in ("batch_sizes", "lengths", "reset")}
    if tape is None:
        results = reference.layer(call["cell"], x, h0, c0, weights, call["bidirectional"], **shape)
    else:
        has_c = CELLS[call["cell"]].has_c
        layout = _autograd.Layout(call["cell"], call["bidirectional"], tape, has_c)
        results = _autograd.layer(layout, x, h0, c0, weights, **shape)[: 4 if has_c else 2]
    outputs = {name: t for name, t in zip(NAMES, results, strict=False) if t is not None}
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randint(-8, 9, t.shape, generator=generator).to(t.dtype) / 8 for t in outputs.values()]
    found = torch.autograd.grad(list(outputs.values()), list(leaves.values()), upstream)
    return {name: t.detach() for name, t in outputs.items()} | dict(zip(leaves, found, strict=True))


# A wrong step, stride or mask shows in the first digit, rounding in the sixteenth; where terms cancel, as in tensors of
# one element, rounding comes up by some digits, not by half of them. How exact results are is test_engine.py's matter.
HALF_THE_DIGITS = torch.finfo(torch.float64).eps ** 0.5


@SETTINGS
@given(call=calls(), tape=st.sampled_from(["full", "lean"]))
def test_any_call(call: dict[str, object], tape: str) -> None:
    ours, truth = run(call, tape), run(call, None)
    assert ours.keys() == truth.keys()
    for name, true in truth.items():
        torch.testing.assert_close(ours[name], true, rtol=0, atol=HALF_THE_DIGITS * max(1.0, float(true.abs().max())))


def arguments(**changed: object) -> list[object]:
    """A good call of the operator with some arguments changed."""
    good = {
        "cell": "lstm",
        "x": torch.randn(5, 3, 4),
        "h0": torch.randn(1, 3, 2),
        "c0": torch.randn(1, 3, 2),
        "weights": [torch.randn(8, 4), torch.randn(8, 2)],
        "bidirectional": False,
        "batch_sizes": None,
        "lengths": None,
        "reset": None,
        "tape": "full",
        "cells": True,
    }
    return list((good | changed).values())


PACKED = {"x": torch.randn(6, 4), "h0": None, "c0": None}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cell": "peephole"}, "cell: expected"),
        ({"tape": "long"}, "tape: expected"),
        ({"x": torch.randn(5, 3)}, "x: expected 3 dimensions, got 2"),
        ({"x": torch.randn(5, 3, 4).long()}, "w_ih: expected Long, got Float"),
        ({"x": torch.randn(5, 3, 5)}, r"w_ih: expected size \[8, 5\], got \[8, 4\]"),
        ({"h0": torch.randn(1, 2, 2)}, r"h0: expected size \[1, 3, 2\], got \[1, 2, 2\]"),
        ({"c0": torch.randn(1, 3, 2).double()}, "c0: expected Float, got Double"),
        ({"weights": [torch.randn(8, 4)]}, "weights: expected 2 or 4, got 1"),
        ({"weights": [torch.randn(8, 4), torch.randn(6, 2)]}, r"w_hh: expected size \[8, 2\], got \[6, 2\]"),
        ({"bidirectional": True}, "weights: expected 4 or 8, got 2"),
        ({"reset": torch.zeros(3, 5, dtype=torch.bool)}, r"reset: expected size \[5, 3\], got \[3, 5\]"),
        ({"reset": torch.zeros(5, 3)}, "reset: expected Bool, got Float"),
        ({"lengths": torch.tensor([5, 6, 1])}, "lengths: expected numbers from 1 to 5, got 6"),
        ({"lengths": torch.tensor([5, 0, 1])}, "lengths: expected numbers from 1 to 5, got 0"),
        ({"lengths": torch.tensor([5, 1])}, r"lengths: expected size \[3\], got \[2\]"),
        ({"lengths": torch.tensor([5, 1, 1]).int()}, "lengths: expected Long, got Int"),
        (PACKED | {"batch_sizes": torch.tensor([2, 3, 1])}, "never rise, got 3 at step 1"),
        (PACKED | {"batch_sizes": torch.tensor([3, 2, 0])}, "positive numbers that never rise, got 0 at step 2"),
        (PACKED | {"batch_sizes": torch.tensor([3, 2])}, "expected a sum of 6, the rows of x, got 5"),
        (PACKED | {"batch_sizes": torch.tensor([], dtype=torch.long)}, "at least one step"),
        (PACKED | {"batch_sizes": torch.tensor([3, 2, 1]), "lengths": torch.tensor([1])}, "lengths: expected None"),
    ],
)
def test_wrong_calls_of_the_operator(changed: dict[str, object], message: str) -> None:
    """They raise before anything is computed, and leave the arguments as they were."""
    given_ = arguments(**changed)
    tensors = [t for t in given_ if isinstance(t, Tensor)]
    before = [t.clone() for t in tensors]
    with pytest.raises(RuntimeError, match=message):
        _ops.layer_forward(*given_)
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
