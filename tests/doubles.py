"""Layers of the CPU that stand for those of a GPU, some of whose plans go wrong: in this process or in another."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _contest, _cuda, kernels
from fastrnn.kernels.measured import Work
from fastrnn.kernels.plan import DeviceFacts, Plan

H100 = DeviceFacts("NVIDIA H100", "nvidia", (9, 0), 132, 227 * 1024, 50 * 2**20)
RESIDENT, GRID = Plan("resident", "a test"), Plan("grid", "a test", units=8, split=4)
SLOW, STEPWISE = Plan("stepwise", "a test", units=64), Plan("stepwise", "a test")
PLANS = [RESIDENT, GRID, SLOW, STEPWISE]
NAMED = "FASTRNN_TEST_DOUBLES"  # in the environment: how plans behave in another process
CALLS = "FASTRNN_TEST_CALLS"  # and a file that it leaves its number in

Behaviour = Callable[[Tensor, Tensor], object]
BEHAVIOUR: dict[tuple[object, object], Behaviour] = {}


class Double(nn.Module):
    """torch's layer for every way to compute it, which behaves as :data:`BEHAVIOUR` has it for plans of ours."""

    def __init__(self, stock: type[nn.RNNBase], *sizes: int, **options: object) -> None:
        super().__init__()
        self.layer = stock(*sizes, **options)

    def forward(self, x: Tensor | PackedSequence) -> object:
        found = self.layer(x)
        plan = kernels.plan._forced
        behave = BEHAVIOUR.get((plan.get("strategy"), plan.get("units")))
        return found if behave is None else behave(*found)


def candidates(work: Work, facts: DeviceFacts) -> Iterator[Plan]:
    yield from PLANS


def layers() -> dict[str, Callable[..., nn.Module]]:
    stocks = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN}
    return {
        cell: lambda *sizes, stock=stock, **options: Double(stock, *sizes, **options) for cell, stock in stocks.items()
    }


def slowly(y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    time.sleep(0.02)  # more than other processes add to a call's median
    return y, h


def off(y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    return y * 1.00001, h


def wrong_backward(y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    return y, h.detach() + 0 * h


def fails(y: Tensor, h: Tensor) -> None:
    raise RuntimeError("out of resources: shared memory\nand more")


def random(y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    return y * (1 + torch.rand(()) * 1e-7), h


def aborts(y: Tensor, h: Tensor) -> None:
    os.write(1, b"terminate called after throwing an instance of 'c10::AcceleratorError'\n")
    os.abort()


def hangs(y: Tensor, h: Tensor) -> None:
    time.sleep(3600)


def exhausts(y: Tensor, h: Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def leaves(y: Tensor, h: Tensor) -> None:
    raise SystemExit(3)


def loses_the_device(y: Tensor, h: Tensor) -> None:
    raise _contest.Lost("fastrnn: cuda:0 computes nothing any more in this process") from RuntimeError(
        "CUDA error: an illegal memory access was encountered"
    )


def install() -> None:
    """In a process that tries plans: let them behave as the environment has it."""
    _cuda.facts_of = lambda device: H100
    _contest.LAYERS = layers()
    _contest.TURN = 1e-4
    for item in filter(None, os.environ[NAMED].split(";")):
        strategy, units, name = item.split(",")
        BEHAVIOUR[strategy, int(units)] = globals()[name]
    if path := os.environ.get(CALLS):
        with Path(path).open("a") as file:
            file.write(f"{os.getpid()}\n")


# As fastrnn._elsewhere.BOOT, with these layers.
BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import doubles; doubles.install(); "
    "from fastrnn._worker import main; main({pipe})"
)
