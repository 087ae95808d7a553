"""The runner of workloads, by the language model: texts, models trained side by side, how far rounding takes them."""

import copy
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from bench import __main__, corpus, results, rounding
from bench.check import MismatchError
from bench.workloads import NAMES, command, equality, find, learner, memory, runner
from bench.workloads.language_model import Model

WORDS = "the cell keeps what the gates let in and the state forgets what they let go\n"


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The programs set torch's number of threads: set it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A small text file."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{k} {WORDS}" for k in range(60)), encoding="utf-8")
    return path


@pytest.fixture
def demo(text: Path, tmp_path: Path) -> Callable[..., int]:
    """A tiny run of the language model, its results in ``tmp_path / "out"``."""
    sizes = ["--hidden=12", "--batch=3", "--steps=8", "--heldout=200", "--threads=1", "--learning-rate=0.02"]

    def run(*arguments: str, length: str = "--updates=6") -> int:
        own = [length, f"--data={text}", f"--out={tmp_path / 'out'}", *arguments]
        return __main__.main(["workloads", "language_model", *sizes, *own])

    return run


def test_a_folder_is_split_by_file(tmp_path: Path) -> None:
    for k in range(30):
        (tmp_path / f"{k}.txt").write_text(f"file <{k:02d}> " + WORDS * 3, encoding="utf-8")
    (tmp_path / "copy.txt").write_text((tmp_path / "3.txt").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "picture.bin").write_bytes(b"\x00\xff" * 50)
    (tmp_path / "empty.txt").touch()
    texts = corpus.read(tmp_path)
    assert len(texts.train) + len(texts.heldout) == 30  # neither the copy nor what is not text
    loaded = corpus.characters(texts)
    train, heldout = loaded.decode(loaded.train), loaded.decode(loaded.heldout)
    for k in range(30):
        assert (f"<{k:02d}>" in train) != (f"<{k:02d}>" in heldout)
    assert 0.08 < len(heldout) / (len(train) + len(heldout)) < 0.15
    assert corpus.read(tmp_path) == texts
    assert list(corpus.read(tmp_path, "7.txt").heldout) == ["17.txt"]


def test_a_file_is_split_by_position(text: Path) -> None:
    loaded = corpus.characters(corpus.read(text))
    whole = text.read_text(encoding="utf-8")
    assert loaded.decode(loaded.train) + loaded.decode(loaded.heldout) == whole
    assert loaded.heldout.numel() == round(0.1 * len(whole))


def test_the_default_text_is_the_standard_library() -> None:
    texts = corpus.read()
    loaded = corpus.characters(texts)
    assert loaded.train.numel() > 10 * len(loaded.symbols) ** 2
    assert "def " in loaded.decode(loaded.heldout[:100_000])
    assert not any("site-packages" in name for name in texts.train)


def test_symbols_that_training_does_not_have_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("ab\n" * 90 + "ab\N{GREEK SMALL LETTER PI}" * 10, encoding="utf-8")
    loaded = corpus.characters(corpus.read(tmp_path / "text"))
    assert loaded.symbols == corpus.UNKNOWN + "\nab"
    assert corpus.encode("a\N{GREEK SMALL LETTER PI}", loaded.symbols).tolist() == [2, 0]
    assert loaded.decode(torch.tensor([3, 0])) == "b" + corpus.UNKNOWN


def test_words_are_kept_by_frequency_and_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("  a be, a see\n\n  a be.\n" * 20, encoding="utf-8")
    texts = corpus.read(tmp_path / "text")
    every, some = corpus.words(texts, 100), corpus.words(texts, 4)
    (train,) = texts.train.values()
    assert every.decode(every.train) == train
    assert {" a", " be", ",", " see"} < set(every.symbols)
    assert some.symbols == (corpus.UNKNOWN, " a", " be", ",")


