"""Which of cuDNN's algorithms torch asks for, by torch's own conditions, so that nobody guesses what was beaten.

They are those of ``get_algo`` in torch's ``aten/src/ATen/native/cudnn/RNN.cpp`` (read at commit 00fc08a, for compute
capability 8.0 and newer) for layers without a projection. bfloat16 goes to cuDNN from version 9.13 on, and to torch's
own kernels for single steps before.
"""

from enum import Enum

from bench.results import Case, Device, Row

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


def algorithm(case: Case, device: Device, packed: bool, forward: bool) -> Algorithm:
    """What torch asks for, forward or backward.

    Args:
        case: the layer.
        device: what it is computed on.
        packed: whether the sequences are in a PackedSequence.
        forward: whether it is the forward pass.
    """
    major, minor = map(int, device.capability.split("."))
    if major < 8 or not device.cudnn.isdecimal():
        return Algorithm.OTHER
    if case.dtype == "bfloat16" and int(device.cudnn) < BFLOAT16_VERSION:
        return Algorithm.OTHER
    if packed:
        return Algorithm.STANDARD
    if case.dtype != "float64" and case.hidden <= SMALL[case.cell in GATED, forward]:
        return Algorithm.SMALL
    if case.dtype != "float16" or not _may_persist(case) or minor == 6:
        return Algorithm.STANDARD
    if device.processors is None:
        return Algorithm.UNKNOWN
    return Algorithm.PERSISTENT if device.processors >= FEWEST_PROCESSORS else Algorithm.STANDARD


def _may_persist(case: Case) -> bool:
    """The conditions on sizes."""
    if case.layers > 1 or case.directions > 1 or case.hidden > 1024 or case.hidden % 128 or case.input % 128:
        return False
    if case.cell == "gru" or case.batch % 8 or case.batch > 128:
        return False
    return case.cell == "lstm" or case.batch < 96 or case.hidden < 896


def algorithms(row: Row) -> set[Algorithm]:
    """All that torch.nn's layer asks for in a row of a GPU: in training, forward and backward.

    Raises:
        ValueError: it is not a row of a GPU.
    """
    device, passes = row.provenance.device, (True,) if row.case.mode == "inference" else (True, False)
    if device is None:
        raise ValueError(f"expected a row of a GPU, got one of {row.provenance.cpu}")
    return {algorithm(row.case, device, row.benchmark == "packed", forward) for forward in passes}
