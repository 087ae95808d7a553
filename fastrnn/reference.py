"""The recurrences written out in torch operations, one step at a time: the truth that every engine is checked against.

Nothing here is fast. It takes any device and any floating dtype, uses no in-place operation, and is therefore
differentiable to any order and transparent to ``torch.func``: double backward of the fast engines is derived from it.

Shapes: ``T`` steps, ``B`` sequences, ``I`` input features, ``H`` hidden units, ``G`` gates, ``D`` directions (1 or 2).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, Sequence[Tensor | None]], State]


def rnn_tanh_step(x: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    """``h' = tanh(W_ih x + b_ih + W_hh h + b_hh)`` (:class:`torch.nn.RNNCell`)."""
    return (torch.tanh(_preactivation(x, state[0], weights)),)


def rnn_relu_step(x: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    """``h' = relu(W_ih x + b_ih + W_hh h + b_hh)`` (:class:`torch.nn.RNNCell`)."""
    return (torch.relu(_preactivation(x, state[0], weights)),)


def lstm_step(x: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    """Gates in torch's order ``i, f, g, o`` (:class:`torch.nn.LSTMCell`; Hochreiter & Schmidhuber 1997, Gers 2000)."""
    h, c = state
    i, f, g, o = _preactivation(x, h, weights).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_step(x: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    """Gates in torch's order ``r, z, n``, reset applied after the product (:class:`torch.nn.GRUCell`; Cho 2014)."""
    (h,) = state
    w_ih, w_hh, b_ih, b_hh = weights
    r_x, z_x, n_x = linear(x, _some(w_ih), b_ih).chunk(3, -1)
    r_h, z_h, n_h = linear(h, _some(w_hh), b_hh).chunk(3, -1)
    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + r * n_h)
    return (n + z * (h - n),)


@dataclass(frozen=True)
class Cell:
    """What the package needs to know of a cell: its step, its number of gates, what it carries and what it tapes."""

    name: str
    step: Step
    gates: int  # G: rows of w_ih and w_hh per hidden unit
    has_c: bool  # carries a cell state beside h
    tape: int  # values per hidden unit and step that the full tape keeps beside y and the cell states


CELLS = {
    cell.name: cell
    for cell in (
        Cell("rnn_tanh", rnn_tanh_step, gates=1, has_c=False, tape=0),
        Cell("rnn_relu", rnn_relu_step, gates=1, has_c=False, tape=0),
        Cell("lstm", lstm_step, gates=4, has_c=True, tape=4),  # i, f, g, o
        Cell("gru", gru_step, gates=3, has_c=False, tape=4),  # r, z, n, W_hn h + b_hn
    )
}


def split_weights(weights: Sequence[Tensor], bidirectional: bool) -> list[tuple[Tensor | None, ...]]:
    """A layer's flat weights as ``(w_ih, w_hh, b_ih, b_hh)`` per direction; biases are None where absent."""
    n = len(weights) // (2 if bidirectional else 1)
    per_direction = [tuple(weights[i : i + n]) for i in range(0, len(weights), n)]
    return [w if n == 4 else (*w, None, None) for w in per_direction]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that arithmetic and state are kept in: fp32 for 16-bit storage, else the storage's own."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def layer(
    cell: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    bidirectional: bool = False,
    *,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """One recurrent layer, the counterpart of the op ``fastrnn::layer``.

    Args:
        cell: a key of :data:`CELLS`.
        x: ``(T, B, I)``, or ``(sum(batch_sizes), I)`` with ``batch_sizes``.
        h0: ``(D, B, H)`` or None for zeros; ``c0`` likewise, for cells that have one.
        weights: per direction ``w_ih (G*H, I), w_hh (G*H, H)`` and, or not, ``b_ih (G*H), b_hh (G*H)``.
        bidirectional: D = 2.
        batch_sizes: int64 ``(T,)``, rows alive at each step, as in :class:`~torch.nn.utils.rnn.PackedSequence`.
        lengths: int64 ``(B,)``, valid steps of each row of a right-padded ``x``; what lies beyond comes out zero.
        reset: bool ``(T, B)``; where True a new sequence begins at that step of that row: its state is zero before
            the step, and in the reverse direction nothing flows from the step to the one before it.

    Returns:
        ``y`` like x with ``D*H`` features, ``h_n (D, B, H)``, ``c_n (D, B, H)`` or None, and all cell states, shaped
        like y in :func:`compute_dtype`, or None.
    """
    spec = CELLS[cell]
    storage, compute = x.dtype, compute_dtype(x.dtype)
    place = None
    if batch_sizes is not None:
        place = _packed_places(batch_sizes.to(x.device))
        steps, batch = batch_sizes.numel(), int(batch_sizes[0])
        x = x.new_zeros(steps, batch, x.shape[-1]).index_put(place, x)
        lengths = (batch_sizes.to(x.device) > torch.arange(batch, device=x.device)[:, None]).sum(1)
    steps, batch = x.shape[0], x.shape[1]
    alive = None if lengths is None else torch.arange(steps, device=x.device)[:, None] < lengths.to(x.device)
    if reset is not None and alive is not None:
        reset = reset & alive
    hidden = weights[1].shape[1]
    outputs: list[list[State]] = []
    finals: list[State] = []
    for d, w in enumerate(split_weights(weights, bidirectional)):
        initial = [
            _own(s[d], compute) if s is not None else x.new_zeros(batch, hidden, dtype=compute) for s in (h0, c0)
        ]
        state = tuple(initial[: 2 if spec.has_c else 1])
        w = tuple(None if p is None else _own(p, compute) for p in w)
        states, state = _scan(spec.step, _own(x, compute), state, w, alive, reset, reverse=d == 1)
        outputs.append(states)
        finals.append(state)
    y, cells = (_all_steps(outputs, k, x, hidden) if k == 0 or spec.has_c else None for k in (0, 1))
    h_n, c_n = (torch.stack([s[k] for s in finals]).to(storage) if k == 0 or spec.has_c else None for k in (0, 1))
    if place is not None:
        y, cells = (None if s is None else s[place] for s in (y, cells))
    return _some(y).to(storage), _some(h_n), c_n, cells


def _scan(
    step: Step,
    x: Tensor,
    state: State,
    weights: Sequence[Tensor | None],
    alive: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> tuple[list[State], State]:
    """Run one direction; the states after every step in time order (zero where a row is not alive), and the last."""
    order = range(x.shape[0])
    states: list[State] = []
    for t in reversed(order) if reverse else order:
        begins = t + 1 if reverse else t  # the step at whose beginning the state that is about to be used was cut
        if reset is not None and begins < len(order):
            state = tuple(torch.where(reset[begins][:, None], torch.zeros_like(s), s) for s in state)
        after = step(x[t], state, weights)
        if alive is not None:
            keep = alive[t][:, None]
            state = tuple(torch.where(keep, new, old) for new, old in zip(after, state, strict=True))
            after = tuple(torch.where(keep, new, torch.zeros_like(new)) for new in after)
        else:
            state = after
        states.append(after)
    return states[::-1] if reverse else states, state


def _all_steps(outputs: list[list[State]], k: int, x: Tensor, hidden: int) -> Tensor:
    """State ``k`` of every step, directions side by side: ``(T, B, D*H)``."""
    if x.shape[0] == 0:
        return x.new_zeros(0, x.shape[1], len(outputs) * hidden)
    return torch.cat([torch.stack([state[k] for state in states]) for states in outputs], -1)


def _packed_places(batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The step and the row of every packed row."""
    steps = torch.arange(batch_sizes.numel(), device=batch_sizes.device)
    t = torch.repeat_interleave(steps, batch_sizes)
    first = batch_sizes.cumsum(0) - batch_sizes
    return t, torch.arange(t.numel(), device=t.device) - first[t]


def _preactivation(x: Tensor, h: Tensor, weights: Sequence[Tensor | None]) -> Tensor:
    w_ih, w_hh, b_ih, b_hh = weights
    return linear(x, _some(w_ih), b_ih) + linear(h, _some(w_hh), b_hh)


def _own(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in ``dtype``: the last bits of torch's products depend on where in memory their factors begin."""
    return t.to(dtype, copy=True)


def _some(value: Tensor | None) -> Tensor:
    """The tensor that is there by construction (for the type checker)."""
    if value is None:
        raise RuntimeError("fastrnn: a required tensor is missing")
    return value
