"""Image to text, one to many: the name of a character, written letter by letter on seeing it.

A small convolutional network looks at the image; what it finds is the state in which the recurrent layer begins to
write, and all that it is told (Vinyals et al. 2015): "capital q". In training it is given the right letter before each
one that it has to predict (teacher forcing); afterwards it writes by itself.

Images are the printable characters of ASCII, drawn from the fonts that matplotlib brings, and their captions the
characters' names in Unicode. Fonts are held out, so the images are new, the names are not. ``--data`` takes a folder of
other images, and ``--digits`` scikit-learn's handwritten ones, "zero" to "nine" (``pip install scikit-learn``).
"""

import argparse
import random
import textwrap
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ft2font import FT2Font
from matplotlib.image import imread
from rich.console import RenderableType
from rich.table import Table
from torch import Tensor, nn

from bench.results import Case, Row
from bench.style import COLOURS, INK
from bench.workloads.layers import LAYERS
from bench.workloads.workload import DataError, Evaluation, Workload
from bench.workloads.writing import (
    IGNORED,
    Alphabet,
    Decoder,
    State,
    beam_search,
    exact_match,
    losses,
    teacher_forcing,
)
from fastrnn._arguments import positive_int

SIDE = 24  # pixels of an image, each way
SIZES = (12, 14, 16)  # of letters, in pixels
BASELINE = 18  # the row on which letters stand
CHARACTERS = [chr(point) for point in range(0x21, 0x7F)]
ACCENTED = range(0xC0, 0x17F)
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHIFT = 1  # pixels that an image is moved by at most, each way, each time that training sees it
HELD_OUT = 500  # images at most
COLUMNS, ROWS = 6, 4  # of the picture


@dataclass(frozen=True)
class Captioned:
    """Images ``(N, SIDE, SIDE)``, float32 from 0 to 1, and what they show."""

    images: Tensor
    captions: list[str]


def fonts() -> list[Path]:
    """The fonts of matplotlib that have the characters, and accents: TeX's, without them, have other signs."""
    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    drawing = [path for path in sorted(folder.glob("*.ttf")) if path.stem != "LastResortHE-Regular"]  # boxes for all
    return [path for path in drawing if {*map(ord, CHARACTERS), *ACCENTED} <= set(FT2Font(str(path)).get_charmap())]


def caption(character: str) -> str:
    """A character's name in Unicode, without the words that most of them have.

    >>> caption("Q")
    'capital q'
    """
    return unicodedata.name(character).lower().replace("latin ", "").replace("letter ", "")


def drawn(paths: Sequence[Path]) -> Captioned:
    """Every character in every size from these fonts, and their names."""
    images, captions = [], []
    for font in (FT2Font(str(path)) for path in paths):
        for size in SIZES:
            font.set_size(size, 72)  # points per inch: one pixel each
            for character in CHARACTERS:
                images.append(_draw(font, character))
                captions.append(caption(character))
    return Captioned(torch.from_numpy(np.stack(images)), captions)


def read(folder: Path) -> Captioned:
    """The images of a folder, each captioned with the name of the folder that it lies in."""
    paths = sorted(folder.rglob("*.png"))
    if not paths:
        raise DataError(f"{folder} has no folders of images (*.png), each folder's name being the images' caption")
    try:
        pictures = [torch.from_numpy(np.atleast_3d(imread(path))[..., :3].mean(-1)) for path in paths]
    except (OSError, SyntaxError) as error:  # what Pillow raises for a broken file
        raise DataError(f"{folder} has a file that is no image: {error}") from error
    return Captioned(torch.cat([_fit(picture[None]) for picture in pictures]), [path.parent.name for path in paths])


