"""Tests of Triton kernels, run by its interpreter on the CPU: ``TRITON_INTERPRET=1 pytest``, or ``make test``."""

import pytest
from rig import interpreter

interpreter.install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them prove kernels: make matrix repeats them."""
    for item in items:
        item.add_marker(pytest.mark.triton)
