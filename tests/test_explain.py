"""explain tells what a call does, and leaves no trace."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn import _C, functional
from fastrnn.explain import LayerExplanation
from fastrnn.kernels.plan import forced


def only(model: nn.Module, *inputs: object, **kwargs: object) -> LayerExplanation:
    """The one line about a model of one layer."""
    (line,) = fastrnn.explain(model, *inputs, **kwargs).layers
    return line


@pytest.fixture
def two_threads() -> Iterator[None]:
    """With one thread there is only one plan."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_the_kernel_is_the_engines_own_plan() -> None:
    threads = torch.get_num_threads()
    line = only(fastrnn.LSTM(10, 20, bidirectional=True, batch_first=True), torch.randn(3, 50, 10))
    assert (line.name, line.layer, line.engine) == ("", "fastrnn.LSTM", "cpu")
    assert line.kernel == _C.cpu_plan("lstm", 50, 3, 10, 20, 2, "float32", threads)
    assert line.kernel.startswith(_C.cpu_isa())
    line = only(fastrnn.GRU(10, 20, dtype=torch.float64), torch.randn(50, 10, dtype=torch.float64))
    assert line.kernel == _C.cpu_plan("gru", 50, 1, 10, 20, 1, "float64", threads)
    packed = pack_sequence([torch.randn(n, 10) for n in (3, 9, 4, 4)], enforce_sorted=False)
    line = only(fastrnn.RNN(10, 512, nonlinearity="relu"), packed)
    assert line.kernel == _C.cpu_plan("rnn_relu", 9, 4, 10, 512, 1, "float32", threads)
    with torch.no_grad():
        line = only(fastrnn.LSTMCell(10, 20), torch.randn(6, 10))
    assert line.kernel == _C.cpu_plan("lstm", 1, 6, 10, 20, 1, "float32", threads)


@pytest.mark.parametrize("make", [fastrnn.LSTMCell, fastrnn.GRUCell, fastrnn.RNNCell, fastrnn.GRU, fastrnn.RNN])
def test_single_steps_that_torch_does_faster(make: type[nn.Module]) -> None:
    layer = make(10, 20)
    cell = isinstance(layer, nn.RNNCellBase)
    few, many = (torch.randn(rows, 10) if cell else torch.randn(1, rows, 10) for rows in (16, 17))
    assert "a single step with gradients" in only(layer, few).reason
    assert layer(few)[0].grad_fn is not None
    layer.requires_grad_(False)
    assert only(layer, few).engine == "cpu"
    assert "more than 16 rows" in only(layer, many).reason
    if not cell:
        layer.requires_grad_(True)
        assert only(layer, torch.randn(2, 17, 10)).engine == "cpu"
        assert only(layer, few, reset=torch.zeros(1, 16, dtype=torch.bool)).engine == "cpu"
        assert only(layer, few, lengths=[1] * 16).engine == "cpu"


def test_the_kernel_depends_on_the_shape(two_threads: None) -> None:
    """Else the tests above would pass with any shape."""
    net = fastrnn.LSTM(64, 256)
    assert only(net, torch.randn(100, 64, 64)).kernel != only(net, torch.randn(1, 1, 64)).kernel


