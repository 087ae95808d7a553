"""Cells in compiled programs are torch's operators, as torch.nn's cells are, which a compiler fuses."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accuracy import flatten
from torch import Tensor, nn

import fastrnn

B, I, H = 3, 5, 7  # noqa: E741
CELLS = {
    "tanh": ("RNNCell", {}),
    "relu": ("RNNCell", {"nonlinearity": "relu", "bias": False}),
    "LSTM": ("LSTMCell", {}),
    "GRU": ("GRUCell", {}),
}
ALL = pytest.mark.parametrize("cell", CELLS)
Loop = Callable[[Tensor], Any]


@pytest.fixture(autouse=True)
def dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def pair(cell: str) -> tuple[nn.Module, nn.Module]:
    name, options = CELLS[cell]
    theirs, ours = (getattr(package, name)(I, H, **options) for package in (nn, fastrnn))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def loop(cell: nn.Module) -> Loop:
    def steps(x: Tensor) -> Any:
        state = None
        for step in x.unbind():
            state = cell(step, state)
        return state

    return steps


def graph_of(function: Callable[..., Any], *args: Any) -> list[str]:
    """The operators of what Dynamo makes of a call."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch.compile(function, fullgraph=True, backend=keep)(*args)
    assert len(graphs) == 1
    return [str(node.target) for node in graphs[0].graph.nodes if node.op.startswith("call")]


@ALL
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
def test_the_operators_are_those_of_torchs_cells(cell: str, train: bool, autocast: bool) -> None:
    x = torch.randn(4, B, I)
    with torch.set_grad_enabled(train), torch.autocast("cpu", enabled=autocast):
        theirs, ours = ([t for t in graph_of(loop(c), x) if "cell" in t or "fastrnn" in t] for c in pair(cell))
    assert len(theirs) == 4
    assert ours == theirs


@ALL
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Dynamo's own
def test_gradients_for_all_batches(cell: str) -> None:
    theirs, ours = map(loop, pair(cell))
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (3, 9, 4):
        x, found = torch.randn(4, batch, I), []
        for function in (theirs, compiled):
            leaf = x.clone().requires_grad_()
            outputs = flatten(function(leaf))
            sum(t.square().sum() for t in outputs).backward()
            found.append([*outputs, leaf.grad])
        torch.testing.assert_close(*found)


@ALL
def test_transforms_in_a_compiled_program(cell: str) -> None:
    ours = loop(pair(cell)[1])
    per_sample = torch.func.vmap(torch.func.grad(lambda x: sum(t.sum() for t in flatten(ours(x)))), in_dims=1)
    x = torch.randn(4, B, I)
    torch.testing.assert_close(torch.compile(per_sample, backend="aot_eager", fullgraph=True)(x), per_sample(x))


@ALL
def test_bfloat16_weights_stay_with_the_engine(cell: str) -> None:
    """Torch's operators do not take them with float32 states."""
    half = fastrnn.convert(pair(cell)[1].requires_grad_(False), weight_dtype=torch.bfloat16)
    x = torch.randn(B, I)
    assert "fastrnn.layer.default" in graph_of(half, x)
    torch.testing.assert_close(flatten(torch.compile(half, backend="eager")(x)), flatten(half(x)))


@ALL
def test_explain_knows(cell: str) -> None:
    ours, x = pair(cell)[1], torch.randn(B, I)
    as_module = torch.compile(ours, backend="eager")
    in_place = nn.Sequential(pair(cell)[1])
    in_place.compile(backend="eager")
    half = fastrnn.convert(pair(cell)[1].requires_grad_(False), weight_dtype=torch.bfloat16)
    half = torch.compile(half, backend="eager")
    with torch.no_grad():
        for net, engine in ((ours, "cpu"), (as_module, "torch"), (in_place, "torch"), (half, "cpu")):
            assert fastrnn.explain(net, x).layers[0].engine == engine


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_layers_of_a_single_step_are_cells(name: str, train: bool) -> None:
    net, x = getattr(fastrnn, name)(I, H, num_layers=2), torch.randn(1, B, I)
    with torch.set_grad_enabled(train):
        graph = graph_of(net, x)
        assert not [operator for operator in graph if "fastrnn" in operator]
        assert len([operator for operator in graph if "cell" in operator]) == 2
        compiled = torch.compile(net, backend="eager")
        torch.testing.assert_close(flatten(compiled(x)), flatten(net(x)))
        assert fastrnn.explain(compiled, x).layers[0].engine == "torch"
        assert "fastrnn.layer.default" in graph_of(net, torch.randn(2, B, I))
