"""Processes that tests find by their numbers."""

import time
from collections.abc import Callable
from pathlib import Path


def numbers(file: Path) -> list[int]:
    """Those that a file has, one a line."""
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def alive(number: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked about yet does not."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait for something that happens in another thread or process."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
