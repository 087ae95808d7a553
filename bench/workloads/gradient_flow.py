"""How far back gradients reach, and memories with them: vanishing gradients, seen and measured.

The gradient of a loss at step T with respect to the state at step t is a product of T - t Jacobians, so it fades or
grows exponentially with the distance, and what has faded cannot be learned (Hochreiter 1991; Bengio et al. 1994;
Pascanu et al. 2013). Two measurements show that, of the RNN with tanh and with ReLU, the LSTM and the GRU:

* the norm of the Jacobian d h_T / d h_t against T - t, over √H, so that the identity has norm 1; of the LSTM also that
  of d h_T / d c_t, the way past the gates that it was made for;
* a memory task: a marked symbol is followed by others, and has to be named so many steps later. Each network is trained
  at one distance alone. (With short distances among the long ones most networks learn the long ones too: having learned
  what is to be kept, they need not see it from afar.)

Each cell is started and trained in several ways (``--recipes``): as torch.nn starts it; with the norm of its gradient
clipped; orthogonally (:func:`fastrnn.init.orthogonal_`), LSTMs with a forget bias of 1
(:func:`fastrnn.init.forget_bias_`); and with both. Many small networks are one model here, which learn side by side and
know nothing of each other.
"""

import argparse
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from matplotlib.axes import Axes
from rich.console import RenderableType
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import fastrnn
from bench.results import Case, Row
from bench.style import CELL_COLOURS, FAINT, STYLE, plain
from bench.workloads.workload import DataError, Evaluation, Workload
from fastrnn._arguments import positive_int

CELLS: dict[str, Callable[[int, int], nn.RNNBase]] = {
    "rnn_tanh": nn.RNN,
    "rnn_relu": lambda inputs, hidden: nn.RNN(inputs, hidden, nonlinearity="relu"),
    "lstm": nn.LSTM,
    "gru": nn.GRU,
}
RECIPES = ("plain", "clipped", "orthogonal", "both")
HELD_OUT = 256  # sequences of each distance
BRIDGED = 0.9  # of the symbols that are named rightly
DISTANCES = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)  # at which Jacobians are looked at
SEQUENCES = 4  # over which they are averaged


class Rememberer(nn.Module):
    """A recurrent layer that names a symbol after a sequence."""

    def __init__(self, layer: nn.RNNBase, symbols: int) -> None:
        super().__init__()
        self.recurrent = layer
        self.output = nn.Linear(layer.hidden_size, symbols)

    def forward(self, x: Tensor) -> Tensor:
        """Sequences ``(T, B, S + 1)`` to logits ``(B, S)``."""
        y, _ = self.recurrent(x)
        return self.output(y[-1])


