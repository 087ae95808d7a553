"""End-to-end programs: a whole model trained by torch.nn and by fastrnn side by side (``python -m bench workloads``).

Each file of a :class:`~bench.workloads.workload.Workload` is an example to copy: data, a model, what it learns from,
and how well it does. :mod:`bench.workloads.runner` does everything else.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.workloads.workload import Workload

# By name, in the order in which they are run: the module of that name has the class. Nothing is imported before it is
# needed.
NAMES = {
    "language_model": "LanguageModel",
    "tagging": "Tagging",
    "classification": "Classification",
    "encoder": "Encoder",
    "seq2seq": "Seq2seq",
    "captioning": "Captioning",
    "gradient_flow": "GradientFlow",
    "echo_state": "EchoState",
    "partially_observed_control": "PartiallyObservedControl",
}


def find(name: str) -> "type[Workload]":
    """The workload of a name."""
    found: type[Workload] = getattr(import_module(f"bench.workloads.{name}"), NAMES[name])
    return found
