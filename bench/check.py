"""The same numbers, or nothing is timed: outputs and gradients against a float64 reference.

What a contestant computes is judged as the tests judge it (:mod:`fastrnn._accuracy`): by how far torch.nn itself is off
from the reference in the same dtype.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bench.contestants import CellLoop
from fastrnn._accuracy import allowed, error

INFERENCE = " in inference"


class MismatchError(Exception):
    """A contestant computes something else than torch.nn."""


@dataclass(frozen=True)
class Computed:
    """What a model computed, by name."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor] = field(default_factory=dict)


def compare(name: str, ours: Computed, theirs: Computed, reference: Computed) -> float:
    """Compare what a contestant computed with what torch.nn did.

    Args:
        name: the contestant, for the message.
        ours: what it computed.
        theirs: what torch.nn computed, in the same dtype.
        reference: the same in float64.

    Returns:
        The contestant's largest error, as a multiple of torch.nn's own error and a rounding unit.

    Raises:
        MismatchError: a tensor is further off than the rule allows, or has another dtype or shape.
    """
    return max(
        _compare(name, ours.outputs, theirs.outputs, reference.outputs, gradient=False),
        _compare(name, ours.gradients, theirs.gradients, reference.gradients, gradient=True),
    )


def check_stacks(
    stacks: Mapping[str, nn.Module],
    baseline: nn.Module,
    x: Tensor,
    reference: nn.Module | None = None,
    training: bool = True,
    left_out: dict[str, str] | None = None,
    under: Mapping[str, Callable[[], AbstractContextManager[None]]] | None = None,
) -> dict[str, float]:
    """Check stacks with the baseline's weights against it: outputs, last states, and gradients through all of them.

    Inference is checked apart from training, as an engine may take another way there; it is all that is checked of a
    stack that says ``inference_only``.

    Args:
        stacks: the contestants by name, without the baseline.
        baseline: the stack of torch.nn.
        x: the input, ``(T, B, I)``.
        reference: computes the same, to be run in float64; it becomes float64. None: a loop over torch.nn's cells.
        training: whether to check more than inference.
        left_out: where contestants other than fastrnn go, with the reason, if they are off. None: they raise as well.
        under: contexts that contestants compute in, forward and backward.

    Returns:
        Each contestant's largest error, as a multiple of torch.nn's own error and a rounding unit.

    Raises:
        MismatchError: a contestant computes something else than torch.nn.
    """
    weights = [name for name, _ in baseline.named_parameters()]
    truth = _run(reference or CellLoop(baseline), x, torch.float64, weights, training)
    theirs = _run(baseline, x, x.dtype, weights, training)
    ratios = {}
    for name, stack in stacks.items():
        trains = training and not getattr(stack, "inference_only", False)
        with (under or {}).get(name, nullcontext)():
            ours = _run(stack, x, x.dtype, weights, trains)
        try:
            ratios[name] = compare(name, ours, *((theirs, truth) if trains else (_inferred(theirs), _inferred(truth))))
        except MismatchError as mismatch:
            if left_out is None or name == "fastrnn":
                raise
            left_out[name] = str(mismatch)
    return ratios


def _compare(
    name: str,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    gradient: bool,
) -> float:
    what = "the gradient of " if gradient else ""
    if ours.keys() != theirs.keys():
        raise MismatchError(f"{name} gives {what}{sorted(ours)}, torch.nn {sorted(theirs)}")
    largest = 0.0
    for key, truth in reference.items():
        mine, torchs = ours[key], theirs[key]
        if mine.dtype != torchs.dtype or mine.shape != torchs.shape:
            raise MismatchError(
                f"{name}: {what}{key} is {mine.dtype} {tuple(mine.shape)}, "
                f"torch.nn's {torchs.dtype} {tuple(torchs.shape)}"
            )
        off, torchs_off, limit = error(mine, truth), error(torchs, truth), allowed(torchs, truth, gradient)
        if off > limit:
            raise MismatchError(
                f"{name}: {what}{key} is off by {off:.1e} from the float64 reference and torch.nn's by "
                f"{torchs_off:.1e}; {limit:.1e} is allowed"
            )
        largest = max(largest, off / (torchs_off + torch.finfo(mine.dtype).eps))
    return largest


def _run(stack: nn.Module, x: Tensor, dtype: torch.dtype, weights: list[str], training: bool) -> Computed:
    """Outputs in inference and, with ``training``, in training, and gradients; ``dtype`` is what it is computed in."""
    checked = x.dtype
    stack, x = stack.to(dtype), x.to(dtype)
    stack.eval()
    with torch.inference_mode():
        inference = _outputs(stack(x), INFERENCE)
    if not training:
        return Computed(inference)
    stack.train()
    x = x.clone().requires_grad_()
    outputs = _outputs(stack(x), " in training")
    generator = torch.Generator(x.device).manual_seed(0)
    # rounded to the dtype that is checked, so that the float64 reference backpropagates the very same numbers
    drawn = [torch.randn(v.shape, generator=generator, device=v.device) for v in outputs.values()]
    upstream = [numbers.to(checked).to(dtype) for numbers in drawn]
    inputs = [x, *stack.parameters()]  # in the same order in every contestant
    gradients = torch.autograd.grad(list(outputs.values()), inputs, upstream)
    detached = {name: value.detach() for name, value in outputs.items()}
    return Computed(inference | detached, dict(zip(["x", *weights], gradients, strict=True)))


def _inferred(computed: Computed) -> Computed:
    """The part of it that is inference."""
    return Computed({name: value for name, value in computed.outputs.items() if name.endswith(INFERENCE)})


def _outputs(returned: tuple[Tensor, Tensor | tuple[Tensor, ...]], where: str) -> dict[str, Tensor]:
    y, state = returned
    values = (y, *state) if isinstance(state, tuple) else (y, state)
    return {f"{name}{where}": value for name, value in zip(("y", "h_n", "c_n"), values, strict=False)}
