"""TorchScript compiles models with the layers by every route, and leaves them as they were."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accuracy import flatten
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from twins import CELLS, LAYERS, B, H, I, T

import fastrnn

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
ALL = LAYERS + CELLS


class First(nn.Module):
    """A layer's or a cell's output, and nothing else."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class Packed(First):
    def forward(self, x: PackedSequence) -> PackedSequence:
        return self.rnn(x)[0]


def made(name: str, **options: Any) -> tuple[nn.Module, Tensor]:
    """A layer that fastrnn.revert would have something to do with, and its input; or a cell."""
    rnn = getattr(fastrnn, name)(I, H, **options)
    if name in LAYERS:
        rnn.tape = "lean"
    return rnn, torch.randn(T, B, I) if name in LAYERS else torch.randn(B, I)


def state_of(model: nn.Module) -> dict[str, object]:
    """Everything that a caller may hold of a model, by name."""
    found: dict[str, object] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found[name] = (module, type(module))
        kept = {k: v for k, v in vars(module).items() if k != "__overloads__"}  # which torch adds to every module
        found |= {f"{name}.{key}": value for key, value in kept.items()}
        found |= {f"{name}.{key}:": dict(value) for key, value in kept.items() if isinstance(value, dict)}
    return found


def assert_unchanged(model: nn.Module, before: dict[str, object]) -> None:
    after = state_of(model)
    assert after.keys() == before.keys()
    different = [name for name, was in before.items() if after[name] is not was and not _alike(after[name], was)]
    assert not different, different


def _alike(now: Any, was: Any) -> bool:
    """Whether what was gathered here holds the same objects."""
    if isinstance(now, dict):
        return now.keys() == was.keys() and all(now[key] is was[key] for key in now)
    return isinstance(now, tuple) and len(now) == len(was) and all(a is b for a, b in zip(now, was, strict=True))


def by_script(rnn: nn.Module) -> tuple[nn.Module, Callable[..., Any]]:
    model = First(rnn)
    return model, torch.jit.script(model)


def by_script_method(rnn: nn.Module) -> tuple[nn.Module, Callable[..., Any]]:
    class Net(torch.jit.ScriptModule):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = rnn

        @torch.jit.script_method
        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    return rnn, Net()


def nested(rnn: nn.Module) -> tuple[nn.Module, Callable[..., Any]]:
    model = nn.Sequential(nn.Identity(), nn.Sequential(First(rnn)))
    return model, torch.jit.script(model)


def scripted_before(rnn: nn.Module) -> tuple[nn.Module, Callable[..., Any]]:
    """The layer alone first; and a child that is compiled is compiled no more."""
    net = torch.jit.script(nn.Sequential(torch.jit.script(First(torch.jit.script(rnn)))))
    assert torch.jit.script(net[0]) is net[0]
    return rnn, net


def listed(rnn: nn.Module) -> tuple[nn.Module, Callable[..., Any]]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnns = nn.ModuleList([rnn])
            self.named = nn.ModuleDict({"the same": rnn})

        def forward(self, x: Tensor) -> Tensor:
            total = torch.zeros(1)
            for layer in self.rnns:
                total = total + layer(x)[0] / 2
            for layer in self.named.values():
                total = total + layer(x)[0] / 2
            return total

    model = Net()
    return model, torch.jit.script(model)


