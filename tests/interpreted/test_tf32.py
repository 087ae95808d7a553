"""Products in tf32 by the rule of the accuracy: matrix units cut factors off, and the kernels see to it beforehand."""

from functools import partial

import pytest
import torch
import triton
import triton.language as tl
from rig.operators import computed_by
from torch import Tensor

from fastrnn import _autograd
from fastrnn._accuracy import allowed, error
from fastrnn.kernels import layer, tf32
from fastrnn.kernels.plan import Plan

PLANS = {
    "resident": Plan("resident", "a test", precision="tf32"),
    "grid": Plan("grid", "a test", units=16, depth=16, precision="tf32"),
    "stepwise": Plan("stepwise", "a test", units=32, depth=32, precision="tf32"),
}
STEPS, BATCH, INPUTS, HIDDEN = 40, 4, 3, 32


def nearest(x: Tensor) -> Tensor:
    """In tf32."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class Rounded(torch.autograd.Function):
    """``h W_hh'`` with factors rounded to nearest, also of the gradient of h; torch has W_hh's itself."""

    @staticmethod
    def forward(ctx: object, h: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(h, w)
        return nearest(h) @ nearest(w).t()

    @staticmethod
    def backward(ctx: object, g: Tensor) -> tuple[Tensor, Tensor]:
        h, w = ctx.saved_tensors
        return nearest(g) @ nearest(w), g.t() @ h


def readable(cell: str, x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    """The layer, in float32 with rounded factors, in float64 as it is."""
    h = c = x.new_zeros(x.shape[1], w_hh.shape[1])
    outputs = []
    for pre in x @ w_ih.t() + b_ih:
        product = b_hh + (Rounded.apply(h, w_hh) if x.dtype == torch.float32 else h @ w_hh.t())
        if cell == "lstm":
            i, f, g, o = (pre + product).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        else:
            (r, z, n), (r_h, z_h, n_h) = pre.chunk(3, 1), product.chunk(3, 1)
            r, z = (r + r_h).sigmoid(), (z + z_h).sigmoid()
            h = (1 - z) * (n + r * n_h).tanh() + z * h
        outputs.append(h)
    return torch.stack(outputs)


def ours(cell: str, x: Tensor, *weights: Tensor) -> Tensor:
    layout = _autograd.Layout(cell, False, "full", False)
    return _autograd.layer(layout, x, None, None, list(weights), None, None, None)[0]


@pytest.mark.parametrize("kernels", PLANS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_factors_are_as_good_as_rounded(cell: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of any numbers, and those that are exact in tf32, of which rounding changes none."""
    plan, gates = PLANS[kernels], {"lstm": 4, "gru": 3}[cell]
    computed_by(monkeypatch, partial(layer.forward, plan), partial(layer.backward, plan))
    bound = HIDDEN**-0.5
    shapes = [(gates * HIDDEN, INPUTS), (gates * HIDDEN, HIDDEN), (gates * HIDDEN,), (gates * HIDDEN,)]
    weights = [torch.empty(shape).uniform_(-bound, bound) for shape in shapes]
    x, upstream = torch.randn(STEPS, BATCH, INPUTS), torch.randn(STEPS, BATCH, HIDDEN)
    for exact in (False, True):
        if exact:
            weights[1] = weights[1].bfloat16().float()
        results = []
        for function, dtype in ((ours, torch.float32), (readable, torch.float32), (readable, torch.float64)):
            leaves = [t.to(dtype).requires_grad_() for t in (x, *weights)]
            y = function(cell, *leaves)
            results.append([y.detach(), *torch.autograd.grad(y, leaves, upstream.to(dtype))])
        for k, (found, theirs, true) in enumerate(zip(*results, strict=True)):
            assert error(found, true) <= allowed(theirs, true, gradient=k > 0)


@triton.jit
def rounding_kernel(x_ptr, y_ptr, N: tl.constexpr, PRECISION: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y_ptr + i, tf32.rounded(tl.load(x_ptr + i), PRECISION))


def test_the_nearest_number_and_what_is_none() -> None:
    numbers = [1.0, -1.0, 1 + 2**-11, 1 + 2**-11 - 2**-20, -(1 + 3 * 2**-11), 0.0, 2.0**-100, 3.4e38]
    x = torch.tensor([*numbers, float("inf"), -float("inf"), float("nan")] + 5 * [0.1])
    x[-1] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # what GPUs give for a NaN
    y, same = torch.empty(2, 16)
    rounding_kernel[(1,)](x, y, 16, "tf32")
    rounding_kernel[(1,)](x, same, 16, "ieee")
    seen = (y.view(torch.int32) & ~0x1FFF).view(torch.float32)
    expected = [1.0, -1.0, 1 + 2**-10, 1.0, -(1 + 2**-9), 0.0, 2.0**-100, 3.4e38]
    torch.testing.assert_close(seen[:8], torch.tensor(expected), rtol=2**-11, atol=0)
    assert seen[:6].tolist() == expected[:6]
    assert torch.equal(seen[8:10], x[8:10])
    assert seen[[10, 15]].isnan().all()
    assert torch.equal(same.view(torch.int32), x.view(torch.int32))
