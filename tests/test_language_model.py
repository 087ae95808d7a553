"""The language model: that the state is carried, its flags, and several processes that learn what one does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from workload import made, threads, trained

import fastrnn
from bench import results
from bench.workloads.language_model import Model, losses
from bench.workloads.workload import DataError

__all__ = ["threads"]
ROOT = Path(__file__).resolve().parent.parent
SIZES = ("--embedding=8", "--hidden=32", "--batch=4", "--heldout=1000", "--learning-rate=0.03")


@pytest.fixture
def periodic(tmp_path: Path) -> Path:
    """An a and eight b, over and over."""
    path = tmp_path / "text.txt"
    path.write_text(("a" + 8 * "b") * 600, encoding="utf-8")
    return path


def test_what_was_read_before_a_window_is_known_in_it(periodic: Path, tmp_path: Path) -> None:
    """What knows four letters at most has a perplexity of 1.36: when all it has seen are b, an a may follow or not."""
    flags = ("--updates=150", "--cell=gru", "--steps=4", "--back=12", "--temperature=0.1")
    row = trained("language_model", tmp_path, f"--data={periodic}", *SIZES, *flags)
    assert row.detail["quality"]["fastrnn"]["perplexity"] < 1.15
    assert ("a" + 8 * "b") * 3 in row.detail["findings"]["fastrnn"]["sample"]


def test_updates_go_on_where_the_last_one_ended(periodic: Path) -> None:
    work = made("language_model", f"--data={periodic}", *SIZES, "--steps=4", "--back=10")
    model = work.model()
    with torch.no_grad():
        whole = losses(model(work.inputs[:24])[0], work.targets[:24])
        found = torch.cat([update for update, _ in zip(work.learn(model), range(6), strict=False)])
    torch.testing.assert_close(found, whole)


def test_words(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat, and the dog sat on the cat.\n" * 60, encoding="utf-8")
    flags = ("--level=word", "--cell=lstm", "--steps=6", "--updates=60", "--tied", "--orthogonal", "--words=14")
    row = trained("language_model", tmp_path, f"--data={path}", *SIZES, "--embedding=32", *flags)
    assert row.detail["data"]["symbols"] == 12
    assert row.detail["quality"]["fastrnn"]["perplexity"] < 1.5  # of 14 tokens a line
    assert " sat on the" in row.detail["findings"]["fastrnn"]["sample"]


def test_tied_weights_are_one_in_every_copy() -> None:
    model = fastrnn.convert(Model("lstm", 9, 6, 6, 1, tied=True))
    for each in (model, model.double()):
        assert each.output.weight is each.embedding.weight


def test_orthogonal_weights(periodic: Path) -> None:
    layer = made("language_model", f"--data={periodic}", "--orthogonal", *SIZES).model().recurrent
    for block in layer.weight_hh_l0.chunk(4):
        torch.testing.assert_close(block @ block.T, torch.eye(32))
    assert torch.all((layer.bias_ih_l0 + layer.bias_hh_l0).chunk(4)[1] == 1)
    assert isinstance(layer, nn.LSTM)


@pytest.mark.parametrize(
    ("flags", "words"),
    [(("--tied",), "--embedding 32"), (("--steps=9", "--back=8"), "at least --steps, which is 9")],
)
def test_flags_that_do_not_go_together(periodic: Path, flags: tuple[str, ...], words: str) -> None:
    with pytest.raises(DataError, match=words):
        made("language_model", f"--data={periodic}", *SIZES, *flags)


def test_two_processes_learn_what_one_does_with_twice_the_batch(periodic: Path, tmp_path: Path) -> None:
    flags = (f"--data={periodic}", "--cell=gru", *SIZES, "--updates=8", "--steps=6", "--back=9", "--seed=3")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "bench"]
    both = [*launch, "workloads", "language_model", *flags, "--batch=2", "--threads=1", f"--out={tmp_path / 'two'}"]
    finished = subprocess.run(both, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("workloads, torch.nn and fastrnn") == 1  # one of them talks
    (two,) = results.read(tmp_path / "two/language_model.jsonl")
    one = trained("language_model", tmp_path, *flags, "--batch=4")
    assert (one.detail["processes"], two.detail["processes"]) == (1, 2)
    curves = [torch.tensor(row.detail["curves"]["fastrnn"]["loss"], dtype=torch.float64) for row in (one, two)]
    assert curves[0][-1] < curves[0][0]
    rounding = max(one.detail["largest_loss_difference"].values())
    assert (curves[0] - curves[1]).abs().max() <= 3 * rounding + 4 * torch.finfo(torch.float32).eps
    qualities = [row.detail["quality"]["fastrnn"]["perplexity"] for row in (one, two)]
    assert qualities[0] == pytest.approx(qualities[1], rel=1e-5)
