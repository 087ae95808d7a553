"""The gate functions alone: accurate, and right where numbers end."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastrnn.kernels import gates


@triton.jit
def both(x_ptr, sigmoid_ptr, tanh_ptr, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    x = tl.load(x_ptr + at)
    tl.store(sigmoid_ptr + at, gates.sigmoid(x))
    tl.store(tanh_ptr + at, gates.tanh(x))


def compute(x: Tensor) -> tuple[Tensor, Tensor]:
    found = torch.empty_like(x), torch.empty_like(x)
    both[(1,)](x, *found, COUNT=len(x))
    return found


def ulps(found: Tensor, x: Tensor, function: object) -> float:
    """How far off, in units of the last place of the truth."""
    truth = function(x.double()) if x.dtype == torch.float32 else function(x)
    nearest = truth.to(x.dtype).abs()
    place = torch.nextafter(nearest, torch.full_like(nearest, torch.inf)) - nearest
    return float(((found.double() - truth).abs() / place).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_accuracy(dtype: torch.dtype) -> None:
    x = torch.cat([torch.linspace(-9, 9, 2**16 - 2**12), torch.logspace(-12, 0, 2**12)]).to(dtype)
    sigmoid, tanh = compute(x)
    assert ulps(sigmoid, x, torch.sigmoid) <= 4
    assert ulps(tanh, x, torch.tanh) <= 4


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # exp overflows where 1 / inf is meant to be 0
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ends(dtype: torch.dtype) -> None:
    x = torch.tensor([-torch.inf, -1e30, -800, -0.0, 0.0, 800, 1e30, torch.inf], dtype=dtype)
    sigmoid, tanh = compute(x)
    assert sigmoid.tolist() == [0, 0, 0, 0.5, 0.5, 1, 1, 1]
    assert tanh.tolist() == [-1, -1, -1, 0, 0, 1, 1, 1]
    assert all(t.isnan().all() for t in compute(torch.full((4,), torch.nan, dtype=dtype)))


@triton.jit
def relu_backward(h_ptr, dh_ptr, found_ptr, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    dh = tl.load(dh_ptr + at)
    dpre, _, _ = gates.backward((tl.load(h_ptr + at),), dh, dh, "rnn_relu")
    tl.store(found_ptr + at, dpre[0])


def test_a_gradient_passes_a_relu_of_nan_as_in_torch() -> None:
    x = torch.tensor([-1.0, -0.0, 1.0, torch.nan]).requires_grad_()
    dh, found = torch.tensor([2.0, 3.0, 5.0, 7.0]), torch.empty(4)
    h = torch.relu(x)
    relu_backward[(1,)](h.detach(), dh, found, 4)
    assert torch.equal(found, torch.autograd.grad(h, x, dh)[0])
