"""The benchmark of threads without cores of their own: what it runs, and when it complains."""

import argparse
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import alive

from bench import report, results, threads
from bench.grid import Shape

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
SMALL = (Shape(1, 3, 4, 5),)


@pytest.fixture(autouse=True)
def number() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_rows_of_threads_and_of_a_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program runs during its rows, bound to a core, and no longer."""
    begun: list[subprocess.Popen] = []

    def popen(*args: Any, **kwargs: Any) -> subprocess.Popen:
        made = program(*args, **kwargs)
        if threads.NEIGHBOUR in args[0]:
            begun.append(made)
        return made

    program = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", popen)
    cores, found = len(os.sched_getaffinity(0)), []
    for row in threads.rows(["lstm"], 0.01, SMALL):
        assert any(alive(p.pid) for p in begun) == (row.detail["short_of_cores"] == "neighbour")
        found.append((row.detail["short_of_cores"], row.threads, row.case.mode))
        assert set(row.times) == {"torch.nn", "fastrnn", "fastrnn, one thread"}
        median = {name: times.median for name, times in row.times.items()}
        for name, ratio in row.detail["times_as_long"].items():
            assert ratio == pytest.approx(median["fastrnn"] / median[name])
    modes = ("inference", "training")
    assert found == [(how, n, m) for how, n in (("threads", 4 * cores), ("neighbour", cores)) for m in modes]
    assert len(begun) == 2
    assert not any(alive(p.pid) for p in begun)


@pytest.mark.parametrize(("torch_nn", "alone", "status"), [(0.9, 1.09, 0), (1.2, 0.5, 1), (0.5, 1.2, 1)])
def test_a_missed_target_is_told(
    torch_nn: float,
    alone: float,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = threads.row("threads", 2, ("lstm", *SMALL, "inference"), 0.01)
    row = replace(row, detail=row.detail | {"times_as_long": {"torch.nn": torch_nn, "fastrnn, one thread": alone}})
    monkeypatch.setattr(threads, "rows", lambda *_: iter([row]))
    out = tmp_path / "threads.jsonl"
    assert threads.run(argparse.Namespace(cells=["lstm"], seconds=0.01, out=out)) == status
    text = capsys.readouterr().out
    assert (" !" in text) == bool(status)
    assert f"{status} rows beyond the targets" in text
    assert results.read(out) == [row]
    assert report.tables([row]) is not None
