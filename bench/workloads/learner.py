"""A model in training: its optimiser, its updates, what they gave and took; several of them in turns."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bench import timing
from bench.check import MismatchError
from bench.workloads import processes
from bench.workloads.workload import Workload

# Adam divides by the size that gradients usually have, plus this. With the usual 1e-8, gradients that are hardly more
# than rounding become full steps, and a difference of one rounding unit grows the fastest: after 500 updates the losses
# of held-out characters differed by 0.45 (root mean square; learning rate 3e-3, perplexity 5.0). With 1e-3 and a
# learning rate of 4e-3 they differed by 7e-6 (perplexity 5.3). Measured with an LSTM of torch.nn, H=256, B=32, T=64.
ADAM_EPSILON = 1e-3
ADAM_BETAS = (0.9, 0.99)


class DivergedError(Exception):
    """Training does not work, with torch.nn either."""


@dataclass(frozen=True)
class Rates:
    """How strongly updates change a model: Adam's learning rate at first, and the norm gradients are clipped to."""

    learning: float
    clip: float


class Learner:
    """A model in training. With several processes (torchrun), each has its part of every batch.

    Attributes:
        losses: the mean loss of each update's items, before the update.
        seconds: what each update took.
        learning: the learning rate of each update.
        items: how many items an update had, on average, in all processes.
    """

    def __init__(self, name: str, model: nn.Module, workload: Workload, rates: Rates) -> None:
        self.name, self.model, self.rates, self._workload = name, model, rates, workload
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.learning: list[float] = []
        self._items = 0
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._adam = None
        if self._weights:
            # fused: one call for all weights, so that the recurrent layers are what takes the time
            self._adam = torch.optim.Adam(
                self._weights, lr=rates.learning, betas=ADAM_BETAS, eps=ADAM_EPSILON, fused=True
            )
        self._updates = workload.learn(processes.parallel(model))

    def update(self, learning: float) -> None:
        """One update at a learning rate."""
        torch.manual_seed(len(self.losses))  # whatever is drawn is the same in every model
        self.model.train()
        start = time.perf_counter()
        losses = next(self._updates)
        loss = losses.mean()
        if self._adam is not None and loss.requires_grad:
            for group in self._adam.param_groups:
                group["lr"] = learning
            self._adam.zero_grad()
            loss.backward()
            self._workload.clip_gradients(self.model, self.rates.clip)
            self._adam.step()
        value = loss.item()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(processes.mean(value))
        self.learning.append(learning)
        self._items += losses.numel() * processes.count()

    @property
    def items(self) -> float:
        """Of an update, on average."""
        return self._items / len(self.losses)

    def curve(self, points: int = 100) -> dict[str, list[float]]:
        """The loss against the seconds spent in updates, averaged over blocks of updates to that many points."""
        block = max(1, len(self.losses) // points)
        spent = torch.tensor(self.seconds, dtype=torch.float64).cumsum(0).tolist()
        ends = range(block, len(self.losses) + 1, block)
        return {
            "seconds": [spent[end - 1] for end in ends],
            "loss": [sum(self.losses[end - block : end]) / block for end in ends],
        }


def require_finite(baseline: Learner, ours: Learner) -> None:
    """See that the last update's losses are numbers.

    Raises:
        DivergedError: the baseline's is not one.
        MismatchError: the baseline's is, and ours is not.
    """
    theirs, mine = baseline.losses[-1], ours.losses[-1]
    if not math.isfinite(theirs):
        raise DivergedError(f"the loss of {baseline.name} is {theirs} after {len(baseline.losses):,} updates")
    if not math.isfinite(mine):
        raise MismatchError(f"update {len(ours.losses):,}: the loss of {ours.name} is {mine}, torch.nn's {theirs:.4f}")


def train(timed: Sequence[Learner], untimed: Sequence[Learner], updates: int | None, seconds: float) -> Iterator[float]:
    """Train all of them by turns, update by update, and yield how much of the whole is done after each.

    The learning rate falls to zero along half a cosine.

    Args:
        timed: whose order changes with every turn, so that none always follows another.
        untimed: those that come after them in every turn.
        updates: how many; None to train for so many ``seconds``, as the clock on the wall has it.
        seconds: of training, all models together, if ``updates`` is None.
    """
    start = time.perf_counter()
    done = 0.0
    k = 0
    while done < 1:
        for learner in (*timing.in_turns(timed, k), *untimed):
            learner.update(learner.rates.learning * (1 + math.cos(math.pi * done)) / 2)
        k += 1
        done = k / updates if updates is not None else min(1.0, (time.perf_counter() - start) / seconds)
        done = processes.agreed(done)
        yield done
