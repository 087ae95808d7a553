"""The one rule by which results are judged right.

The yardstick is torch.nn in the same dtype: a result may be off from the float64 truth by no more than twice what
torch.nn's own result is (three times for gradients), plus a floor of a few roundings of the dtype. In float64 the
floor is higher: the truth is rounded there as well, and where torch.nn does the same operations it is not even off.
An error is the largest absolute difference, relative to the largest absolute value of the truth.
"""

import torch
from torch import Tensor
from torch.nn import Module

FORWARD, GRADIENT = 2.0, 3.0
ROUNDINGS, ROUNDINGS_FLOAT64 = 4, 32


def error(result: Tensor, truth: Tensor) -> float:
    """How far ``result`` is off from ``truth`` (float64); NaN counts as infinitely far."""
    if truth.numel() == 0:
        return 0.0
    truth = truth.detach()
    scale = truth.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float(((result.detach().double() - truth).abs().max() / scale).nan_to_num(nan=float("inf")))


def allowed(torchs: Tensor, truth: Tensor, gradient: bool) -> float:
    """How far a result may be off where torch.nn, in the same dtype, computes ``torchs``."""
    return bound(error(torchs, truth), torchs.dtype, gradient)


def bound(torchs_error: float, dtype: torch.dtype, gradient: bool) -> float:
    """The same where torch.nn's result is off by ``torchs_error``."""
    floor = (ROUNDINGS_FLOAT64 if dtype == torch.float64 else ROUNDINGS) * torch.finfo(dtype).eps
    return (GRADIENT if gradient else FORWARD) * torchs_error + floor


def away_from_the_kink(layer: Module) -> None:
    """Make a ReLU layer's units far from the kink, on or off: which side a rounding falls on is nobody's mistake."""
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if name.startswith("weight_hh"):
                p.mul_(0.25)
            elif name.startswith("bias_ih"):
                p.copy_(torch.arange(len(p), device=p.device) % 2 * 12 - 6)
