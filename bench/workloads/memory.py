"""How much memory the updates of a model take, as the operating system counts it: whoever allocates it is counted."""

import ctypes
import gc
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
REST = 0.1  # seconds in which the thread of the call before ends: it is joined before its memory is free


def peak(call: Callable[[], object]) -> int | None:
    """The bytes that a call adds at its peak to those that the process has; None where Linux does not tell.

    It is made in a thread of its own: memory that threads keep for their next call, as oneDNN's and fastrnn's engines
    do, is so counted as well, and every call starts without any. What is free is given back to the system before, as
    far as malloc does so: what threads before have left to this one is used again, and not counted.
    """
    time.sleep(REST)
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = _status("VmRSS")
        CLEAR.write_text(RESET_PEAK, encoding="ascii")
    except (OSError, AttributeError):  # another system, another libc, or not allowed
        return None
    with ThreadPoolExecutor(1) as thread:
        thread.submit(call).result()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    """A number of bytes that the system keeps of this process."""
    for line in STATUS.read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return 1024 * int(value.split()[0])
    raise OSError(f"{STATUS} has no {name}")
