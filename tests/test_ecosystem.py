"""Libraries, and torch's for several processes, take fastrnn's layers as they take torch.nn's."""

import contextlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastrnn

DDP = """
import sys
import torch, torch.distributed as dist
import fastrnn
rank, store, out = int(sys.argv[1]), *sys.argv[2:]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
stock = torch.nn.LSTM(5, 7, num_layers=2, bidirectional=True)
x = torch.randn(4, 6, 5)
net = fastrnn.LSTM(5, 7, num_layers=2, bidirectional=True)
net.load_state_dict(stock.state_dict())
if rank == 1:
    torch.nn.init.zeros_(net.weight_hh_l0)  # DDP sends rank 0's at the start
model = torch.nn.parallel.DistributedDataParallel(net)
y, _ = model(x[:, 3 * rank : 3 * rank + 3])
y.square().sum().backward()
stock(x)[0].square().sum().backward()
for name, p in net.named_parameters():
    torch.testing.assert_close(p.grad * 2, getattr(stock, name).grad)  # DDP averages
fastrnn.revert(model)
assert type(model.module) is torch.nn.LSTM
fastrnn.convert(model)
model.zero_grad()
model(x[:, 3 * rank : 3 * rank + 3])[0].square().sum().backward()
for name, p in net.named_parameters():
    torch.testing.assert_close(p.grad * 2, getattr(stock, name).grad)
dist.destroy_process_group()
open(f"{out}{rank}", "w").write("right")
"""


def test_distributed_data_parallel(tmp_path: Path) -> None:
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    arguments = [str(tmp_path / "store"), str(tmp_path / "rank")]
    processes = [
        subprocess.Popen([sys.executable, "-c", DDP, str(rank), *arguments], env=environment) for rank in (0, 1)
    ]
    try:
        assert [process.wait(timeout=600) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["right", "right"]


def dnc_network(kind: str) -> tuple[nn.Module, tuple]:
    """A differentiable neural computer: its controllers are called step by step."""
    dnc = pytest.importorskip("dnc", reason="dnc, the differentiable neural computer, is not installed")
    net = dnc.DNC(6, 16, rnn_type=kind, num_layers=2, num_hidden_layers=2, nr_cells=4, cell_size=5)
    return net, (torch.randn(3, 4, 6), (None, None, None), True)


def stanza_network(kind: str) -> tuple[nn.Module, tuple]:
    """A tokenizer: packed sequences through two layers of both directions with dropout."""
    model = pytest.importorskip("stanza.models.tokenization.model", reason="stanza is not installed")
    options = {"feat_dim": 3, "rnn_layers": 2, "conv_res": "1,3", "use_mwt": True, "hierarchical": True}
    net = model.Tokenizer({**options, "hier_invtemp": 0.5, "tok_noise": 0.1}, 20, 8, 12, 0.3, 0.1)
    return net, (torch.randint(1, 20, (4, 15)), torch.rand(4, 15, 3), torch.tensor([15, 11, 6, 2]))


LIBRARIES = [(dnc_network, "rnn"), (dnc_network, "lstm"), (dnc_network, "gru"), (stanza_network, "lstm")]


@pytest.mark.parametrize(("build", "kind"), LIBRARIES)
def test_a_library_trains_as_it_does_without(build: Callable, kind: str) -> None:
    """The losses of a short training under patched(), and after convert, are those of torch.nn's layers."""

    def train(how: str) -> list[float]:
        torch.manual_seed(0)
        with fastrnn.patched() if how == "patched" else contextlib.nullcontext():
            net, inputs = build(kind)
        if how == "converted":
            fastrnn.convert(net)
        layers = {type(module) for module in net.modules() if isinstance(module, nn.RNNBase)}
        cls = getattr(nn if how == "stock" else fastrnn, kind.upper())
        assert layers == {cls}
        optimizer, losses = torch.optim.Adam(net.parameters(), lr=0.01), []
        for _ in range(3):
            output = net(*inputs)
            loss = ((output if isinstance(output, Tensor) else output[0]) - 0.5).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        expected = train("stock")
        assert expected[-1] < expected[0]
        assert train("patched") == pytest.approx(expected, rel=1e-4)
        assert train("converted") == pytest.approx(expected, rel=1e-4)