def digits() -> Captioned:
    """scikit-learn's handwritten digits."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(f"--digits are scikit-learn's: pip install scikit-learn ({error})") from error
    found = load_digits()
    return Captioned(_fit(torch.from_numpy(found.images / 16)), [WORDS[digit] for digit in found.target])


def split(data: Captioned, part: float) -> tuple[Captioned, Captioned]:
    """A random part (always the same) held out, at most :data:`HELD_OUT`: what is left, and what is held out."""
    order = list(range(len(data.captions)))
    random.Random(0).shuffle(order)
    cut = min(HELD_OUT, int(len(order) * part))
    return _select(data, order[cut:]), _select(data, order[:cut])


class Captioner(nn.Module):
    """Convolutions that look, and a decoder that writes.

    Args:
        cell: a key of :data:`~bench.workloads.layers.LAYERS`.
        letters: how many there are, V.
        embedding: features of a letter.
        hidden: units H of the recurrent layer.
    """

    def __init__(self, cell: str, letters: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.decoder = Decoder(cell, letters, embedding, hidden)
        self.states = 2 if cell == "lstm" else 1
        self.eye = nn.Sequential(
            *(nn.Conv2d(1, 16, 5, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 5, stride=2), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(32 * 3 * 3, self.states * hidden), nn.LayerNorm(self.states * hidden)),
        )

    def look(self, images: Tensor) -> State:
        """Images ``(B, SIDE, SIDE)`` to the state that the decoder begins in, ``(1, B, H)`` or a pair of them."""
        seen = self.eye(images.unsqueeze(1)).unsqueeze(0).chunk(self.states, dim=-1)
        return (seen[0], seen[1]) if self.states == 2 else seen[0]

    def forward(self, images: Tensor, before: Tensor) -> Tensor:
        """Teacher forcing: images, and their captions' letters ``(T, B)``, to the logits of the letters after them."""
        logits, _ = self.decoder(before, self.look(images))
        return logits


