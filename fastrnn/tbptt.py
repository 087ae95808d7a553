"""Truncated backpropagation through time: a long sequence in windows, the state carried from one to the next."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastrnn._states import Recurrent, each, pair

__all__ = ["tbptt"]


class tbptt:
    r"""Cut a long sequence into windows, to learn from each: truncated backpropagation through time, BPTT(k2; k1).

    Every ``k1`` steps there is something to learn from: the output of these steps. The gradient goes back ``k2`` steps
    from the last of them, and the state that is carried to where it ends is detached there (Williams & Peng 1990, "An
    Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network Trajectories", where ``k1`` is h' and
    ``k2`` is h). With ``k2 = k1``, windows do not overlap, and each step is computed once: the gradient goes back to
    where the window begins, which is less far in the last one where fewer steps are left. With a larger ``k2``, the
    steps before the new ones are computed again with the weights as they are by then, so a window costs ``k2`` steps,
    the last one too.

    The windows are computed as they are asked for, with the weights of that moment: update them in between.

    Args:
        module: a recurrent layer of fastrnn or torch.nn, or any module or function that maps ``(input, state)`` to
            ``(output, state)``, where ``output`` has as many steps as ``input``, along the same dimension. A state is
            None, a tensor, or tuples, lists and dicts of states.
        input: the sequence, ``(T, ...)``, or ``(B, T, ...)`` with ``batch_first``. It is cut in this dimension and may
            have any others, or none.
        hx: the state before the first step. None is handed on as None, which layers take for zeros. It is not
            detached: windows that go back to the first step have a gradient for it.
        k1: steps between two updates; the last window has as many as are left.
        k2: steps that the gradient goes back, at least ``k1``. None: ``k1``.
        batch_first: whether the steps are the second dimension, of input and output.
        reset: bool ``(T, B)``, or ``(B, T)`` with ``batch_first``: cut like the input and handed to ``module`` as
            ``reset=``, for sequences that end within the input (:meth:`fastrnn.LSTM.forward`). A ``tbptt`` of its own
            for each sequence does the same where all rows end together.

    Yields:
        ``output, steps``: the output of the new steps, of which the gradient goes back as far as it may, and which
        steps they are, a slice of the sequence: ``target[steps]``, or ``target[:, steps]`` with ``batch_first``.

    Attributes:
        state: the state after all steps so far, detached: what goes on from here. ``hx`` before the first window.

    Raises:
        TypeError: ``input`` is no tensor; ``module`` returns no pair of output and state.
        ValueError: ``k1`` or ``k2`` is not a number of steps, or ``k2`` is less than ``k1``; ``input`` has no
            dimension of steps; ``reset`` has other steps.
        RuntimeError: there are no steps; ``output`` has other steps than ``input``.

    Examples::

        >>> net = fastrnn.LSTM(10, 20)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> x, target = torch.randn(100, 8, 10), torch.randn(100, 8, 20)
        >>> windows = fastrnn.tbptt(net, x, k1=20, k2=60)
        >>> for output, steps in windows:
        ...     loss = (output - target[steps]).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        >>> output.shape, steps
        (torch.Size([20, 8, 20]), slice(80, 100, None))
        >>> h, c = windows.state  # goes on from here
    """

    def __init__(
        self,
        module: Recurrent,
        input: Tensor,
        hx: Any = None,
        *,
        k1: int,
        k2: int | None = None,
        batch_first: bool = False,
        reset: Tensor | None = None,
    ) -> None:
        if not isinstance(input, Tensor):
            raise TypeError(f"input: expected a Tensor, got {type(input).__name__}")
        self._time = 1 if batch_first else 0
        if input.dim() <= self._time:
            raise ValueError(f"input: expected at least {self._time + 1} dimensions, got {input.dim()}")
        if input.shape[self._time] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0")
        self._k1 = _steps("k1", k1)
        self._k2 = self._k1 if k2 is None else _steps("k2", k2)
        if self._k2 < self._k1:
            raise ValueError(f"k2: expected at least k1 = {k1}, got {k2}: some steps would be learned from by none")
        if reset is not None and reset.shape != input.shape[: reset.dim()]:
            raise ValueError(f"reset: expected shape {tuple(input.shape[:2])}, got {tuple(reset.shape)}")
        self._module, self._input, self._reset = module, input, reset
        self._begin = self._end = 0  # of the window before
        self._before = self.state = hx

    def __iter__(self) -> Iterator[tuple[Tensor, slice]]:
        return self

    def __next__(self) -> tuple[Tensor, slice]:
        total = self._input.shape[self._time]
        if self._end == total:
            raise StopIteration
        new, end = self._end, min(self._end + self._k1, total)
        begin = self._begin
        # the window after this one begins within this one, at a step whose state is therefore needed
        overlaps = self._k2 > self._k1 and end < total
        following = max(0, min(end + self._k1, total) - self._k2) if overlaps else end
        outputs, state = [], self._before
        for first, last in ((begin, following), (following, end)):
            if first < last:
                output, state = self._run(first, last, state)
                if last > new:
                    outputs.append(output.narrow(self._time, max(0, new - first), last - max(new, first)))
            if last == following > 0:
                self._before = each(Tensor.detach, state)
        self.state = self._before if following == end else each(Tensor.detach, state)
        self._begin, self._end = following, end
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, self._time), slice(new, end)

    def _run(self, first: int, last: int, state: Any) -> tuple[Tensor, Any]:
        steps = last - first
        others = {} if self._reset is None else {"reset": self._reset.narrow(self._time, first, steps)}
        output, state = pair(self._module(self._input.narrow(self._time, first, steps), state, **others))
        if output.dim() <= self._time or output.shape[self._time] != steps:
            raise RuntimeError(
                f"module: expected an output with {steps} steps in dimension {self._time}, "
                f"got shape {tuple(output.shape)}"
            )
        return output, state


def _steps(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a number of steps, at least 1, got {value!r}")
    return value