class Rememberers(nn.Module):
    """A network for each cell, recipe and distance; those of a cell and a recipe all start alike.

    Attributes:
        networks: by name, ``cell, recipe, distance`` with spaces between.
    """

    def __init__(self, recipes: Sequence[str], distances: Sequence[int], symbols: int, hidden: int) -> None:
        super().__init__()
        self.networks = nn.ModuleDict()
        for cell in CELLS:
            for recipe in recipes:
                network = Rememberer(CELLS[cell](symbols + 1, hidden), symbols)
                if recipe in ("orthogonal", "both"):
                    fastrnn.init.orthogonal_(network)
                    if cell == "lstm":
                        fastrnn.init.forget_bias_(network, 1.0)
                for distance in distances:
                    self.networks[f"{cell} {recipe} {distance}"] = copy.deepcopy(network)

    def forward(self, sequences: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Sequences of each distance, ``(distance + 1, B, S + 1)``, to each network's logits ``(B, S)``."""
        return {name: network(sequences[int(name.split()[2])]) for name, network in self.networks.items()}


class GradientFlow(Workload):
    """How far gradients and memories reach."""

    name = "gradient_flow"
    summary = "Measure how far gradients reach in RNNs, LSTMs and GRUs, and how many steps each can bridge."
    data = "there is none of that kind: symbols are drawn"
    items = "sequences"
    learning_rate = 1e-2
    seconds = 60.0  # there are many networks
    panels = 3

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        if options.data is not None:
            raise DataError("gradient_flow takes no --data: its symbols are drawn")
        self.initial: Rememberers | None = None

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["plain", "both"], help="how to train")
        parser.add_argument(
            "--distances", nargs="+", type=positive_int, default=[5, 10, 20, 40], help="of the memory task"
        )
        parser.add_argument("--symbols", type=positive_int, default=8, help="that there are to remember")
        parser.add_argument("--hidden", type=positive_int, default=32, help="units of each network")
        parser.add_argument("--batch", type=positive_int, default=32, help="sequences of an update, at each distance")

    @property
    def case(self) -> Case:
        o = self.options
        return Case("every cell", o.batch, max(o.distances) + 1, o.symbols + 1, o.hidden, 1, 1, "float32", "training")

    def describe(self) -> dict[str, Any]:
        o = self.options
        return {
            "task": f"one of {o.symbols} symbols to be remembered",
            "networks": len(CELLS) * len(o.recipes) * len(o.distances),
            "distances": f"steps to bridge: {', '.join(map(str, o.distances))}",
        }

    def model(self) -> Rememberers:
        o = self.options
        made = Rememberers(o.recipes, o.distances, o.symbols, o.hidden)
        self.initial = copy.deepcopy(made)
        return made

    def sequences(self, rows: int, dtype: torch.dtype) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """For each distance, sequences whose first step is marked, and the symbol ``(B,)`` that is there."""
        symbols = self.options.symbols
        inputs, targets = {}, {}
        for distance in self.options.distances:
            drawn = torch.randint(symbols, (distance + 1, rows))
            inputs[distance] = one_hot(drawn, symbols + 1).to(dtype)
            inputs[distance][0, :, symbols] = 1
            targets[distance] = drawn[0]
        return inputs, targets

    def learn(self, model: nn.Module) -> Iterator[Tensor]:
        while True:
            inputs, targets = self.sequences(self.options.batch, next(model.parameters()).dtype)
            logits = model(inputs)
            # summed over the networks, and not averaged: each has the gradient that it would have by itself
            yield torch.stack(list(_losses(logits, targets).values())).sum(0)

    def clip_gradients(self, model: nn.Module, largest: float) -> None:
        for name, network in cast(Rememberers, model).networks.items():
            if name.split()[1] in ("clipped", "both"):
                nn.utils.clip_grad_norm_(network.parameters(), largest)

    def evaluate(self, model: nn.Module) -> Evaluation:
        inputs, targets = self.sequences(HELD_OUT, next(model.parameters()).dtype)
        logits = model(inputs)
        right = _right(logits, targets)
        best = {(cell, recipe): 0 for recipe in reversed(self.options.recipes) for cell in ("lstm", "gru", *CELLS)}
        for name, part in right.items():
            cell, recipe, distance = name.split()
            if part >= BRIDGED:
                best[cell, recipe] = max(best[cell, recipe], int(distance))
        qualities = {f"steps, {cell} {recipe}": float(steps) for (cell, recipe), steps in best.items()}
        return Evaluation(torch.cat(list(_losses(logits, targets).values())), qualities)

    def findings(self, models: Mapping[str, nn.Module]) -> dict[str, Any]:
        assert self.initial is not None  # the runner has asked for a model first
        inputs, targets = self.sequences(HELD_OUT, torch.float32)
        steps = torch.randint(self.options.symbols, (max(DISTANCES) + 50, SEQUENCES))
        x = one_hot(steps, self.options.symbols + 1).float()
        found: dict[str, Any] = {}
        for engine, model in models.items():
            start = self.fast(self.initial) if engine == "fastrnn" else self.initial
            norms: dict[str, dict[str, dict[str, list[float]]]] = {"at start": {}, "after training": {}}
            for when, networks in (("at start", start), ("after training", model)):
                for cell, recipe, distance in self._shown(_right(model(inputs), targets)):
                    network = cast(Rememberers, networks).networks[f"{cell} {recipe} {distance}"]
                    norms[when][f"{cell} {recipe}"] = jacobian_norms(cast(Rememberer, network).recurrent, x)
            found[engine] = {"right": _right(model(inputs), targets), "norms": norms}
        return found

    def _shown(self, right: Mapping[str, float]) -> Iterator[tuple[str, str, int]]:
        """Of each cell and recipe the network of the longest distance that it bridges; of the shortest if of none."""
        distances = sorted(self.options.distances)
        for cell in CELLS:
            for recipe in self.options.recipes:
                bridged = [d for d in distances if right[f"{cell} {recipe} {d}"] >= BRIDGED]
                yield cell, recipe, max(bridged, default=distances[0])

    @staticmethod
    def show(row: Row) -> Sequence[RenderableType]:
        right = row.detail["findings"]["fastrnn"]["right"]
        distances = list(dict.fromkeys(name.split()[2] for name in right))
        table = Table("", *(f"{distance} steps" for distance in distances), title="symbols named rightly (fastrnn)")
        for way in dict.fromkeys(name.rpartition(" ")[0] for name in right):
            table.add_row(way, *(f"{right[f'{way} {distance}']:.0%}" for distance in distances))
        return (table,)

    @staticmethod
    def draw(start: Axes, trained: Axes, memory: Axes, row: Row) -> None:
        """The Jacobians' norms against the distance, before and after training, and what is remembered."""
        findings = row.detail["findings"]["fastrnn"]
        recipes = list(dict.fromkeys(name.split()[1] for name in findings["right"]))
        style = dict(zip(RECIPES, (":", "-.", "--", "-"), strict=True))
        for axes, (when, norms) in zip((start, trained), findings["norms"].items(), strict=True):
            for way, lines in norms.items():
                cell, recipe = way.split()
                for what, line in lines.items():
                    width = 1.6 if what == "h" else 0.8  # the thin line: with respect to the cell state
                    axes.plot(DISTANCES, line, style[recipe], color=CELL_COLOURS[cell], linewidth=width)
            axes.axhline(1, color=FAINT, linewidth=0.8)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_ylim(1e-9, 1e3)
            axes.set_xlabel("steps between them, T - t", **STYLE)
            axes.set_ylabel("norm of $∂h_T/∂h_t$ (thin: $∂h_T/∂c_t$) over √H", **STYLE)
            axes.set_title(f"gradients {when}", fontsize=9)
            plain(axes, grid="both")
        for way in dict.fromkeys(name.rpartition(" ")[0] for name in findings["right"]):
            cell, recipe = way.split()
            points = [(int(n.split()[2]), part) for n, part in findings["right"].items() if n.rpartition(" ")[0] == way]
            memory.plot(
                *zip(*sorted(points), strict=True), style[recipe], color=CELL_COLOURS[cell], marker="o", markersize=4
            )
        for cell in CELLS:
            memory.plot([], [], color=CELL_COLOURS[cell], label=cell)
        for recipe in recipes:
            memory.plot([], [], style[recipe], color=FAINT, label=recipe)
        memory.legend(frameon=False, fontsize=8)
        memory.set_xscale("log")
        memory.set_ylim(0, 1.05)
        memory.set_xlabel("steps between the symbol and the question", **STYLE)
        memory.set_ylabel("symbols named rightly, held-out sequences", **STYLE)
        memory.set_title("memory, each network trained at its distance alone", fontsize=9)
        plain(memory, grid="both")


