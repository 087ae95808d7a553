"""A classifier: which package of Python's library a passage of code is from; or whether a review is favourable.

Many to one: words are read in both directions, and what is said of them all is pooled: the last states, the mean or the
maximum over the steps. Passages have many lengths: batches are padded, and the layers are told the ``lengths=``, where
torch.nn's need them packed and padded again.
"""

import argparse
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

import fastrnn
from bench import corpus
from bench.results import Case, Row
from bench.style import INK, STYLE
from bench.workloads.workload import DataError, Evaluation, Workload
from fastrnn._arguments import positive_int

HELD_OUT = 0.2  # of the files of each label, or of its passages
FILES = 8  # that a package has at least
SHORTEST = 8  # words of a passage of code
POOLINGS = ("last", "mean", "max")


class Passage(NamedTuple):
    """Words, and what they are an example of."""

    words: tuple[str, ...]
    label: str


class Batch(NamedTuple):
    """Word numbers ``(B, T)``, right-padded, the number of words and the label of each row, ``(B,)``."""

    words: Tensor
    lengths: Tensor
    labels: Tensor


class Model(nn.Module):
    """Embedding, a recurrent layer in both directions, pooling over the steps, linear layer.

    Args:
        symbols: how many words there are.
        embedding: features of a word.
        hidden: units of each direction.
        labels: how many there are.
        pooling: one of :data:`POOLINGS`.
    """

    def __init__(self, symbols: int, embedding: int, hidden: int, labels: int, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        self.embedding = nn.Embedding(symbols, embedding)
        self.recurrent = nn.GRU(embedding, hidden, bidirectional=True, batch_first=True)
        self.output = nn.Linear(2 * hidden, labels)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Word numbers ``(B, T)`` and lengths ``(B,)`` to the logits ``(B, labels)``."""
        x = self.embedding(words)
        if isinstance(self.recurrent, fastrnn.GRU):
            y, h = self.recurrent(x, lengths=lengths)
        else:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            y, h = self.recurrent(packed)
            y, _ = pad_packed_sequence(y, batch_first=True)
        if self.pooling == "last":  # of each direction: the last word's, and the first one's
            return self.output(torch.cat([h[0], h[1]], -1))
        if self.pooling == "mean":  # beyond its length a row's output is zero
            return self.output(y.sum(1) / lengths[:, None])
        beyond = torch.arange(words.shape[1], device=words.device) >= lengths[:, None]
        return self.output(y.masked_fill(beyond[..., None], -torch.inf).amax(1))


class Classification(Workload):
    """The label of a passage."""

    name = "classification"
    summary = "Train a classifier of passages, such as sentiment is told by."
    data = (
        "a file with a label, a tab and a text on each line; or a folder with a folder for each label, of text files "
        "that are a passage each. Else paragraphs of the packages of Python's own library"
    )
    items = "passages"
    learning_rate = 3e-2

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.origin, train, heldout = _read(options)
        seen = {passage.words for passage in train}
        heldout = [passage for passage in heldout if passage.words not in seen]
        self.labels = sorted({passage.label for passage in train})
        words = chain.from_iterable(passage.words for passage in train)
        self.symbols = corpus.vocabulary(words, options.symbols)
        self.train, self.heldout = self._numbers(train), self._numbers(heldout)
        if len(self.labels) < 2 or not self.heldout:
            raise DataError("expected at least two labels, with different passages to train on and to hold out")

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--pooling", choices=POOLINGS, default="max", help="what is made of all steps")
        parser.add_argument("--symbols", type=positive_int, default=5000, help="words that are kept")
        parser.add_argument("--longest", type=positive_int, default=120, help="words of a passage that are read")
        parser.add_argument("--embedding", type=positive_int, default=64, help="features of a word")
        parser.add_argument("--hidden", type=positive_int, default=64, help="units of each direction")
        parser.add_argument("--batch", type=positive_int, default=32, help="passages of an update")

    @property
    def case(self) -> Case:
        o = self.options
        length = round(sum(len(words) for words, _ in self.train) / len(self.train))
        return Case("gru", o.batch, length, o.embedding, o.hidden, 1, 2, "float32", "training")

    def describe(self) -> dict[str, Any]:
        common = max(sum(label == k for _, label in self.heldout) for k in range(len(self.labels)))
        return {
            "passages of": self.origin,
            "passages": len(self.train),
            "held-out passages": len(self.heldout),
            "labels": len(self.labels),
            "most frequent": f"{common / len(self.heldout):.1%} of the held-out ones have the most frequent label",
            "symbols": len(self.symbols),
        }

    def model(self) -> Model:
        o = self.options
        return Model(len(self.symbols), o.embedding, o.hidden, len(self.labels), o.pooling)

    def learn(self, model: nn.Module) -> Iterator[Tensor]:
        for passages in corpus.shuffled(self.train, self.options.batch, self.options.seed):
            words, lengths, labels = _batch(passages)
            yield cross_entropy(model(words, lengths), labels, reduction="none")

    def evaluate(self, model: nn.Module) -> Evaluation:
        logits, labels = self._predict(model)
        accuracy = (logits.argmax(-1) == labels).double().mean()
        return Evaluation(cross_entropy(logits, labels, reduction="none"), {"accuracy": float(accuracy)})

    def findings(self, models: Mapping[str, nn.Module]) -> dict[str, Any]:
        counts = {}
        for name, model in models.items():
            logits, labels = self._predict(model)
            size = len(self.labels)
            pairs = torch.bincount(labels * size + logits.argmax(-1), minlength=size * size)
            counts[name] = pairs.view(size, size).tolist()
        return {"labels": self.labels, "confusion": counts}

    @staticmethod
    def draw(axes: Axes, row: Row) -> None:
        """The confusion matrix of fastrnn's model: of each label's passages, the part that is taken for each."""
        found = row.detail["findings"]
        counts = torch.tensor(found["confusion"]["fastrnn"], dtype=torch.float64)
        parts = counts / counts.sum(1, keepdim=True).clamp_min(1)
        axes.imshow(parts.numpy(), cmap="Blues", vmin=0, vmax=1)
        names = [f"{label} ({int(total)})" for label, total in zip(found["labels"], counts.sum(1), strict=True)]
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_xticks(range(len(names)), found["labels"], fontsize=8, rotation=45, ha="right")
        for k, line in enumerate(parts.tolist()):
            for j, part in enumerate(line):
                if part >= 0.05:
                    axes.text(
                        j, k, f"{part:.0%}", ha="center", va="center", fontsize=7, color="w" if part > 0.5 else INK
                    )
        axes.set_ylabel("held-out passages of", **STYLE)
        axes.set_xlabel("taken by fastrnn's model for", **STYLE)

    def _numbers(self, passages: Sequence[Passage]) -> list[tuple[Tensor, int]]:
        numbers = {label: number for number, label in enumerate(self.labels)}
        return [
            (torch.tensor([self.symbols.get(word, 0) for word in words]), numbers[label])
            for words, label in passages
            if label in numbers
        ]

    def _predict(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Logits and labels of the held-out passages."""
        batches = [_batch(passages) for passages in corpus.batches(self.heldout, self.options.batch)]
        logits = [model(words, lengths) for words, lengths, _ in batches]
        return torch.cat(logits), torch.cat([batch.labels for batch in batches])


def _batch(passages: Sequence[tuple[Tensor, int]]) -> Batch:
    words, labels = zip(*passages, strict=True)
    lengths = torch.tensor([len(each) for each in words])
    return Batch(pad_sequence(list(words), batch_first=True), lengths, torch.tensor(labels))


def _read(options: argparse.Namespace) -> tuple[str, list[Passage], list[Passage]]:
    """Where passages are from, those to train on and those held out: the same part of each label's, split by file."""
    path: Path | None = options.data
    if path is None:
        name, files = _packages()
    elif path.is_dir():
        texts = corpus.read(path)
        name, files = texts.name, _by_label((n.split("/")[0], [t]) for n, t in (texts.train | texts.heldout).items())
    else:
        texts = corpus.read(path)
        lines = "".join(chain(texts.train.values(), texts.heldout.values())).splitlines()
        rows = [line.partition("\t") for line in lines if line.strip()]
        wrong = next((label for label, tab, text in rows if not (label and tab and text.strip())), None)
        if wrong is not None:
            raise DataError(f"expected a label, a tab and a text on each line of {path}, got {wrong!r}")
        name, files = texts.name, _by_label((label, [text]) for label, _, text in rows)
    train: list[Passage] = []
    heldout: list[Passage] = []
    for label, each in sorted(files.items()):
        random.Random(0).shuffle(each)
        cut = max(1, round(HELD_OUT * len(each)))
        for part, found in ((each[:cut], heldout), (each[cut:], train)):
            words = (tuple(w.strip() for w in corpus.WORD.findall(text) if w.strip()) for text in chain(*part))
            found += [Passage(each[: options.longest], label) for each in words if each]
    return name, train, heldout


def _by_label(pairs: Iterator[tuple[str, list[str]]]) -> dict[str, list[list[str]]]:
    """The files of each label, each a list of passages."""
    found: dict[str, list[list[str]]] = {}
    for label, passages in pairs:
        found.setdefault(label, []).append(passages)
    return found


def _packages() -> tuple[str, dict[str, list[list[str]]]]:
    """The packages of the standard library that have some files, and the paragraphs of each file."""
    texts = corpus.read()
    every = ((name.split("/")[0], text) for name, text in (texts.train | texts.heldout).items() if "/" in name)
    paragraphs = ((package, [p for p in text.split("\n\n") if len(p.split()) >= SHORTEST]) for package, text in every)
    found = {package: files for package, files in _by_label(paragraphs).items() if len(files) >= FILES}
    return texts.name, found