def test_streams_are_contiguous() -> None:
    ids = torch.arange(3 * 41 + 1, dtype=torch.int32)
    streams = corpus.Streams(ids, batch=3, steps=10)
    for b in range(3):
        assert streams.inputs[:, b].tolist() == list(range(41 * b, 41 * b + 41))
    assert torch.equal(streams.targets, streams.inputs + 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "does not exist"), (b"", "is empty"), (b"\xff\xfe\x00", "not text"), (b"too little", "too short")],
)
def test_texts_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, words: str
) -> None:
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    assert __main__.main(["workloads", "language_model", "--data", str(path), "--updates", "1"]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_without_text(tmp_path: Path) -> None:
    with pytest.raises(corpus.DataError, match="no text files"):
        corpus.read(tmp_path)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_the_demo_ends_with_table_picture_and_results(
    demo: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], cell: str
) -> None:
    assert demo("--cell", cell, "--layers", "2") == 0
    printed = capsys.readouterr().out
    assert "held-out perplexity" in printed
    assert printed.count("\n") < 60  # no progress bar where there is no terminal
    assert (tmp_path / "out/language_model.png").read_bytes().startswith(b"\x89PNG")
    (row,) = results.read(tmp_path / "out/language_model.jsonl")
    assert (row.benchmark, row.case.cell, row.case.layers, row.times["fastrnn"].turns) == ("language_model", cell, 2, 6)
    perplexities = {name: quality["perplexity"] for name, quality in row.detail["quality"].items()}
    assert abs(perplexities["fastrnn"] - perplexities["torch.nn"]) < 1e-4 * perplexities["torch.nn"]
    assert perplexities["torch.nn"] < row.detail["data"]["symbols"]  # it has learned something


