"""Other tensors in the place of parameters, tied and frozen ones: an engine sees what torch.nn's layers see."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from accuracy import run
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from twins import LAYERS, B, H, I, T, nets, pair

import fastrnn


def scaled(net: nn.Module, name: str) -> nn.Module:
    class Scale(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 0.5 * weight

        def right_inverse(self, weight: Tensor) -> Tensor:
            return 2 * weight

    return parametrize.register_parametrization(net, name, Scale()) and net


REPLACEMENTS: dict[str, Callable[[nn.Module, str], nn.Module]] = {
    "parametrization": scaled,
    "weight_norm": parametrizations.weight_norm,
    # Each look at the weight is a power iteration, and torch.nn looks more often: so many that it has converged.
    "spectral_norm": partial(parametrizations.spectral_norm, n_power_iterations=200),
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "pruning": lambda net, name: prune.l1_unstructured(net, name, amount=0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", REPLACEMENTS)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "GRUCell"])
def test_weights_that_are_computed(name: str, kind: str) -> None:
    weight = "weight_hh" if name == "GRUCell" else "weight_hh_l0"
    ours, torchs = pair(name, I, H)
    changed = []
    for net in (ours, torchs):
        torch.manual_seed(3)
        changed.append(REPLACEMENTS[kind](net, weight))
    assert not isinstance(getattr(ours, weight), nn.Parameter)
    inputs = (torch.randn(B, I), torch.randn(B, H)) if name == "GRUCell" else (torch.randn(B, I),)
    for again in (False, True):  # after a change of the parameters, which the weights must follow
        torch.manual_seed(4)
        found = run(ours, *inputs)
        torch.manual_seed(4)
        expected = run(torchs, *inputs)
        torch.testing.assert_close(found, expected)
        assert again or any("weight_hh" in key and value.any() for key, value in found.items())
        with torch.no_grad():
            for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
                b.copy_(a.mul_(0.9))


def test_a_user_written_weight_drop() -> None:
    """The idiom of AWD-LSTM: forward is replaced by one that sets a dropped-out weight first."""

    def weight_drop(net: nn.Module, name: str) -> nn.Module:
        raw, forward = getattr(net, name), net.forward
        del net._parameters[name]
        net.register_parameter(f"{name}_raw", nn.Parameter(raw.detach()))

        def dropped(*args: object) -> object:
            setattr(net, name, nn.functional.dropout(getattr(net, f"{name}_raw"), 0.5, net.training))
            return forward(*args)

        net.forward = dropped
        return net

    ours, torchs = (weight_drop(net, "weight_hh_l0") for net in pair("LSTM", I, H))
    results = []
    for net in (ours, torchs):
        torch.manual_seed(2)
        results.append(run(net, torch.ones(T, B, I)))
    torch.testing.assert_close(*results)
    assert results[0]["dweight_hh_l0_raw"].any()


@pytest.mark.parametrize("name", LAYERS)
def test_tied_weights(name: str) -> None:
    """Two layers, and two directions, with the same weights: their gradients add up."""
    ours, torchs = nets(name, num_layers=2, bidirectional=True)
    for net in (ours, torchs):
        net.rnn.weight_hh_l1 = net.rnn.weight_hh_l0
        net.rnn.weight_ih_l1_reverse = net.rnn.weight_ih_l1
    assert len(list(ours.parameters())) == len(list(nets(name, num_layers=2, bidirectional=True)[0].parameters())) - 2
    x = torch.randn(T, B, I)
    torch.testing.assert_close(run(ours, x), run(torchs, x))


@pytest.mark.parametrize("frozen", ["weight_hh_l0", "bias_ih_l0", "_l0", "_l1", "weight"])
@pytest.mark.parametrize("name", LAYERS)
def test_frozen_weights(name: str, frozen: str) -> None:
    ours, torchs = nets(name, num_layers=2)
    for net in (ours, torchs):
        for key, parameter in net.rnn.named_parameters():
            parameter.requires_grad_(frozen not in key)
    x = torch.randn(T, B, I)
    found, expected = run(ours, x), run(torchs, x)
    torch.testing.assert_close(found, expected)
    assert not any(frozen in key for key in found if key.startswith("drnn"))
    ours(x).sum().backward()
    assert all((p.grad is None) == (frozen in key) for key, p in ours.rnn.named_parameters())


def test_everything_frozen() -> None:
    net, x = fastrnn.LSTM(I, H).requires_grad_(False), torch.randn(T, B, I)
    assert not net(x)[0].requires_grad
    x.requires_grad_()
    net(x)[0].sum().backward()
    assert x.grad.any()
