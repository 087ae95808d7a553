"""What torch.nn hands to oneDNN or cuDNN, which act otherwise than torch's own sums of operators.

fastrnn follows torch.nn in that; it is asked here.
"""

from functools import cache

import torch
from torch import Tensor


@cache
def _supported(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes layers of a dtype on this CPU."""
    if dtype not in (torch.bfloat16, torch.float16):
        return dtype == torch.float32
    ask = getattr(torch.ops.mkldnn, f"_is_mkldnn_{'bf16' if dtype == torch.bfloat16 else 'fp16'}_supported", None)
    return ask is not None and bool(ask())


def takes_lstm(dtype: torch.dtype) -> bool:
    """Whether torch computes a dense LSTM of CPU tensors by oneDNN, if ``dtype`` is that of its input."""
    return torch._C._get_mkldnn_enabled() and _supported(dtype)


def keeps_output(
    cell: str,
    bidirectional: bool,
    x: Tensor,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
) -> bool:
    """Whether backward of torch.nn's layer reads the output, so that to change this in place is an error there.

    cuDNN's does, and that of oneDNN, which computes dense LSTMs in one direction; both directions' outputs are joined,
    and padded ones copied, into what the caller gets. The rest of torch's layers reads states of its own.
    """
    if lengths is not None or reset is not None:
        return False
    if x.is_cuda:
        return torch.backends.cudnn.enabled
    return (
        cell == "lstm" and not bidirectional and batch_sizes is None and x.device.type == "cpu" and takes_lstm(x.dtype)
    )
