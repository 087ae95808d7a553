"""The tagger: the truth that it learns, its batches and scores, and a short training."""

from pathlib import Path

import pytest
import torch
from workload import made, threads, trained

from bench.workloads.tagging import scores, tagged_lines
from bench.workloads.workload import DataError

__all__ = ["threads"]
SOURCES = Path(__file__).resolve().parent.parent / "fastrnn"
LETTERS = {"space": " ", "keyword": "k", "name": "n", "number": "9", "string": "s", "comment": "c", "operator": "o"}
SOURCE = '''
def f(x2):  # of x
    """Say 'def'

    return 5"""
    return  x2 + 1.5
'''
TAGS = """
kkk nonnoo  cccccc
    ssssssssssss

sssssssssssssss
    kkkkkk  nn o 999
"""


def test_characters_are_tagged_as_python_reads_them() -> None:
    lines = tagged_lines(SOURCE)
    assert ["".join(line.symbols) for line in lines] == [line for line in SOURCE.split("\n") if line.strip()]
    assert ["".join(LETTERS[tag] for tag in line.tags) for line in lines] == [line for line in TAGS.split("\n") if line]
    assert tagged_lines("def f(:\n  '''") == []


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    truth, found = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 0, 0])
    assert scores(found, truth, 4).tolist() == pytest.approx([2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3), 0.5, 0, 0])


def test_no_line_is_both_trained_on_and_held_out() -> None:
    work = made("tagging", f"--data={SOURCES}")
    train = {tuple(symbols.tolist()) for symbols, _ in work.train}
    assert len(train) > 500
    assert train.isdisjoint(tuple(symbols.tolist()) for symbols, _ in work.heldout)


def test_it_learns(tmp_path: Path) -> None:
    flags = ("--updates=70", "--hidden=32", "--batch=32", "--lines=1500", "--learning-rate=0.05")
    row = trained("tagging", tmp_path, f"--data={SOURCES}", *flags)
    quality = row.detail["quality"]["fastrnn"]
    assert quality["accuracy"] > 0.75  # the most frequent tag is a third of the symbols
    assert quality["mean F1"] > 0.5
    assert set(row.detail["findings"]["f1"]["fastrnn"]) == LETTERS.keys()


def test_losses_are_of_the_tags_of_their_own_symbols() -> None:
    """A model that knows the tag of every symbol by heart has no loss, however lines are packed."""
    work = made("tagging", f"--data={SOURCES}", "--lines=50")
    lines = [(torch.arange(n), torch.arange(n) % len(work.tags)) for n in (3, 9, 1, 6)]
    work.train = work.heldout = lines

    class Oracle(torch.nn.Module):
        def forward(self, symbols: torch.nn.utils.rnn.PackedSequence) -> torch.Tensor:
            return 50.0 * torch.nn.functional.one_hot(symbols.data % len(work.tags), len(work.tags))

    assert next(work.learn(Oracle())).max() < 1e-6
    assert work.evaluate(Oracle()).qualities["accuracy"] == 1


def test_own_symbols_and_tags(tmp_path: Path) -> None:
    path = tmp_path / "own.tsv"
    sentences = [f"w{k}\tA\nin\tB\nthe\tA\n" for k in range(20)]
    path.write_text("\n".join(sentences), encoding="utf-8")
    work = made("tagging", f"--data={path}")
    assert (len(work.train), len(work.heldout), work.tags) == (18, 2, ["A", "B"])
    assert work.heldout[0][1].tolist() == [0, 1, 0]
    assert work.heldout[0][0][0] == 0  # a word that training does not have
    path.write_text("a\tA\nb c\n", encoding="utf-8")
    with pytest.raises(DataError, match="a symbol, a tab and a tag"):
        made("tagging", f"--data={path}")
    path.write_text("a\tA\n\n" * 9, encoding="utf-8")
    with pytest.raises(DataError, match="too few different lines"):
        made("tagging", f"--data={path}")
