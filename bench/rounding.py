"""What rounding alone does to a training run: the tolerance for the results of two runs that compute the same.

Training amplifies the smallest difference, so two correct runs end up apart; by how much depends on the model, the
data and the number of updates. It is therefore measured: a second torch.nn model starts one rounding unit away from the
first and is trained alike. What lies between these two is the work of rounding, and another engine may be as far away,
within a factor. Distances are root mean squares over the losses of all held-out tokens, which say much more than two
perplexities: a mean of so many squares hardly depends on the direction in which chance took the run.
"""

import copy
import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

# Six pairs of torch.nn models one rounding unit apart (LSTM, H=256, 500 updates) lay within 2.7 times of each other
# where differences grew fastest (30 updates), within 1.2 times at the end.
FACTOR = 3.0
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Deviation:
    """How far a trained model is from torch.nn's, in nats of loss per held-out token (root mean square).

    ``rounding`` is how far rounding moves torch.nn from itself, ``tolerance`` what follows from it. As a mean is never
    above a root mean square, the logarithms of the two perplexities cannot differ by more than ``measured``.
    """

    measured: float
    rounding: float
    tolerance: float

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains the deviation; one that is NaN is explained by nothing."""
        return self.measured <= self.tolerance


def moved_by_rounding(model: M, seed: int = 0) -> M:
    """A copy with every weight one rounding unit away, up or down at random."""
    generator = torch.Generator().manual_seed(seed)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for weight in moved.parameters():
            up = torch.rand(weight.shape, generator=generator) < 0.5
            towards = torch.where(up, math.inf, -math.inf).to(weight.dtype)
            weight.copy_(torch.nextafter(weight, towards))
    return moved


def deviation(losses: Tensor, torch_losses: Tensor, moved_losses: Tensor) -> Deviation:
    """Compare trained models by their losses on the same held-out tokens, ``(N,)`` each.

    Args:
        losses: of the model in question.
        torch_losses: of torch.nn's.
        moved_losses: of torch.nn's that began one rounding unit away and was trained alike.
    """
    rounding = _root_mean_square(moved_losses - torch_losses)
    floor = torch.finfo(torch.float32).eps * float(torch_losses.double().mean())  # of the losses themselves
    return Deviation(_root_mean_square(losses - torch_losses), rounding, FACTOR * rounding + floor)


def _root_mean_square(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