def exported(rnn: nn.Module) -> tuple[nn.Module, Callable[..., Any]]:
    class Net(First):
        @torch.jit.export
        def encode(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

        def forward(self, x: Tensor) -> Tensor:
            return x

    model = Net(rnn)
    return model, torch.jit.script(model).encode


ROUTES = [by_script, by_script_method, nested, scripted_before, listed, exported]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("route", ROUTES)
def test_every_route(route: Callable[..., Any], name: str) -> None:
    rnn, x = made(name)
    before, expected = state_of(rnn), rnn(x)[0]
    model, scripted = route(rnn)
    torch.testing.assert_close(scripted(x), expected)
    assert_unchanged(rnn, before)
    assert not [m for m in model.modules() if type(m) in (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell)]
    assert torch.equal(rnn(x)[0], expected)


@pytest.mark.parametrize("name", CELLS)
def test_by_interface(name: str) -> None:
    """Of modules with layers, torch.nn's or others, torch compiles no interface."""

    @torch.jit.interface
    class Encoder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            pass

    class Net(nn.Module):
        encoder: Encoder

        def __init__(self, encoder: nn.Module) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder.forward(x)

    rnn, x = made(name)
    torch.testing.assert_close(torch.jit.script(Net(First(rnn)))(x), rnn(x)[0])


@pytest.mark.parametrize("options", [{}, {"batch_first": True, "num_layers": 2, "bidirectional": True, "bias": False}])
@pytest.mark.parametrize("name", LAYERS)
def test_packed(name: str, options: dict[str, Any]) -> None:
    rnn, x = made(name, **options)
    packed = pack_padded_sequence(x, [2, 6, 3], enforce_sorted=False)
    found = torch.jit.script(Packed(rnn))(packed)
    torch.testing.assert_close(found.data, rnn(packed)[0].data)


@pytest.mark.parametrize("name", ALL)
def test_training_trains_the_layer(name: str) -> None:
    rnn, x = made(name)
    scripted = torch.jit.script(First(rnn))
    own = {f"rnn.{key}": parameter for key, parameter in rnn.named_parameters()}
    assert all(own[key] is parameter for key, parameter in scripted.named_parameters())
    before = rnn(x)[0]
    expected = torch.autograd.grad(before.square().sum(), list(own.values()))
    scripted(x).square().sum().backward()
    for parameter, gradient in zip(own.values(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    torch.optim.SGD(scripted.parameters(), lr=0.1).step()
    assert not torch.equal(rnn(x)[0], before)
    torch.testing.assert_close(scripted(x), rnn(x)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_acts_while_training(name: str) -> None:
    rnn, x = made(name, num_layers=2, dropout=0.5)
    scripted = torch.jit.script(First(rnn))
    assert not torch.equal(scripted(x), scripted(x))
    torch.testing.assert_close(scripted.eval()(x), rnn.eval()(x)[0])
    torch.testing.assert_close(torch.jit.script(First(rnn))(x), rnn(x)[0])


@pytest.mark.parametrize("name", ALL)
def test_what_is_done_with_a_scripted_model(name: str) -> None:
    rnn, x = made(name)
    scripted, file = torch.jit.script(First(rnn).eval()), io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    for model in (torch.jit.load(file), torch.jit.freeze(scripted), torch.jit.optimize_for_inference(scripted)):
        torch.testing.assert_close(model(x), rnn(x)[0])


@pytest.mark.parametrize("name", ALL)
def test_a_model_is_left_as_it_was_where_scripting_fails(name: str) -> None:
    class Net(First):
        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x, unknown=x)[0]

    rnn, _ = made(name)
    model = Net(rnn)
    before = state_of(rnn)
    with pytest.raises(RuntimeError, match="unknown"):
        torch.jit.script(model)
    assert model.rnn is rnn
    assert_unchanged(rnn, before)


@pytest.mark.parametrize("name", CELLS)
def test_parametrized(name: str) -> None:
    """It is refused, as it is with torch.nn's."""
    rnn, x = made(name)
    weight_norm(rnn, "weight_hh")
    cls = type(rnn)
    with pytest.raises(torch.jit.Error, match="Parametrization is not working with scripting"):
        torch.jit.script(First(rnn))(x)
    assert type(rnn) is cls


def test_a_subclass_is_scripted_as_it_is_written() -> None:
    class Sum(fastrnn.GRU):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.weight_hh_l0.sum()

    net, x = Sum(I, H), torch.randn(T, B, I)
    torch.testing.assert_close(torch.jit.script(net)(x), net(x))


@pytest.mark.parametrize("name", LAYERS)
def test_what_a_subclass_adds_is_compiled(name: str) -> None:
    class Mine(getattr(fastrnn, name)):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.head = nn.Linear(H, 2)

        def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
            if input.size(0) > 6:
                raise RuntimeError("too long")

        @torch.jit.export
        def read(self, y: Tensor) -> Tensor:
            return self.head(y)

    class Net(First):
        def forward(self, x: Tensor) -> Tensor:
            return self.rnn.read(self.rnn(x)[0])

    rnn, x = Mine(I, H), torch.randn(T, B, I)
    scripted = torch.jit.script(Net(rnn))
    torch.testing.assert_close(scripted(x), rnn.head(rnn(x)[0]))
    with pytest.raises(torch.jit.Error, match="too long"):
        scripted(torch.randn(T + 1, B, I))
    assert flatten(rnn(x))[0].shape == (T, B, H)
