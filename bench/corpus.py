"""Texts: files, the split into train and held-out, characters or words as numbers, contiguous streams.

The default text is one that every machine has: the source files of Python's own standard library.
"""

import random
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
HELD_OUT = 0.1  # of the characters
RARE = 1e-5  # a character that makes up less of the training text than this is the unknown symbol
WORD = re.compile(r" ?\w+| ?[^\w\s]|\s+?(?= ?\S)|\s+")
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
# What is installed beside the library, tests (some Pythons come without), and what is generated: the tables of
# encodings, near copies of one another that would lie on both sides of the split, and the text of the help system.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}


class DataError(ValueError):
    """The data that were asked for cannot be used; the message says why."""


@dataclass(frozen=True)
class Texts:
    """Texts by name, split into those to train on and those held out."""

    name: str
    train: dict[str, str]
    heldout: dict[str, str]


@dataclass(frozen=True)
class Corpus:
    """A text split into train and held-out, as symbol numbers.

    ``symbols[i]`` is the character (or word) with number ``i``; number 0 is the unknown symbol, which stands for every
    one that the training text has too rarely or never. ``train`` and ``heldout`` are int32 ``(N,)``.
    """

    name: str
    symbols: Sequence[str]
    train: Tensor
    heldout: Tensor

    def decode(self, ids: Tensor) -> str:
        """The text of symbol numbers ``(N,)``."""
        return "".join(self.symbols[i] for i in ids.tolist())


def read(path: Path | None = None, suffix: str = "") -> Texts:
    """Read texts and split them.

    A folder is split by file, so that no held-out file has a part or a copy in the training texts; a single file is
    split by position, its last tenth held out.

    Args:
        path: a text file or a folder of text files; None for the standard library of the running Python.
        suffix: of the files in a folder that are read, such as ``.py``; all of them without one.
    """
    if path is None:
        root = Path(sysconfig.get_path("stdlib"))
        texts = _read([p for p in root.rglob("*.py") if LEFT_OUT.isdisjoint(p.relative_to(root).parts)], root)
        if len(texts) < 2:
            raise DataError(f"no source files of the standard library in {root}: give other texts with --data PATH")
        return _split(f"the standard library of Python {sysconfig.get_python_version()}", texts)
    if not path.exists():
        raise DataError(f"{path} does not exist: --data takes a text file or a folder of text files")
    if path.is_dir():
        found = (p for p in path.rglob(f"*{suffix}") if p.is_file() and not _hidden(p.relative_to(path)))
        texts = _read(list(found), path)
        if not texts:
            raise DataError(f"no text files{suffix and f' named *{suffix}'} in the folder {path}")
        if len(texts) > 1:
            return _split(str(path), texts)
    else:
        texts = _read([path], path.parent)
        if not texts:
            raise DataError(f"{path} is empty, or is not text in UTF-8")
    ((name, text),) = texts.items()
    cut = len(text) - max(1, round(HELD_OUT * len(text)))
    return Texts(str(path), {name: text[:cut]}, {name: text[cut:]})


def characters(texts: Texts) -> Corpus:
    """The texts one after the other, as characters."""
    train, heldout = ("\n".join(part.values()) for part in (texts.train, texts.heldout))
    points, counts = np.unique(_code_points(train), return_counts=True)
    kept = points[counts >= RARE * len(train)]
    symbols = UNKNOWN + "".join(c for c in map(chr, kept.tolist()) if c != UNKNOWN)
    return Corpus(texts.name, symbols, encode(train, symbols), encode(heldout, symbols))


def words(texts: Texts, most: int) -> Corpus:
    """The texts one after the other, as words with the space before them, signs, and the space that is left.

    Args:
        texts: of which.
        most: how many different ones are kept, the most frequent; the rest is the unknown symbol.
    """
    train, heldout = (WORD.findall("\n".join(part.values())) for part in (texts.train, texts.heldout))
    numbers = vocabulary(train, most)
    ids = (torch.tensor([numbers.get(word, 0) for word in part], dtype=torch.int32) for part in (train, heldout))
    return Corpus(texts.name, tuple(numbers), *ids)


def vocabulary(symbols: Iterable[str], most: int) -> dict[str, int]:
    """Numbers from 0 for the most frequent of some symbols; 0 is the unknown one's, which stands for all others.

    Args:
        symbols: those of the training text.
        most: how many numbers there are.
    """
    counts = Counter(symbols)
    del counts[UNKNOWN]
    kept = sorted(symbol for symbol, _ in counts.most_common(most - 1))
    return {symbol: number for number, symbol in enumerate((UNKNOWN, *kept))}


def encode(text: str, symbols: str) -> Tensor:
    """Symbol numbers of a text, int32 ``(len(text),)``; a character that is not in ``symbols`` becomes number 0."""
    numbers = np.zeros(0x110000, dtype=np.int32)  # one for every code point there is
    numbers[_code_points(symbols)] = np.arange(len(symbols), dtype=np.int32)
    return torch.from_numpy(numbers[_code_points(text)])


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in their order, so many at a time; the last batch has what is left."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def shuffled(items: Sequence[T], size: int, seed: int) -> Iterator[Sequence[T]]:
    """Batches for ever: all items in a random order, and then in another one."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(items), generator=generator).tolist()
        yield from batches([items[k] for k in order], size)


class Streams:
    """A text cut into ``batch`` contiguous streams, side by side: ``inputs`` and ``targets``, ``(length, B)`` each.

    A target is the symbol that follows the input: ``targets[t]`` is ``inputs[t + 1]``.

    Args:
        ids: symbol numbers ``(N,)``.
        batch: number of streams, B.
        steps: the fewest that a stream has to have.
    """

    def __init__(self, ids: Tensor, batch: int, steps: int) -> None:
        length = (ids.numel() - 1) // batch  # the one: a target is the next character
        if length < steps:
            raise DataError(
                f"the text is too short: {batch} streams of {steps} steps need more than {batch * steps:,} symbols "
                f"in the training text and in the held-out text, and one of them has {ids.numel():,}"
            )
        self.inputs = ids[: batch * length].view(batch, length).t()
        self.targets = ids[1 : batch * length + 1].view(batch, length).t()


def _read(paths: list[Path], root: Path) -> dict[str, str]:
    """The texts by name, in order of name; files that are empty, not UTF-8 or a copy of another are left out."""
    texts: dict[str, str] = {}
    seen: set[bytes] = set()
    for path in sorted(paths):
        content = path.read_bytes()
        if not content.strip() or b"\0" in content or content in seen:
            continue
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            continue
        seen.add(content)
        texts[path.relative_to(root).as_posix()] = text.replace("\r\n", "\n")
    return texts


def _split(name: str, texts: dict[str, str]) -> Texts:
    """Shuffle the files (always alike) and hold out the first ones that make up a tenth of the characters."""
    names = list(texts)
    random.Random(0).shuffle(names)
    enough = HELD_OUT * sum(map(len, texts.values()))
    heldout = 0
    size = 0
    while size < enough and heldout < len(names) - 1:
        size += len(texts[names[heldout]])
        heldout += 1
    return Texts(name, {n: texts[n] for n in names[heldout:]}, {n: texts[n] for n in names[:heldout]})


def _code_points(text: str) -> np.ndarray:
    # surrogatepass: Python's strings may hold lone surrogates, and a benchmark should not stop at one
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
