"""Layers compute with the weights that torch.nn's forward would take, whatever has been done to them before."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accuracy import flatten
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_padded_sequence
from twins import LAYERS, B, H, I, T, pair

import fastrnn
from fastrnn import _C, _weights


def other(weight: Tensor) -> Tensor:
    """Another weight, the same for both libraries."""
    return (weight.detach() * -1.5 + 0.25).clone()


def edit(net: Any, k: int = 0) -> None:
    net._flat_weights[k] = other(net._flat_weights[k])


def edited(net: Any) -> Any:
    edit(net)
    edit(net, 3)


def made_anew(net: Any) -> Any:
    net._flat_weights = [other(w).requires_grad_() for w in net._flat_weights]


def edited_after_a_call(net: Any) -> Any:
    net.weight_hh_l0 = nn.Parameter(other(net.weight_hh_l0))
    net(torch.ones(T, B, I))
    edit(net)


def edited_before_a_call(net: Any) -> Any:
    """Which makes the list anew."""
    net.weight_hh_l0 = nn.Parameter(other(net.weight_hh_l0))
    edit(net)


def put_in_place(net: Any) -> Any:
    net._parameters["weight_hh_l0"] = nn.Parameter(other(net.weight_hh_l0))


def put_in_place_and_edited(net: Any) -> Any:
    put_in_place(net)
    net(torch.ones(T, B, I))
    edit(net)


def put_in_place_twice(net: Any) -> Any:
    for _ in range(2):
        put_in_place(net)
        with torch.no_grad():
            net(torch.ones(1, B, I))


def assigned(net: Any) -> Any:
    net.load_state_dict({name: other(w) for name, w in net.state_dict().items()}, assign=True)


def cast(net: Any) -> Any:
    edit(net)
    net.double().float()


def plain(net: Any) -> Any:
    """As weight drop does."""
    weight = net.weight_hh_l0
    del net.weight_hh_l0
    net.raw = nn.Parameter(other(weight))
    net.weight_hh_l0 = net.raw * 2


def plain_and_edited(net: Any) -> Any:
    plain(net)
    net(torch.ones(T, B, I))
    edit(net)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def parametrized(net: Any) -> Any:
    edit(net)
    parametrize.register_parametrization(net, "weight_hh_l0", Doubled())


def normed(net: Any) -> Any:
    """By a parametrization with a state, which goes on each time that torch computes the weight."""
    torch.manual_seed(1)
    parametrizations.spectral_norm(net, "weight_hh_l0")
    parametrizations.spectral_norm(net, "weight_ih_l0")


def pruned(net: Any) -> Any:
    edit(net)
    prune.l1_unstructured(net, "weight_hh_l0", 0.5)


def called_with_others(net: Any) -> Any:
    others = {name: other(p) for name, p in net.named_parameters()}
    functional_call(net, others, (torch.ones(T, B, I),))


def edited_and_called_with_others(net: Any) -> Any:
    edit(net)
    called_with_others(net)


def copied(net: Any) -> Any:
    edit(net)
    return copy.deepcopy(net)


def pickled(net: Any) -> Any:
    edit(net)
    return pickle.loads(pickle.dumps(net))


def saved(net: Any) -> Any:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    net = torch.load(file, weights_only=False)
    edit(net)
    return net


def without_storage(net: Any) -> Any:
    state = {name: other(w) for name, w in net.state_dict().items()}
    edit(net)
    net.to("meta").to_empty(device="cpu").load_state_dict(state)


def shared(net: Any) -> Any:
    edit(net)
    net.share_memory()


def replica(net: Any) -> Any:
    """As DataParallel makes it."""
    edit(net)
    made = net._replicate_for_data_parallel()
    made._parameters = {}
    for name, parameter in net._parameters.items():
        setattr(made, name, parameter * 1)
    return made


WAYS = [
    *(edited, made_anew, edited_after_a_call, edited_before_a_call, put_in_place, put_in_place_and_edited),
    *(put_in_place_twice, assigned, cast, plain, plain_and_edited, parametrized, normed, pruned, called_with_others),
    *(edited_and_called_with_others, copied, pickled, saved, without_storage, shared, replica),
]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("way", WAYS)
def test_as_in_torch(way: Callable[[Any], Any], name: str) -> None:
    nets = [way(net) or net for net in pair(name, I, H)]
    x = torch.randn(T, B, I)
    packed = pack_padded_sequence(x, [6, 4, 1])
    for _ in range(2):
        with torch.no_grad():
            for given in (x[:1], x, packed):
                ours, torchs = (flatten(net(given)) for net in nets)
                torch.testing.assert_close(ours, torchs)
        for given in (x[:1], x, packed):
            ours, torchs = (flatten(net(given)) for net in nets)
            torch.testing.assert_close(ours, torchs)
    if way is made_anew:
        gradients = [torch.autograd.grad(flatten(net(x))[0].square().sum(), net._flat_weights) for net in nets]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("way", [edited, edited_after_a_call, put_in_place])
def test_compiled(way: Callable[[Any], Any], name: str) -> None:
    torch._dynamo.reset()
    net, x = getattr(fastrnn, name)(I, H), torch.randn(T, B, I)
    way(net)
    with torch.no_grad():
        compiled = torch.compile(lambda x: net(x)[0], backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), net(x)[0])
    torch._dynamo.reset()


@pytest.mark.parametrize("name", LAYERS)
def test_a_list_that_is_edited_after_compilation_is_of_no_concern(name: str) -> None:
    """What is called with other weights is not, in a compiled program neither."""
    torch._dynamo.reset()
    net, x = getattr(fastrnn, name)(I, H), torch.randn(T, B, I)
    others = {name: other(p) for name, p in net.named_parameters()}
    compiled = torch.compile(lambda p, x: functional_call(net, p, (x,))[0], backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(others, x), functional_call(net, others, (x,))[0])
    torch._dynamo.reset()


@pytest.mark.parametrize("name", LAYERS)
def test_other_parameters_are_looked_for_once(name: str) -> None:
    """C++ finds them from the second call on; what is lent for a call, or computed, is not kept."""
    net, x = getattr(fastrnn, name)(I, H, num_layers=2, bidirectional=True), torch.randn(T, B, I)

    def found() -> object:
        return _C.flat_weights(vars(net), _weights.METHODS)

    assert found() is net._flat_weights
    put_in_place(net)
    assert found() is None
    net(x)
    assert found() is net._flat_weights
    before = list(net._flat_weights)
    functional_call(net, {name: other(p) for name, p in net.named_parameters()}, (x,))
    assert all(a is b for a, b in zip(net._flat_weights, before, strict=True))
    net(x)
    assert found() is net._flat_weights


def test_a_list_of_the_wrong_length() -> None:
    for name in LAYERS:
        net = getattr(fastrnn, name)(I, H)
        net._flat_weights = net._flat_weights[:3]
        for grad in (True, False):
            with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match="Expected 4 parameters, got 3"):
                net(torch.randn(T, B, I))


def test_what_the_engine_is_asked() -> None:
    for wrong in ((), ({},), ({}, []), ([], ())):
        with pytest.raises(TypeError, match="expected a dict and a tuple"):
            _C.flat_weights(*wrong)  # type: ignore[call-arg,arg-type]
    assert _C.flat_weights({}, ()) is None
    assert _C.flat_weights(vars(fastrnn.GRU(3, 4)), ("training",)) is None
