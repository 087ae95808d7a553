"""A stack: its layers one after the other, with dropout between them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from fastrnn._autograd import Outputs

Layer = Callable[[Tensor, Tensor | None, Tensor | None, Sequence[Tensor], bool], Outputs]


def run(
    layer: Layer, x: Tensor, state: Sequence[Tensor], params: Sequence[Tensor], count: int, has_c: bool, dropout: float
) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """The output of the last layer, the final states of all, each like those of ``state``, and the last layer's cells.

    Args:
        layer: given ``x, h0, c0, weights`` of a layer and whether it is the last, returns ``y, h_n, c_n, cells``.
        x: the input of the first, time-major or packed.
        state: ``h0`` and, for an LSTM, ``c0``, each ``(count*D, B, H)``; or empty.
        params: the parameters of all layers.
        count: the number of layers.
        has_c: whether there are final cell states.
        dropout: the probability that an element of a layer's output is zeroed on its way to the next layer.
    """
    finals: list[tuple[Tensor, ...]] = []
    cells: Tensor | None = None
    each = len(params) // count
    parts = [(s,) if count == 1 else s.chunk(count) for s in state]
    for k in range(count):
        h0, c0 = (parts[i][k] if i < len(parts) else None for i in (0, 1))
        last = k == count - 1
        y, h_n, c_n, cells = layer(x, h0, c0, params[k * each : (k + 1) * each], last)
        finals.append((h_n, c_n) if has_c and c_n is not None else (h_n,))
        x = drop(y, dropout, True) if dropout and not last else y
    return x, finals[0] if count == 1 else tuple(torch.cat(s) for s in zip(*finals, strict=True)), cells
