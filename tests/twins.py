"""Modules of fastrnn and of torch.nn with the same parameters, for tests that compare what else is done with them."""

import torch
from torch import Tensor, nn

import fastrnn

T, B, I, H = 6, 3, 5, 7  # noqa: E741
LAYERS = ["RNN", "LSTM", "GRU"]
CELLS = ["RNNCell", "LSTMCell", "GRUCell"]


def pair(name: str, *args: object, **options: object) -> tuple[nn.Module, nn.Module]:
    """A fastrnn module and torch.nn's with the same parameters."""
    ours, torchs = getattr(fastrnn, name)(*args, **options), getattr(nn, name)(*args, **options)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


class Net(nn.Module):
    """A layer between two others."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.inner, self.rnn = nn.Linear(I, I), layer
        self.outer = nn.Linear(H * (2 if layer.bidirectional else 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.rnn(torch.tanh(self.inner(x)))[0])


def nets(name: str, **options: object) -> tuple[Net, Net]:
    ours, torchs = pair(name, I, H, **options)
    ours, torchs = Net(ours), Net(torchs)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs
