"""The encoder-decoder: its dates and pairs, what states say, and a short training."""

from datetime import date
from pathlib import Path

import pytest
import torch
from workload import made, threads, trained

import fastrnn
from bench.workloads.captioning import WORDS
from bench.workloads.seq2seq import SPELLINGS, dates, read
from bench.workloads.workload import DataError
from bench.workloads.writing import teacher_forcing

__all__ = ["threads"]


def test_dates_are_spelt_as_people_do() -> None:
    spelt = [spelling(date(1987, 3, 23)) for spelling in SPELLINGS]
    assert len(set(spelt)) == len(SPELLINGS)
    for expected in ("March 23, 1987", "Monday, the twenty-third of March 1987", "23.III.1987", "23/03/1987"):
        assert expected in spelt
    pairs = dates(500)
    assert pairs == dates(500)
    assert len({pair.target for pair in pairs}) == 500
    assert all(date.fromisoformat(pair.target) for pair in pairs)


def test_no_target_is_both_trained_on_and_held_out(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{k}\t{k % 30}\n" for k in range(300)), encoding="utf-8")
    work = made("seq2seq", f"--data={path}", "--batch=8")
    train, heldout = ({pair.target for pair in part} for part in (work.train, work.heldout))
    assert train.isdisjoint(heldout)
    assert len(train | heldout) == 30
    assert len(work.heldout) >= 30


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a\tb\nc d\n", "line 2 is not"),
        ("\tb\n", "line 1 is not"),
        ("a\tb\n", "too few pairs: 1"),
        (None, "cannot be read"),
    ],
)
def test_pairs_that_cannot_be_used(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "pairs.tsv"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        made("seq2seq", f"--data={path}")


def test_pairs_are_read_in_groups(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("one\t1\ntwo\t2\n\nuno\t1\n", encoding="utf-8")
    targets = [pair.target for pair in read(path)]
    assert targets in (["1", "1", "2"], ["2", "1", "1"])


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_what_is_written_depends_on_the_whole_of_its_own_source(cell: str) -> None:
    """Fails where the state handed over is not that after a source's own last character, or is not handed over."""
    work = made("seq2seq", f"--cell={cell}", "--days=300", "--hidden=16")
    model = fastrnn.convert(work.model())
    sources = [torch.randint(1, 30, (length,)) for length in (4, 11, 7)]
    before, _ = teacher_forcing([torch.tensor([1, 2, 3])] * 3)
    with torch.no_grad():
        together = model(sources, before)
        for row, source in enumerate(sources):
            alone = model([source], before[:, :1])[:, 0]
            torch.testing.assert_close(together[:, row], alone)
            for changed in (0, -1):  # the first and the last character
                other = source.clone()
                other[changed] += 1
                assert not torch.allclose(model([other], before[:, :1])[:, 0], alone, atol=1e-6)


def test_it_learns(tmp_path: Path) -> None:
    """Numbers of three digits in words, read back."""
    path = tmp_path / "pairs.tsv"
    lines = (f"{' '.join(WORDS[int(digit)] for digit in f'{k:03}')}\t{k:03}\n" for k in range(1000))
    path.write_text("".join(lines), encoding="utf-8")
    flags = ("--updates=130", "--hidden=48", "--embedding=16", "--batch=64", "--learning-rate=0.02")
    row = trained("seq2seq", tmp_path / "out", f"--data={path}", *flags)
    greedy, beam = row.detail["quality"]["fastrnn"].values()
    assert greedy > 0.5  # a thousand are possible
    assert beam >= greedy - 0.05
    assert len(row.detail["findings"]["written"]["torch.nn"]) == 100
