"""torch.nn.utils._per_sample_grad: gradients per sample, where torch.nn has them; else what is there in their place."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import pack_padded_sequence
from twins import CELLS, LAYERS, B, H, I, T, pair

import fastrnn

OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "deep": {"num_layers": 2},
    "two directions": {"bidirectional": True},
    "batch first": {"batch_first": True},
    "all at once": {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
}


def per_sample(net: nn.Module, given: Any, hx: Any = None, batch_first: bool = False) -> list[Tensor]:
    """The output, and the gradients per sample of all parameters."""
    call = call_for_per_sample_grads(net, batch_size=B, batch_first=batch_first)
    y = call(given, hx)[0]
    y = y if isinstance(y, Tensor) else y.data
    y.square().sum().backward()
    return [y.detach(), *(p.grad_sample for p in net.parameters())]


@pytest.mark.parametrize("steps", [1, T])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, options: dict[str, Any], steps: int) -> None:
    ours, torchs = pair(name, I, H, **options)
    batch_first = options.get("batch_first", False)
    x = torch.randn(B, steps, I) if batch_first else torch.randn(steps, B, I)
    x.requires_grad_()  # torch has no such gradients of its LSTM otherwise
    found = per_sample(ours, x, batch_first=batch_first)
    torch.testing.assert_close(found, per_sample(torchs, x, batch_first=batch_first))
    row = x[:1] if batch_first else x[:, :1]
    ours.zero_grad()
    ours(row)[0].square().sum().backward()
    torch.testing.assert_close([g[0] for g in found[1:]], [p.grad for p in ours.parameters()])


@pytest.mark.parametrize("name", LAYERS)
def test_packed(name: str) -> None:
    ours, torchs = pair(name, I, H, bidirectional=True)
    packed = pack_padded_sequence(torch.randn(T, B, I), [6, 3, 2])
    torch.testing.assert_close(per_sample(ours, packed), per_sample(torchs, packed))


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_a_part_of_the_weights(name: str) -> None:
    ours, torchs = pair(name, I, H)
    for net in (ours, torchs):
        net.weight_ih_l0.requires_grad_(False)
    x, h0 = torch.randn(T, B, I), torch.randn(1, B, H)
    for net in (ours, torchs):
        call_for_per_sample_grads(net, batch_size=B, batch_first=False)(x, h0)[0].square().sum().backward()
    torch.testing.assert_close(ours.weight_hh_l0.grad_sample, torchs.weight_hh_l0.grad_sample)


def test_what_torch_cannot_is_torchs_error() -> None:
    with pytest.raises(RuntimeError, match="Expanded Weights encountered but cannot handle function"):
        per_sample(fastrnn.LSTM(I, H, bias=False), torch.randn(T, B, I))


@pytest.mark.parametrize("name", LAYERS)
def test_beyond_torch(name: str) -> None:
    net = getattr(fastrnn, name)(I, H)
    call = call_for_per_sample_grads(net, batch_size=B, batch_first=False)
    for beyond in ({"lengths": [6, 2, 3]}, {"reset": torch.zeros(T, B, dtype=torch.bool)}):
        with pytest.raises(NotImplementedError, match=rf"{next(iter(beyond))} with .*vmap\(torch\.func\.grad"):
            call(torch.randn(T, B, I), **beyond)


@pytest.mark.parametrize("name", CELLS)
def test_cells(name: str) -> None:
    """torch.nn's have none either."""
    with pytest.raises(RuntimeError, match=r"cannot handle function \w+_cell; .*vmap\(torch\.func\.grad"):
        call_for_per_sample_grads(getattr(fastrnn, name)(I, H))(torch.randn(B, I))


@pytest.mark.parametrize("name", LAYERS)
def test_an_ordinary_call_after_it(name: str) -> None:
    net, x = getattr(fastrnn, name)(I, H), torch.randn(T, B, I, requires_grad=True)
    before = net(x)[0]
    per_sample(net, x)
    assert torch.equal(net(x)[0], before)
    with torch.no_grad():
        torch.testing.assert_close(net(x)[0], before)
