"""The captioner: images of characters, what it is told, and a short training."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from workload import made, threads, trained

import fastrnn
from bench.workloads import captioning
from bench.workloads.captioning import BASELINE, CHARACTERS, SIDE, caption, drawn, fonts, read, split
from bench.workloads.workload import DataError
from bench.workloads.writing import teacher_forcing

__all__ = ["threads"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Bars of two directions and three colours, in folders of their names."""
    generator = np.random.default_rng(0)
    for name in ("upright", "level"):
        for k in range(40):
            picture = np.zeros((30, 20, 3), dtype=np.float32)
            place = generator.integers(4, 14)
            bar = (
                (slice(None), slice(place, place + 3)) if name == "upright" else (slice(place, place + 3), slice(None))
            )
            picture[(*bar, k % 3)] = 1
            (tmp_path / name).mkdir(exist_ok=True)
            matplotlib.image.imsave(tmp_path / name / f"{k}.png", picture)
    return tmp_path


def test_characters_are_drawn_on_their_baseline() -> None:
    (font,) = [path for path in fonts() if path.stem == "DejaVuSans"]
    found = drawn([font])
    assert found.images.shape == (len(captioning.SIZES) * len(CHARACTERS), SIDE, SIDE)
    assert float(found.images.max()) == 1
    first = dict(zip(found.captions, found.images, strict=False))
    assert caption("Z") == "capital z"
    for name in ("capital z", "small z"):
        rows = first[name].amax(1) > 0.5
        assert bool(rows[BASELINE - 1])
        assert not rows[BASELINE:].any()
    assert (first["small g"].amax(1) > 0.5)[BASELINE:].any()  # it hangs below
    assert int((first["capital z"] > 0.5).any(1).sum()) > int((first["small z"] > 0.5).any(1).sum())


def test_no_font_is_both_trained_on_and_held_out() -> None:
    work = made("captioning")
    assert len(work.train.captions) % (len(CHARACTERS) * len(captioning.SIZES)) == 0
    assert set(work.heldout.captions) <= set(work.train.captions)
    train = {image.numpy().tobytes() for image in work.train.images}
    # the sign for an underscore, say, is the same in some fonts
    assert sum(image.numpy().tobytes() in train for image in work.heldout.images) < 0.05 * len(work.heldout.captions)


def test_images_are_captioned_with_their_folders(images: Path) -> None:
    found = read(images)
    assert found.images.shape == (80, SIDE, SIDE)
    train, heldout = split(found, 0.2)
    assert (len(train.captions), len(heldout.captions)) == (64, 16)
    for image, name in zip(found.images, found.captions, strict=True):
        upright = image.mean(0).std() > image.mean(1).std()
        assert name == ("upright" if upright else "level")


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_what_is_written_depends_on_its_own_image(images: Path, cell: str) -> None:
    """Fails where what is seen is not the state in which the decoder begins, or that of another row."""
    work = made("captioning", f"--data={images}", f"--cell={cell}", "--hidden=16")
    model = fastrnn.convert(work.model()).eval()
    before, _ = teacher_forcing([torch.tensor([1, 2, 3])] * 4)
    with torch.no_grad():
        together = model(work.heldout.images[:4], before)
        for row in range(4):
            alone = model(work.heldout.images[row : row + 1], before[:, :1])
            torch.testing.assert_close(together[:, row], alone[:, 0])
            other = model(1 - work.heldout.images[row : row + 1], before[:, :1])
            assert not torch.allclose(other, alone, atol=1e-4)


def test_it_learns(images: Path, tmp_path: Path) -> None:
    flags = ("--updates=40", "--batch=16", "--hidden=24", "--embedding=8")
    row = trained("captioning", tmp_path / "out", f"--data={images}", *flags)
    for quality in row.detail["quality"].values():
        assert quality["exact match"] > 0.8  # whoever has seen nothing is right half of the time


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError:
        with pytest.raises(DataError, match="pip install scikit-learn"):
            made("captioning", "--digits")
        return
    work = made("captioning", "--digits")
    assert set(work.train.captions) == set(captioning.WORDS)


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no folders of images"):
        made("captioning", f"--data={tmp_path}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="no image"):
        made("captioning", f"--data={tmp_path}")