def test_the_demo_stops_at_its_seconds(
    demo: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on by 10 ms whenever it is looked at, which is every update: on however busy a machine."""
    ticks = itertools.count()
    monkeypatch.setattr(learner, "time", SimpleNamespace(perf_counter=lambda: 0.01 * next(ticks)))
    assert demo(length="--seconds=0.2") == 0
    (row,) = results.read(tmp_path / "out/language_model.jsonl")
    assert 1 <= row.detail["updates"] < 20


@pytest.mark.parametrize("part", ["outputs", "gradients"])
def test_the_demo_refuses_a_first_update_that_differs(
    demo: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    part: str,
) -> None:
    convert = fastrnn.convert

    def broken(model: Model) -> Model:
        layer = convert(model).recurrent
        if part == "outputs":
            layer.weight_hh_l0.data.mul_(1 + 1e-4)
        else:  # the same numbers, from which more flows back; copies of a layer have its hooks
            layer.register_forward_hook(lambda _, __, out: (out[0] + 1e-4 * (out[0] - out[0].detach()), out[1]))
        return model

    monkeypatch.setattr(fastrnn, "convert", broken)
    assert demo() == 1
    assert "Not the same, stopped" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_demo_fails_if_training_differs_by_more_than_rounding(
    demo: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Sluggish(learner.Learner):
        def __init__(self, name: str, *others: Any) -> None:
            super().__init__(name, *others)
            if name == "fastrnn":
                self.rates = replace(self.rates, learning=0.99 * self.rates.learning)

    monkeypatch.setattr(runner, "Learner", Sluggish)
    assert demo() == 1
    assert "is allowed" in capsys.readouterr().out
    (row,) = results.read(tmp_path / "out/language_model.jsonl")
    assert len(row.detail["mismatches"]) == 1


@pytest.mark.parametrize(("whose", "words"), [("fastrnn", "Not the same, stopped: update 3"), ("torch.nn", "--clip")])
def test_the_demo_stops_where_a_loss_is_no_number(
    demo: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    whose: str,
    words: str,
) -> None:
    update = learner.Learner.update

    def broken(of: learner.Learner, learning: float) -> None:
        update(of, learning)
        if of.name == whose and len(of.losses) == 3:
            of.losses[-1] = torch.nan

    monkeypatch.setattr(learner.Learner, "update", broken)
    assert demo() == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("batches", "by", "words"),
    [
        ({}, 1.001, None),
        ({1, 3}, 1.001, None),
        ({0, 1, 4}, 1.001, "losses is off"),
        ({2}, torch.nan, "no numbers"),
    ],
)
def test_updates_of_the_same_weights_agree_in_most_batches(batches: set[int], by: float, words: str | None) -> None:
    class Text:
        def learn(self, model: nn.Module) -> Iterator[Tensor]:
            generator = torch.Generator().manual_seed(0)
            while True:
                logits, _ = model(torch.randint(9, (6, 2), generator=generator))
                yield -logits.log_softmax(-1)[..., 0].flatten()

    model = Model("gru", symbols=9, embedding=4, hidden=5, layers=1)
    ours = fastrnn.convert(copy.deepcopy(model))
    calls = itertools.count()
    ours.register_forward_hook(lambda _, __, out: (out[0] * (by if next(calls) in batches else 1), out[1]))
    with pytest.raises(MismatchError, match=words) if words else nullcontext():
        assert 0 <= equality.check_updates(Text(), model, ours) < 10


@pytest.mark.skipif(not memory.CLEAR.exists(), reason="Linux tells how much memory there was, others do not")
def test_memory_of_a_call_is_counted_whoever_allocates_it() -> None:
    """In a process of its own: malloc may serve a call from what threads before it have left, which is not counted."""
    code = """
import torch
from bench.workloads import memory

def call():
    torch.ones(30 << 20, dtype=torch.uint8)
    bytearray(20 << 20)

print(memory.peak(call))
try:
    memory.peak(lambda: 1 / 0)
except ZeroDivisionError:
    print("raised")
"""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    found, raised = done.stdout.split()
    assert 28 << 20 < int(found) < 60 << 20
    assert raised == "raised"


def test_losses_of_the_same_weights_agree() -> None:
    exact = torch.rand(30, 40, dtype=torch.float64) + 1
    theirs = exact.float()
    equality.check_losses(theirs * (1 + 4e-7), theirs, exact)
    for wrong in (theirs * (1 + 1e-6), theirs * torch.nan):
        with pytest.raises(MismatchError, match="held-out losses"):
            equality.check_losses(wrong, theirs, exact)


def test_moving_by_rounding_moves_every_weight_by_one_unit() -> None:
    model = nn.Linear(7, 5)
    moved = rounding.moved_by_rounding(model, seed=0)
    for weight, other in zip(model.parameters(), moved.parameters(), strict=True):
        assert torch.all(weight != other)
        torch.testing.assert_close(other, weight, rtol=torch.finfo(weight.dtype).eps, atol=0)


def test_deviation_is_measured_against_rounding() -> None:
    losses = torch.rand(5000) + 1
    moved = losses + 1e-4
    for others, factor in (([moved], 3), ([moved, losses + 3e-4, losses - 2e-4], 10 * (14 / 3) ** 0.5)):
        at_most = factor * 1e-4
        assert rounding.deviation(losses - 0.99 * at_most, losses, others).is_rounding
        assert not rounding.deviation(losses + 1.01 * at_most, losses, others).is_rounding
        assert not rounding.deviation(losses * torch.nan, losses, others).is_rounding
    noise = torch.randn(rounding.PAGES, 50)
    within_pages = losses + 1e-2 * (noise - noise.mean(1, keepdim=True)).flatten()
    assert rounding.deviation(within_pages, losses, [moved]).is_rounding  # no difference between perplexities of pages


@pytest.mark.parametrize("name", NAMES)
def test_every_workload_says_what_it_is(name: str) -> None:
    workload = find(name)
    assert workload.name == name
    assert workload.summary in " ".join(command.parser(name).format_help().split())
    assert workload.draw is None or callable(workload.draw)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["poetry"], "no workload poetry: there are language_model"),
        (["language_model", "tagging", "--hidden=3"], "unrecognized arguments: --hidden=3"),
        (["language_model", "--pooling=max"], "unrecognized arguments: --pooling=max"),
        (["--updates=0"], "must be at least 1"),
    ],
)
def test_mistakes_in_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["workloads", *arguments])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_several_end_in_one_table(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One whose data cannot be used does not keep the others from running."""
    text.write_text(600 * WORDS, encoding="utf-8")
    flags = [f"--data={text}", "--updates=2", "--threads=1", f"--out={tmp_path}"]
    assert __main__.main(["workloads", "classification", "language_model", *flags]) == 2
    printed = capsys.readouterr()
    assert "language_model (2 of 2) 100%" in printed.out
    assert "classification: expected a label, a tab and a text" in printed.err
    assert printed.out.count("times as fast") >= 2
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["language_model.jsonl"]
