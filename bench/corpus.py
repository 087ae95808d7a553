"""Text for character-level language models: files, the split into train and held-out, symbols, contiguous streams.

The default text is one that every machine has: the source files of Python's own standard library.
"""

import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HELD_OUT = 0.1  # of the characters
RARE = 1e-5  # a character that makes up less of the training text than this is the unknown symbol
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
# What is installed beside the library, tests (some Pythons come without), and what is generated: the tables of
# encodings, near copies of one another that would lie on both sides of the split, and the text of the help system.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}


class CorpusError(ValueError):
    """The text that was asked for cannot be used; the message says why."""


@dataclass(frozen=True)
class Corpus:
    """A text split into train and held-out, as symbol numbers.

    ``symbols[i]`` is the character with number ``i``; number 0 is the unknown symbol, which stands for every
    character that the training text has too rarely or never. ``train`` and ``heldout`` are int32 ``(N,)``.
    """

    name: str
    symbols: str
    train: Tensor
    heldout: Tensor
    train_files: tuple[str, ...]
    heldout_files: tuple[str, ...]

    def encode(self, text: str) -> Tensor:
        """Symbol numbers of a text, int32 ``(len(text),)``."""
        return encode(text, self.symbols)

    def decode(self, ids: Tensor) -> str:
        """The text of symbol numbers ``(N,)``."""
        return "".join(self.symbols[i] for i in ids.tolist())


def load(path: Path | None = None) -> Corpus:
    """Read a text and split it.

    A folder is split by file, so that no held-out file has a part or a copy in the training text; a single file is
    split by position, its last tenth held out.

    Args:
        path: a text file or a folder of text files; None for the standard library of the running Python.
    """
    if path is None:
        root = Path(sysconfig.get_path("stdlib"))
        texts = _read([p for p in root.rglob("*.py") if LEFT_OUT.isdisjoint(p.relative_to(root).parts)], root)
        if len(texts) < 2:
            raise CorpusError(f"no source files of the standard library in {root}: give another text with --text PATH")
        return _split_by_file(f"the standard library of Python {sysconfig.get_python_version()}", texts)
    if not path.exists():
        raise CorpusError(f"{path} does not exist: --text takes a text file or a folder of text files")
    if path.is_dir():
        texts = _read([p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path))], path)
        if not texts:
            raise CorpusError(f"no text files in the folder {path}")
        if len(texts) > 1:
            return _split_by_file(str(path), texts)
    else:
        texts = _read([path], path.parent)
        if not texts:
            raise CorpusError(f"{path} is empty, or is not text in UTF-8")
    ((name, text),) = texts.items()
    cut = len(text) - max(1, round(HELD_OUT * len(text)))
    return _corpus(str(path), text[:cut], text[cut:], (name,), (name,))


def encode(text: str, symbols: str) -> Tensor:
    """Symbol numbers of a text, int32 ``(len(text),)``; a character that is not in ``symbols`` becomes number 0."""
    numbers = np.zeros(0x110000, dtype=np.int32)  # one for every code point there is
    numbers[_code_points(symbols)] = np.arange(len(symbols), dtype=np.int32)
    return torch.from_numpy(numbers[_code_points(text)])


class Streams:
    """A text cut into ``batch`` contiguous streams, read side by side in windows of ``steps`` characters.

    Window ``k + 1`` continues every stream where window ``k`` ended, so a model may carry its state from window to
    window; after the last one the streams begin anew (see :meth:`begins`).

    Args:
        ids: symbol numbers ``(N,)``.
        batch: number of streams, B.
        steps: characters per window, T.
    """

    def __init__(self, ids: Tensor, batch: int, steps: int) -> None:
        length = (ids.numel() - 1) // batch  # the one: a target is the next character
        self.windows = length // steps
        if self.windows < 1:
            raise CorpusError(
                f"the text is too short: {batch} streams of {steps} steps need more than {batch * steps:,} characters "
                f"in the training text and in the held-out text, and one of them has {ids.numel():,}"
            )
        self.steps = steps
        self._inputs = ids[: batch * length].view(batch, length).t()
        self._targets = ids[1 : batch * length + 1].view(batch, length).t()

    def window(self, k: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of window ``k``, int64 ``(T, B)`` each: ``targets[t]`` is ``inputs[t + 1]``."""
        begin = k % self.windows * self.steps
        part = slice(begin, begin + self.steps)
        return self._inputs[part].long().contiguous(), self._targets[part].long().contiguous()

    def begins(self, k: int) -> bool:
        """Whether window ``k`` is at the beginning of the streams: no state reaches it."""
        return k % self.windows == 0


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


def _split_by_file(name: str, texts: dict[str, str]) -> Corpus:
    """Shuffle the files (always alike) and hold out the first ones that make up a tenth of the characters."""
    names = list(texts)
    random.Random(0).shuffle(names)
    enough = HELD_OUT * sum(map(len, texts.values()))
    heldout = 0
    size = 0
    while size < enough and heldout < len(names) - 1:
        size += len(texts[names[heldout]])
        heldout += 1
    held, train = names[:heldout], names[heldout:]
    return _corpus(
        name, "\n".join(texts[n] for n in train), "\n".join(texts[n] for n in held), tuple(train), tuple(held)
    )


def _corpus(
    name: str, train: str, heldout: str, train_files: tuple[str, ...], heldout_files: tuple[str, ...]
) -> Corpus:
    points, counts = np.unique(_code_points(train), return_counts=True)
    kept = points[counts >= RARE * len(train)]
    symbols = UNKNOWN + "".join(c for c in map(chr, kept.tolist()) if c != UNKNOWN)
    return Corpus(name, symbols, encode(train, symbols), encode(heldout, symbols), train_files, heldout_files)


def _code_points(text: str) -> np.ndarray:
    # surrogatepass: Python's strings may hold lone surrogates, and a benchmark should not stop at one
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
