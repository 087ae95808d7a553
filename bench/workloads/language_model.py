"""A language model: characters or words of a text, each guessed from those before it (``make demo``).

Many to many, synchronous: teacher forcing, truncated backpropagation through time with the state carried from window
to window, and text drawn from the trained model, a symbol at a time. Two processes started by torchrun, of half the
``--batch`` each, learn what one does:

    torchrun --nproc-per-node 2 -m bench workloads language_model --batch 16
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from rich.console import RenderableType
from rich.panel import Panel
from rich.text import Text
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fastrnn
from bench import corpus
from bench.results import Case, Row
from bench.workloads import processes
from bench.workloads.layers import LAYERS
from bench.workloads.workload import DataError, Evaluation, Workload
from fastrnn._arguments import positive_float, positive_int

State = Tensor | tuple[Tensor, ...]
SAMPLED = 400  # symbols


class Model(nn.Module):
    """Embedding, recurrent stack, linear layer.

    Args:
        cell: a key of :data:`~bench.workloads.layers.LAYERS`.
        symbols: how many there are, V.
        embedding: features of a symbol, the input I of the stack.
        hidden: hidden units H of each layer.
        layers: of the stack.
        tied: whether the embedding of a symbol is also what its logit is computed with (Press & Wolf 2017); ``hidden``
            is then ``embedding``.
    """

    def __init__(self, cell: str, symbols: int, embedding: int, hidden: int, layers: int, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, embedding)
        self.recurrent = LAYERS[cell](embedding, hidden, layers)
        self.output = nn.Linear(hidden, symbols)
        if tied:
            self.embedding.weight = self.output.weight

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Symbol numbers ``(T, B)`` and a state to the next symbols' logits ``(T, B, V)`` and the state after them."""
        y, state = self.recurrent(self.embedding(inputs), state)
        return self.output(y), state


class LanguageModel(Workload):
    """The next symbol of a text."""

    name = "language_model"
    summary = "Train a language model of characters or words."
    data = "a text file, or a folder of text files, in UTF-8; else the sources of Python's own library"
    items = "tokens"

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        if options.tied and options.embedding != options.hidden:
            raise DataError(f"--tied needs as many features as units: --embedding {options.hidden}")
        if options.back is not None and options.back < options.steps:
            raise DataError(f"--back needs to be at least --steps, which is {options.steps}")
        texts = corpus.read(options.data)
        self.files = len(texts.train), len(texts.heldout)
        self.text = corpus.characters(texts) if options.level == "character" else corpus.words(texts, options.words)
        own, every = options.batch, options.batch * processes.count()
        streams = corpus.Streams(self.text.train, every, options.steps)
        columns = slice(processes.number() * own, (processes.number() + 1) * own)
        self.inputs, self.targets = streams.inputs[:, columns], streams.targets[:, columns]
        heldout = corpus.Streams(self.text.heldout, every, options.steps)
        length = min(len(heldout.inputs), -(-options.heldout // every))
        self.heldout = heldout.inputs[:length], heldout.targets[:length]

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--level", choices=["character", "word"], default="character", help="what a symbol is")
        parser.add_argument("--words", type=positive_int, default=5000, help="that are kept, the most frequent")
        parser.add_argument("--cell", choices=list(LAYERS), default="lstm", help="recurrent layers")
        parser.add_argument("--layers", type=positive_int, default=1, help="on top of each other")
        parser.add_argument("--embedding", type=positive_int, default=64, help="features of a symbol")
        parser.add_argument("--hidden", type=positive_int, default=256, help="units of each layer")
        parser.add_argument("--batch", type=positive_int, default=32, help="streams of text side by side")
        parser.add_argument("--steps", type=positive_int, default=64, help="symbols between two updates (k1)")
        parser.add_argument("--back", type=positive_int, help="symbols that the gradient goes back (k2); else k1")
        parser.add_argument("--tied", action="store_true", help="one matrix for embedding and output")
        parser.add_argument(
            "--orthogonal", action="store_true", help="orthogonal recurrent weights and, of LSTMs, a forget bias of 1"
        )
        parser.add_argument("--heldout", type=positive_int, default=200_000, help="symbols to evaluate on")
        parser.add_argument("--temperature", type=positive_float, default=0.7, help="of sampling: lower is safer")

    @property
    def case(self) -> Case:
        o = self.options
        return Case(o.cell, o.batch, o.steps, o.embedding, o.hidden, o.layers, 1, "float32", "training")

    def describe(self) -> dict[str, Any]:
        unknown = float((self.heldout[1] == 0).float().mean())
        return {
            "text": self.text.name,
            "level": self.options.level,
            "files": self.files[0],
            "held-out files": self.files[1],
            "tokens": self.text.train.numel(),
            "held-out tokens": self.heldout[0].numel(),
            "symbols": len(self.text.symbols),
            "unknown": f"{unknown:.2%} of the held-out ones",
        }

    def model(self) -> Model:
        o = self.options
        model = Model(o.cell, len(self.text.symbols), o.embedding, o.hidden, o.layers, o.tied)
        if o.orthogonal:
            fastrnn.init.orthogonal_(model)
            if o.cell == "lstm":
                fastrnn.init.forget_bias_(model)
        return model

    def learn(self, model: nn.Module) -> Iterator[Tensor]:
        while True:  # at the end of the text its streams begin anew, from a state of zeros
            for logits, steps in fastrnn.tbptt(model, self.inputs, k1=self.options.steps, k2=self.options.back):
                yield losses(logits, self.targets[steps])

    def evaluate(self, model: nn.Module) -> Evaluation:
        inputs, targets = self.heldout
        windows = fastrnn.tbptt(model, inputs, k1=self.options.steps)
        found = torch.cat([losses(logits, targets[steps]) for logits, steps in windows])
        return Evaluation(found, {"perplexity": float(found.double().mean().exp())})

    def findings(self, models: Mapping[str, nn.Module]) -> dict[str, Any]:
        found = {}
        for name, model in models.items():
            begin = time.perf_counter()
            drawn = self.sample(model, SAMPLED)
            found[name] = {"sampled_per_second": SAMPLED / (time.perf_counter() - begin), "sample": drawn}
        return found

    def sample(self, model: nn.Module, length: int) -> str:
        """Text drawn from the model a symbol at a time, the state carried."""
        generator = torch.Generator().manual_seed(self.options.seed)
        symbols = self.text.symbols
        symbol = torch.full((1, 1), symbols.index("\n") if "\n" in symbols else 0)  # a text begins after a line's end
        step = fastrnn.stream(model)
        drawn = []
        for _ in range(length):
            logits = step(symbol).flatten() / self.options.temperature
            logits[0] = -torch.inf  # the unknown symbol cannot be written
            symbol = torch.multinomial(logits.softmax(0), 1, generator=generator)[None]
            drawn.append(symbol)
        return self.text.decode(torch.cat(drawn).flatten())

    @staticmethod
    def show(row: Row) -> Sequence[RenderableType]:
        found = row.detail["findings"]
        speeds = {name: each["sampled_per_second"] for name, each in found.items()}
        ratio = speeds["fastrnn"] / speeds["torch.nn"]
        each = ", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items())
        return (
            Panel(Text(found["fastrnn"]["sample"]), title="written by the fastrnn model"),
            f"sampling, tokens/s: {each} ({ratio:.2f} times as fast)",
        )


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each symbol in nats, ``(T*B,)``, from logits ``(T, B, V)`` and targets ``(T, B)``."""
    return cross_entropy(logits.flatten(0, 1), targets.flatten().long(), reduction="none")
