"""What autograd offers beside gradients works with fastrnn's layers as with torch.nn's."""

import pytest
import torch
from accuracy import assert_same, run
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from twins import LAYERS, B, H, I, T, nets

import fastrnn


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_checkpoint(name: str, reentrant: bool) -> None:
    net = getattr(fastrnn, name)(I, H, num_layers=2, dropout=0.3)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def named_parameters(self, *args: object, **kwargs: object) -> object:
            return net.named_parameters()

        def forward(self, x: Tensor) -> object:
            return checkpoint(net, x, use_reentrant=reentrant)

    x, results = torch.randn(T, B, I), []
    for module in (net, Checkpointed()):
        torch.manual_seed(1)
        leaf = x.clone().requires_grad_()
        y, _ = module(leaf)
        y.square().sum().backward()
        results.append([leaf.grad, *(p.grad.clone() for p in net.parameters())])
        net.zero_grad()
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("tape", ["full", "lean"])
def test_saved_tensor_hooks_see_the_tape(tape: str) -> None:
    net, x, packed = fastrnn.LSTM(I, H), torch.randn(T, B, I), []
    net.tape = tape
    expected = run(net, x)

    def pack(t: Tensor) -> Tensor:
        packed.append(t)
        return t.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        assert_same(run(net, x), expected)
    assert packed


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_mode() -> None:
    net = fastrnn.GRU(I, H)
    x = torch.randn(T, B, I)
    expected = run(net, x)
    with torch.autograd.set_detect_anomaly(True):
        assert_same(run(net, x), expected)
        with pytest.raises(RuntimeError, match="nan values"):
            net(x.mul(float("nan")))[0].sum().backward()


@pytest.mark.parametrize("name", LAYERS)
def test_hooks(name: str) -> None:
    calls = []
    net = getattr(fastrnn, name)(I, H)
    net.register_forward_pre_hook(lambda module, args: calls.append("pre"))
    net.register_forward_hook(lambda module, args, output: calls.append("forward"))
    net.register_full_backward_hook(lambda module, grad_input, grad_output: calls.append("backward"))
    net.weight_hh_l0.register_hook(lambda g: calls.append("weight"))
    y, _ = net(torch.randn(T, B, I, requires_grad=True))
    y.sum().backward()
    assert sorted(calls) == ["backward", "forward", "pre", "weight"]


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_accumulate(name: str) -> None:
    ours, torchs = nets(name)
    for net in (ours, torchs):
        for seed in (1, 2):
            torch.manual_seed(seed)
            net(torch.randn(T, B, I)).sum().backward()
    for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