def jacobian_norms(layer: nn.RNNBase, x: Tensor) -> dict[str, list[float]]:
    """The norms of d h_T / d h_t, and for an LSTM of d h_T / d c_t, at each of :data:`DISTANCES`.

    All H rows of a Jacobian are one batch: the sequence's last steps, H times, from the state at t.

    Args:
        layer: of one layer and direction.
        x: sequences ``(T, B, I)``, over which is averaged, of more steps than the largest distance.

    Returns:
        By the state's name, "h" and "c": Frobenius norms over √H, root mean squares over the sequences.
    """
    hidden, rows = layer.hidden_size, x.shape[1]
    # (B*H, H): a unit vector for each row of a Jacobian
    upstream = torch.eye(hidden, dtype=x.dtype, device=x.device).repeat(rows, 1)
    found: dict[str, list[float]] = {}
    for distance in DISTANCES:
        with torch.no_grad():
            _, state = layer(x[:-distance])
        parts = state if isinstance(state, tuple) else (state,)
        begin = [part.repeat_interleave(hidden, dim=1).requires_grad_() for part in parts]
        with torch.enable_grad():
            y, _ = layer(x[-distance:].repeat_interleave(hidden, dim=1), tuple(begin) if len(begin) > 1 else begin[0])
            jacobians = torch.autograd.grad(y[-1], begin, upstream)
        for name, jacobian in zip("hc", jacobians, strict=False):
            norm = float(jacobian.double().square().sum() / rows / hidden)
            found.setdefault(name, []).append(math.sqrt(norm))
    return found


def _losses(logits: Mapping[str, Tensor], targets: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """Each network's losses ``(B,)``."""
    return {
        name: cross_entropy(found, targets[int(name.split()[2])], reduction="none") for name, found in logits.items()
    }


def _right(logits: Mapping[str, Tensor], targets: Mapping[int, Tensor]) -> dict[str, float]:
    """The part of the symbols that each network names rightly."""
    return {
        name: float((found.argmax(1) == targets[int(name.split()[2])]).double().mean())
        for name, found in logits.items()
    }
