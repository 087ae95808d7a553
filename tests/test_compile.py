"""Compilers and tracers take the layers whole: torch.compile, torch.export, torch.fx, torch.jit.trace."""

import io
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from accuracy import flatten
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from twins import pair

import fastrnn

T, B, I, H = 6, 3, 5, 7  # noqa: E741
LAYERS = ["RNN", "LSTM", "GRU"]
CELLS = ["RNNCell", "LSTMCell", "GRUCell"]
DEPRECATED_JIT = "ignore:.*torch.jit.*deprecated:DeprecationWarning"
OF_DYNAMO = "ignore:.*should not be instantiated:DeprecationWarning"  # torch's own doing, with any autograd.Function


class Net(nn.Module):
    """A layer between two others."""

    def __init__(self, name: str, **options: object) -> None:
        super().__init__()
        self.inner, self.rnn = nn.Linear(I, I), getattr(fastrnn, name)(I, H, **options)
        self.outer = nn.Linear(H * (2 if self.rnn.bidirectional else 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.rnn(torch.tanh(self.inner(x)))[0])


@pytest.fixture
def dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings(OF_DYNAMO)
@pytest.mark.parametrize("name", LAYERS)
def test_compile_into_one_graph_for_all_shapes(name: str, dynamo: None) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend  # takes a second, which other tests need not wait

    net = Net(name, num_layers=2, bidirectional=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for steps, batch in ((6, 3), (8, 4), (11, 9)):  # no size that another dimension has: Dynamo would take it for that
        x = torch.randn(steps, batch, I)
        results = []
        for module in (compiled, net):
            leaf = x.clone().requires_grad_()
            y = module(leaf)
            y.square().sum().backward()
            results.append([y, leaf.grad, *(p.grad.clone() for p in net.parameters())])
            net.zero_grad()
        torch.testing.assert_close(*results)
        counts.append(counter.frame_count)
    assert counts == counts[:1] * 3, "the first graph serves all"
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.filterwarnings(OF_DYNAMO, "ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("kwargs", ["lengths", "reset", "hx", "return_cells", "packed"])
def test_compile_with_what_is_beyond_torch(kwargs: str, dynamo: None) -> None:
    net = fastrnn.LSTM(I, H, num_layers=2, bidirectional=True)
    state = torch.randn(4, B, H)
    given = {
        "lengths": {"lengths": torch.tensor([3, 6, 2])},
        "reset": {"reset": torch.rand(T, B) < 0.4},
        "hx": {"hx": (state, state)},
        "return_cells": {"return_cells": True},
        "packed": {},
    }[kwargs]

    def call(x: Tensor) -> object:
        return net(x, **given)

    x = torch.randn(T, B, I)
    if kwargs == "packed":

        def call(x: Tensor) -> object:
            y, state = net(pack_padded_sequence(x, torch.tensor([6, 4, 2])))
            return pad_packed_sequence(y)[0], state

    compiled = torch.compile(call, backend="aot_eager", fullgraph=kwargs != "packed")
    torch.testing.assert_close(flatten(compiled(x)), flatten(call(x)))


@pytest.mark.filterwarnings(OF_DYNAMO)
@pytest.mark.parametrize("name", CELLS)
def test_compile_a_loop_of_cells(name: str, dynamo: None) -> None:
    cell = getattr(fastrnn, name)(I, H)

    def loop(x: Tensor) -> object:
        state = None
        for step in x:
            state = cell(step, state)
        return state

    x = torch.randn(4, B, I)
    compiled = torch.compile(loop, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(flatten(compiled(x)), flatten(loop(x)))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of compiled autograd's own
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Dynamo's own
@pytest.mark.parametrize("tape", ["full", "lean"])
def test_compiled_autograd(tape: str, dynamo: None) -> None:
    """The backward pass of an ordinary forward pass, and that of a compiled step, as one graph."""
    net, x = Net("LSTM"), torch.randn(T, B, I)
    net.rnn.tape = tape

    def step() -> list[Tensor]:
        net.zero_grad()
        net(x).square().sum().backward()
        return [p.grad for p in net.parameters()]

    expected = step()
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.testing.assert_close(torch.compile(step, backend="eager")(), expected)
        net.zero_grad()
        loss = net(x).square().sum()
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            loss.backward()
    torch.testing.assert_close([p.grad for p in net.parameters()], expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Inductor's own
@pytest.mark.slow
def test_inductor(dynamo: None) -> None:
    net = Net("LSTM", bidirectional=True)
    compiled = torch.compile(net, fullgraph=True, dynamic=True)
    for steps in (5, 9):
        x = torch.randn(steps, B, I)
        results = []
        for module in (compiled, net):
            y = module(x)
            y.square().sum().backward()
            results.append([y, *(p.grad.clone() for p in net.parameters())])
            net.zero_grad()
        torch.testing.assert_close(*results)


@pytest.mark.filterwarnings(OF_DYNAMO)
def test_how_dynamo_treats_torchs_own_layers_is_left_alone(dynamo: None) -> None:
    torch.compile(fastrnn.LSTM(I, H), backend="eager")(torch.randn(T, B, I))
    assert torch._dynamo.config.allow_rnn is False
    with pytest.raises(torch._dynamo.exc.Unsupported, match="LSTM"):
        torch.compile(nn.LSTM(I, H), backend="eager", fullgraph=True)(torch.randn(T, B, I))


@pytest.mark.parametrize("first", ["fastrnn", "torch._dynamo"])
def test_dynamo_may_be_imported_before_or_after(first: str) -> None:
    code = f"""
import sys, torch
import {first}
import fastrnn
assert ("torch._dynamo" in sys.modules) == {first == "torch._dynamo"}, "importing fastrnn must not import Dynamo"
net = torch.nn.Sequential(fastrnn.GRU(3, 4))
torch.compile(net, fullgraph=True, backend="eager")(torch.randn(5, 2, 3))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", LAYERS)
def test_export(name: str) -> None:
    net = Net(name, num_layers=2, bidirectional=True)
    shapes = {"x": {0: torch.export.Dim("steps"), 1: torch.export.Dim("batch")}}
    program = torch.export.export(net.eval(), (torch.randn(T, B, I),), dynamic_shapes=shapes)
    assert sum(node.target is torch.ops.fastrnn.layer.default for node in program.graph.nodes) == 2
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    for exported in (program, torch.export.load(file)):
        x = torch.randn(11, 4, I)
        torch.testing.assert_close(exported.module()(x), net(x))


@pytest.mark.parametrize("name", LAYERS)
def test_fx_makes_one_node_of_a_layer(name: str) -> None:
    """As of torch.nn's: the module stays a module, so that its mode can still be changed."""
    net = Net(name, num_layers=2, dropout=0.5)
    graph = torch.fx.symbolic_trace(net)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["inner", "rnn", "outer"]
    x = torch.randn(T, B, I)
    assert not torch.equal(graph(x), graph(x))
    graph.eval()
    assert torch.equal(graph(x), graph(x))
    cell = torch.fx.symbolic_trace(nn.Sequential(fastrnn.GRUCell(I, H)))
    assert [node.op for node in cell.graph.nodes] == ["placeholder", "call_module", "output"]


def test_fx_keeps_lengths() -> None:
    class Lengths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = fastrnn.GRU(I, H)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            return self.rnn(x, lengths=lengths)[0]

    net, given = Lengths(), (torch.randn(T, B, I), torch.tensor([3, 6, 1]))
    assert torch.equal(torch.fx.symbolic_trace(net)(*given), net(*given))


@pytest.mark.filterwarnings(DEPRECATED_JIT, "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("layout", ["dense", "batch first", "packed"])
@pytest.mark.parametrize("name", LAYERS)
def test_trace(name: str, layout: str) -> None:
    net = Net(name, num_layers=2, bidirectional=True, batch_first=layout == "batch first")

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = net.rnn

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            return pad_packed_sequence(self.rnn(packed)[0])[0]

    if layout != "packed":
        module, given, other = net, (torch.randn(T, B, I),), (torch.randn(9, 4, I),)
    else:
        module = Packed()
        given = (torch.randn(T, B, I), torch.tensor([2, 6, 3]))
        other = (torch.randn(9, 4, I), torch.tensor([9, 1, 5, 5]))
    traced = torch.jit.trace(module, given)
    torch.testing.assert_close(traced(*given), module(*given))
    torch.testing.assert_close(traced(*other), module(*other))


def changed(net: nn.Module, x: Tensor) -> Tensor:
    y, state = net(x)
    y.mul_(3)
    (state[0] if isinstance(state, tuple) else state).add_(1)
    return y.square().sum() + y[0].sum()


@pytest.mark.filterwarnings(OF_DYNAMO)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_results_changed_in_place(name: str, inside: bool, batch_first: bool, dynamo: None) -> None:
    """Whether the compiler sees the change or not."""
    ours, torchs = pair(name, I, H, batch_first=batch_first, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(changed(torchs, x), x)
    if inside:
        loss = torch.compile(changed, backend="aot_eager")(ours, x)
    else:
        loss = changed(torch.compile(ours, backend="aot_eager"), x)
    torch.testing.assert_close(torch.autograd.grad(loss, x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Inductor's own
@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, T])
def test_what_inductor_returned_changed_in_place(steps: int, dynamo: None) -> None:
    """It knows nothing of changes that are made to a view, and takes out copies."""
    ours, torchs = pair("GRU", I, H, batch_first=True)
    x = torch.randn(B, steps, I, requires_grad=True)
    expected = torch.autograd.grad(changed(torchs, x), x)
    torch.testing.assert_close(torch.autograd.grad(changed(torch.compile(ours), x), x), expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of compiled autograd's own
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Dynamo's own
def test_compiled_autograd_where_a_result_was_changed_in_place(dynamo: None) -> None:
    """The graph of a backward pass with nothing changed is none for one with a change."""
    net, x = fastrnn.GRU(I, H, dtype=torch.float64), torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    for is_changed in (False, True, False):
        y, _ = net(x)
        expected = torch.autograd.grad(y.square().sum() * (9 if is_changed else 1), x, retain_graph=True)[0]
        x.grad = None
        if is_changed:
            y.mul_(3)
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            y.square().sum().backward()
        torch.testing.assert_close(x.grad, expected)
