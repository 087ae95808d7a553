"""A tagger: what each character of a line of Python belongs to, a keyword, a name, a string, a comment ...

Many to many, synchronous, in both directions: whether a word is code, or part of a string that ends further on, is
known only from both sides. Lines have many lengths: batches are a PackedSequence. The truth is Python's own tokenizer,
which reads whole files; the model sees a line alone.
"""

import argparse
import io
import keyword
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from bench import corpus
from bench.results import Case, Row
from bench.style import COLOURS, STYLE, plain
from bench.workloads.workload import DataError, Evaluation, Workload
from fastrnn._arguments import positive_int

KINDS = {tokenize.NAME: "name", tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.COMMENT: "comment"}
KINDS |= {tokenize.OP: "operator"}
STRINGS = {"FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END"}  # of Python 3.12 and later
SPACE, KEYWORD = "space", "keyword"
LONGEST = 200  # symbols of a line, of which longer ones are cut


class Tagged(NamedTuple):
    """A line: its symbols and, for each, its tag."""

    symbols: tuple[str, ...]
    tags: tuple[str, ...]


class Model(nn.Module):
    """Embedding, recurrent layers in both directions, linear layer."""

    def __init__(self, symbols: int, embedding: int, hidden: int, layers: int, tags: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, embedding)
        self.recurrent = nn.LSTM(embedding, hidden, layers, bidirectional=True)
        self.output = nn.Linear(2 * hidden, tags)

    def forward(self, lines: PackedSequence) -> Tensor:
        """Symbol numbers, packed, to the logits ``(N, tags)`` of each, in the order of ``lines.data``."""
        y, _ = self.recurrent(lines._replace(data=self.embedding(lines.data)))
        return self.output(y.data)


