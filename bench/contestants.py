"""Who is measured: makers of recurrent stacks that share one set of weights."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

import fastrnn
from bench import isas, onnx_stack
from bench.grid import Shape
from bench.results import BASELINE

State = Tensor | tuple[Tensor, ...]
Contestant = Callable[[nn.RNNBase], nn.Module]  # from the baseline's stack to a stack with copies of its weights

CELL_LOOP, ONNX = "torch.nn cell loop", "ONNX Runtime"
NAMES = {"fastrnn": "fastrnn", "cell-loop": CELL_LOOP, "onnx": ONNX}  # on the command line; torch.nn is always there
OWN_THREADS = (ONNX,)  # and not torch's
LAYERS = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}
CELL_CLASSES = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN_TANH": nn.RNNCell, "RNN_RELU": nn.RNNCell}


def torch_stack(cell: str, shape: Shape, dtype: torch.dtype) -> nn.RNNBase:
    """A new stack of torch.nn with weights as torch.nn draws them; time is the first dimension."""
    options = {"nonlinearity": cell.removeprefix("rnn_")} if cell.startswith("rnn_") else {}
    make: Callable[..., nn.RNNBase] = getattr(nn, LAYERS[cell])
    return make(shape.input, shape.hidden, shape.layers, bidirectional=shape.directions == 2, dtype=dtype, **options)


class CellLoop(nn.Module):
    """The stack written as users do where layers do not fit: a Python loop over a torch.nn cell."""

    def __init__(self, stack: nn.RNNBase) -> None:
        super().__init__()
        self.directions = 2 if stack.bidirectional else 1
        self.is_lstm = stack.mode == "LSTM"
        options = {"nonlinearity": stack.nonlinearity} if isinstance(stack, nn.RNN) else {}
        cells = []
        for weights in stack.all_weights:  # one per layer and direction
            hidden, inputs = weights[1].shape[1], weights[0].shape[1]
            cell = CELL_CLASSES[stack.mode](inputs, hidden, dtype=weights[0].dtype, **options)
            with torch.no_grad():
                for own, given in zip(cell.parameters(), weights, strict=True):
                    own.copy_(given)
            cells.append(cell)
        self.cells = nn.ModuleList(cells)

    def forward(self, x: Tensor) -> tuple[Tensor, State]:
        """``x (T, B, I)`` to ``y (T, B, D*H)`` and the last states, ``(layers * D, B, H)`` each."""
        finals: list[tuple[Tensor, ...]] = []
        for first in range(0, len(self.cells), self.directions):
            outputs = []
            for d in range(self.directions):
                steps = x.flip(0) if d else x
                y, last = self._scan(self.cells[first + d], steps)
                outputs.append(y.flip(0) if d else y)
                finals.append(last)
            x = torch.cat(outputs, -1)
        states = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
        return x, states if self.is_lstm else states[0]

    def _scan(self, cell: nn.Module, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        state: State | None = None
        outputs = []
        for step in x.unbind():
            state = cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs), state if isinstance(state, tuple) else (state,)


def fastrnn_stack(stack: nn.RNNBase) -> nn.Module:
    """The same stack of fastrnn, made as a user would: constructor and state_dict."""
    options = {"nonlinearity": stack.nonlinearity} if isinstance(stack, nn.RNN) else {}
    make: Callable[..., nn.RNNBase] = getattr(fastrnn, type(stack).__name__)
    made = make(
        stack.input_size,
        stack.hidden_size,
        stack.num_layers,
        bidirectional=stack.bidirectional,
        dtype=stack.weight_ih_l0.dtype,
        **options,
    )
    made.load_state_dict(stack.state_dict())
    return made


CONTESTANTS: dict[str, Contestant] = {
    BASELINE: lambda stack: stack,
    "fastrnn": fastrnn_stack,
    CELL_LOOP: CellLoop,
    ONNX: onnx_stack.OnnxStack,
}


def unavailable(name: str, dtype: str) -> str | None:
    """Why a contestant does not take part, if so."""
    return onnx_stack.unavailable(dtype) or isas.without_cap() if name == ONNX else None


def versions(names: Iterable[str]) -> dict[str, str]:
    """Of those contestants that are neither torch's nor fastrnn's, whose versions every row has."""
    return {name: onnx_stack.version() for name in names if name == ONNX}
