"""``torch.func`` on fastrnn's layers: gradients, maps, ensembles and Jacobians."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from twins import LAYERS, B, I, T, nets, pair

DEPRECATED_JIT = "ignore:.*torch.jit.*deprecated:DeprecationWarning"


@pytest.mark.parametrize("name", LAYERS)
def test_functional_call(name: str) -> None:
    ours, torchs = nets(name)
    other, _ = nets(name)
    x = torch.randn(T, B, I)
    found = torch.func.functional_call(ours, dict(other.named_parameters()), (x,))
    assert torch.equal(found, other(x))
    assert not torch.equal(found, ours(x))
    torch.testing.assert_close(ours(x), torchs(x))


def loss_of(net: nn.Module) -> Callable[..., Tensor]:
    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(net, parameters, (x,)).square().sum()

    return loss


@pytest.mark.parametrize("name", LAYERS)
def test_func_grad(name: str) -> None:
    ours, torchs = nets(name, bidirectional=True)
    x = torch.randn(T, B, I)
    found = torch.func.grad(loss_of(ours))({k: p.detach() for k, p in ours.named_parameters()}, x)
    torchs(x).square().sum().backward()
    torch.testing.assert_close(found, {k: p.grad for k, p in torchs.named_parameters()})


@pytest.mark.parametrize("name", LAYERS)
def test_per_sample_gradients(name: str) -> None:
    ours, torchs = (net.double() for net in nets(name, num_layers=2))
    x = torch.randn(B, T, 2, I, dtype=torch.float64)
    parameters = {k: p.detach() for k, p in ours.named_parameters()}
    found = torch.func.vmap(torch.func.grad(loss_of(ours)), in_dims=(None, 0))(parameters, x)
    for sample, given in enumerate(x):
        torchs.zero_grad()
        torchs(given).square().sum().backward()
        torch.testing.assert_close(
            {k: g[sample] for k, g in found.items()}, {k: p.grad for k, p in torchs.named_parameters()}
        )


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_over_inputs(name: str) -> None:
    ours, torchs = nets(name)
    x = torch.randn(4, T, B, I)
    torch.testing.assert_close(torch.func.vmap(ours)(x), torch.stack([torchs(given) for given in x]))
    swapped = torch.func.vmap(ours, in_dims=2, out_dims=1)(x.movedim(0, 2))
    torch.testing.assert_close(swapped, torch.stack([torchs(given) for given in x], 1))


@pytest.mark.parametrize("name", LAYERS)
def test_ensembles(name: str) -> None:
    members = [nets(name)[0] for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(members)
    base = copy.deepcopy(members[0]).to("meta")
    x = torch.randn(T, B, I)

    def call(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(base, (parameters, buffers), (x,))

    found = torch.func.vmap(call, in_dims=(0, None))(parameters, x)
    torch.testing.assert_close(found, torch.stack([member(x) for member in members]))
    found.square().sum().backward()
    for i, member in enumerate(members):
        member(x).square().sum().backward()
        for key, p in member.named_parameters():
            torch.testing.assert_close(parameters[key].grad[i], p.grad)


@pytest.mark.filterwarnings(DEPRECATED_JIT)  # of torch, at the first forward-mode derivative
@pytest.mark.parametrize("name", LAYERS)
def test_jacobians(name: str) -> None:
    ours, torchs = (net.double() for net in pair(name, 2, 3))
    x = torch.randn(4, 1, 2, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda x: torchs(x)[0], x)
    torch.testing.assert_close(torch.func.jacrev(lambda x: ours(x)[0])(x), expected)
    torch.testing.assert_close(torch.func.jacfwd(lambda x: ours(x)[0])(x), expected)
    torch.testing.assert_close(torch.autograd.functional.jacobian(lambda x: ours(x)[0], x, vectorize=True), expected)
