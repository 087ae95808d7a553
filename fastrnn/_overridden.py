"""A layer's call that asks the methods of torch.nn's of which a subclass, or the layer itself, has its own version.

torch.nn's forward checks its arguments by ``check_forward_args``, which calls more of them, and brings states into the
order of packed sequences, and back, by ``permute_hidden``. So does this; fastrnn's functions check what they are given
once more.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.modules import rnn as stock
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _validate


def call(
    layer: Any,
    function: Callable[..., Any],
    input: Tensor | PackedSequence,
    hx: Any,
    weights: None,
    *,
    lengths: Any,
    reset: Any,
    **options: Any,
) -> Any:
    """What a layer returns, by a function of :mod:`fastrnn.functional` with the layer's weights and those options."""
    layer._update_flat_weights()
    is_lstm, packed = isinstance(layer, stock.LSTM), isinstance(input, PackedSequence)
    name, batch_dim = "LSTM" if is_lstm else layer.mode.split("_")[0], 0 if layer.batch_first else 1
    order = unorder = batch_sizes = None
    batched, given = True, hx is not None
    if isinstance(input, PackedSequence):
        x, batch_sizes, order, unorder = input
        if isinstance(reset, Tensor) and order is not None:
            reset = reset.index_select(batch_dim, order)
    else:
        x = input
        _validate.input_dim(name, x)
        batched = x.dim() == 3
        if given:
            state = _validate.hidden(name, hx, batched, packed)
            hx = state if is_lstm else state[0]
        if not batched:
            _validate.lengths(lengths, 1, 1, False, x.device)
            x = x.unsqueeze(batch_dim)
            reset = reset.unsqueeze(batch_dim) if isinstance(reset, Tensor) else reset
    if not given:
        hx = _zeros(layer, x, x.shape[batch_dim] if batch_sizes is None else int(batch_sizes[0]))
    elif packed or not is_lstm:
        hx = layer.permute_hidden(hx, order)
    if not (packed and is_lstm):
        layer.check_forward_args(x, hx, batch_sizes)
        if given and is_lstm:
            hx = layer.permute_hidden(hx, order)

    sequences = x if batch_sizes is None else PackedSequence(x, batch_sizes)
    y, state, *cells = function(sequences, hx, layer._flat_weights, lengths=lengths, reset=reset, **options)

    def restored(t: Any) -> Any:
        if isinstance(t, PackedSequence):
            return PackedSequence(t.data, t.batch_sizes, order, unorder)
        return t if batched else t.squeeze(batch_dim)

    if not batched:
        state = tuple(s.squeeze(1) for s in state) if is_lstm else state.squeeze(1)
    return restored(y), layer.permute_hidden(state, unorder), *map(restored, cells)


def _zeros(layer: Any, x: Tensor, batch: int) -> Any:
    """The initial state where none was given."""
    layers = layer.num_layers * (2 if layer.bidirectional else 1)
    h = x.new_zeros(layers, batch, layer.proj_size or layer.hidden_size)
    return (h, x.new_zeros(layers, batch, layer.hidden_size)) if isinstance(layer, stock.LSTM) else h