class Captioning(Workload):
    """Names of characters, letter by letter, from images of them."""

    name = "captioning"
    summary = "Train a captioner that writes the names of characters on seeing them."
    data = "a folder with a folder for each caption, of that name, with images in it (*.png); else characters of fonts"
    items = "images"
    learning_rate = 1e-2

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        if options.digits or options.data is not None:
            self.source = "scikit-learn's digits" if options.digits else str(options.data)
            self.train, self.heldout = split(digits() if options.digits else read(options.data), 0.2)
        else:
            paths = fonts()
            self.source = f"characters of {len(paths)} fonts"
            heldout = paths[::4]
            self.train = drawn([path for path in paths if path not in heldout])
            _, self.heldout = split(drawn(heldout), 1.0)
        if not self.heldout.captions:
            raise DataError(f"too few images: {len(self.train.captions)}, where a fifth is held out")
        self.alphabet = Alphabet(self.train.captions)
        self.texts = [self.alphabet.encode(caption) for caption in self.train.captions]
        self.longest = 1 + max(map(len, self.train.captions))

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--digits", action="store_true", help="scikit-learn's handwritten digits instead")
        parser.add_argument("--cell", choices=list(LAYERS), default="gru", help="recurrent layer")
        parser.add_argument("--embedding", type=positive_int, default=32, help="features of a letter")
        parser.add_argument("--hidden", type=positive_int, default=128, help="units of the layer")
        parser.add_argument("--batch", type=positive_int, default=32, help="images of an update")

    @property
    def case(self) -> Case:
        o = self.options
        return Case(o.cell, o.batch, self.longest, o.embedding, o.hidden, 1, 1, "float32", "training")

    def describe(self) -> dict[str, Any]:
        return {
            "images": self.source,
            "to train on": len(self.train.captions),
            "held out": len(self.heldout.captions),
            "captions": len(set(self.train.captions)),
            "letters": len(self.alphabet),
        }

    def model(self) -> Captioner:
        return Captioner(self.options.cell, len(self.alphabet), self.options.embedding, self.options.hidden)

    def learn(self, model: nn.Module) -> Iterator[Tensor]:
        dtype = next(model.parameters()).dtype
        padded = nn.functional.pad(self.train.images, (SHIFT,) * 4)
        windows = padded.unfold(1, SIDE, 1).unfold(2, SIDE, 1)  # (N, places, places, SIDE, SIDE), nothing copied
        while True:
            chosen = torch.randint(len(self.texts), (self.options.batch,))
            place = torch.randint(2 * SHIFT + 1, (2, self.options.batch))
            before, after = teacher_forcing([self.texts[k] for k in chosen.tolist()])
            yield losses(model(windows[chosen, place[0], place[1]].to(dtype), before), after)

    def evaluate(self, model: nn.Module) -> Evaluation:
        before, after = teacher_forcing([self.alphabet.encode(caption) for caption in self.heldout.captions])
        logits = model(self.heldout.images.to(next(model.parameters()).dtype), before)
        kept = after != IGNORED
        right = (logits.argmax(-1) == after)[kept]
        found = {
            "exact match": exact_match(self.written(model, self.heldout.images), self.heldout.captions),
            "letters right, after right ones": float(right.double().mean()),
        }
        return Evaluation(losses(logits, after), found)

    def findings(self, models: Mapping[str, nn.Module]) -> dict[str, Any]:
        images = self.heldout.images[: COLUMNS * ROWS]
        return {
            "images": [
                ["".join(f"{level:x}" for level in row) for row in image] for image in (images * 15).int().tolist()
            ],
            "captions": self.heldout.captions[: COLUMNS * ROWS],
            "written": {name: self.written(model, images) for name, model in models.items()},
        }

    def written(self, model: nn.Module, images: Tensor) -> list[str]:
        """What a model writes on seeing images, always the likeliest letter."""
        state = model.look(images.to(next(model.parameters()).dtype))
        numbers, _ = beam_search(model.decoder, state, 1, self.longest)
        return [self.alphabet.decode(row) for row in numbers]

    @staticmethod
    def show(row: Row) -> Sequence[RenderableType]:
        findings = row.detail["findings"]
        table = Table("caption", "written by fastrnn", title="held-out images")
        for caption, written in list(zip(findings["captions"], findings["written"]["fastrnn"], strict=True))[:8]:
            table.add_row(caption, "the same" if written == caption else written)
        return (table,)

    @staticmethod
    def draw(axes: Axes, row: Row) -> None:
        """Held-out images and what fastrnn's model writes on seeing them; in another colour where that is wrong."""
        findings = row.detail["findings"]
        shown = zip(findings["images"], findings["captions"], findings["written"]["fastrnn"], strict=True)
        for number, (image, caption, written) in enumerate(shown):
            x, y = number % COLUMNS, -(number // COLUMNS)
            pixels = np.array([[int(level, 16) for level in line] for line in image])
            axes.imshow(pixels, cmap="gray_r", extent=(x + 0.2, x + 0.8, y + 0.35, y + 0.95))
            right = written == caption
            text = textwrap.fill(written or "nothing", 18)
            axes.text(
                x + 0.5, y + 0.3, text, ha="center", va="top", fontsize=5.5, color=INK if right else COLOURS["torch.nn"]
            )
        axes.set_xlim(0, COLUMNS)
        axes.set_ylim(1 - ROWS, 1)
        axes.set_aspect("auto")
        axes.set_axis_off()
        axes.set_title("written on seeing fonts that training has not (orange: wrong)", fontsize=9, color=INK)


def _draw(font: FT2Font, character: str) -> np.ndarray:
    """One character, its foot on the baseline, in the middle: ``(SIDE, SIDE)``."""
    font.set_text(character)
    font.draw_glyphs_to_bitmap()
    glyph = np.asarray(font.get_image(), dtype=np.float32)[:SIDE, :SIDE] / 255
    height, width = glyph.shape
    top = min(max(0, BASELINE + 1 + round(font.get_descent() / 64) - height), SIDE - height)  # 1: of its margin
    left = (SIDE - width) // 2
    canvas = np.zeros((SIDE, SIDE), dtype=np.float32)
    canvas[top : top + height, left : left + width] = glyph
    return canvas


def _fit(images: Tensor) -> Tensor:
    """Images ``(N, any height, any width)`` as ``(N, SIDE, SIDE)``."""
    size = (SIDE, SIDE)
    return nn.functional.interpolate(images[:, None].float(), size, mode="bilinear", antialias=True)[:, 0]


def _select(data: Captioned, numbers: Sequence[int]) -> Captioned:
    return Captioned(data.images[list(numbers)], [data.captions[k] for k in numbers])