class Tagging(Workload):
    """The tag of every symbol."""

    name = "tagging"
    summary = "Train a tagger, in both directions, on lines of Python."
    data = (
        "a Python file or a folder of Python files; or a .tsv file with a symbol (a word, say), a tab and its tag on "
        "each line, and an empty line after each sentence. Else the sources of Python's own library"
    )
    items = "symbols"
    learning_rate = 3e-2

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.origin, train, heldout = _read(options)
        seen = {line.symbols for line in train}
        heldout = [line for line in heldout if line.symbols not in seen]
        self.symbols = corpus.vocabulary(chain.from_iterable(line.symbols for line in train), options.symbols)
        self.tags = sorted(set(chain.from_iterable(line.tags for line in train)))
        self.train, self.heldout = self._numbers(train), self._numbers(heldout)
        if not self.heldout:
            raise DataError("there are too few different lines to train on some and hold out others")

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--lines", type=positive_int, default=20_000, help="to train on, at most")
        parser.add_argument("--heldout", type=positive_int, default=3000, help="lines to evaluate on, at most")
        parser.add_argument("--symbols", type=positive_int, default=10_000, help="that are kept, the most frequent")
        parser.add_argument("--layers", type=positive_int, default=1, help="on top of each other")
        parser.add_argument("--embedding", type=positive_int, default=32, help="features of a symbol")
        parser.add_argument("--hidden", type=positive_int, default=64, help="units of each layer and direction")
        parser.add_argument("--batch", type=positive_int, default=64, help="lines of an update")

    @property
    def case(self) -> Case:
        o = self.options
        length = round(sum(len(symbols) for symbols, _ in self.train) / len(self.train))
        return Case("lstm", o.batch, length, o.embedding, o.hidden, o.layers, 2, "float32", "training")

    def describe(self) -> dict[str, Any]:
        lengths = [len(symbols) for symbols, _ in self.train]
        return {
            "lines of": self.origin,
            "lines": len(self.train),
            "held-out lines": len(self.heldout),
            "symbols": len(self.symbols),
            "tags": len(self.tags),
            "longest line": max(lengths),
        }

    def model(self) -> Model:
        o = self.options
        return Model(len(self.symbols), o.embedding, o.hidden, o.layers, len(self.tags))

    def learn(self, model: nn.Module) -> Iterator[Tensor]:
        for batch in corpus.shuffled(self.train, self.options.batch, self.options.seed):
            logits, tags = _predict(model, batch)
            yield cross_entropy(logits, tags, reduction="none")

    def evaluate(self, model: nn.Module) -> Evaluation:
        logits, tags = self._judged(model)
        f1 = scores(logits.argmax(-1), tags, len(self.tags))
        accuracy = (logits.argmax(-1) == tags).double().mean()
        return Evaluation(
            cross_entropy(logits, tags, reduction="none"), {"mean F1": float(f1.mean()), "accuracy": float(accuracy)}
        )

    def findings(self, models: Mapping[str, nn.Module]) -> dict[str, Any]:
        found = {}
        for name, model in models.items():
            logits, tags = self._judged(model)
            found[name] = dict(zip(self.tags, scores(logits.argmax(-1), tags, len(self.tags)).tolist(), strict=True))
        return {"f1": found}

    @staticmethod
    def draw(axes: Axes, row: Row) -> None:
        f1 = row.detail["findings"]["f1"]
        for place, (name, values) in enumerate(f1.items()):
            heights = [k + (place - 0.5) * 0.36 for k in range(len(values))]
            axes.barh(heights, list(values.values()), 0.34, color=COLOURS[name], label=name)
        axes.set_yticks(range(len(values)), list(values), fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(min(0.5, *(min(each.values()) for each in f1.values())), 1)
        axes.set_xlabel("held-out F1 of each tag", **STYLE)
        axes.legend(frameon=False, fontsize=8, loc="lower left")
        plain(axes, grid="x")

    def _judged(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Logits and tags of the symbols of all held-out lines."""
        batches = [_predict(model, batch) for batch in corpus.batches(self.heldout, self.options.batch)]
        logits, tags = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return logits, tags

    def _numbers(self, lines: Iterable[Tagged]) -> list[tuple[Tensor, Tensor]]:
        tags = {tag: number for number, tag in enumerate(self.tags)}
        known = (line for line in lines if set(line.tags) <= tags.keys())
        return [
            (torch.tensor([self.symbols.get(s, 0) for s in line.symbols]), torch.tensor([tags[t] for t in line.tags]))
            for line in known
        ]


def scores(found: Tensor, truth: Tensor, tags: int) -> Tensor:
    """F1 of each tag, the harmonic mean of precision and recall, ``(tags,)``; 0 for a tag that neither has."""
    right = torch.bincount(truth[found == truth], minlength=tags).double()
    return 2 * right / (torch.bincount(found, minlength=tags) + torch.bincount(truth, minlength=tags)).clamp_min(1)


def tagged_lines(source: str) -> list[Tagged]:
    """The lines of a Python file that are not empty, their characters tagged; none if it cannot be tokenized."""
    lines = source.split("\n")
    tags = [[SPACE] * len(line) for line in lines]
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            kind = "string" if tokenize.tok_name[token.type] in STRINGS else KINDS.get(token.type)
            if kind is None:
                continue
            if kind == "name" and keyword.iskeyword(token.string):
                kind = KEYWORD
            (first, begin), (last, end) = token.start, token.end
            for number in range(first, last + 1):
                line = tags[number - 1]
                part = slice(begin if number == first else 0, end if number == last else len(line))
                line[part] = [kind] * len(line[part])
    except (tokenize.TokenError, SyntaxError):
        return []
    pairs = zip(lines, tags, strict=True)
    return [Tagged(tuple(line)[:LONGEST], tuple(kinds)[:LONGEST]) for line, kinds in pairs if line.strip()]


def _read(options: argparse.Namespace) -> tuple[str, list[Tagged], list[Tagged]]:
    """Where lines are from, those to train on and those held out: split by file, or a single file by position."""
    path: Path | None = options.data
    columns = path is not None and path.suffix == ".tsv"
    texts = corpus.read(path, "" if columns else ".py")
    parse = _columns if columns else tagged_lines
    if texts.train.keys() == texts.heldout.keys():
        ((train, heldout),) = zip(texts.train.values(), texts.heldout.values(), strict=True)
        lines = parse(train + heldout)
        cut = len(lines) - max(1, round(corpus.HELD_OUT * len(lines)))
        parts = lines[:cut], lines[cut:]
    else:
        parts = (chain.from_iterable(map(parse, part.values())) for part in (texts.train, texts.heldout))
    train, heldout = (
        list(islice(part, most)) for part, most in zip(parts, (options.lines, options.heldout), strict=True)
    )
    return texts.name, train, heldout


def _columns(text: str) -> list[Tagged]:
    """The sentences of a text with a symbol and its tag on each line."""
    found = []
    for sentence in (part.strip("\n") for part in text.split("\n\n") if part.strip()):
        rows = [line.split("\t") for line in sentence.split("\n")]
        wrong = next((row for row in rows if len(row) != 2 or not all(row)), None)
        if wrong is not None:
            raise DataError(f"expected a symbol, a tab and a tag on each line, got {wrong}")
        found.append(Tagged(*(column[:LONGEST] for column in zip(*rows, strict=True))))
    return found


def _predict(model: nn.Module, lines: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Logits ``(N, tags)`` and tags ``(N,)`` of the symbols of some lines, in the order of a PackedSequence."""
    symbols, tags = (pack_sequence(part, enforce_sorted=False) for part in zip(*lines, strict=True))
    return model(symbols), tags.data
