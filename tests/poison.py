"""After a fault in a kernel, every call of CUDA fails in that process: its test is to fail, and no other.

Each test of a GPU is followed by waiting for the device. A fault that shows then is the test's own; the process ends,
at once where it is one of pytest-xdist's workers, which starts another in its place.
"""

import os
import sys
from collections.abc import Iterator

import pytest

STATUS = 3  # of a worker that ends
_LOST = pytest.StashKey[str]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Fail where the device computes nothing any more."""
    problem = None
    if item.get_closest_marker("gpu"):
        try:
            _synchronize()
        except Exception as error:
            problem = error
            item.stash[_LOST] = f"{type(error).__name__}: {error}"
    try:
        yield
    finally:
        if problem is not None:
            raise RuntimeError("the device was lost in this test, or by what it started") from problem


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """End the process: after the test's reports, and before xdist hears that it is over, hence blames the next one."""
    result = yield
    if _LOST in item.stash:
        if hasattr(item.config, "workerinput"):
            sys.stderr.flush()
            os._exit(STATUS)
        pytest.exit(f"the device is lost: {item.stash[_LOST]}")
    return result


def _synchronize() -> None:
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
