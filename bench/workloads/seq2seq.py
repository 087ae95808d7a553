"""An encoder-decoder that reads dates as people write them and writes them as ISO 8601 has them.

"Monday, the twenty-third of March 1987" becomes "1987-03-23", a character at a time (Sutskever et al. 2014). The
encoder reads the source; its final state is all that the decoder is told. In training the decoder is given the right
character before each one that it has to predict (teacher forcing), all steps in one call. When it writes by itself,
what it wrote last is its next input, a step a call: either the likeliest character each time (greedy), or the likeliest
few beginnings are kept side by side (beam search).

Sources have different lengths, so they are packed: the final state of a row is that after its own last character. The
very same lines work with torch.nn's layers and with fastrnn's.

Dates are drawn from two centuries and written in many ways. Those of held-out days are never seen in training, in any
spelling. ``--data`` takes a text file of other pairs, one a line, source and target with a tab between them.
"""

import argparse
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from rich.console import RenderableType
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from bench.results import Case, Row
from bench.style import COLOURS, STYLE, plain
from bench.workloads.layers import LAYERS
from bench.workloads.workload import DataError, Evaluation, Workload
from bench.workloads.writing import Alphabet, Decoder, State, beam_search, exact_match, losses, teacher_forcing
from fastrnn._arguments import positive_int

FIRST, DAYS = date(1850, 1, 1), 73_000
HELD_OUT = 500  # pairs at most
SHOWN = 8
MONTHS, WEEKDAYS, ROMAN, ORDINALS = (
    line.split()
    for line in (
        # written out, since those of the calendar module are the locale's
        "January February March April May June July August September October November December",
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        "I II III IV V VI VII VIII IX X XI XII",
        "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
        "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth",
    )
)
ORDINALS += [f"twenty-{ordinal}" for ordinal in ORDINALS[:9]] + ["thirtieth", "thirty-first"]
SPELLINGS: list[Callable[[date], str]] = [
    lambda d: f"{d.day} {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{MONTHS[d.month - 1]} {d.day}, {d.year}",
    lambda d: f"{MONTHS[d.month - 1][:3].lower()} {d.day} {d.year}",
    lambda d: f"{d.day}-{MONTHS[d.month - 1][:3].upper()}-{d.year}",
    lambda d: f"{WEEKDAYS[d.weekday()]}, {d.day} {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{WEEKDAYS[d.weekday()][:3]} {MONTHS[d.month - 1][:3]} {d.day} {d.year}",
    lambda d: f"{WEEKDAYS[d.weekday()]}, the {ORDINALS[d.day - 1]} of {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{MONTHS[d.month - 1]} the {ORDINALS[d.day - 1]}, {d.year}",
    lambda d: f"{d.year}, on the {ORDINALS[d.day - 1]} day of {MONTHS[d.month - 1]}",
    lambda d: f"{d.day}. {d.month}. {d.year}",
    lambda d: f"{d.day}.{ROMAN[d.month - 1]}.{d.year}",
    lambda d: f"{d.day:02}/{d.month:02}/{d.year}",
]


@dataclass(frozen=True)
class Pair:
    """What is read, and what is to be written."""

    source: str
    target: str


def dates(days: int) -> list[Pair]:
    """That many different days (always alike), each in one spelling."""
    generator = random.Random(0)
    chosen = [FIRST + timedelta(day) for day in generator.sample(range(DAYS), days)]
    return [Pair(generator.choice(SPELLINGS)(day), day.isoformat()) for day in chosen]


def read(path: Path) -> list[Pair]:
    """The pairs of a file, in an order that is shuffled (always alike), but that those of one target are together."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text in UTF-8: {error}") from error
    by_target: dict[str, list[Pair]] = {}
    for number, line in enumerate(lines, 1):
        source, _, target = line.partition("\t")
        if not line.strip():
            continue
        if not (source and target) or "\t" in target:
            raise DataError(f"{path}: line {number} is not a source and a target with a tab between them")
        by_target.setdefault(target, []).append(Pair(source, target))
    targets = list(by_target)
    random.Random(0).shuffle(targets)
    return [pair for target in targets for pair in by_target[target]]


class EncoderDecoder(nn.Module):
    """Two recurrent layers, of which the second goes on from where the first has ended.

    Args:
        cell: a key of :data:`~bench.workloads.layers.LAYERS`.
        source: how many characters sources have.
        target: how many targets have, V.
        embedding: features of a character.
        hidden: units H of each layer.
    """

    def __init__(self, cell: str, source: int, target: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.source = nn.Embedding(source, embedding)
        self.encoder = LAYERS[cell](embedding, hidden)
        self.decoder = Decoder(cell, target, embedding, hidden)
        fastrnn.init.orthogonal_(self)  # so that what is read first reaches the end, and gradients the way back
        if cell == "lstm":
            fastrnn.init.forget_bias_(self)

    def read(self, sources: Sequence[Tensor]) -> State:
        """Sources of character numbers, each ``(T_b,)``, to the encoder's final state."""
        packed = pack_sequence(sources, enforce_sorted=False)
        _, state = self.encoder(packed._replace(data=self.source(packed.data)))
        return state

    def forward(self, sources: Sequence[Tensor], before: Tensor) -> Tensor:
        """Teacher forcing: sources, and the targets' characters, to the logits of the characters after them."""
        logits, _ = self.decoder(before, self.read(sources))
        return logits


