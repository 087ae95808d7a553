"""A two-tower encoder that finds the function for a docstring.

Two bidirectional recurrent layers, one for docstrings and one for functions, each turn a sequence of words into a
vector: the sum of the output's steps, at length one. The inner product of two vectors says how well they go together.
In training a docstring has to be nearer to its own function than to the others of the batch, and the other way around
(InfoNCE; van den Oord et al. 2018). Then functions of files that training has not seen are ranked by docstrings of
theirs.

Sequences of a batch have different lengths, so they are packed: the reverse direction begins at a row's own last word,
and the sum is of its own steps. The very same lines work with torch.nn's layers and with fastrnn's.

The pairs are those of Python's standard library, or of a folder of Python files (``--data``).
"""

import argparse
import ast
import inspect
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from matplotlib.axes import Axes
from rich.console import RenderableType
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from bench import corpus
from bench.results import Case, Row
from bench.style import COLOURS, FAINT, STYLE, plain
from bench.workloads.layers import LAYERS
from bench.workloads.workload import DataError, Evaluation, Workload
from fastrnn._arguments import positive_int

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\w\s]")  # parseHTTPHeader: parse, http, header
UNKNOWN = 0  # the number of words that training has too rarely or never
RARE = 3  # fewer occurrences than this in training make a word unknown
DOCSTRING, FUNCTION = 32, 96  # words that are read of each
SHOWN = 8  # docstrings, in a table
FEWEST = 4  # words that a docstring has to have to say anything


@dataclass(frozen=True)
class Pair:
    """A function and its docstring, as words."""

    file: str
    name: str
    docstring: tuple[str, ...]
    function: tuple[str, ...]


def words(text: str, most: int) -> tuple[str, ...]:
    """The first words of prose or code in lower case; names are cut where their writers joined words, signs are words.

    >>> words("self.parseHTTPHeader(max_length=3)", 9)
    ('self', '.', 'parse', 'http', 'header', '(', 'max', 'length', '=')
    """
    return tuple(match[0].lower() for match in islice(WORD.finditer(text), most))


def pairs(texts: Mapping[str, str], seen: set[tuple[str, ...]]) -> list[Pair]:
    """The documented functions of Python files, by name of file.

    The docstring is its first paragraph, the function everything but its docstring. A docstring or function that was
    ``seen`` before is left out, and what is found is added to them: no pair has a copy anywhere.
    """
    found: list[Pair] = []
    for file, text in texts.items():
        for name, docstring, function in _functions(text):
            pair = Pair(file, name, words(docstring, DOCSTRING), words(function, FUNCTION))
            if len(pair.docstring) >= FEWEST and seen.isdisjoint((pair.docstring, pair.function)):
                seen |= {pair.docstring, pair.function}
                found.append(pair)
    return found


