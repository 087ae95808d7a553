"""torch's counter of operations counts for the layers what it counts for torch.nn's."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import fastrnn

T, B, I, H = 10, 4, 8, 16  # noqa: E741
LENGTHS = torch.tensor([T, 7, 3, 1])
OPTIONS = {"": {}, "no bias": {"bias": False}, "both directions": {"num_layers": 2, "bidirectional": True}}
CASES = {
    "inference": (False, T, False, False),
    "training": (True, T, False, False),
    "training, gradients of x": (True, T, True, False),
    "training, gradients of the state": (True, T, False, True),
    "a step": (True, 1, True, False),
    "a step without gradients": (False, 1, False, False),
}


def counted(net: nn.Module, x: Tensor | PackedSequence, hx: object = None, train: bool = True) -> tuple[int, int]:
    """The operations of a forward and of a backward pass."""
    with torch.set_grad_enabled(train), FlopCounterMode(display=False) as counter:
        output = net(x, hx)
        forward = counter.get_total_flops()
        y = output[0] if isinstance(output, tuple) else output
        if train:
            (y.data if isinstance(y, PackedSequence) else y).sum().backward()
    return forward, counter.get_total_flops() - forward


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_a_layer(name: str, options: str, case: str) -> None:
    train, steps, x_grad, state_grad = CASES[case]
    theirs, ours = (getattr(package, name)(I, H, **OPTIONS[options]) for package in (nn, fastrnn))
    x = torch.randn(steps, B, I, requires_grad=x_grad)
    h = torch.randn(ours.num_layers * (2 if ours.bidirectional else 1), B, H, requires_grad=True)
    hx = (h, h) if state_grad and name == "LSTM" else h if state_grad else None
    # In float64, for torch counts nothing for its LSTM of float32, which is an operator of oneDNN's.
    wide = tuple(s.double() for s in hx) if isinstance(hx, tuple) else None if hx is None else hx.double()
    expected = counted(theirs.double(), x.detach().double().requires_grad_(x_grad), wide, train)
    assert expected[0] > 0
    assert counted(ours, x, hx, train) == expected


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_sequences_that_differ_in_length(name: str, options: str) -> None:
    theirs, ours = (getattr(package, name)(I, H, **OPTIONS[options]) for package in (nn, fastrnn))
    x = torch.randn(T, B, I)
    expected = counted(theirs, pack_padded_sequence(x, LENGTHS))
    assert counted(ours, pack_padded_sequence(x, LENGTHS)) == expected
    with FlopCounterMode(display=False) as counter:
        ours(x, lengths=LENGTHS)
    assert counter.get_total_flops() == expected[0]


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("train", [True, False])
def test_a_cell(name: str, train: bool) -> None:
    x, (theirs, ours) = torch.randn(B, I), (getattr(package, name)(I, H) for package in (nn, fastrnn))
    assert counted(ours, x, train=train) == counted(theirs, x, train=train)


def test_what_the_lean_tape_computes_again_counts() -> None:
    net, x = fastrnn.GRU(I, H), torch.randn(T, B, I)
    forward, backward = counted(net, x)
    net.tape = "lean"
    assert counted(net, x) == (forward, backward + forward)


def test_modules_are_named() -> None:
    """By a counter that is imported after fastrnn."""
    code = """
import sys, torch, fastrnn
assert "torch.utils.flop_counter" not in sys.modules, "importing fastrnn must not import the counter"
from torch.utils.flop_counter import FlopCounterMode
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = fastrnn.GRU(8, 16), torch.nn.Linear(16, 2)
    def forward(self, x):
        return self.head(self.encoder(x)[0])
with FlopCounterMode(display=False, depth=3) as counter:
    Net()(torch.randn(10, 4, 8)).sum().backward()
found = {str(operator): count for operator, count in counter.get_flop_counts()["Net.encoder"].items()}
assert found == {"fastrnn.layer_forward": 92_160, "fastrnn.layer_backward": 147_456}, found
"""
    subprocess.run([sys.executable, "-c", code], check=True)