class Seq2seq(Workload):
    """Dates as people write them to dates as ISO 8601 has them."""

    name = "seq2seq"
    summary = "Train an encoder-decoder to write dates as ISO 8601 has them."
    data = "a text file in UTF-8 of pairs, one a line, source and target with a tab between; else dates"
    items = "pairs"
    learning_rate = 1e-2
    seconds = 40.0

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        pairs = dates(options.days) if options.data is None else read(options.data)
        heldout = min(HELD_OUT, len(pairs) // 10)
        while 0 < heldout < len(pairs) and pairs[heldout - 1].target == pairs[heldout].target:
            heldout += 1  # no target is on both sides
        self.heldout, self.train = pairs[:heldout], pairs[heldout:]
        if not self.heldout or len(self.train) < options.batch:
            raise DataError(f"too few pairs: {len(pairs)}, where a batch is {options.batch} and a tenth is held out")
        self.sources = Alphabet(pair.source for pair in self.train)
        self.targets = Alphabet(pair.target for pair in self.train)
        self.encoded = [self._encode(pair) for pair in self.train]
        self.longest = 1 + max(len(pair.target) for pair in pairs)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--cell", choices=list(LAYERS), default="lstm", help="recurrent layers")
        parser.add_argument("--embedding", type=positive_int, default=32, help="features of a character")
        parser.add_argument("--hidden", type=positive_int, default=128, help="units of each layer")
        parser.add_argument("--batch", type=positive_int, default=64, help="pairs of an update")
        parser.add_argument("--beam", type=positive_int, default=4, help="width of the beam search")
        parser.add_argument(
            "--days", type=positive_int, default=12_000, help="different ones, where there is no --data"
        )

    @property
    def case(self) -> Case:
        o = self.options
        steps = max(len(pair.source) for pair in self.train)
        return Case(o.cell, o.batch, steps, o.embedding, o.hidden, 1, 1, "float32", "training")

    def describe(self) -> dict[str, Any]:
        return {
            "text": "dates in many spellings" if self.options.data is None else str(self.options.data),
            "pairs": len(self.train),
            "held-out pairs": len(self.heldout),
            "source characters": len(self.sources),
            "target characters": len(self.targets),
        }

    def model(self) -> EncoderDecoder:
        o = self.options
        return EncoderDecoder(o.cell, len(self.sources), len(self.targets), o.embedding, o.hidden)

    def learn(self, model: nn.Module) -> Iterator[Tensor]:
        while True:
            chosen = torch.randint(len(self.encoded), (self.options.batch,)).tolist()
            sources, targets = zip(*(self.encoded[k] for k in chosen), strict=True)
            before, after = teacher_forcing(targets)
            yield losses(model(sources, before), after)

    def evaluate(self, model: nn.Module) -> Evaluation:
        sources, targets = zip(*map(self._encode, self.heldout), strict=True)
        before, after = teacher_forcing(targets)
        texts = [pair.target for pair in self.heldout]
        found = {
            "exact match": exact_match(self.written(model, sources, 1), texts),
            f"exact match, beam of {self.options.beam}": exact_match(
                self.written(model, sources, self.options.beam), texts
            ),
        }
        return Evaluation(losses(model(sources, before), after), found)

    def findings(self, models: Mapping[str, nn.Module]) -> dict[str, Any]:
        sources = [self.sources.encode(pair.source) for pair in self.heldout]
        return {
            "pairs": [[pair.source, pair.target] for pair in self.heldout],
            "written": {name: self.written(model, sources, 1) for name, model in models.items()},
        }

    def written(self, model: nn.Module, sources: Sequence[Tensor], beam: int) -> list[str]:
        """What a model writes on reading the sources."""
        numbers, _ = beam_search(model.decoder, model.read(sources), beam, self.longest)
        return [self.targets.decode(row) for row in numbers]

    @staticmethod
    def show(row: Row) -> Sequence[RenderableType]:
        findings = row.detail["findings"]
        table = Table("source", "written by fastrnn", "target", title="held-out pairs")
        for (source, target), written in list(zip(findings["pairs"], findings["written"]["fastrnn"], strict=True))[
            :SHOWN
        ]:
            table.add_row(source, written, "the same" if written == target else target)
        return (table,)

    @staticmethod
    def draw(axes: Axes, row: Row) -> None:
        """What is written right, by the length of what was read."""
        findings = row.detail["findings"]
        lengths = [len(source) for source, _ in findings["pairs"]]
        width = max(1, max(lengths) // 10)
        bins = sorted({length // width for length in lengths})
        for shift, (name, written) in zip((-0.2, 0.2), findings["written"].items(), strict=True):
            right = [w == target for w, (_, target) in zip(written, findings["pairs"], strict=True)]
            parts = [[r for r, length in zip(right, lengths, strict=True) if length // width == b] for b in bins]
            heights = [sum(part) / len(part) for part in parts]
            axes.bar([b + shift for b in bins], heights, width=0.4, color=COLOURS[name], label=name)
        axes.set_xticks(bins, [f"{b * width} to {(b + 1) * width - 1}" for b in bins], rotation=30)
        axes.set_xlabel("characters read, held-out pairs", **STYLE)
        axes.set_ylabel("written without a mistake", **STYLE)
        axes.set_ylim(0, 1.15)
        axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper right")
        plain(axes, grid="y")

    def _encode(self, pair: Pair) -> tuple[Tensor, Tensor]:
        return self.sources.encode(pair.source), self.targets.encode(pair.target)
