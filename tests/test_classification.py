"""The classifier: its passages, batches and poolings, and a short training."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn
from workload import made, threads, trained

import fastrnn
from bench.workloads.classification import POOLINGS, Model
from bench.workloads.workload import DataError

__all__ = ["threads"]
WORDS = ["moon", "sun", "tree", "sea", "hill", "rain", "wind", "road"]


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Texts of many lengths, whose label is their first and last words': both have to be read, and nothing after."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for _ in range(700):
        length = int(torch.randint(2, 12, (1,), generator=generator))
        first, *others = (WORDS[k] for k in torch.randint(8, (length,), generator=generator).tolist())
        label = (WORDS.index(first) < 4) + 2 * (WORDS.index(others[-1]) < 4)
        lines.append(f"label{label}\t{first} {' '.join(others)}\n")
    path = tmp_path / "reviews.tsv"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_it_learns(reviews: Path, tmp_path: Path) -> None:
    flags = ("--updates=120", "--hidden=16", "--embedding=16", "--pooling=last", "--learning-rate=0.03")
    row = trained("classification", tmp_path, f"--data={reviews}", *flags)
    assert row.detail["quality"]["fastrnn"]["accuracy"] > 0.9  # chance is a quarter
    confusion = torch.tensor(row.detail["findings"]["confusion"]["fastrnn"])
    right = row.detail["quality"]["fastrnn"]["accuracy"]
    assert confusion.diagonal().sum() / confusion.sum() == pytest.approx(right)
    assert row.detail["findings"]["labels"] == ["label0", "label1", "label2", "label3"]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("cls", [nn.GRU, fastrnn.GRU])
def test_a_row_is_what_it_is_alone(cls: type, pooling: str) -> None:
    """Neither the rows beside it nor what lies beyond its length say anything of a passage."""
    model = Model(symbols=9, embedding=4, hidden=5, labels=3, pooling=pooling).double()
    model = fastrnn.convert(model) if cls is fastrnn.GRU else model
    words, lengths = torch.randint(9, (4, 6)), torch.tensor([3, 6, 1, 4])
    found = model(words, lengths)
    for row, length, logits in zip(words, lengths.tolist(), found, strict=True):
        x = model.embedding(row[:length])
        ahead, behind = model.recurrent(x)[0].split(5, -1)
        if pooling == "last":
            state = torch.cat([ahead[-1], behind[0]])
        else:
            both = torch.cat([ahead, behind], -1)
            state = both.mean(0) if pooling == "mean" else both.max(0).values
        torch.testing.assert_close(logits, model.output(state))


def test_no_passage_is_both_trained_on_and_held_out_and_no_file_either(tmp_path: Path) -> None:
    for label, k in itertools.product("ab", range(10)):
        (tmp_path / label).mkdir(exist_ok=True)
        text = f"the same\tfor all {label}" if k < 5 else f"item{k} of {label}"
        (tmp_path / label / f"{k}.txt").write_text(f"{text} {'x' * k}", encoding="utf-8")
    work = made("classification", f"--data={tmp_path}")
    assert work.labels == ["a", "b"]
    train = {tuple(words.tolist()) for words, _ in work.train}
    assert (len(work.train), len(work.heldout)) == (16, 4)
    assert train.isdisjoint(tuple(words.tolist()) for words, _ in work.heldout)
    assert {label for _, label in work.heldout} == {0, 1}


def test_passages_of_the_standard_library_are_split_by_file() -> None:
    work = made("classification")
    assert len(work.labels) >= 5
    assert len(work.train) > 2000
    share = len(work.heldout) / (len(work.train) + len(work.heldout))
    assert 0.05 < share < 0.4


@pytest.mark.parametrize(
    ("content", "words"),
    [("good\tfine\nno tab\n", "a label, a tab and a text"), ("good\tfine\n" * 9, "at least two labels")],
)
def test_data_that_cannot_be_used(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "text.tsv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        made("classification", f"--data={tmp_path / 'text.tsv'}")
