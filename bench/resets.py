"""Sequences that begin anew inside a batch (``reset=``), against loops over steps, which people write for it today."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from bench.calls import calls, timed
from bench.check import check_stacks
from bench.contestants import CELL_LOOP, CellLoop, State, fastrnn_stack, torch_stack
from bench.grid import Shape
from bench.plan import DTYPES, MODES, Job, Plan
from bench.results import BASELINE, Row

SHAPE = Shape(8, 128, 64, 128)
PART = 0.02  # of all steps that are resets
WITHOUT = "fastrnn without resets"


def jobs(plan: Plan) -> list[Job]:
    """Two rows for each cell."""
    return [Job(f"reset {cell}", len(MODES), partial(measure, cell, plan)) for cell in plan.gated]


class Resetting(nn.Module):
    """A fastrnn layer with its resets."""

    def __init__(self, layer: nn.Module, reset: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.reset = reset

    def forward(self, x: Tensor) -> tuple[Tensor, State]:
        """As the layer returns it."""
        return self.layer(x, reset=self.reset)


class Loop(nn.Module):
    """A loop over steps, each a call of a layer of torch.nn, or of one of its cells, on a state that is masked."""

    def __init__(self, network: nn.Module, reset: Tensor, hidden: int) -> None:
        super().__init__()
        self.network = network
        self.is_cell = isinstance(network, nn.RNNCellBase)
        self.is_lstm = isinstance(network, nn.LSTM | nn.LSTMCell)
        # (T, B, 1) for a cell and (T, 1, B, 1) for a layer, whose states have a dimension for layers
        self.register_buffer("keep", (~reset).unsqueeze(-1).to(next(network.parameters()).dtype))
        self.hidden = hidden

    def forward(self, x: Tensor) -> tuple[Tensor, State]:
        """``x (T, B, I)``; outputs and states as a layer returns them."""
        zeros = x.new_zeros(*(() if self.is_cell else (1,)), x.shape[1], self.hidden)
        state: State = (zeros, zeros) if self.is_lstm else zeros
        outputs = []
        for step, keep in zip(x.unbind(), self.keep.unbind(), strict=True):
            state = tuple(part * keep for part in state) if isinstance(state, tuple) else state * keep
            if self.is_cell:
                state = self.network(step, state)
                outputs.append(state[0] if isinstance(state, tuple) else state)
            else:
                y, state = self.network(step[None], state)
                outputs.append(y[0])
        if self.is_cell:
            state = tuple(part[None] for part in state) if isinstance(state, tuple) else state[None]
        return torch.stack(outputs), state


def measure(cell: str, plan: Plan, shape: Shape = SHAPE) -> Iterator[Row]:
    """Check and time fastrnn with and without resets, and loops over torch.nn's layer and over its cell."""
    torch.manual_seed(0)
    dtype = DTYPES[plan.dtype]
    layer = torch_stack(cell, shape, dtype)
    x = torch.randn(shape.steps, shape.batch, shape.input, dtype=dtype)
    reset = torch.rand(shape.steps, shape.batch) < PART
    ours, without = fastrnn_stack(layer), fastrnn_stack(layer)
    stacks = {
        BASELINE: Loop(layer, reset, shape.hidden),
        CELL_LOOP: Loop(CellLoop(layer).cells[0], reset, shape.hidden),
        "fastrnn": Resetting(ours, reset),
    }
    others = {name: stack for name, stack in stacks.items() if name != BASELINE}
    reference = Loop(CellLoop(layer).cells[0], reset, shape.hidden)
    error_ratio = check_stacks(others, stacks[BASELINE], x, reference)
    error_ratio |= check_stacks({WITHOUT: without}, layer, x)
    stacks[WITHOUT] = without
    detail = {"error_ratio": error_ratio, "resets": int(reset.sum())}
    for mode in MODES:
        yield timed("reset", (cell, shape, mode), plan, calls(stacks, x, mode), detail)
