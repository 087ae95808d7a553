"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for the operators of :mod:`fastrnn._ops`.

As for torch.nn's layers: two operations per weight and row in each product, and nothing for what is no product. Where
sequences differ in length, rows are the valid ones.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastrnn.reference import CELLS


def forward(
    cell: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    bidirectional: bool,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    *others: Any,
    out_val: Any = None,
) -> int:
    """Of ``fastrnn::layer`` and ``fastrnn::layer_forward``."""
    return 2 * _rows(x, lengths) * sum(w.numel() for w in weights if w.dim() == 2)


def backward(
    cell: str,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    dcells: Tensor | None,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    bidirectional: bool,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    y: Tensor,
    cells: Tensor,
    tape: Tensor,
    tape_kind: str,
    need_x: bool,
    need_h0: bool,
    need_c0: bool,
    need_weights: bool,
    *,
    out_val: Any = None,
) -> int:
    """Of ``fastrnn::layer_backward``: with the lean tape, the forward products that are computed again as well."""
    directions, rows = 2 if bidirectional else 1, _rows(x, lengths)
    again = tape_kind == "lean" and CELLS[cell].gates > 1
    # The gradient of a direction's first state is a product that nobody may want.
    unwanted = 0 if need_h0 and h0 is not None else sum(_first_rows(x, batch_sizes)[:directions])
    inputs = (need_x + need_weights + again) * rows * directions
    states = (1 + need_weights + again) * rows * directions - unwanted
    return 2 * (inputs * weights[0].numel() + states * weights[1].numel())


def _rows(x: Tensor, lengths: Tensor | None) -> int:
    return int(lengths.sum()) if lengths is not None and _has_data(lengths) else x.shape[:-1].numel()


def _first_rows(x: Tensor, batch_sizes: Tensor | None) -> tuple[int, int]:
    """The rows of the step that each direction begins with."""
    if batch_sizes is None:
        return x.shape[1], x.shape[1]
    return (int(batch_sizes[0]), int(batch_sizes[-1])) if _has_data(batch_sizes) else (0, 0)


def _has_data(t: Tensor) -> bool:
    return type(t) is Tensor and not t.is_meta


def register(counter: ModuleType) -> None:
    """Tell ``torch.utils.flop_counter`` the formulas."""
    operators = torch.ops.fastrnn
    counter.register_flop_formula([operators.layer, operators.layer_forward], get_raw=True)(forward)
    counter.register_flop_formula(operators.layer_backward, get_raw=True)(backward)
