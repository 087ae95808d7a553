"""Drop-in ``torch.nn`` recurrent layers and cells: the functions of :mod:`fastrnn.functional` with parameters.

Constructors, parameters, state_dicts, warnings and ``repr`` are torch.nn's own, by inheritance. Weights are those that
torch.nn's forward would take, looked up at every call, so whatever puts other tensors in their place (parametrizations,
``weight_norm``, pruning, ``torch.func.functional_call``, an edited ``_flat_weights``) is what the engine sees.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, overload

from torch import Tensor
from torch.nn.modules import rnn as stock  # and not torch.nn's own names, which fastrnn.patch() may have changed
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _dynamo, _overridden, _script, _shortcut, _weights
from fastrnn._modules import PROXY, Fast, node
from fastrnn._validate import TAPES
from fastrnn.functional import gru, gru_cell, lstm, lstm_cell, rnn, rnn_cell

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

Lengths = Tensor | Sequence[int]
LSTMState = tuple[Tensor, Tensor]
CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Layers(Fast, stock.RNNBase):
    """What :class:`RNN`, :class:`LSTM` and :class:`GRU` share."""

    tape: str = "full"

    _weights_to_use = _weights.of

    @_dynamo.constant
    def _source_of_weights(self) -> str:
        return _weights.source(self)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        theirs = getattr(cls, "stock_class", stock.RNNBase)
        if any(
            getattr(cls, name, None) is not getattr(theirs, name, None) for name in (*_weights.METHODS, "_flat_weights")
        ):
            cls._weights_to_use = _weights.none


def _shortest(layer: Layers, cell: str, input: Any, hx: Any, weights: Any) -> Any:
    """What a layer returns, by the shortest route; None for a call that has to take the usual one."""
    if weights is None or layer.proj_size or layer.tape not in TAPES:
        return None
    dropout = layer.dropout if layer.training else 0.0
    stack = (layer.num_layers, layer.bidirectional, layer.batch_first, dropout, layer.tape)
    return _shortcut.call(cell, input, hx, weights, *stack)


def _usual(
    layer: Layers,
    function: Callable[..., Any],
    input: Any,
    hx: Any,
    weights: Any,
    beyond: dict[str, Any],
    **options: Any,
) -> Any:
    """What a layer returns, by a function of :mod:`fastrnn.functional`; ``beyond`` is what torch.nn does not take."""
    if isinstance(input, PROXY):
        return node(layer, input, hx, **beyond)
    if weights is not None and _weights.are_expanded(input, *(hx if isinstance(hx, tuple) else (hx,)), *weights):
        given = [name for name, value in beyond.items() if value is not None and value is not False]
        if given:
            raise NotImplementedError(f"fastrnn: {' and '.join(given)} with ExpandedWeights; {_weights.PER_SAMPLE}")
        return layer.stock_class.forward(layer, input, hx)
    run = function if weights is not None else partial(_overridden.call, layer, function)
    return run(
        *(input, hx, weights),
        **beyond,
        **options,
        bias=layer.bias,
        num_layers=layer.num_layers,
        dropout=layer.dropout,
        training=layer.training,
        bidirectional=layer.bidirectional,
        batch_first=layer.batch_first,
        tape=layer.tape,
    )


_dynamo.let_through(Layers)
_script.let_through()


class LSTM(Layers, stock.LSTM):
    r"""A stack of long short-term memory layers: :class:`torch.nn.LSTM`, faster, with the same parameters and results.

    .. math::
        i_t, f_t, o_t = \sigma(W x_t + b + U h_{t-1} + b'), \quad g_t = \tanh(W x_t + b + U h_{t-1} + b')

        c_t = f_t \odot c_{t-1} + i_t \odot g_t, \quad h_t = o_t \odot \tanh(c_t)

    where each gate has its own rows of :math:`W, U, b, b'`, in the order ``i, f, g, o`` (Hochreiter & Schmidhuber 1997,
    with the forget gate of Gers et al. 2000; projections after Sak et al. 2014).

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype: as in
            :class:`torch.nn.LSTM`, with its defaults, errors and warnings.

    Attributes:
        tape: what the forward pass keeps for the backward pass; set it on a layer, or with
            ``fastrnn.convert(model, tape=...)``. ``"full"``: the gates, for the fastest backward pass. ``"lean"``:
            little more than the output; the gates are computed again. The gradients are the same.
        weight_ih_l[k], weight_hh_l[k], bias_ih_l[k], bias_hh_l[k], weight_hr_l[k], and the same with ``_reverse``: the
            parameters, as in :class:`torch.nn.LSTM`. State_dicts are interchangeable.

    Dtypes: float32, float64, bfloat16 and float16 on the CPU. With 16-bit tensors gates, sums and states are float32;
    bfloat16 layers multiply in bfloat16 where the CPU has AMX or a fast AVX-512 BF16, else in float32 as well.
    For inference, the weights alone may be bfloat16: ``fastrnn.convert(model, weight_dtype=torch.bfloat16)``.
    Layers of CUDA tensors are computed by Triton kernels or torch's own engine, as a plan has it; those on other
    devices, with ``proj_size``, or of other dtypes by torch's own: :func:`fastrnn.explain` tells.

    Beyond :class:`torch.nn.LSTM`: ``lengths``, ``reset`` and ``return_cells`` of :meth:`forward`, and double backward.

    What is returned may be changed in place (``relu_``) before the backward pass, which then computes the layer again
    where it has lost the output to that. Where backward of :class:`torch.nn.LSTM` reads the output and raises an error,
    so does this one: for dense float32 and 16-bit input in one direction on the CPU, and on CUDA.

    ``torch.jit.script`` and :class:`torch.jit.ScriptModule` compile :class:`torch.nn.LSTM` with the very same
    parameters. The model that they are given keeps this layer.

    Examples::

        >>> net = fastrnn.LSTM(10, 20, num_layers=2)
        >>> x = torch.randn(5, 3, 10)
        >>> h0, c0 = torch.randn(2, 3, 20), torch.randn(2, 3, 20)
        >>> output, (h_n, c_n) = net(x, (h0, c0))
        >>> output.shape
        torch.Size([5, 3, 20])
    """

    stock_class = stock.LSTM

    @overload
    def forward(
        self,
        input: Tensor,
        hx: LSTMState | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
        return_cells: Literal[False] = False,
    ) -> tuple[Tensor, LSTMState]: ...

    @overload
    def forward(
        self,
        input: Tensor,
        hx: LSTMState | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
        return_cells: Literal[True],
    ) -> tuple[Tensor, LSTMState, Tensor]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: LSTMState | None = None,
        *,
        reset: Tensor | None = None,
        return_cells: Literal[False] = False,
    ) -> tuple[PackedSequence, LSTMState]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: LSTMState | None = None,
        *,
        reset: Tensor | None = None,
        return_cells: Literal[True],
    ) -> tuple[PackedSequence, LSTMState, PackedSequence]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: LSTMState | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
        return_cells: bool = False,
    ) -> Any:
        r"""Compute all steps of all layers.

        Args:
            input: ``(T, B, I)``; ``(B, T, I)`` with ``batch_first``; ``(T, I)`` for one sequence; or a
                :class:`~torch.nn.utils.rnn.PackedSequence`.
            hx: ``(h0, c0)``, each ``(num_layers*D, B, H)``, without ``B`` for one sequence (``h0`` with ``proj_size``
                features where the layer has projections). None: zeros.
            lengths: the valid steps of each row of a right-padded batch, integers ``(B,)`` on the CPU, in any order.
                The results are those of packing; beyond a row's length the output is zero. They may also be on the
                device of ``input``, and change between replays of a CUDA graph; a wrong one is then noticed by the
                device, as a wrong index is.
            reset: bool, shaped like ``input`` without its features (``(T, B)``, or ``(B, T)`` with ``batch_first``, for
                packed input too). True: a new sequence begins at that step of that row. Its state is zeroed before
                the step; in the reverse direction nothing flows from that step to the one before it. No gradient
                crosses it. In reinforcement learning this is ``episode_start``, the ``done`` of the step before.
            return_cells: also return the last layer's cell states of all steps.

        Returns:
            ``output, (h_n, c_n)`` as :class:`torch.nn.LSTM` returns them and, with ``return_cells``, the cell states,
            shaped and packed like ``output``.

        Raises:
            ValueError, RuntimeError, TypeError: for wrong inputs, where and as :class:`torch.nn.LSTM` raises them.
            NotImplementedError: ``reset`` or ``return_cells`` together with ``proj_size``; ``lengths``, ``reset`` or
                ``return_cells`` with the ExpandedWeights of ``torch.nn.utils._per_sample_grad``.

        Examples::

            >>> net = fastrnn.LSTM(10, 20, batch_first=True)
            >>> x = torch.randn(3, 5, 10)
            >>> output, (h_n, c_n) = net(x, lengths=[5, 2, 4])
            >>> episode_start = torch.zeros(3, 5, dtype=torch.bool)
            >>> episode_start[1, 2] = True
            >>> output, state, cells = net(x, reset=episode_start, return_cells=True)
            >>> cells.shape
            torch.Size([3, 5, 20])
        """
        weights = self._weights_to_use()
        if lengths is None and reset is None and not return_cells:
            found = _shortest(self, "lstm", input, hx, weights)
            if found is not None:
                return found
        beyond = {"lengths": lengths, "reset": reset, "return_cells": return_cells}
        return _usual(self, lstm, input, hx, weights, beyond, proj_size=self.proj_size)


class GRU(Layers, stock.GRU):
    r"""A stack of gated recurrent unit layers: :class:`torch.nn.GRU`, faster, with the same parameters and results.

    .. math::
        r_t, z_t = \sigma(W x_t + b + U h_{t-1} + b'), \quad n_t = \tanh(W x_t + b + r_t \odot (U h_{t-1} + b'))

        h_t = (1 - z_t) \odot n_t + z_t \odot h_{t-1}

    where each gate has its own rows of :math:`W, U, b, b'`, in the order ``r, z, n`` (Cho et al. 2014, with the reset
    gate after the product, as torch and cuDNN have it).

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as in
            :class:`torch.nn.GRU`, with its defaults, errors and warnings.

    Attributes:
        tape: as in :class:`LSTM`.
        weight_ih_l[k], weight_hh_l[k], bias_ih_l[k], bias_hh_l[k], and the same with ``_reverse``: the parameters, as
            in :class:`torch.nn.GRU`. State_dicts are interchangeable.

    Dtypes, ``torch.jit.script``, changes of the output in place, and what is beyond torch.nn (``lengths``, ``reset``,
    double backward): see :class:`LSTM`.

    Examples::

        >>> net = fastrnn.GRU(10, 20, bidirectional=True)
        >>> output, h_n = net(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 40]), torch.Size([2, 3, 20]))
    """

    stock_class = stock.GRU

    @overload
    def forward(
        self, input: Tensor, hx: Tensor | None = None, *, lengths: Lengths | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: Tensor | None = None, *, reset: Tensor | None = None
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
    ) -> Any:
        """Compute all steps of all layers.

        Args:
            input, lengths, reset: as in :meth:`LSTM.forward`.
            hx: ``h0 (num_layers*D, B, H)``, without ``B`` for one sequence. None: zeros.

        Returns:
            ``output, h_n`` as :class:`torch.nn.GRU` returns them.

        Raises:
            ValueError, RuntimeError, TypeError: for wrong inputs, where and as :class:`torch.nn.GRU` raises them.

        Examples::

            >>> net = fastrnn.GRU(10, 20, batch_first=True)
            >>> output, h_n = net(torch.randn(3, 5, 10), lengths=[5, 2, 4])
        """
        weights = self._weights_to_use()
        if lengths is None and reset is None:
            found = _shortest(self, "gru", input, hx, weights)
            if found is not None:
                return found
        return _usual(self, gru, input, hx, weights, {"lengths": lengths, "reset": reset})


class RNN(Layers, stock.RNN):
    r"""A stack of Elman layers: :class:`torch.nn.RNN`, faster, with the same parameters and results.

    .. math::
        h_t = \tanh(W x_t + b + U h_{t-1} + b')

    or with :math:`\mathrm{ReLU}` in the place of :math:`\tanh` (Elman 1990).

    Args:
        input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional, device, dtype: as
            in :class:`torch.nn.RNN`, with its defaults, errors and warnings.

    Attributes:
        tape: as in :class:`LSTM`.
        weight_ih_l[k], weight_hh_l[k], bias_ih_l[k], bias_hh_l[k], and the same with ``_reverse``: the parameters, as
            in :class:`torch.nn.RNN`. State_dicts are interchangeable.

    Dtypes, ``torch.jit.script``, changes of the output in place, and what is beyond torch.nn (``lengths``, ``reset``,
    double backward): see :class:`LSTM`.

    Examples::

        >>> net = fastrnn.RNN(10, 20, num_layers=2, nonlinearity="relu")
        >>> output, h_n = net(torch.randn(5, 3, 10), torch.randn(2, 3, 20))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    stock_class = stock.RNN

    @overload
    def forward(
        self, input: Tensor, hx: Tensor | None = None, *, lengths: Lengths | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: Tensor | None = None, *, reset: Tensor | None = None
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
    ) -> Any:
        """Compute all steps of all layers; arguments, results and errors are those of :meth:`GRU.forward`.

        Examples::

            >>> net = fastrnn.RNN(10, 20, batch_first=True)
            >>> output, h_n = net(torch.randn(3, 5, 10), lengths=[5, 2, 4])
        """
        nonlinearity = "relu" if self.mode == "RNN_RELU" else "tanh"
        weights = self._weights_to_use()
        if lengths is None and reset is None:
            found = _shortest(self, f"rnn_{nonlinearity}", input, hx, weights)
            if found is not None:
                return found
        beyond = {"lengths": lengths, "reset": reset}
        return _usual(self, rnn, input, hx, weights, beyond, nonlinearity=nonlinearity)


class Cell(Fast, stock.RNNCellBase):
    """What :class:`RNNCell`, :class:`LSTMCell` and :class:`GRUCell` share."""


def _cell_weights(cell: Cell) -> list[Any]:
    own = cell._parameters  # six times faster than getattr, which finds what stands in for a parameter
    return [own[name] if name in own else getattr(cell, name) for name in CELL_WEIGHTS]


class LSTMCell(Cell, stock.LSTMCell):
    r"""One step of an LSTM: :class:`torch.nn.LSTMCell`, faster, with the same parameters and results.

    For a whole sequence :class:`LSTM` is much faster than a loop of steps.

    Args:
        input_size, hidden_size, bias, device, dtype: as in :class:`torch.nn.LSTMCell`, with its defaults.

    Attributes:
        weight_ih, weight_hh, bias_ih, bias_hh: the parameters, as in :class:`torch.nn.LSTMCell`.

    Examples::

        >>> cell = fastrnn.LSTMCell(10, 20)
        >>> state = (torch.zeros(3, 20), torch.zeros(3, 20))
        >>> for x in torch.randn(6, 3, 10):
        ...     state = cell(x, state)
        >>> state[0].shape
        torch.Size([3, 20])
    """

    stock_class = stock.LSTMCell

    def forward(self, input: Tensor, hx: LSTMState | None = None) -> LSTMState:
        """Compute one step.

        Args:
            input: ``(B, I)``, or ``(I)`` for one sequence.
            hx: ``(h, c)``, each ``(B, H)`` or ``(H)``. None: zeros.

        Returns:
            The next ``(h, c)``.

        Raises:
            ValueError, RuntimeError, TypeError: for wrong inputs, where and as :class:`torch.nn.LSTMCell` raises them.
        """
        if isinstance(input, PROXY):
            return node(self, input, hx)  # type: ignore[no-any-return]
        return lstm_cell(input, hx, *_cell_weights(self))


class GRUCell(Cell, stock.GRUCell):
    r"""One step of a GRU: :class:`torch.nn.GRUCell`, faster, with the same parameters and results.

    For a whole sequence :class:`GRU` is much faster than a loop of steps.

    Args:
        input_size, hidden_size, bias, device, dtype: as in :class:`torch.nn.GRUCell`, with its defaults.

    Attributes:
        weight_ih, weight_hh, bias_ih, bias_hh: the parameters, as in :class:`torch.nn.GRUCell`.

    Examples::

        >>> cell = fastrnn.GRUCell(10, 20)
        >>> h = torch.zeros(3, 20)
        >>> for x in torch.randn(6, 3, 10):
        ...     h = cell(x, h)
    """

    stock_class = stock.GRUCell

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Compute one step.

        Args:
            input: ``(B, I)``, or ``(I)`` for one sequence.
            hx: ``h``, ``(B, H)`` or ``(H)``. None: zeros.

        Returns:
            The next ``h``.

        Raises:
            ValueError, RuntimeError, TypeError: for wrong inputs, where and as :class:`torch.nn.GRUCell` raises them.
        """
        if isinstance(input, PROXY):
            return node(self, input, hx)  # type: ignore[no-any-return]
        return gru_cell(input, hx, *_cell_weights(self))


class RNNCell(Cell, stock.RNNCell):
    r"""One step of an Elman network: :class:`torch.nn.RNNCell`, faster, with the same parameters and results.

    For a whole sequence :class:`RNN` is much faster than a loop of steps.

    Args:
        input_size, hidden_size, bias, nonlinearity, device, dtype: as in :class:`torch.nn.RNNCell`, with its defaults.

    Attributes:
        weight_ih, weight_hh, bias_ih, bias_hh: the parameters, as in :class:`torch.nn.RNNCell`.

    Examples::

        >>> cell = fastrnn.RNNCell(10, 20, nonlinearity="relu")
        >>> h = torch.zeros(3, 20)
        >>> for x in torch.randn(6, 3, 10):
        ...     h = cell(x, h)
    """

    stock_class = stock.RNNCell

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Compute one step; arguments, results and errors are those of :meth:`GRUCell.forward`."""
        if isinstance(input, PROXY):
            return node(self, input, hx)  # type: ignore[no-any-return]
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")  # the constructor takes any, as torch.nn's
        return rnn_cell(input, hx, *_cell_weights(self), nonlinearity=self.nonlinearity)


CLASSES = (RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell)