def _functions(text: str) -> Iterator[tuple[str, str, str]]:
    """Name, first paragraph of the docstring, and the rest of each function of a file."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return  # written for another Python
    lines = text.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        docstring = ast.get_docstring(node, clean=False)
        if docstring is None:
            continue
        head = lines[node.lineno - 1 : node.body[0].lineno - 1]
        body = lines[node.body[0].end_lineno : node.end_lineno]
        yield node.name, inspect.cleandoc(docstring).split("\n\n")[0], "\n".join(head + body)


class Vocabulary:
    """Numbers of the words that training has."""

    def __init__(self, train: Sequence[Pair]) -> None:
        counts = Counter(word for pair in train for side in (pair.docstring, pair.function) for word in side)
        self.numbers = {word: k for k, word in enumerate((w for w in counts if counts[w] >= RARE), UNKNOWN + 1)}

    def __len__(self) -> int:
        return len(self.numbers) + 1

    def encode(self, text: Sequence[str]) -> Tensor:
        """Numbers of words, ``(len(text),)``."""
        return torch.tensor([self.numbers.get(word, UNKNOWN) for word in text])


class Tower(nn.Module):
    """From sequences of words to vectors of length one."""

    def __init__(self, embedding: nn.Embedding, recurrent: nn.RNNBase) -> None:
        super().__init__()
        self.embedding = embedding
        self.recurrent = recurrent

    def forward(self, texts: Sequence[Tensor]) -> Tensor:
        """Texts of word numbers, each ``(T_b,)``, to ``(B, 2H)``."""
        packed = pack_sequence(texts, enforce_sorted=False)
        y, _ = self.recurrent(packed._replace(data=self.embedding(packed.data)))
        y, _ = pad_packed_sequence(y)  # (T, B, 2H), zero beyond a row's length
        return normalize(y.sum(0), dim=1)


class TwoTowers(nn.Module):
    """One tower for docstrings and one for functions, which share what a word is."""

    def __init__(self, cell: str, vocabulary: int, embedding: int, hidden: int) -> None:
        super().__init__()
        shared = nn.Embedding(vocabulary, embedding)
        self.docstrings = Tower(shared, LAYERS[cell](embedding, hidden, bidirectional=True))
        self.functions = Tower(shared, LAYERS[cell](embedding, hidden, bidirectional=True))
        self.sharpness = nn.Parameter(torch.tensor(10.0))  # one over the temperature

    def forward(self, docstrings: Sequence[Tensor], functions: Sequence[Tensor]) -> Tensor:
        """How well each docstring goes with each function, ``(docstrings, functions)``."""
        return self.sharpness * self.docstrings(docstrings) @ self.functions(functions).t()


class Encoder(Workload):
    """The function that a docstring describes."""

    name = "encoder"
    summary = "Train two towers of bidirectional layers to find the function for a docstring."
    data = "a folder of Python files; else the sources of Python's own library"
    items = "pairs"
    learning_rate = 2e-2

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        texts = corpus.read(options.data, ".py")
        seen: set[tuple[str, ...]] = set()
        train, heldout = pairs(texts.train, seen), pairs(texts.heldout, seen)
        if len(train) < options.batch or len(heldout) < 2:
            raise DataError(
                f"{texts.name} has too few documented functions: {len(train)} to train on (a batch is {options.batch}) "
                f"and {len(heldout)} held out"
            )
        self.text = texts.name
        self.names = [f"{pair.file}: {pair.name}" for pair in heldout]
        self.asked = [" ".join(pair.docstring) for pair in heldout]
        self.vocabulary = Vocabulary(train)
        self.train, self.heldout = (
            [(self.vocabulary.encode(pair.docstring), self.vocabulary.encode(pair.function)) for pair in part]
            for part in (train, heldout)
        )

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--cell", choices=list(LAYERS), default="gru", help="recurrent layers")
        parser.add_argument("--embedding", type=positive_int, default=64, help="features of a word")
        parser.add_argument("--hidden", type=positive_int, default=64, help="units of each direction")
        parser.add_argument("--batch", type=positive_int, default=64, help="pairs that are told from each other")

    @property
    def case(self) -> Case:
        o = self.options
        return Case(o.cell, o.batch, FUNCTION, o.embedding, o.hidden, 1, 2, "float32", "training")

    def describe(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "pairs": len(self.train),
            "held-out pairs": len(self.heldout),
            "words": len(self.vocabulary),
        }

    def model(self) -> TwoTowers:
        o = self.options
        return TwoTowers(o.cell, len(self.vocabulary), o.embedding, o.hidden)

    def learn(self, model: nn.Module) -> Iterator[Tensor]:
        batches = len(self.train) // self.options.batch
        while True:
            for chosen in torch.randperm(len(self.train)).split(self.options.batch)[:batches]:
                yield losses(model(*zip(*(self.train[k] for k in chosen.tolist()), strict=True)))

    def evaluate(self, model: nn.Module) -> Evaluation:
        scores = model(*zip(*self.heldout, strict=True))
        found = {f"recall@{k}": recall(scores, k) for k in (10, 1, 100)}
        return Evaluation(losses(scores), found)

    def findings(self, models: Mapping[str, nn.Module]) -> dict[str, Any]:
        scores = {name: model(*zip(*self.heldout, strict=True)) for name, model in models.items()}
        best = scores["fastrnn"].argmax(1).tolist()
        firsts = range(min(SHOWN, len(best)))
        ks = [k for power in range(6) for k in (10**power, 2 * 10**power, 5 * 10**power) if k <= len(best)]
        return {
            "asked": {self.asked[k]: [self.names[best[k]], self.names[k]] for k in firsts},
            "recall": {name: [[k, recall(each, k)] for k in ks] for name, each in scores.items()},
            "functions": len(best),
        }

    @staticmethod
    def show(row: Row) -> Sequence[RenderableType]:
        table = Table("docstring", "found by fastrnn", "its own", title="held-out docstrings")
        for asked, (found, own) in row.detail["findings"]["asked"].items():
            table.add_row(asked, found, "the same" if found == own else own)
        return (table,)

    @staticmethod
    def draw(axes: Axes, row: Row) -> None:
        """Recall against how many functions are looked at."""
        findings = row.detail["findings"]
        for name, line in findings["recall"].items():
            style = "--" if name == "fastrnn" else "-"
            axes.plot(*zip(*line, strict=True), style, color=COLOURS[name], marker="o", markersize=4, label=name)
        looked = [k for k, _ in line]
        axes.plot(looked, [k / findings["functions"] for k in looked], ":", color=FAINT, label="chance")
        axes.set_xscale("log")
        axes.set_xlabel(f"functions looked at, of {findings['functions']} in files that training has not seen", **STYLE)
        axes.set_ylabel("recall", **STYLE)
        axes.legend(frameon=False, fontsize=9)
        plain(axes, grid="both")


def losses(scores: Tensor) -> Tensor:
    """The loss of each pair of a batch in nats, ``(B,)``: to find the function, and to find the docstring."""
    own = torch.arange(len(scores), device=scores.device)
    return (cross_entropy(scores, own, reduction="none") + cross_entropy(scores.t(), own, reduction="none")) / 2


def recall(scores: Tensor, k: int) -> float:
    """The part of docstrings whose own function is among the first ``k``; one that is as good is before it."""
    ahead = (scores >= scores.diagonal()[:, None]).sum(1) - 1
    return float((ahead < k).double().mean())
