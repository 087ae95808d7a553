"""The dtypes that layers compute in under autocast."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrnn._validate import autocast_enabled


def under_autocast(
    cell: str, by_steps: bool, x: Tensor, state: tuple[Tensor, ...], params: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...], Sequence[Tensor], torch.dtype | None]:
    """Under autocast, cast so that the results have the dtypes that torch.nn's have there.

    torch's CPU autocast runs a dense LSTM and every RNN in the autocast dtype. A GRU, and an LSTM that it computes step
    by step (``by_steps``: packed, or a cell), keep their state, and so their output, in the dtype that input, hx and
    the autocast dtype promote to: those run in the weights' dtype here, which is no less precise. Returns the cast
    tensors and, for those, the dtype of the results. On a GPU everything is in the autocast dtype, as cuDNN has it.
    """
    device = x.device.type
    if not autocast_enabled(device):
        return x, state, params, None
    dtype, result = torch.get_autocast_dtype(device), None
    if device == "cpu" and (cell == "gru" or (cell == "lstm" and by_steps)):
        dtype, result = params[0].dtype, torch.promote_types(x.dtype, dtype)
        for s in state:
            result = torch.promote_types(result, s.dtype)
    return x.to(dtype), tuple(s.to(dtype) for s in state), [p.to(dtype) for p in params], result
