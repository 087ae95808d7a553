"""What a workload is: data, a model of torch.nn's layers, what it learns from, and how well it does.

A file of this folder has a model and a :class:`Workload`, and nothing else that its problem does not need; the runner
(:mod:`bench.workloads.runner`) trains it with torch.nn and with fastrnn, compares, times, and shows what it found.
"""

import argparse
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.console import RenderableType
from torch import Tensor, nn

import fastrnn
from bench.corpus import DataError as DataError  # what a workload raises
from bench.results import Case, Row


@dataclass(frozen=True)
class Evaluation:
    """What a model does with held-out items.

    ``losses`` is the loss of each, ``(N,)``, always of the same items in the same order: by these, models are compared.
    ``qualities`` has numbers for people by name, such as ``{"accuracy": 0.98}``, the most important first.
    """

    losses: Tensor
    qualities: dict[str, float]


class Workload(ABC):
    """A problem for recurrent networks: subclass it, and give the runner the subclass.

    Random numbers: the runner seeds torch before the data are loaded, before the model is made, and before every update
    alike for every model; a workload needs no seeds of its own.

    Args:
        options: what the command line says: ``data``, ``seed``, ``learning_rate``, ``clip``, and what
            :meth:`add_arguments` has added. Raises DataError where data cannot be used.
    """

    name: ClassVar[str]
    summary: ClassVar[str]  # what it is in a line, for the command line's help
    data: ClassVar[str]  # the plain format of the user's own files, for the help of --data
    items: ClassVar[str] = "items"  # what losses are of, in the plural
    learning_rate: ClassVar[float] = 6e-3  # of Adam, at first; it falls to zero
    clip: ClassVar[float] = 1.0  # largest norm of the gradients
    seconds: ClassVar[float] = 25.0  # of training: all workloads together take less than ten minutes

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    @classmethod
    @abstractmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the workload's own flags; defaults are of a run of half a minute."""

    @property
    @abstractmethod
    def case(self) -> Case:
        """The sizes, for the results."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The data in a few words and numbers, as JSON has them: shown, and kept in the results."""

    @abstractmethod
    def model(self) -> nn.Module:
        """A new model of torch.nn's layers."""

    def fast(self, model: nn.Module) -> nn.Module:
        """The same model, of the same weights, with fastrnn: a copy, whose state_dict has the same names."""
        return fastrnn.convert(copy.deepcopy(model))

    @abstractmethod
    def learn(self, model: nn.Module) -> Iterator[Tensor]:
        """Yield the losses ``(N,)`` of the items of update after update, for ever.

        In between the runner takes the gradient of their mean and updates the weights. Every call starts from the
        beginning and goes through the same batches, whichever model it is for. The model may be in float64: inputs that
        are not numbers of symbols have to be of the dtype of its weights. Losses that need no gradient are timed and
        compared alike, and nothing is updated.
        """

    def clip_gradients(self, model: nn.Module, largest: float) -> None:
        """Make the gradients' norm no larger than that; here, that of all of them together."""
        nn.utils.clip_grad_norm_(model.parameters(), largest)

    @abstractmethod
    def evaluate(self, model: nn.Module) -> Evaluation:
        """Held-out items, under ``torch.no_grad()`` and in eval mode."""

    def findings(self, models: Mapping[str, nn.Module]) -> dict[str, Any]:
        """What else the trained models by name (``"torch.nn"``, ``"fastrnn"``) have to tell, as JSON has it.

        Under ``torch.no_grad()`` and in eval mode, for the results, :meth:`show` and :meth:`draw`.
        """
        return {}

    @staticmethod
    def show(row: Row) -> Sequence[RenderableType]:
        """What is printed of the findings (``row.detail["findings"]``) when this workload is run by itself."""
        return ()

    # A static method, if there is something to draw beside the training curves: it has panels of its own, as many
    # axes as it says, and then the row.
    draw: ClassVar[Callable[..., None] | None] = None
    panels: ClassVar[int] = 1
