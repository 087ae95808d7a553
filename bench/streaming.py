"""One step of a stream: a sequence of one step, a state that goes on, no gradients."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

import fastrnn
from bench.calls import timed
from bench.check import check_stacks
from bench.contestants import fastrnn_stack, torch_stack
from bench.grid import Shape
from bench.plan import DTYPES, Job, Plan
from bench.results import BASELINE, Row

SHAPES = tuple(Shape(1, 1, hidden, hidden) for hidden in (128, 160, 256))
TORCH_CELL, FASTRNN_CELL = "torch.nn cell", "fastrnn cell"


def jobs(plan: Plan) -> list[Job]:
    """A row for each cell and shape."""
    return [
        Job(f"streaming {cell} {shape}", 1, partial(measure, cell, plan, shape))
        for cell in plan.gated
        for shape in SHAPES
    ]


class Step(nn.Module):
    """A layer, or a cell, and the state that it goes on from."""

    def __init__(self, network: nn.Module, state: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.network = network
        self.is_cell = isinstance(network, nn.RNNCellBase)
        for name, value in zip("hc", state, strict=False):
            self.register_buffer(name, value[0] if self.is_cell else value)

    def state(self) -> Tensor | tuple[Tensor, Tensor]:
        """As the network takes it."""
        return (self.h, self.c) if hasattr(self, "c") else self.h

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | tuple[Tensor, ...]]:
        """``x (1, B, I)`` to what a layer returns."""
        if not self.is_cell:
            return self.network(x, self.state())
        state = self.network(x[0], self.state())
        return (state[0][None], (state[0][None], state[1][None])) if isinstance(state, tuple) else (state[None],) * 2


def measure(cell: str, plan: Plan, shape: Shape = SHAPES[0]) -> Iterator[Row]:
    """Check and time layers and cells of torch.nn and of fastrnn."""
    torch.manual_seed(0)
    dtype = DTYPES[plan.dtype]
    layer = torch_stack(cell, shape, dtype)
    x = torch.randn(1, shape.batch, shape.input, dtype=dtype)
    state = tuple(torch.randn(1, shape.batch, shape.hidden, dtype=dtype) for _ in range(2 if cell == "lstm" else 1))
    networks = {
        BASELINE: layer,
        TORCH_CELL: _cell(nn, layer),
        "fastrnn": fastrnn_stack(layer),
        FASTRNN_CELL: _cell(fastrnn, layer),
    }
    steps = {name: Step(network.eval(), state) for name, network in networks.items()}
    others = {name: step for name, step in steps.items() if name != BASELINE}
    reference = Step(_cell(nn, layer), state)
    detail = {"error_ratio": check_stacks(others, steps[BASELINE], x, reference, training=False)}
    # the network is called directly: what Step adds is none of the contestants' work
    direct = {name: partial(networks[name], x[0] if step.is_cell else x, step.state()) for name, step in steps.items()}
    with torch.no_grad():
        row = timed("streaming", (cell, shape, "inference"), plan, direct, detail)
    yield row


def _cell(library: object, layer: nn.RNNBase) -> nn.RNNCellBase:
    """A cell of torch.nn or fastrnn with the layer's weights."""
    weights = layer.all_weights[0]
    make = getattr(library, f"{layer.mode}Cell")
    cell: nn.RNNCellBase = make(layer.input_size, layer.hidden_size, dtype=weights[0].dtype)
    with torch.no_grad():
        for own, given in zip(cell.parameters(), weights, strict=True):
            own.copy_(given)
    return cell
