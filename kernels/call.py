"""A call of a layer's operator as the kernels want it: matrices with a row per step and sequence, weights per
direction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from fastrnn.kernels.tables import tables
from fastrnn.reference import CELLS, Cell, compute_dtype

WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh")  # of each direction


@dataclass(frozen=True)
class Call:
    """The arguments that the operators of :mod:`fastrnn._ops` share, laid out for kernels.

    Attributes:
        cell: the cell.
        x: ``(N, I)``, row-major.
        h0, c0: ``(D, B, H)`` contiguous, or None.
        w_ih: per direction ``(G*H, I)``.
        w_hh: ``(D, G*H, H)`` contiguous.
        biases: per direction ``b_ih, b_hh (G*H)``, or none.
        steps, batch, inputs, hidden, directions, rows: T, B, I, H, D, N.
        gates: G, the gates that W_hh has rows for.
        width: W, the pre-activations per unit: the gates, and one more of a GRU, whose n keeps two sums apart.
        compute: the dtype of states and sums.
        rows_shape: the shape of ``y`` but for its features.
        first: first row of every step and, last, N, where sequences are packed; on the device ``first_row``.
        lengths: int32 ``(B,)`` on the device, of packed sequences too, or None.
        reset: int32 ``(T, B)`` contiguous or None.
    """

    cell: Cell
    x: Tensor
    h0: Tensor | None
    c0: Tensor | None
    w_ih: tuple[Tensor, ...]
    w_hh: Tensor
    biases: tuple[tuple[Tensor, ...], ...]
    steps: int
    batch: int
    inputs: int
    hidden: int
    directions: int
    rows: int
    gates: int
    width: int
    compute: torch.dtype
    rows_shape: tuple[int, ...]
    first: tuple[int, ...] | None
    first_row: Tensor | None
    lengths: Tensor | None
    reset: Tensor | None

    @classmethod
    def of(
        cls,
        cell: str,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: Sequence[Tensor],
        bidirectional: bool,
        batch_sizes: Tensor | None,
        lengths: Tensor | None,
        reset: Tensor | None,
    ) -> "Call":
        """Check what the kernels rely on and lay it out.

        Raises:
            RuntimeError: the arguments do not fit together.
        """
        if cell not in CELLS:
            raise RuntimeError(f"cell: expected rnn_tanh, rnn_relu, lstm or gru, got {cell}")
        spec, directions = CELLS[cell], 2 if bidirectional else 1
        if batch_sizes is not None and lengths is not None:
            raise RuntimeError("lengths: expected None with batch_sizes")
        dims = 3 if batch_sizes is None else 2
        if x.dim() != dims:
            raise RuntimeError(f"x: expected {dims} dimensions, got {x.dim()}")
        counts = (2 * directions, 4 * directions)
        if len(weights) not in counts:
            raise RuntimeError(f"weights: expected {counts[0]} or {counts[1]}, got {len(weights)}")
        if weights[1].dim() != 2:
            raise RuntimeError(f"w_hh: expected 2 dimensions, got {weights[1].dim()}")
        hidden, each = weights[1].shape[1], len(weights) // directions
        rows = spec.gates * hidden
        shapes = ((rows, x.shape[-1]), (rows, hidden), (rows,), (rows,))
        for k, w in enumerate(weights):
            _check_tensor(WEIGHTS[k % each], w, shapes[k % each], x.dtype)
        first: tuple[int, ...] | None = None
        first_row: Tensor | None = None
        if batch_sizes is None:
            steps, batch = x.shape[0], x.shape[1]
            if steps == 0:
                raise RuntimeError("x: expected at least one step, got none")
            if lengths is not None:
                _check_tensor("lengths", lengths, (batch,), torch.int64)
                lengths = _lengths(lengths, steps, x.device)
        else:
            first, first_row, lengths = _packed(batch_sizes, x)
            steps, batch = len(first) - 1, first[1]
        for name, state in (("h0", h0), ("c0", c0)):
            if state is not None:
                _check_tensor(name, state, (directions, batch, hidden), x.dtype)
        if reset is not None:
            _check_tensor("reset", reset, (steps, batch), torch.bool)
            # Not bytes: Triton 3.6 lays out a factor by the narrowest number behind it, which fails in float64.
            reset = reset.to(torch.int32).contiguous()
        matrix = _matrix(x)
        return cls(
            cell=spec,
            x=matrix,
            h0=None if h0 is None else h0.contiguous(),
            c0=None if c0 is None or not spec.has_c else c0.contiguous(),
            w_ih=tuple(weights[::each]),
            w_hh=torch.stack([*weights[1::each]]) if bidirectional else _aligned(weights[1]).unsqueeze(0),
            biases=tuple((*weights[k + 2 : k + each],) for k in range(0, len(weights), each)),
            steps=steps,
            batch=batch,
            inputs=matrix.shape[1],
            hidden=hidden,
            directions=directions,
            rows=matrix.shape[0],
            gates=spec.gates,
            width=width(spec),
            compute=compute_dtype(x.dtype),
            rows_shape=tuple(x.shape[:-1]),
            first=first,
            first_row=first_row,
            lengths=lengths,
            reset=reset,
        )

    @cached_property
    def bias(self) -> Tensor:
        """``(D, W*H)`` in the compute dtype, what is added to each pre-activation; a GRU's fourth is b_hn."""
        sums = [_bias(self.cell, self.hidden, given, self.x) for given in self.biases]
        return torch.stack(sums) if len(sums) > 1 else sums[0].unsqueeze(0)

    def span(self, d: int, s0: int, s1: int) -> tuple[int, int]:
        """The rows that direction ``d`` visits in processing steps ``s0 … s1 - 1``: from, to."""
        t0, t1 = (s0, s1) if d == 0 else (self.steps - s1, self.steps - s0)
        return (t0 * self.batch, t1 * self.batch) if self.first is None else (self.first[t0], self.first[t1])

    def most_rows(self, steps: int) -> int:
        """The most rows that any ``steps`` steps have."""
        return min(steps, self.steps) * self.batch if self.first is None else self.first[min(steps, self.steps)]

    def carried(self, start: Tensor | None) -> Tensor:
        """A state to be carried along, ``(D, B, H)`` in the compute dtype, from ``start`` or zeros: always a copy."""
        if start is None:
            return self.x.new_zeros((self.directions, self.batch, self.hidden), dtype=self.compute)
        return torch.empty_like(start, dtype=self.compute, memory_format=torch.contiguous_format).copy_(start)

    def carried_both(self, h: Tensor | None, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Those of h and, where the cell has one, c: of a fill for both, where nobody gets to see that memory."""
        if not self.cell.has_c:
            return self.carried(h), None
        size = self.directions * self.batch * self.hidden
        if h is None and c is None and self.compute != self.x.dtype and size * self.compute.itemsize % 16 == 0:
            both = self.x.new_zeros((2, self.directions, self.batch, self.hidden), dtype=self.compute)
            first, second = both.unbind()
            return first, second
        return self.carried(h), self.carried(c)


def width(cell: Cell) -> int:
    """W of a cell."""
    return max(cell.tape, 1)


def _check(right: bool, message: str) -> None:
    if not right:
        raise RuntimeError(message)


def _check_tensor(name: str, t: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if t.shape != shape:
        raise RuntimeError(f"{name}: expected size {list(shape)}, got {list(t.shape)}")
    if t.dtype != dtype:
        raise RuntimeError(f"{name}: expected {dtype}, got {t.dtype}")


def _packed(batch_sizes: Tensor, x: Tensor) -> tuple[tuple[int, ...], Tensor, Tensor]:
    """First rows of the steps and N, the same on the device, and the lengths of the sequences."""
    _check(batch_sizes.dtype == torch.int64, f"batch_sizes: expected torch.int64, got {batch_sizes.dtype}")
    _check(batch_sizes.dim() == 1 and len(batch_sizes) > 0, "batch_sizes: expected one dimension and at least one step")
    sizes = batch_sizes.cpu()
    falls = bool((sizes > 0).all()) and bool((sizes[1:] <= sizes[:-1]).all())
    _check(falls, "batch_sizes: expected positive numbers that never rise")
    first = (0, *accumulate(sizes.tolist()))
    _check(first[-1] == len(x), f"batch_sizes: expected a sum of {len(x)}, the rows of x, got {first[-1]}")
    # Row b is alive in as many steps as have more than b rows: steps with few rows come last.
    lengths = len(sizes) - torch.searchsorted(sizes.flip(0), torch.arange(first[1], device="cpu"), right=True)
    return first, tables.get(first, torch.int64, x.device), tables.get(lengths.tolist(), torch.int32, x.device)


def _lengths(lengths: Tensor, steps: int, device: torch.device) -> Tensor:
    """Lengths as int32 on the device. There they can only be checked by the device itself, as torch checks indices."""
    message = f"lengths: expected numbers from 1 to {steps}"
    if lengths.device.type != "cpu":
        torch._assert_async(((lengths > 0) & (lengths <= steps)).all(), message)
        return lengths.to(device, torch.int32)
    numbers = lengths.tolist()
    for number in numbers:
        _check(0 < number <= steps, f"{message}, got {number}")
    return tables.get(numbers, torch.int32, device)


def _bias(spec: Cell, hidden: int, given: tuple[Tensor, ...], x: Tensor) -> Tensor:
    compute = compute_dtype(x.dtype)
    if not given:
        return x.new_zeros(width(spec) * hidden, dtype=compute)
    b_ih, b_hh = given[0].to(compute), given[1]
    if spec.name != "gru":
        return torch.add(b_ih, b_hh)
    b_hh = b_hh.to(compute)
    return torch.cat([b_ih[: 2 * hidden] + b_hh[: 2 * hidden], b_ih[2 * hidden :], b_hh[2 * hidden :]])


def _aligned(t: Tensor) -> Tensor:
    """A contiguous tensor at a multiple of 16 bytes, by which kernels read; a copy where it is none.

    Weights that cuDNN has in one piece lie behind each other, at whatever address.
    """
    t = t.contiguous()
    return t if t.data_ptr() % 16 == 0 else t.clone()


def _matrix(t: Tensor) -> Tensor:
    """All steps as rows of a row-major matrix; copied only where strides do not have it so."""
    matrix = t.reshape(t.shape[0] * t.shape[1], t.shape[2]) if t.dim() == 3 else t
    return matrix if matrix.stride(-1) == 1 else matrix.contiguous()
