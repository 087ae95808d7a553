"""Short runs of workloads, for the tests of each."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench import __main__, results
from bench.workloads import command, find
from bench.workloads.workload import Workload


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Workloads set torch's number of threads: set it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def trained(name: str, folder: Path, *flags: str) -> results.Row:
    """Train a workload with torch.nn and with fastrnn; the row, once all checks have found the same."""
    assert __main__.main(["workloads", name, "--threads=1", f"--out={folder}", *flags]) == 0
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    (row,) = results.read(folder / f"{name}.jsonl")
    assert row.benchmark == name
    return row


def made(name: str, *flags: str) -> Workload:
    """A workload with its data."""
    return find(name)(options(name, *flags))


def options(name: str, *flags: str) -> argparse.Namespace:
    """What a command line makes of flags."""
    return command.parser(name).parse_args(flags)
