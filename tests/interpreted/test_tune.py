"""Tuning with the real kernels and plans of a GPU, interpreted: each strategy is found right, and takes some time."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from rig.interpreter import schedule
from rig.operators import computed_by
from torch import Tensor, nn

from fastrnn import _autograd, _contest, _cuda
from fastrnn._contest import contest
from fastrnn.kernels import plan
from fastrnn.kernels.measured import Work
from fastrnn.kernels.plan import DeviceFacts, Plan

H100 = DeviceFacts("NVIDIA H100", "nvidia", (9, 0), 132, 227 * 1024, 50 * 2**20)


class Layer(nn.Module):
    """torch's layer of the CPU, or, where a plan says so, the operators for CUDA."""

    def __init__(self, *sizes: int, **options: object) -> None:
        super().__init__()
        self.stock = nn.GRU(*sizes, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if plan._forced.get("strategy", "torch") == "torch":
            return self.stock(x)
        layout = _autograd.Layout("gru", self.stock.bidirectional, "full", False)
        y, h_n, _, _ = _autograd.layer(layout, x, None, None, list(self.stock.parameters()), None, None, None)
        return y, h_n


def one_of_each(work: Work, facts: DeviceFacts) -> Iterator[Plan]:
    """The first plan of each strategy, and of stepwise the last."""
    plans = list(plan.candidates(work, facts))
    first = {chosen.strategy: chosen for chosen in plans[::-1]}
    yield from (*first.values(), plans[-1])


@pytest.mark.parametrize("trains", [False, True])
def test_each_strategy_is_a_way_to_compute_it(trains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "facts_of", lambda device: H100)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    computed_by(monkeypatch, _cuda.layer_forward, _cuda.layer_backward)
    monkeypatch.setattr(_contest, "LAYERS", {"gru": Layer})
    monkeypatch.setattr(_contest, "candidates", one_of_each)
    monkeypatch.setattr(_contest, "TRIALS", 1)
    work = Work("gru", 2, 2, 3, 16, torch.float32, directions=2, trains=trains)
    with schedule(0, everywhere=False):
        result = contest(work, H100, _contest.Here(work, torch.device("cpu")), 0.0, lambda what: None)
    assert not result.left_out
    assert {name for name, _ in result.record.seconds} == {"torch", "resident", "grid", "stepwise"}
    assert dict(result.record.choices)["strategy"] in ("resident", "grid", "stepwise")
