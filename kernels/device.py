"""What a GPU lets a launch have whose programs wait for each other: all of them have to run at the same time.

A launch says so (it is cooperative), and the driver refuses it where they could not: that is an error, and no hang.
Plans ask for no more than these functions allow, so that it does not come to that.

A slice of a GPU that is split (MIG) is a device with multiprocessors of its own, which are those that CUDA tells of. A
process may also have a share of the multiprocessors that it has to itself (MPS). Whether CUDA's number is that of the
share depends on how the share was given; the one that a process is given by its environment is taken off here, twice
rather than never.
"""

import ctypes
import math
import os
from typing import Any

import torch

SHARE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
# Versions of CUDA, as drivers number them: graphs have nodes with a condition, whose bodies may have such launches.
CONDITIONAL_NODES, COOPERATIVE_BODIES = 12030, 12060
WHY_NOT_CAPTURED = (
    "no programs that wait for each other: this capture may be of the body of a graph's conditional node, where the "
    "driver takes them from CUDA 12.6 on"
)


def multiprocessors(properties: Any) -> int:
    """How many a process certainly has, by the properties of a device as torch has them."""
    count: int = properties.multi_processor_count
    try:
        share = float(os.environ.get(SHARE, "100"))
    except ValueError:
        return count
    return max(1, math.floor(count * share / 100)) if 0 < share < 100 else count


def driver_version() -> int:
    """The version of CUDA that the driver has: 12060 for 12.6. 0 where there is none, and for AMD's."""
    version = ctypes.c_int()
    try:  # the driver itself, which torch has no function to ask for that
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    known = torch.version.hip is None and driver.cuDriverGetVersion(ctypes.byref(version)) == 0
    return version.value if known else 0


def takes_cooperative_bodies(driver: int) -> bool:
    """Whether whatever is captured may have cooperative launches: torch does not tell what a capture is for."""
    return not CONDITIONAL_NODES <= driver < COOPERATIVE_BODIES
