"""What other parts of torch, and libraries, do with layers: it works with fastrnn's as with torch.nn's."""

import contextlib
import copy
import io
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from accuracy import assert_accurate, assert_same, flatten, in_float64, run
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fastrnn
from fastrnn._accuracy import FORWARD, GRADIENT, ROUNDINGS, error

T, B, I, H = 6, 3, 5, 7  # noqa: E741
LAYERS = ["RNN", "LSTM", "GRU"]
CELLS = ["RNNCell", "LSTMCell", "GRUCell"]
DEPRECATED_JIT = "ignore:.*torch.jit.*deprecated:DeprecationWarning"
OF_DYNAMO = "ignore:.*should not be instantiated:DeprecationWarning"  # torch's own doing, with any autograd.Function


def pair(name: str, *args: object, **options: object) -> tuple[nn.Module, nn.Module]:
    """A fastrnn module and torch.nn's with the same parameters."""
    ours, torchs = getattr(fastrnn, name)(*args, **options), getattr(nn, name)(*args, **options)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def gate(name: str) -> int:
    return {"RNN": 1, "LSTM": 4, "GRU": 3}[name]


class Net(nn.Module):
    """A layer between two others."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.inner, self.rnn = nn.Linear(I, I), layer
        self.outer = nn.Linear(H * (2 if layer.bidirectional else 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.rnn(torch.tanh(self.inner(x)))[0])


def nets(name: str, **options: object) -> tuple[Net, Net]:
    ours, torchs = pair(name, I, H, **options)
    ours, torchs = Net(ours), Net(torchs)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


# Copies


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
            ours.weight_ih_l0.data = torchs.weight_ih_l0.data = torch.randn(gate(name) * H, I)
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


# Other tensors in the place of parameters


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


# Autograd


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


@pytest.mark.parametrize("name", LAYERS)
def test_an_output_changed_in_place_is_noticed(name: str) -> None:
    """Backward needs the output, as torch.nn.LSTM's does; the states may be changed."""
    net, x = getattr(fastrnn, name)(I, H), torch.randn(T, B, I)
    y, _ = net(x)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y, state = net(x)
    (state[0] if name == "LSTM" else state).mul_(2)
    y.sum().backward()


# Autocast


def outputs_under_autocast(net: nn.Module, dtype: torch.dtype, *inputs: object) -> list[Tensor]:
    with torch.autocast("cpu", dtype=dtype):
        return flatten(net(*inputs))


AUTOCAST = [
    pytest.param(name, layout, dtype, id=f"{name}-{layout}-{dtype}")
    for dtype in (torch.bfloat16, torch.float16)
    for layout in ("dense", "packed", "hx", "16-bit input", "cell", "cell hx")
    for name in LAYERS
    if (name, dtype) != ("LSTM", torch.float16) or layout in ("packed", "cell", "cell hx")  # else torch's own fails
]


@pytest.mark.parametrize(("name", "layout", "dtype"), AUTOCAST)
def test_autocast(name: str, layout: str, dtype: torch.dtype) -> None:
    """The dtypes are torch's, and the values are as near to the truth as torch's."""
    ours, torchs = pair(name + ("Cell" if "cell" in layout else ""), I, H)
    x = torch.randn(B, I) if "cell" in layout else torch.randn(T, B, I)
    inputs: list[object] = [x.to(dtype) if layout == "16-bit input" else x]
    if layout == "packed":
        inputs = [pack_padded_sequence(x, [6, 4, 1])]
    if "hx" in layout:
        h = torch.randn(B, H) if "cell" in layout else torch.randn(1, B, H)
        inputs.append((h, h) if name == "LSTM" else h)
    found, expected = (outputs_under_autocast(net, dtype, *inputs) for net in (ours, torchs))
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    truth = flatten(copy.deepcopy(torchs).double()(*map(in_float64, inputs)))
    for a, b, true in zip(found, expected, truth, strict=True):
        # The floor is that of the dtype that autocast computes in, whatever dtype the results have.
        assert error(a, true) <= FORWARD * error(b, true) + ROUNDINGS * torch.finfo(dtype).eps


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


# torch.func


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


# Other processes

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
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["right", "right"]


# Libraries that say `nn.LSTM`


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
