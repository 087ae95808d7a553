"""The two-tower encoder: its pairs and scores, texts side by side, and a short training."""

import itertools
from pathlib import Path

import pytest
import torch
from workload import made, threads, trained

import fastrnn
from bench.workloads.encoder import Tower, pairs, recall, words
from bench.workloads.workload import DataError

__all__ = ["threads"]
SOURCE = '''
class Reader:
    @cached
    def readLine(self, max_size=7):
        """Read one line of the file.

        Not this.
        """
        return self.buffer[:max_size]

    def short(self):
        """Too short."""
        return 1

    def undocumented(self):
        return 1

    def nothing_but_words(self):
        """There is nothing but a docstring here."""

class Other:
    def again(self):
        """Read one line of the file."""
        return None
'''


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Files of functions that do one of four things to one of fifteen others, and say so in other words."""
    verbs = {"adds up": "total += ", "removes": "del ", "prints": "stdout.write", "sorts": "ordered = "}
    nouns = words("apples roads rivers clocks stones words doors lamps birds ships maps coins rings trees wheels", 15)
    for k, ((verb, code), noun) in enumerate(itertools.product(verbs.items(), nouns)):
        text = f'def f{k}(x):\n    """It {verb} the {noun} that are given."""\n    {code}({noun[:-1]}_{k % 7})\n'
        for call in range(k % 5):
            text += f"    use(x, {call})\n"
        (tmp_path / f"{k}.py").write_text(text, encoding="utf-8")
    return tmp_path


def test_words_are_cut_where_their_writers_joined_them() -> None:
    assert words("self.parseHTTPHeader(max_length=30)", 20) == (
        *("self", ".", "parse", "http", "header", "("),
        *("max", "length", "=", "30", ")"),
    )
    assert words("a b c", 2) == ("a", "b")


def test_pairs_are_documented_functions_without_their_docstrings() -> None:
    (pair,) = pairs({"reader.py": SOURCE, "old.py": "print 'python 2'"}, set())
    assert (pair.file, pair.name) == ("reader.py", "readLine")
    assert " ".join(pair.docstring) == "read one line of the file ."
    assert "not" not in pair.function
    assert " ".join(pair.function).startswith("def read line ( self , max size = 7 ) : return self . buffer")


def test_no_pair_is_on_both_sides(sources: Path) -> None:
    (sources / "copy.py").write_text((sources / "3.py").read_text().replace("f3", "g"), encoding="utf-8")
    work = made("encoder", f"--data={sources}", "--batch=8")
    assert len(work.train) + len(work.heldout) == 60
    train = {tuple(docstring.tolist()) for docstring, _ in work.train}
    assert len(train) == len(work.train)


def test_recall_counts_what_is_as_good_as_ahead() -> None:
    scores = torch.tensor([[3.0, 1, 2], [5, 4, 3], [1, 1, 1]])
    assert [recall(scores, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_text_is_the_same_whatever_is_beside_it(sources: Path, cell: str) -> None:
    """Fails where padding, or a neighbour's length, has any part in a vector."""
    model = made("encoder", f"--data={sources}", f"--cell={cell}", "--batch=8").model()
    tower: Tower = fastrnn.convert(model).docstrings
    texts = [torch.randint(5, (length,)) for length in (3, 9, 1, 6)]
    with torch.no_grad():
        together = tower(texts)
        torch.testing.assert_close(together, torch.cat([tower([text]) for text in texts]))
        assert not torch.allclose(together[0], tower([texts[0][:2]])[0])
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))


def test_it_learns(sources: Path, tmp_path: Path) -> None:
    flags = ("--updates=60", "--batch=16", "--hidden=24", "--embedding=24")
    row = trained("encoder", tmp_path / "out", f"--data={sources}", *flags)
    for quality in row.detail["quality"].values():
        assert quality["recall@1"] > 0.5  # of 8 or so
    assert len(row.detail["findings"]["asked"]) > 3


def test_too_few_functions(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "two.py").write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(DataError, match="too few documented functions: 0"):
        made("encoder", f"--data={tmp_path}")
