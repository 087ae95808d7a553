"""Switches of the whole process: off by default, turned by a call, within a block, or by an environment variable."""

import os
from types import TracebackType


def of_environment(variable: str) -> bool:
    """Whether an environment variable turns a switch on.

    Raises:
        ValueError: it is neither ``0`` nor ``1``, nor empty or missing.
    """
    value = os.environ.get(variable, "0")
    if value not in ("", "0", "1"):
        raise ValueError(f"{variable}: expected 0 or 1, got {value}")
    return value == "1"


class Switch:
    """Turns a switch when it is made and, as a context manager, back at the end. A subclass has the switch."""

    def __init__(self, mode: bool) -> None:
        if not isinstance(mode, bool):
            raise TypeError(f"fastrnn.{type(self).__name__}: expected a bool, got {type(mode).__name__}")
        self._before = self._exchange(mode)

    @staticmethod
    def _exchange(mode: bool) -> bool:
        """Set the switch; what it was before."""
        raise NotImplementedError

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exchange(self._before)
