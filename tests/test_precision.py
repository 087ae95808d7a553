"""torch's switches for products of float32 numbers: nothing follows them, and explain tells of those for layers."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import fastrnn

SWITCHES = {
    "rnn": torch.backends.mkldnn.rnn,
    "matmul": torch.backends.mkldnn.matmul,
    "mkldnn": torch.backends.mkldnn,
    "all": torch.backends,
}
LAYERS = ["RNN", "LSTM", "GRU"]
CELLS = ["RNNCell", "LSTMCell", "GRUCell"]
IGNORED = "float32 all the same, torch.backends.mkldnn.rnn.fp32_precision = {!r} is not followed"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = {name: switch.fp32_precision for name, switch in SWITCHES.items()}
    yield
    for name in reversed(SWITCHES):
        SWITCHES[name].fp32_precision = before[name]


def told(module: nn.Module, *inputs: torch.Tensor) -> str:
    (line,) = fastrnn.explain(module, *inputs).layers
    return line.reason


def made(name: str, **options: object) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net = getattr(fastrnn, name)(16, 16, **options)
    x = torch.randn(3, 16, **options) if name in CELLS else torch.randn(7, 3, 16, **options)
    return net, x


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("switch", ["rnn", "mkldnn", "all"])
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_the_switch_for_layers_changes_no_number_and_is_told(name: str, switch: str, precision: str) -> None:
    net, x = made(name)
    with torch.no_grad():
        before, expected = told(net, x), net(x)
        SWITCHES[switch].fp32_precision = precision
        found, reason = net(x), told(net, x)
    assert reason == f"{before}; {IGNORED.format(precision)}"
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert IGNORED.format(precision) in told(net)


@pytest.mark.parametrize("name", LAYERS)
def test_the_switch_for_products_changes_no_gradient(name: str) -> None:
    torch.manual_seed(0)
    net, x = getattr(fastrnn, name)(96, 96), torch.randn(20, 40, 96)

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(net(x)[0].square().sum(), list(net.parameters()))

    before, expected = told(net, x), gradients()
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    assert told(net, x) == before
    torch.testing.assert_close(gradients(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["none", "ieee"])
def test_nothing_is_told_of_switches_that_say_float32(precision: str) -> None:
    for switch in SWITCHES.values():
        switch.fp32_precision = precision
    net, x = made("LSTM")
    assert "fp32_precision" not in told(net, x) + told(net)


def test_nothing_is_told_where_the_switches_do_not_apply() -> None:
    torch.backends.fp32_precision = "bf16"
    for dtype in (torch.float64, torch.bfloat16):
        assert "fp32_precision" not in told(*made("LSTM", dtype=dtype))
    net, x = made("LSTM")
    with torch.autocast("cpu", torch.bfloat16):
        assert "fp32_precision" not in told(net, x)
    assert "fp32_precision" not in told(nn.LSTM(16, 16), x)  # torch's own, which follows them itself
