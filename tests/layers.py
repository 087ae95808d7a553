"""Layers of every kind, drawn at random, and the ways to compute one: fastrnn's engine, torch's own, the truth."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import _VF, Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastrnn import _autograd, _ops, reference
from fastrnn.reference import CELLS

LAYOUTS = ("dense", "lengths", "packed")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PARTS = ("y", "h_n", "c_n", "cells")
ROUNDS = _ops.cpu_isa() in ("amx", "avx512bf16")  # the factors of bfloat16 layers
# The same numbers, lying elsewhere, with NaN around them.
STRIDES = {
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "rows apart": lambda t: torch.stack([t, t * torch.nan], 1)[:, 0],
    "features apart": lambda t: torch.stack([t, t * torch.nan], -1)[..., 0],
    "a part": lambda t: pad(t, (3, 5), value=torch.nan)[..., 3:-5],
    "negated": lambda t: torch._neg_view(-t),
}


@dataclass(frozen=True)
class Problem:
    """What a layer is given; names and shapes as in :func:`fastrnn.reference.layer`."""

    cell: str
    x: Tensor
    h0: Tensor | None
    c0: Tensor | None
    weights: Sequence[Tensor]
    bidirectional: bool = False
    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    cells: bool = False  # are the cell states of all steps wanted?

    def tensors(self) -> dict[str, Tensor]:
        """Everything differentiable, by the name that its gradient has behind a ``d``."""
        each = ("w_ih", "w_hh", "b_ih", "b_hh")[: len(self.weights) // (2 if self.bidirectional else 1)]
        names = [name + end for end in ("", "_reverse") for name in each]
        named = {"x": self.x, "h0": self.h0, "c0": self.c0} | dict(zip(names, self.weights, strict=False))
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def put(self, tensors: dict[str, Tensor]) -> "Problem":
        """The same problem with other tensors of those names."""
        named = self.tensors() | tensors
        state = {name: named.pop(name, None) for name in ("x", "h0", "c0")}
        return replace(self, weights=tuple(named.values()), **state)

    def to(self, dtype: torch.dtype) -> "Problem":
        return self.put({name: tensor.to(dtype) for name, tensor in self.tensors().items()})

    def row(self, *rows: int) -> "Problem":
        """The same layer on some of its rows (of a problem that is not packed)."""
        chosen = {
            name: getattr(self, name)[:, list(rows)]
            for name in ("x", "h0", "c0", "reset")
            if getattr(self, name) is not None
        }
        return replace(self, lengths=None if self.lengths is None else self.lengths[list(rows)], **chosen)


def draw(
    cell: str,
    steps: int = 9,
    batch: int = 5,
    inputs: int = 7,
    hidden: int = 11,
    *,
    bidirectional: bool = False,
    bias: bool = True,
    state: bool = True,
    layout: str = "dense",
    reset: bool = False,
    cells: bool = False,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
) -> Problem:
    """A problem from torch's random numbers, weights as torch.nn initialises them times ``scale``."""
    spec, directions = CELLS[cell], 2 if bidirectional else 1
    rows = spec.gates * hidden
    shapes = [(rows, inputs), (rows, hidden), *([(rows,), (rows,)] if bias else [])] * directions
    weights = [((torch.rand(shape) * 2 - 1) * scale / hidden**0.5).to(dtype) for shape in shapes]
    h0, c0 = (torch.randn(directions, batch, hidden).to(dtype) if state else None for _ in range(2))
    x, batch_sizes, lengths = torch.randn(steps, batch, inputs).to(dtype), None, None
    if layout != "dense" and batch > 0:
        lengths = torch.randint(1, steps + 1, (batch,))
        lengths[torch.randint(batch, ())] = steps
    if layout == "packed":
        x, batch_sizes, *_ = pack_padded_sequence(x, lengths.sort(descending=True).values)
        lengths = None
    resets = torch.rand(steps, batch) < 0.25 if reset else None
    c0 = c0 if spec.has_c else None
    return Problem(cell, x, h0, c0, weights, bidirectional, batch_sizes, lengths, resets, cells and spec.has_c)


Layer = Callable[[Problem], tuple[Tensor | None, ...]]


