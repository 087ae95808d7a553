"""Streams: sequences of which a step, or a few, comes at a time, and is answered at once."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules import rnn as stock

from fastrnn._states import Recurrent, each, pair

__all__ = ["stream"]


class stream:
    """Serve a stream: call it with the next step, or the next few; it keeps the state in between.

    Nothing is recorded for gradients, and weights are read as they lie, so a step costs what the step of a cell does.
    Put the module in eval mode before, as for any inference.

    Args:
        module: a recurrent layer or cell of fastrnn or torch.nn, or any module or function that maps
            ``(input, state)`` to ``(output, state)``. It cannot be bidirectional: an output would need the steps to
            come.
        hx: the state at the beginning. None is handed on as None, which layers take for zeros.

    Attributes:
        state: the state after all steps so far, ``hx`` before the first: as the module returns it. It may be read,
            kept and set.

    Raises:
        ValueError: a layer of ``module`` is bidirectional.

    Examples::

        >>> net = fastrnn.LSTM(10, 20).eval()
        >>> step = fastrnn.stream(net)
        >>> for x in torch.randn(6, 1, 3, 10):  # six times one step of three streams
        ...     y = step(x)
        >>> y.shape
        torch.Size([1, 3, 20])
        >>> step.reset([1])  # a new stream begins in the second row
        >>> step.state[0][:, 1].abs().max()
        tensor(0.)
    """

    def __init__(self, module: Recurrent, hx: Any = None) -> None:
        for layer in module.modules() if isinstance(module, Module) else ():
            if isinstance(layer, stock.RNNBase) and layer.bidirectional:
                raise ValueError("expected layers of one direction, got bidirectional=True")
        self._module = module
        self._is_cell = isinstance(module, stock.RNNCellBase)
        self.state = self._begin = hx

    def __call__(self, input: Tensor) -> Tensor:
        """The output of the next steps.

        Args:
            input: as the module takes it: ``(T, B, I)`` with the new steps alone, ``T`` mostly 1, or ``(B, T, I)``
                with ``batch_first``; ``(B, I)`` for a cell; without ``B`` for one stream.

        Returns:
            The output, as the module returns it; of a cell its ``h``.

        Raises:
            ValueError, RuntimeError, TypeError: for wrong inputs, where and as the module raises them. The state is
                then what it was before.
        """
        with torch.no_grad():
            returned = self._module(input, self.state)
        if self._is_cell:
            self.state = returned
            return returned[0] if isinstance(returned, tuple) else returned
        output, self.state = pair(returned)
        return output

    def reset(self, rows: Sequence[int] | Tensor | None = None) -> None:
        """Begin anew, from the state at the beginning.

        Args:
            rows: the rows of the batch in which a new stream begins, as numbers, or bool ``(B,)``. None: all. With
                rows, each tensor of the state is to be ``(..., B, features)``, as those of layers and cells are.

        Raises:
            RuntimeError: there are ``rows``, and the state is that of one stream without a batch.
            IndexError: there is no such row.
        """
        if rows is None:
            self.state = self._begin
        elif self.state is not None:
            if not isinstance(rows, Tensor):  # on the CPU, whatever the default device is: any state takes that
                rows = torch.as_tensor(rows, dtype=None if len(rows) else torch.long, device="cpu")
            begin = () if self._begin is None else (self._begin,)
            self.state = each(partial(self._restarted, rows), self.state, *begin)

    def _restarted(self, rows: Tensor, state: Tensor, begin: Tensor | None = None) -> Tensor:
        dimensions = 2 if self._is_cell else 3 if isinstance(self._module, stock.RNNBase) else max(2, state.dim())
        if state.dim() != dimensions:
            raise RuntimeError(f"rows: expected a batched, {dimensions}-D state, got a {state.dim()}-D one")
        state = state.clone()
        state[..., rows, :] = 0 if begin is None else begin[..., rows, :]
        return state
