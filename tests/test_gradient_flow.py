"""How far gradients reach: Jacobians against autograd's own, each network by itself, and a short training."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from workload import made, threads, trained

import fastrnn
from bench.workloads import gradient_flow
from bench.workloads.gradient_flow import Rememberers, jacobian_norms
from bench.workloads.workload import DataError

__all__ = ["threads"]


@pytest.mark.parametrize("cell", list(gradient_flow.CELLS))
def test_jacobians_are_those_of_the_states(monkeypatch: pytest.MonkeyPatch, cell: str) -> None:
    monkeypatch.setattr(gradient_flow, "DISTANCES", (1, 4))
    layer = gradient_flow.CELLS[cell](3, 5).double()
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    for engine in (layer, fastrnn.convert(copy.deepcopy(layer))):
        found = jacobian_norms(engine, x)
        assert found.keys() == ({"h", "c"} if cell == "lstm" else {"h"})
        for place, distance in enumerate((1, 4)):
            squares = dict.fromkeys(found, 0.0)
            for row in range(2):
                one = x[:, row : row + 1]
                _, state = engine(one[:-distance])
                parts = state if isinstance(state, tuple) else (state,)
                last = partial(_last, engine, one[-distance:])
                each = torch.autograd.functional.jacobian(last, tuple(part.detach() for part in parts))
                for name, jacobian in zip(found, each, strict=True):
                    squares[name] += float(jacobian.square().sum())
            for name, norms in found.items():
                assert norms[place] == pytest.approx((squares[name] / 2 / 5) ** 0.5)


def _last(layer: nn.RNNBase, x: torch.Tensor, *state: torch.Tensor) -> torch.Tensor:
    return layer(x, state if len(state) > 1 else state[0])[0][-1, 0]


def test_gradients_keep_their_norm_where_nothing_fades() -> None:
    layer = nn.RNN(3, 8, nonlinearity="relu").double()
    with torch.no_grad():
        nn.init.eye_(layer.weight_hh_l0)
        for weight in (layer.weight_ih_l0, layer.bias_ih_l0, layer.bias_hh_l0):
            weight.abs_()  # so that no unit is ever negative
    (norms,) = jacobian_norms(layer, torch.rand(120, 2, 3, dtype=torch.float64)).values()
    assert norms == pytest.approx([1.0] * len(norms))


def test_networks_start_as_their_recipes_say_and_learn_by_themselves() -> None:
    work = made("gradient_flow", "--recipes", "plain", "both", "--distances", "3", "8", "--hidden=6", "--symbols=4")
    model = work.model()
    assert len(model.networks) == 4 * 2 * 2
    both, plain = (model.networks[f"lstm {recipe} 3"].recurrent for recipe in ("both", "plain"))
    for gate in both.weight_hh_l0.chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6))
    assert torch.all((both.bias_ih_l0 + both.bias_hh_l0).chunk(4)[1] == 1)
    assert not torch.any((plain.bias_ih_l0 + plain.bias_hh_l0).chunk(4)[1] == 1)
    other = model.networks["lstm both 8"].recurrent
    assert torch.equal(both.weight_hh_l0, other.weight_hh_l0)

    next(work.learn(model)).mean().mul(1e3).backward()
    before = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    work.clip_gradients(model, 1.0)
    for name, network in model.networks.items():
        norm = torch.stack([weight.grad.norm() for weight in network.parameters()]).norm()
        if " both " in name:
            assert float(norm) == pytest.approx(1, rel=1e-3)
        else:
            assert all(torch.equal(w.grad, before[f"networks.{name}.{n}"]) for n, w in network.named_parameters())


def test_a_network_is_given_the_distance_that_it_is_named_for() -> None:
    work = made("gradient_flow", "--distances", "3", "8", "--hidden=6", "--symbols=4")
    inputs, targets = work.sequences(5, torch.float32)
    for distance in (3, 8):
        assert inputs[distance].shape == (distance + 1, 5, 5)
        assert torch.equal(inputs[distance][0, :, :4].argmax(1), targets[distance])
        assert inputs[distance][:, :, 4].sum(1).tolist() == [5.0] + [0.0] * distance
    model: Rememberers = work.model()
    with torch.no_grad():
        logits = model(inputs)
        torch.testing.assert_close(logits["gru plain 8"], model.networks["gru plain 8"](inputs[8]))


def test_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_flow, "DISTANCES", (1, 5, 30))
    flags = ("--recipes", "both", "--distances", "2", "30", "--symbols=4", "--hidden=16", "--updates=60", "--batch=16")
    row = trained("gradient_flow", tmp_path, "--learning-rate=0.03", *flags)
    found = row.detail["findings"]["fastrnn"]
    for cell in ("rnn_tanh", "lstm", "gru"):
        assert found["right"][f"{cell} both 2"] > 0.9  # of 4
    assert found["right"]["rnn_tanh both 30"] < 0.6
    for cell in ("rnn_tanh", "gru"):
        near, _, far = found["norms"]["at start"][f"{cell} both"]["h"]
        assert far < near  # it has faded
    torchs = row.detail["findings"]["torch.nn"]["norms"]["at start"]
    for way, lines in found["norms"]["at start"].items():
        for name, norms in lines.items():
            assert norms == pytest.approx(torchs[way][name], rel=1e-3)


def test_there_is_no_data_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no --data"):
        made("gradient_flow", f"--data={tmp_path}")
