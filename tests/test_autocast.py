"""Under autocast, results have the dtypes that torch.nn's have, and their accuracy."""

import copy
import itertools

import pytest
import torch
from accuracy import dtypes_own, flatten, if_torch_can, in_float64
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from twins import CELLS, LAYERS, B, H, I, T, nets, pair

from fastrnn._accuracy import FORWARD, GRADIENT, ROUNDINGS, error


def outputs_under_autocast(net: nn.Module, dtype: torch.dtype, *inputs: object) -> list[Tensor]:
    with torch.autocast("cpu", dtype=dtype):
        return flatten(net(*inputs))


AUTOCAST = [
    pytest.param(name, layout, dtype, id=f"{name}-{layout}-{dtype}")
    for dtype in (torch.bfloat16, torch.float16)
    for layout in ("dense", "packed", "hx", "16-bit input", "cell", "cell hx")
    for name in LAYERS
]


@pytest.mark.parametrize(("name", "layout", "dtype"), AUTOCAST)
def test_autocast(name: str, layout: str, dtype: torch.dtype) -> None:
    """The dtypes are torch's, and the values are as near to the truth as torch's, or as the dtype's own."""
    ours, torchs = pair(name + ("Cell" if "cell" in layout else ""), I, H)
    x = torch.randn(B, I) if "cell" in layout else torch.randn(T, B, I)
    inputs: list[object] = [x.to(dtype) if layout == "16-bit input" else x]
    if layout == "packed":
        inputs = [pack_padded_sequence(x, [6, 4, 1])]
    if "hx" in layout:
        h = torch.randn(B, H) if "cell" in layout else torch.randn(1, B, H)
        inputs.append((h, h) if name == "LSTM" else h)
    found = outputs_under_autocast(ours, dtype, *inputs)
    expected = if_torch_can(lambda: outputs_under_autocast(torchs, dtype, *inputs))
    if expected is None:
        assert (name, layout) in [("LSTM", "dense"), ("LSTM", "hx"), ("LSTM", "16-bit input")], "else torch can"
        expected = dtypes_own(torchs, dtype, *inputs)
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    truth = flatten(copy.deepcopy(torchs).double()(*map(in_float64, inputs)))
    for a, b, true in zip(found, expected, truth, strict=True):
        # The floor is that of the dtype that autocast computes in, whatever dtype the results have.
        assert error(a, true) <= FORWARD * error(b, true) + ROUNDINGS * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("dtype", "other"), [(torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16)], ids=str
)
@pytest.mark.parametrize("name", ["RNN", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_modules_of_the_other_sixteen_bits(name: str, dtype: torch.dtype, other: torch.dtype) -> None:
    """The states that are kept are of neither dtype, but of what both promote to."""
    ours, torchs = (net.to(dtype) for net in pair(name, I, H))
    x = torch.randn(*([B] if "Cell" in name else [T, B]), I).to(dtype)
    found, expected = (outputs_under_autocast(net, other, x) for net in (ours, torchs))
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    truth = flatten(copy.deepcopy(torchs).double()(x.double()))
    for a, b, true in zip(found, expected, truth, strict=True):
        assert error(a, true) <= FORWARD * error(b, true) + ROUNDINGS * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("name", LAYERS)
def test_training_under_autocast(name: str) -> None:
    ours, torchs = nets(name, num_layers=2)
    x, gradients = torch.randn(T, B, I), []
    for net in (ours, torchs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = net(x).float().square().sum()
        loss.backward()
        gradients.append({f"d{key}": p.grad for key, p in net.named_parameters()})
    exact = copy.deepcopy(torchs).double()
    exact.zero_grad()
    exact(x.double()).square().sum().backward()
    truth = {f"d{key}": p.grad for key, p in exact.named_parameters()}
    for key, true in truth.items():
        found, expected = (g[key] for g in gradients)
        assert found.dtype == torch.float32
        assert error(found, true) <= GRADIENT * error(expected, true) + ROUNDINGS * torch.finfo(torch.bfloat16).eps, key


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = {
    "dense": (T, {}),
    "a step": (1, {}),
    "packed": (T, {}),
    "cell": (1, {}),
    "two layers, both directions": (T, {"num_layers": 2, "bidirectional": True}),
}


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_mix_of_dtypes(name: str, layout: str, autocast: torch.dtype) -> None:
    """Of weights, input and states: dtypes are torch's, and values as near to the truth."""
    steps, options = LAYOUTS[layout]
    is_cell, layers = layout == "cell", 4 if options else 1
    ours, torchs = pair(name + ("Cell" if is_cell else ""), I, H, **options)
    given = torch.randn(B, I) if is_cell else torch.randn(steps, B, I)
    h, c = torch.randn(2, *(() if is_cell else (layers,)), B, H)
    states: list[tuple[torch.dtype, ...]] = [(), *itertools.product(DTYPES, repeat=2 if name == "LSTM" else 1)]
    for weight, x_dtype, mix in itertools.product((torch.float32, autocast), DTYPES, states):
        nets = [net.to(weight) for net in (ours, torchs)]
        x: object = given.to(x_dtype)
        if layout == "packed":
            x = pack_padded_sequence(x, [6, 4, 1])
        state = tuple(s.to(dtype) for s, dtype in zip((h, c), mix, strict=False))
        inputs = (x, *([state if name == "LSTM" else state[0]] if state else []))
        expected = if_torch_can(lambda: outputs_under_autocast(nets[1], autocast, *inputs))  # noqa: B023
        if expected is None:
            continue
        found = outputs_under_autocast(nets[0], autocast, *inputs)
        assert [t.dtype for t in found] == [t.dtype for t in expected], (weight, x_dtype, mix)
        truth = flatten(copy.deepcopy(torchs).double()(*map(in_float64, inputs)))
        floor = ROUNDINGS * max(torch.finfo(dtype).eps for dtype in (autocast, x_dtype, *mix))
        for a, b, true in zip(found, expected, truth, strict=True):
            assert error(a, true) <= FORWARD * error(b, true) + floor, (weight, x_dtype, mix)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_float64_is_left_alone(name: str) -> None:
    """By torch's autocast, which cannot multiply it with anything else then."""
    ours, torchs = (net.double() for net in pair(name, I, H))
    wide = torch.randn(*([B] if name in CELLS else [T, B]), I, dtype=torch.float64)
    for x in (wide, wide.float()):
        if x.dtype == torch.float64:
            torch.testing.assert_close(*(outputs_under_autocast(net, torch.bfloat16, x) for net in (ours, torchs)))
            continue
        for net in (ours, torchs):
            with pytest.raises(RuntimeError, match=r"same dtype|unsupported data type"):
                outputs_under_autocast(net, torch.bfloat16, x)
