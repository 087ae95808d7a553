"""A default device and a default dtype are for the caller's tensors: fastrnn computes as without them."""

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves

import fastrnn
from fastrnn import kernels

T, B, I, H = 5, 3, 4, 6  # noqa: E741
LAYERS = ["RNN", "LSTM", "GRU"]
CELLS = ["RNNCell", "LSTMCell", "GRUCell"]
CPU = {"device": "cpu", "dtype": torch.float32}
X = torch.linspace(-1, 1, T * B * I, **CPU).reshape(T, B, I)
PACKED = pack_sequence([X[:, 0], X[:3, 1]])
RESET = (torch.arange(T * B, device="cpu") % 4 == 1).reshape(T, B)


@contextmanager
def default(what: torch.device | torch.dtype | None) -> Iterator[None]:
    """A default device or dtype, for a while."""
    if isinstance(what, torch.dtype):
        before = torch.get_default_dtype()
        torch.set_default_dtype(what)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
        return
    torch.set_default_device(what)
    try:
        yield
    finally:
        torch.set_default_device(None)


def made(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return getattr(fastrnn, name)(I, H, **options, **CPU)


def learned(results: object, module: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Results, and the gradients of all of them."""
    outputs = [t for t in tree_leaves(results) if isinstance(t, Tensor) and t.requires_grad]
    gradients = torch.autograd.grad([t.sum() for t in outputs], [*module.parameters(), *inputs], materialize_grads=True)
    return [*outputs, *gradients]


def streamed(module: nn.Module, rows: object) -> list[Tensor]:
    step = fastrnn.stream(module.eval())
    steps = X if isinstance(module, nn.RNNCellBase) else X[:, None]
    outputs = [step(x) for x in steps[:3]]
    step.reset(rows)
    return [*tree_leaves(step.state), *outputs, step(steps[3])]


def initialised(module: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)
    fastrnn.init.orthogonal_(module, inputs=True)
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        fastrnn.init.forget_bias_(module)
    return list(module.parameters())


def rounded(module: nn.Module) -> list[Tensor]:
    fastrnn.convert(module, weight_dtype=torch.bfloat16)
    with torch.no_grad():
        found = tree_leaves(module(X if isinstance(module, nn.RNNBase) else X[0]))
    return [*found, *fastrnn.revert(module).parameters()]


def explained(module: nn.Module) -> list[str]:
    x = X if isinstance(module, nn.RNNBase) else X[0]
    return [str(fastrnn.explain(module, x)), str(fastrnn.explain(module))]


def twice_differentiated(module: nn.Module) -> list[Tensor]:
    y = module(X)[0]
    first = torch.autograd.grad(y.square().sum(), list(module.parameters()), create_graph=True)
    return list(torch.autograd.grad(sum(g.square().sum() for g in first), list(module.parameters())))


def by_directions(module: nn.Module) -> object:
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    call = lambda x: torch.func.functional_call(module, parameters, (x,))[0]  # noqa: E731
    return torch.func.jvp(call, (X,), (torch.ones_like(X),))


Scenario = Callable[[nn.Module], object]
ANY: dict[str, Scenario] = {
    "initialised": initialised,
    "rounded": rounded,
    "explained": explained,
    "stream": lambda m: streamed(m, None),
    "stream, a row": lambda m: streamed(m, [1]),
    "stream, no rows": lambda m: streamed(m, []),
    "stream, rows of a tensor": lambda m: streamed(m, torch.tensor([True, False, True], device="cpu")),
}
OF_LAYERS: dict[str, Scenario] = {
    "no gradients": lambda m: torch.no_grad()(m)(X),
    "gradients": lambda m: learned(m(X), m),
    "a step": lambda m: learned(m(X[:1]), m),
    "unbatched": lambda m: learned(m(X[:, 0]), m),
    "packed": lambda m: learned(m(PACKED), m),
    "lengths as a list": lambda m: learned(m(X, lengths=[5, 2, 4]), m),
    "lengths as a tensor": lambda m: learned(m(X, lengths=torch.tensor([5, 2, 4], device="cpu")), m),
    "lengths of no rows": lambda m: learned(m(X[:, :0], lengths=[]), m),
    "reset": lambda m: learned(m(X, reset=RESET), m),
    "lean": lambda m: learned(fastrnn.convert(m, tape="lean")(X), m),
    "bfloat16": lambda m: learned(m.bfloat16()(X.bfloat16()), m),
    "autocast": lambda m: learned(torch.autocast("cpu", torch.bfloat16)(m)(X), m),
    "twice differentiated": twice_differentiated,
    "by directions": by_directions,
    "mapped": lambda m: torch.vmap(lambda x: m(x)[0])(X[None]),
    "tbptt": lambda m: [learned(y, m) for y, _ in fastrnn.tbptt(m, X, k1=2, k2=3)],
    "tbptt with reset": lambda m: [learned(y, m) for y, _ in fastrnn.tbptt(m, X, k1=2, reset=RESET)],
}
OF_CELLS: dict[str, Scenario] = {
    "no gradients": lambda m: torch.no_grad()(m)(X[0]),
    "gradients": lambda m: learned(m(X[0]), m),
    "unbatched": lambda m: learned(m(X[0, 0]), m),
    "one bias": lambda m: setattr(m, "bias_hh", None) or learned(m(X[0]), m),
}
ALL = [
    pytest.param(name, scenario, id=f"{name}: {case}")
    for names, scenarios in ((LAYERS, ANY | OF_LAYERS), (CELLS, ANY | OF_CELLS))
    for name in names
    for case, scenario in scenarios.items()
]


@pytest.mark.parametrize("what", [torch.device("meta"), torch.float64], ids=str)
@pytest.mark.parametrize(("name", "scenario"), ALL)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch.func.jvp itself
def test_defaults_change_nothing(name: str, scenario: Scenario, what: torch.device | torch.dtype) -> None:
    expected = tree_leaves(scenario(made(name)))
    module = made(name)
    with default(what):
        found = tree_leaves(scenario(module))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, Tensor):
            assert (one.device, one.dtype) == (other.device, other.dtype)
            assert torch.equal(one, other)
        else:
            assert one == other


@pytest.mark.parametrize(
    "options", [{"proj_size": 2}, {"num_layers": 2, "dropout": 0.5}, {"bidirectional": True}], ids=str
)
@pytest.mark.parametrize("what", [torch.device("meta"), torch.float64], ids=str)
def test_nor_for_layers_of_other_kinds(options: dict, what: torch.device | torch.dtype) -> None:
    net = made("LSTM", batch_first=True, **options)
    x, lengths = X.transpose(0, 1), [5, 2, 4]
    torch.manual_seed(2)
    expected = learned(net(x, lengths=lengths), net)
    torch.manual_seed(2)
    with default(what):
        found = learned(net(x, lengths=lengths), net)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_a_layer_lies_on_the_default_device_and_what_it_makes_beside_it() -> None:
    with default(torch.device("meta")):
        net = fastrnn.LSTM(I, H)
        y, _ = net(torch.empty(T, B, I), lengths=[5, 2, 4])
        windows = fastrnn.tbptt(net, torch.empty(T, B, I), k1=2)
        outputs = [output for output, _ in windows]
        step = fastrnn.stream(net)
        step(torch.empty(1, B, I))
        step.reset([1])
        fastrnn.init.orthogonal_(net)
    assert all(t.is_meta for t in (y, *outputs, *step.state, *net.parameters()))


def test_a_default_device_is_no_reason_for_the_usual_route(monkeypatch: pytest.MonkeyPatch) -> None:
    net, cell = made("LSTM"), made("LSTMCell")
    used: list[object] = []
    shortcut = fastrnn._C.shortcut
    monkeypatch.setattr(fastrnn._C, "shortcut", lambda *given: used.append(given[0]) or shortcut(*given))
    with default(torch.device("meta")), torch.no_grad():
        net(X)
        cell(X[0])
    assert len(used) == 2


def unplaced(source: str) -> list[str]:
    """Calls in a program that make a tensor without saying on which device."""
    makers = {function.__name__ for function in _device_constructors()}
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            found += [
                f"line {node.lineno}: from torch import {each.name}" for each in node.names if each.name in makers
            ]
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        if of_torch and node.func.attr in makers and "device" not in [keyword.arg for keyword in node.keywords]:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_makers_of_tensors_without_a_device_are_found() -> None:
    source = """
from torch import Tensor, arange
a = torch.as_tensor(rows)
b = f(torch.zeros(2, dtype=torch.int64) + torch.ones(2, device=x.device))
c = x.new_zeros(3)
d = torch.full((2,), 1.0, **options)
"""
    assert sorted(line.split(":")[0] for line in unplaced(source)) == ["line 2", "line 3", "line 4", "line 6"]


@pytest.mark.parametrize("package", [fastrnn, kernels], ids=lambda package: package.__name__)
def test_every_tensor_that_is_made_says_where_it_lies(package: object) -> None:
    files = sorted(Path(package.__file__).parent.glob("*.py"))
    assert len(files) > 10
    found = {file.name: unplaced(file.read_text()) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}
