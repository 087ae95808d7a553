"""The dtypes that layers compute in under autocast."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrnn._onednn import takes_lstm
from fastrnn._validate import autocast_enabled


def under_autocast(
    cell: str, by_steps: bool, x: Tensor, state: tuple[Tensor, ...], params: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...], Sequence[Tensor], torch.dtype | None]:
    """Under autocast, cast so that the results have the dtypes that torch.nn's have there.

    torch's CPU autocast runs every RNN, and an LSTM that oneDNN computes, in the autocast dtype. A GRU, and any other
    LSTM (packed and cells: ``by_steps``; of an input that oneDNN does not take), it computes by products in that dtype
    and sums with the state, ``h`` of a GRU and ``c`` of an LSTM: results have the dtype that the initial one, which is
    zeros like ``x`` where there is none, and the autocast dtype promote to. Those run in the wider one of the weights'
    dtype and the results', which is no less precise. On a GPU everything is in the autocast dtype, as cuDNN has it.

    Returns the cast tensors and, for those that run in another dtype, the dtype of the results.

    Raises:
        RuntimeError: some tensors are float64 and others are not: CPU autocast leaves float64 as it is.
    """
    device = x.device.type
    if not autocast_enabled(device):
        return x, state, params, None
    dtype, result = torch.get_autocast_dtype(device), None
    if device == "cpu":
        if _all_float64(cell, dtype, x, state, params):
            return x, state, params, None
        if cell == "gru" or (cell == "lstm" and (by_steps or not takes_lstm(x.dtype))):
            result = torch.promote_types((state[-1] if state else x).dtype, dtype)
            dtype = torch.promote_types(params[0].dtype, result)
    return x.to(dtype), tuple(s.to(dtype) for s in state), [p.to(dtype) for p in params], result


def _all_float64(cell: str, dtype: torch.dtype, x: Tensor, state: tuple[Tensor, ...], params: Sequence[Tensor]) -> bool:
    """Whether there is nothing to cast."""
    is_one_step = x.dim() == 3 and x.shape[0] == 1
    # of an LSTM's single step, c is in no product
    factors = (x, *(state[:1] if cell == "lstm" and is_one_step else state), params[0])
    wide = [t.dtype == torch.float64 for t in factors]
    if any(wide) and not all(wide):
        other = {torch.bfloat16: "BFloat16", torch.float16: "Half"}.get(dtype, str(dtype))
        raise RuntimeError(f"mat1 and mat2 must have the same dtype, but got Double and {other}")
    return all(wide)
