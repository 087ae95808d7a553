"""That two models with the same weights compute the same, judged by float64: updates, and losses of a held-out text.

On a trained model the largest error of a single window says little: where the recurrence amplifies rounding, in a row
or two of some windows, two correct engines end up many times as far from float64 as each other. (On one window a loop
over torch.nn's own cells was six times as far off as torch.nn, on 40 others at most 1.2 times.) So most windows have
to agree, and losses are compared by their root mean square.
"""

import copy

import torch
from torch import Tensor

from bench.check import Computed, MismatchError, compare
from bench.corpus import Streams
from bench.workloads.character_model import CharacterModel, State, like, losses
from fastrnn._accuracy import FORWARD, ROUNDINGS

WINDOWS = 5  # that are compared, of which three have to agree


def check_updates(
    baseline: CharacterModel, ours: CharacterModel, streams: Streams, first: int, state: State | None
) -> float:
    """Check logits and gradients on some windows; both models have the same weights, and keep them.

    Args:
        baseline: torch.nn's.
        ours: fastrnn's.
        streams: the batches.
        first: number of the first window.
        state: what the baseline carries into it.

    Returns:
        The largest error in windows that agree, as a multiple of torch.nn's own and a rounding unit.

    Raises:
        MismatchError: fastrnn computes something else than torch.nn.
    """
    exact = copy.deepcopy(baseline).double()
    ratios, mismatches = [], []
    for k in range(first, first + WINDOWS):
        inputs, targets = streams.window(k)
        if streams.begins(k):
            state = None
        reference, theirs, mine = (_computed(model, inputs, targets, state) for model in (exact, baseline, ours))
        for name, value in (mine.outputs | mine.gradients).items():
            if not value.isfinite().all():
                raise MismatchError(f"fastrnn: {name} has values that are no numbers")
        try:
            ratios.append(compare("fastrnn", mine, theirs, reference))
        except MismatchError as error:
            mismatches.append(error)
        with torch.no_grad():
            _, state = baseline(inputs, state)
    if len(mismatches) > WINDOWS // 2:
        raise mismatches[0]
    return max(ratios)


def check_losses(ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """Check a held-out text's losses under the same weights: fastrnn's, torch.nn's, and in float64.

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


def _computed(model: CharacterModel, inputs: Tensor, targets: Tensor, state: State | None) -> Computed:
    """Logits and gradients of one update, in the model's dtype."""
    model.train()
    names, weights = zip(*model.named_parameters(), strict=True)
    logits, _ = model(inputs, like(weights[0], state))
    gradients = torch.autograd.grad(losses(logits, targets).mean(), weights)
    return Computed({"logits": logits.detach()}, dict(zip(names, gradients, strict=True)))
