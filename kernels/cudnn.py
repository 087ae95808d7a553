"""Which of cuDNN's algorithms torch asks for, by torch's own conditions, so that nobody guesses what was beaten.

They are those of ``get_algo`` in torch's ``aten/src/ATen/native/cudnn/RNN.cpp`` (read at commit 00fc08a, for compute
capability 8.0 and newer) for layers without a projection. bfloat16 goes to cuDNN from version 9.13 on, and to torch's
own kernels for single steps before.
"""

from enum import Enum

import torch

from fastrnn.kernels.measured import Work

BFLOAT16_VERSION = 91300  # as torch.backends.cudnn.version() has it
FEWEST_PROCESSORS = 98  # that a device has for torch to ask for a persistent algorithm
GATED = ("lstm", "gru")
# Up to which H the kernels for small states are asked for: of gated cells and of others, forward and backward.
SMALL = {(True, True): 192, (True, False): 128, (False, True): 384, (False, False): 256}


class Algorithm(Enum):
    """cuDNN's names, and what is none of its algorithms."""

    STANDARD = "CUDNN_RNN_ALGO_STANDARD"
    PERSISTENT = "CUDNN_RNN_ALGO_PERSIST_STATIC"
    SMALL = "CUDNN_RNN_ALGO_PERSIST_STATIC_SMALL_H"
    OTHER = "not cuDNN's"
    UNKNOWN = "the number of multiprocessors decides, and is not known"


def algorithm(
    work: Work, forward: bool, capability: tuple[int, int], processors: int | None, version: int | None
) -> Algorithm:
    """What torch asks for, forward or backward.

    Args:
        work: a stack's call.
        forward: whether it is the forward pass.
        capability, processors: of the device; None for a number of multiprocessors that is not known.
        version: of cuDNN, as ``torch.backends.cudnn.version()`` has it; None where there is none.
    """
    if capability < (8, 0) or version is None:
        return Algorithm.OTHER
    if work.dtype == torch.bfloat16 and version < BFLOAT16_VERSION:
        return Algorithm.OTHER
    if work.packed:
        return Algorithm.STANDARD
    if work.dtype != torch.float64 and work.hidden <= SMALL[work.cell in GATED, forward]:
        return Algorithm.SMALL
    if work.dtype != torch.float16 or not _may_persist(work) or capability[1] == 6:
        return Algorithm.STANDARD
    if processors is None:
        return Algorithm.UNKNOWN
    return Algorithm.PERSISTENT if processors >= FEWEST_PROCESSORS else Algorithm.STANDARD


def _may_persist(work: Work) -> bool:
    """The conditions on sizes."""
    if work.layers > 1 or work.directions > 1 or work.hidden > 1024 or work.hidden % 128 or work.inputs % 128:
        return False
    if work.cell == "gru" or work.batch % 8 or work.batch > 128:
        return False
    return work.cell == "lstm" or work.batch < 96 or work.hidden < 896
