"""That two models with the same weights compute the same, judged by float64: updates, and losses of held-out items.

On a trained model the largest error of a single batch says little: where the recurrence amplifies rounding, in a row
or two of some batches, two correct engines end up many times as far from float64 as each other. (On one window of text
a loop over torch.nn's own cells was six times as far off as torch.nn, on 40 others at most 1.2 times.) So most batches
have to agree, and held-out losses are compared by their root mean square.
"""

import copy
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from bench.check import Computed, MismatchError, compare
from bench.workloads.workload import Workload
from fastrnn._accuracy import FORWARD, ROUNDINGS

BATCHES = 5  # that are compared, of which three have to agree


def check_updates(workload: Workload, baseline: nn.Module, ours: nn.Module) -> float:
    """Check losses and gradients of the first batches; both models have the same weights, and keep them.

    Args:
        workload: the batches.
        baseline: torch.nn's.
        ours: fastrnn's.

    Returns:
        The largest error in batches that agree, as a multiple of torch.nn's own and a rounding unit.

    Raises:
        MismatchError: fastrnn computes something else than torch.nn.
    """
    # copies, since updates may change more than weights: running means, or what is found without a gradient
    models = copy.deepcopy(baseline).double(), copy.deepcopy(baseline), copy.deepcopy(ours)
    ratios, mismatches = [], []
    each = (_updates(workload, model) for model in models)
    for reference, theirs, mine in islice(zip(*each, strict=True), BATCHES):
        for name, value in (mine.outputs | mine.gradients).items():
            if not value.isfinite().all():
                raise MismatchError(f"fastrnn: {name} has values that are no numbers")
        try:
            ratios.append(compare("fastrnn", mine, theirs, reference))
        except MismatchError as error:
            mismatches.append(error)
    if len(mismatches) > BATCHES // 2:
        raise mismatches[0]
    return max(ratios)


def check_losses(ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """Check the losses of held-out items under the same weights: fastrnn's, torch.nn's, and in float64.

    Raises:
        MismatchError: fastrnn computes something else than torch.nn.
    """
    off, torchs_off = (float((found.double() - exact).norm() / exact.norm()) for found in (ours, theirs))
    allowed = FORWARD * torchs_off + ROUNDINGS * torch.finfo(theirs.dtype).eps
    if not off <= allowed:  # also where it is NaN
        raise MismatchError(
            f"fastrnn: held-out losses of the same weights are off by {off:.1e} from float64 and torch.nn's by "
            f"{torchs_off:.1e}; {allowed:.1e} is allowed"
        )


def _updates(workload: Workload, model: nn.Module) -> Iterator[Computed]:
    """Losses and gradients of update after update, without any change of weights."""
    model.train()
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    updates = workload.learn(model)
    k = 0
    while True:
        torch.manual_seed(k)
        losses = next(updates)
        gradients = torch.autograd.grad(losses.mean(), list(weights.values())) if losses.requires_grad else ()
        yield Computed({"losses": losses.detach()}, dict(zip(weights, gradients, strict=losses.requires_grad)))
        k += 1
