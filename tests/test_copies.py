"""Copies of modules, in memory, in files and on other devices, compute what the modules do."""

import copy
import io
import pickle

import pytest
import torch
from accuracy import assert_accurate, assert_same, run
from torch import nn
from twins import CELLS, LAYERS, B, H, I, T, pair

import fastrnn

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_pickle_deepcopy_and_save(name: str) -> None:
    net = getattr(fastrnn, name)(I, H)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    x = torch.randn(2, I)
    for clone in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert type(clone) is type(net)
        assert_same(run(clone, x), run(net, x))
        assert not {p.data_ptr() for p in clone.parameters()} & {p.data_ptr() for p in net.parameters()}


@pytest.mark.parametrize("name", LAYERS)
def test_a_copy_has_weights_of_its_own(name: str) -> None:
    net = getattr(fastrnn, name)(I, H, num_layers=2, bidirectional=True)
    x = torch.randn(T, B, I)
    before, clone = net(x)[0], copy.deepcopy(net)
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.zero_()
    assert torch.equal(net(x)[0], before)
    assert not clone(x)[0].any()


@pytest.mark.parametrize("name", LAYERS)
def test_weights_changed_in_place_are_seen(name: str) -> None:
    """In inference too, where an engine may keep weights prepared from call to call."""
    ours, torchs = pair(name, I, H)
    x = torch.randn(1, 1, I)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(ours(x)[0], torchs(x)[0])
            ours.weight_hh_l0.mul_(-1.5)
            torchs.weight_hh_l0.mul_(-1.5)
            ours.weight_ih_l0.data = torchs.weight_ih_l0.data = torch.randn(GATES[name] * H, I)
        torchs = getattr(nn, name)(I, H)
        ours.load_state_dict(torchs.state_dict())
        torch.testing.assert_close(ours(x)[0], torchs(x)[0])
        with torch.inference_mode():
            torch.testing.assert_close(ours(x)[0], torchs(x)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_returned_states_are_the_callers_to_change(name: str) -> None:
    """As reinforcement learning does it: the states of finished episodes are zeroed in place."""
    ours, torchs = pair(name, I, H, num_layers=2)
    done, x = torch.tensor([False, True, False]), torch.randn(4, B, I)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            found = []
            for net in (ours, torchs):
                state, outputs = None, []
                for step in x:
                    y, state = net(step[None], state)
                    kept = y.clone()
                    for s in state if name == "LSTM" else (state,):
                        s[..., done, :] = 0.0
                    assert torch.equal(y, kept)
                    outputs.append(y)
                found.append(torch.cat(outputs))
            torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_to_dtype(dtype: torch.dtype) -> None:
    ours, torchs = (net.to(dtype) for net in pair("LSTM", I, H))
    x = torch.randn(T, B, I).to(dtype)
    truth = run(copy.deepcopy(torchs).double(), x.double())
    assert_accurate(run(ours, x), run(torchs, x), truth)
    assert ours(x)[0].dtype == dtype


def test_from_the_meta_device() -> None:
    torchs = nn.GRU(I, H)
    net = fastrnn.GRU(I, H, device="meta").to_empty(device="cpu")
    net.load_state_dict(torchs.state_dict())
    x = torch.randn(T, B, I)
    torch.testing.assert_close(net(x)[0], torchs(x)[0])
    assigned = fastrnn.GRU(I, H, device="meta")
    assigned.load_state_dict(torchs.state_dict(), assign=True)
    torch.testing.assert_close(assigned(x)[0], torchs(x)[0])


def test_share_memory() -> None:
    net = fastrnn.LSTM(I, H).share_memory()
    assert all(p.is_shared() for p in net.parameters())
    assert run(net, torch.randn(T, B, I))["dweight_hh_l0"].any()