REASONS = {
    "proj_size": (lambda: fastrnn.LSTM(4, 6, proj_size=2), {}, "torch", "no proj_size"),
    "plain": (lambda: fastrnn.LSTM(4, 6), {}, "cpu", "a CPU tensor of a dtype that the C++ engine takes"),
    "reset": (lambda: fastrnn.GRU(4, 6), {"reset": torch.zeros(5, 3, dtype=torch.bool)}, "cpu", "a CPU tensor"),
    "stock": (lambda: nn.LSTM(4, 6), {}, "torch", "not converted: fastrnn.convert(model) takes it"),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("case", REASONS)
def test_reasons(case: str) -> None:
    build, kwargs, engine, reason = REASONS[case]
    line = only(build(), torch.randn(5, 3, 4), **kwargs)
    assert line.engine == engine
    assert reason in line.reason


def test_the_surroundings_of_the_call_count() -> None:
    net, x = fastrnn.LSTM(4, 6), torch.randn(5, 3, 4)
    with forward_ad.dual_level():
        assert only(net, x).engine == "reference"
    assert only(net, x).engine == "cpu"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert only(net, x).kernel == _C.cpu_plan("lstm", 5, 3, 4, 6, 1, "bfloat16", torch.get_num_threads())


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("given", ["inputs", "none"])
def test_a_dtype_that_the_engine_does_not_take(given: str) -> None:
    net = fastrnn.GRU(4, 6).to(torch.complex64)
    inputs = [torch.randn(5, 3, 4, dtype=torch.complex64)] if given == "inputs" else []
    line = only(net, *inputs)
    assert line.engine == "torch"
    assert "not complex64" in line.reason


class Everything(nn.Module):
    """A model that has a side effect of every kind that a run can have."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.fast, self.stock = fastrnn.LSTM(4, 4, num_layers=2, dropout=0.5), nn.GRU(4, 4)
        self.cell, self.unused = fastrnn.RNNCell(4, 4), fastrnn.GRU(4, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(4))
        self.seen: list[bool] = []

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        self.seen.append(torch.is_grad_enabled())
        self.calls += 1
        x = self.drop(self.norm(x.flatten(0, 1)).view_as(x)) * scale
        x = self.stock(self.fast(x, lengths=[5, 2, 3])[0])[0]
        self.last = self.cell(x[0])[0]
        return x.sum()


def test_a_whole_model() -> None:
    model = Everything()
    explanation = fastrnn.explain(model, torch.randn(5, 3, 4), scale=2.0)
    lines = {line.name: line for line in explanation.layers}
    assert {name: line.engine for name, line in lines.items()} == {
        "fast": "cpu", "stock": "torch", "cell": "torch", "unused": "cpu"
    }  # fmt: skip
    assert "a single step with gradients" in lines["cell"].reason
    assert lines["unused"].reason.endswith("(not called with these inputs)")
    assert lines["stock"].kernel == "torch.nn's own gru"
    assert [line.layer for line in explanation.layers] == [
        "fastrnn.LSTM",
        "torch.nn.GRU",
        "fastrnn.RNNCell",
        "fastrnn.GRU",
    ]


def test_nothing_is_left_behind() -> None:
    model = Everything()
    model.fast.eval()
    model(torch.randn(5, 3, 4)).backward()
    insides = {name: copy.deepcopy(module._forward_hooks) for name, module in model.named_modules()}
    modes = {name: module.training for name, module in model.named_modules()}
    tensors = dict(model.named_buffers())
    values = copy.deepcopy(model.state_dict())
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.seen.clear()
    fastrnn.explain(model, torch.randn(5, 3, 4))
    assert model.seen == [False], "run once, without gradients"
    assert {name: module._forward_hooks for name, module in model.named_modules()} == insides
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(buffer is tensors[name] for name, buffer in model.named_buffers())
    torch.testing.assert_close(model.state_dict(), values, rtol=0, atol=0)
    for name, p in model.named_parameters():
        assert (p.grad is None) == (name not in gradients)
        assert p.grad is None or torch.equal(p.grad, gradients[name])
    assert torch.is_grad_enabled()


def test_random_numbers_are_left_alone() -> None:
    model, x = Everything(), torch.randn(5, 3, 4)
    before = torch.get_rng_state()
    fastrnn.explain(model, x)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_failing_model_fails_as_ever_and_is_left_clean() -> None:
    model = Everything()
    with pytest.raises(RuntimeError, match="must match"):
        fastrnn.explain(model, torch.randn(5, 3, 7) + torch.randn(5, 3, 6))
    with pytest.raises(RuntimeError):
        fastrnn.explain(model, torch.randn(5, 3, 7))
    assert not any(module._forward_hooks for module in model.modules())
    assert model.calls == 0


def test_without_inputs_by_parameters() -> None:
    lines = fastrnn.explain(Everything()).layers
    assert [line.engine for line in lines] == ["cpu", "torch", "cpu", "cpu"]
    assert not any("not called" in line.reason for line in lines)


def test_inputs_are_those_after_hooks() -> None:
    net = fastrnn.LSTM(4, 6)
    net.register_forward_pre_hook(lambda module, args: (args[0].double(),))
    assert only(net.double(), torch.randn(5, 3, 4)).kernel == _C.cpu_plan(
        "lstm", 5, 3, 4, 6, 1, "float64", torch.get_num_threads()
    )


def test_calls_that_differ_have_a_line_each(two_threads: None) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = fastrnn.LSTM(64, 256)

        def forward(self, x: Tensor) -> None:
            self.rnn(x)
            self.rnn(x)
            self.rnn(x[:1, :1])

    first, second = fastrnn.explain(Twice(), torch.randn(100, 64, 64)).layers
    assert first.name == second.name == "rnn"
    assert first.kernel != second.kernel


def test_layers_with_a_forward_of_their_own() -> None:
    class Stock(nn.LSTM):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[0]

    class Fast(fastrnn.LSTM):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return super().forward(first + second)[0]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stock, self.fast = Stock(4, 4), Fast(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fast(x, self.stock(x))

    stock, fast = fastrnn.explain(Model(), torch.randn(5, 3, 4)).layers
    assert (stock.engine, stock.reason) == ("torch", "not converted: a subclass of torch.nn.LSTM")
    assert fast.engine == "cpu"
    assert fast.reason.endswith("(a subclass of fastrnn.LSTM, so by its parameters alone)")


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_the_decision_is_the_one_that_calls_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    decide = functional.plan_stack
    monkeypatch.setattr(functional, "plan_stack", lambda *args: made.append(decide(*args)) or made[-1])
    for net in (fastrnn.LSTM(4, 6), fastrnn.GRU(4, 6).to(torch.complex64)):
        made.clear()
        x = torch.randn(5, 4, 3).mT.to(net.weight_ih_l0.dtype)  # of contiguous input, nothing needs to be decided
        net(x)
        (called,) = made
        line = only(net, x)
        assert (line.engine, line.reason) == (called.engine, called.reason)


def test_it_prints_as_a_table() -> None:
    model = nn.Sequential(nn.Linear(4, 4), fastrnn.GRU(4, 6), nn.ModuleDict({"inner": nn.RNNCell(4, 4)}))
    head, rule, *lines = str(fastrnn.explain(model)).splitlines()
    assert head.split() == ["name", "layer", "engine", "kernel", "reason"]
    assert set(rule) == {"-", " "}
    assert len(lines) == 2
    for column in ("layer", "engine", "kernel", "reason"):
        start = head.index(column)
        assert all(line[start - 2 : start] == "  " and line[start] != " " for line in (rule, *lines))
    assert str(fastrnn.explain(nn.Linear(3, 3))) == "no recurrent layers"


def test_compiled_models_are_run_as_they_are_written() -> None:
    net = torch.compile(nn.Sequential(fastrnn.LSTM(4, 6)), backend="eager")
    line = only(net, torch.randn(5, 3, 4))
    assert (line.name, line.engine) == ("_orig_mod.0", "cpu")
    assert line.kernel == _C.cpu_plan("lstm", 5, 3, 4, 6, 1, "float32", torch.get_num_threads())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_layers_are_listed() -> None:
    model = nn.Sequential(torch.jit.script(nn.Sequential(fastrnn.GRUCell(3, 4))))
    line = only(model, torch.randn(2, 3))
    assert (line.name, line.layer, line.engine, line.kernel) == ("0.0", "scripted GRUCell", "torch", "TorchScript")


def test_parametrized_layers_are_named_by_their_own_class() -> None:
    net = nn.utils.parametrizations.weight_norm(fastrnn.LSTM(4, 6), "weight_hh_l0")
    line = only(net, torch.randn(5, 3, 4))
    assert (line.layer, line.engine) == ("fastrnn.LSTM", "cpu")


def test_only_models_can_be_explained() -> None:
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got Tensor"):
        fastrnn.explain(torch.randn(3))


@pytest.mark.gpu
def test_layers_on_a_gpu() -> None:
    net, x = fastrnn.LSTM(4, 6).cuda(), torch.randn(50, 3, 4, device="cuda")
    assert only(fastrnn.LSTM(4, 600).cuda(), x).engine == "torch"
    reset = torch.zeros(50, 3, dtype=torch.bool, device="cuda")
    assert only(net, x, reset=reset).engine == "triton"
    with forced(strategy="stepwise"):
        line = only(net, x)
    assert (line.engine, line.reason) == ("triton", "forced")
    assert "stepwise" in line.kernel
