"""What rounding alone does to a training run: the tolerance for the results of two runs that compute the same.

Training amplifies the smallest difference, so two correct runs end up apart; by how much depends on the model, the
data and the number of updates. It is therefore measured: other torch.nn models start one rounding unit away from the
first and are trained alike. What lies between them and the first is the work of rounding, and another engine may be as
far away, within a factor.

A distance is the root mean square of the differences in loss over the pages of a held-out text, or any other held-out
items in a row. The mean over all pages is never above it, so it bounds how far apart the logarithms of two perplexities
are, and it depends less on chance than their difference, which may vanish by accident. It does depend on chance:
while differences grow they lie in the few directions that grow the fastest, and the distances of equal runs then spread
like the sizes of a few normal variables.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

# How many times as far as rounding takes torch.nn another engine may be, by the number of torch.nn models that were
# moved. Where one direction prevails, the ratio has Student's t distribution with as many degrees of freedom: with
# three, one run in 500 that computes the same is beyond 10 times. With one, every fifth would be beyond 3 times (every
# tenth was, of small LSTMs of torch.nn), so that beyond it the question is open and more are trained.
FACTORS = {1: 3.0, 3: 10.0}
PAGES = 100  # of equally many held-out items, about
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Deviation:
    """How far a trained model is from torch.nn's, in nats of the loss, and how far rounding takes torch.nn."""

    measured: float
    rounding: float
    tolerance: float

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains the deviation; one that is NaN is explained by nothing."""
        return self.measured <= self.tolerance


def moved_by_rounding(model: M, seed: int) -> M:
    """A copy with every weight one rounding unit away, up or down at random."""
    generator = torch.Generator().manual_seed(seed)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for weight in moved.parameters():
            up = torch.rand(weight.shape, generator=generator) < 0.5
            towards = torch.where(up, math.inf, -math.inf).to(weight.dtype)
            weight.copy_(torch.nextafter(weight, towards))
    return moved


def deviation(losses: Tensor, torch_losses: Tensor, moved_losses: Sequence[Tensor]) -> Deviation:
    """Compare trained models by their losses of the same held-out items, ``(N,)`` each, in the same order.

    Args:
        losses: of the model in question.
        torch_losses: of torch.nn's.
        moved_losses: of torch.nn's that began one rounding unit away and were trained alike: one or three.
    """
    rounding = math.hypot(*(_distance(moved, torch_losses) for moved in moved_losses)) / math.sqrt(len(moved_losses))
    floor = torch.finfo(torch.float32).eps * float(torch_losses.double().mean())  # of the losses themselves
    return Deviation(_distance(losses, torch_losses), rounding, FACTORS[len(moved_losses)] * rounding + floor)


def _distance(losses: Tensor, others: Tensor) -> float:
    """Between items alone where there are too few to make pages of."""
    differences = losses.double() - others.double()
    length = max(1, differences.numel() // PAGES)
    pages = differences[: differences.numel() // length * length].view(-1, length)
    return float(pages.mean(1).square().mean().sqrt())