def fast(tape: str = "full") -> Layer:
    """A layer as fastrnn computes it: its operators with their autograd."""

    def layer(p: Problem) -> tuple[Tensor | None, ...]:
        layout = _autograd.Layout(p.cell, p.bidirectional, tape, p.cells)
        found = _autograd.layer(layout, p.x, p.h0, p.c0, p.weights, p.batch_sizes, p.lengths, p.reset)
        return tuple(torch.empty(0) if t is None else t for t in found)  # as operators have it

    return layer


def readable(p: Problem) -> tuple[Tensor | None, ...]:
    """A layer as fastrnn.reference writes it down."""
    return reference.layer(
        *(p.cell, p.x, p.h0, p.c0, p.weights, p.bidirectional),
        batch_sizes=p.batch_sizes,
        lengths=p.lengths,
        reset=p.reset,
    )


def stock(p: Problem) -> tuple[Tensor | None, ...]:
    """A layer as torch.nn computes it."""
    assert p.reset is None
    assert not p.cells
    directions, hidden, has_c = 2 if p.bidirectional else 1, p.weights[1].shape[1], CELLS[p.cell].has_c
    batch = p.x.shape[1] if p.batch_sizes is None else int(p.batch_sizes[0])
    given = (p.h0, p.c0) if has_c else (p.h0,)
    state = [p.x.new_zeros(directions, batch, hidden) if s is None else s for s in given]
    x, batch_sizes, unorder = p.x, p.batch_sizes, None
    if p.lengths is not None:
        x, batch_sizes, order, unorder = pack_padded_sequence(x, p.lengths, enforce_sorted=False)
        state = [s[:, order] for s in state]
    hx = tuple(state) if has_c else state[0]
    options = (len(p.weights) == 4 * directions, 1, 0.0, True, p.bidirectional)
    function = getattr(_VF, p.cell)
    if batch_sizes is None:
        y, *finals = function(x, hx, list(p.weights), *options, False)
    else:
        y, *finals = function(x, batch_sizes, hx, list(p.weights), *options)
    if unorder is not None:
        finals = [s[:, unorder] for s in finals]
        y, _ = pad_packed_sequence(PackedSequence(y, batch_sizes, order, unorder), total_length=p.x.shape[0])
    return y, *finals


def judged(problem: Problem, *results: dict[str, Tensor]) -> None:
    """Have the cell states be what they are to be judged as, in place.

    Those of bfloat16 layers are float32, but where products are of bfloat16, no more than a layer returns of them.
    """
    if problem.x.dtype == torch.bfloat16 and ROUNDS:
        for found in results:
            if "cells" in found:
                found["cells"] = found["cells"].to(torch.bfloat16)


def upstream(shape: Sequence[int]) -> Tensor:
    """A gradient to start from, alike for every dtype: short enough to be exact in each."""
    return torch.randint(-8, 9, tuple(shape), generator=torch.Generator().manual_seed(1)) / 8


def run(
    layer: Layer, problem: Problem, parts: Collection[str] = PARTS, frozen: Collection[str] = ()
) -> dict[str, Tensor]:
    """Outputs, and the gradients of everything that is not ``frozen`` when gradients arrive through ``parts``.

    ``parts`` may also be a mapping from outputs to the gradients that arrive there.
    """
    leaves = {name: t.detach().requires_grad_(name not in frozen) for name, t in problem.tensors().items()}
    found = dict(zip(PARTS, layer(problem.put(leaves)), strict=False))
    wanted = PARTS if problem.cells else PARTS[:3] if CELLS[problem.cell].has_c else PARTS[:2]
    outputs = {name: found[name] for name in wanted}
    through = {name: outputs[name] for name in wanted if name in parts}
    given = [parts[n] if isinstance(parts, dict) else upstream(t.shape).to(t) for n, t in through.items()]
    leaves = {f"d{name}": t for name, t in leaves.items() if t.requires_grad}
    gradients = torch.autograd.grad(list(through.values()), list(leaves.values()), given)
    return {name: t.detach() for name, t in outputs.items()} | dict(zip(leaves, gradients, strict=True))


@contextmanager
def one_thread() -> Iterator[None]:
    """For what torch computes in small steps, which more threads make slow where other processes want them too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def yardstick(problem: Problem) -> Layer:
    """What ``problem`` is measured by: torch.nn, or where it lacks the feature the reference in the same dtype."""
    return readable if problem.reset is not None or problem.cells else stock
