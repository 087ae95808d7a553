"""Users' subclasses of the layers and cells: what works with torch.nn's works, and what torch.nn calls is called."""

import copy
import itertools
import pickle
import types
from typing import Any

import pytest
import torch
from accuracy import flatten
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from twins import CELLS, LAYERS, B, H, I, T

import fastrnn

TWO = (nn, fastrnn)
CHECKS = ("check_forward_args", "check_input", "check_hidden_size", "get_expected_hidden_size", "permute_hidden")


def both(name: str, make: Any, *args: Any, **options: Any) -> list[Any]:
    """What ``make`` derives from torch.nn's class and from fastrnn's, with the same parameters."""
    theirs, ours = (make(getattr(library, name))(*args, **options) for library in TWO)
    ours.load_state_dict(theirs.state_dict())
    return [theirs, ours]


def inputs(net: nn.RNNBase) -> list[tuple[Any, Any]]:
    """Every layout, with an initial state and without."""
    is_lstm, layers = isinstance(net, nn.LSTM), net.num_layers * (2 if net.bidirectional else 1)

    def state(*batch: int) -> Any:
        h = torch.randn(layers, *batch, net.proj_size or H)
        return (h, torch.randn(layers, *batch, H)) if is_lstm else h

    x = torch.randn(B, T, I) if net.batch_first else torch.randn(T, B, I)
    step = x[:, :1] if net.batch_first else x[:1]
    packed = [pack_padded_sequence(x, n, net.batch_first, enforce_sorted=False) for n in ([3, 6, 1], [6, 6, 6])]
    dense = [(given, hx) for given in (x, step, *packed) for hx in (None, state(B))]
    return [*dense, (torch.randn(T, I), None), (torch.randn(T, I), state())]


def assert_calls_alike(nets: list[Any], logs: list[list[Any]]) -> None:
    """The same results, and the same calls of the methods with the same arguments."""
    calls = 0
    for (given, hx), grad in itertools.product(inputs(nets[0]), (False, True)):
        for log in logs:
            log.clear()
        with torch.set_grad_enabled(grad):
            theirs, ours = (flatten(net(given, hx)) for net in nets)
        torch.testing.assert_close(ours, theirs)
        assert logs[1] == logs[0]
        calls += len(logs[0])
    assert calls, "torch.nn called none"


def shapes(value: Any) -> Any:
    """Tensors as their shapes, for a log of calls."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return tuple(shapes(v) for v in value) if isinstance(value, tuple | list) else value


def logging(base: type, names: tuple[str, ...], log: list[Any]) -> dict[str, Any]:
    """Methods of those names, which note that they are called and call those of ``base``."""

    def method(name: str) -> Any:
        def logged(self: Any, *args: Any) -> Any:
            log.append((name, shapes(args)))
            return getattr(base, name)(self, *args)

        return logged

    return {name: method(name) for name in names}


OPTIONS = [
    {},
    {"batch_first": True, "num_layers": 2, "bidirectional": True, "bias": False},
]


@pytest.mark.parametrize("names", [(name,) for name in CHECKS] + [CHECKS], ids=" ".join)
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "all"])
@pytest.mark.parametrize("name", LAYERS)
def test_overridden_methods_are_called(name: str, options: dict[str, Any], names: tuple[str, ...]) -> None:
    logs: dict[type, list[Any]] = {getattr(library, name): [] for library in TWO}
    nets = both(name, lambda base: type("Mine", (base,), logging(base, names, logs[base])), I, H, **options)
    assert_calls_alike(nets, list(logs.values()))


@pytest.mark.parametrize("name", LAYERS)
def test_methods_of_an_instance_are_called(name: str) -> None:
    logs: list[list[Any]] = [[], []]
    nets = both(name, lambda base: base, I, H)
    for net, log in zip(nets, logs, strict=True):
        for key, method in logging(type(net), CHECKS, log).items():
            setattr(net, key, types.MethodType(method, net))
    assert_calls_alike(nets, logs)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_cells_of_projections() -> None:
    names, logs = ("get_expected_cell_size", "check_hidden_size"), {nn.LSTM: [], fastrnn.LSTM: []}
    nets = both("LSTM", lambda base: type("Mine", (base,), logging(base, names, logs[base])), I, H, proj_size=3)
    assert_calls_alike(nets, list(logs.values()))


def changing(base: type) -> type:
    class Mine(base):
        def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
            hx = super().permute_hidden(hx, permutation)
            return (hx[0] * 2, hx[1] + 1) if isinstance(hx, tuple) else hx * 2

    return Mine


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "all"])
@pytest.mark.parametrize("name", LAYERS)
def test_what_permute_hidden_gives_is_taken(name: str, options: dict[str, Any]) -> None:
    nets = both(name, changing, I, H, **options)
    for given, hx in inputs(nets[0]):
        torch.testing.assert_close(*(flatten(net(given, hx)) for net in nets))


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "all"])
@pytest.mark.parametrize("name", LAYERS)
def test_beyond_torch_with_overridden_methods(name: str, options: dict[str, Any]) -> None:
    """They are asked, and lengths, reset and return_cells do what they do without them."""

    class Mine(getattr(fastrnn, name)):
        asked = 0

        def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
            Mine.asked += 1

    plain, mine = getattr(fastrnn, name)(I, H, **options), Mine(I, H, **options)
    mine.load_state_dict(plain.state_dict())
    x = torch.randn(B, T, I) if plain.batch_first else torch.randn(T, B, I)
    reset, order = torch.rand(x.shape[:2]) < 0.3, [4, 6, 2]
    packed = pack_padded_sequence(x, order, plain.batch_first, enforce_sorted=False)
    more = {"return_cells": True} if name == "LSTM" else {}
    for given, beyond in (
        (x, {"lengths": order, **more}),
        (x, {"reset": reset, **more}),
        (x, {"lengths": torch.tensor(order), "reset": reset}),
        (x[0], {"reset": reset[0], **more}),
        (packed, {"reset": reset, **more} if name != "LSTM" else more),
    ):
        torch.testing.assert_close(flatten(mine(given, **beyond)), flatten(plain(given, **beyond)))
    if name == "LSTM":
        found, expected = (net(packed, reset=reset, return_cells=True) for net in (mine, plain))
        torch.testing.assert_close(flatten(found), flatten(expected))
        for part in (0, 2):
            torch.testing.assert_close(*(pad_packed_sequence(r[part])[0] for r in (found, expected)))
    assert Mine.asked
    with pytest.raises(ValueError, match="lengths: expected a batched 3-D input"):
        mine(torch.randn(T, I), lengths=[T])


@pytest.mark.parametrize("name", LAYERS)
def test_a_refusal_of_a_subclass_is_raised(name: str) -> None:
    class Strict(getattr(fastrnn, name)):
        def check_forward_args(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
            if input.isnan().any():
                raise ArithmeticError("NaN")

    net = Strict(I, H)
    for grad, steps in itertools.product((False, True), (1, T)):
        with torch.set_grad_enabled(grad), pytest.raises(ArithmeticError, match="NaN"):
            net(torch.full((steps, B, I), torch.nan))


@pytest.mark.parametrize("name", LAYERS)
def test_weights_of_a_subclass(name: str) -> None:
    def make(base: type) -> type:
        class Halved(base):
            """Its list of weights is computed."""

            @property
            def _flat_weights(self) -> list[Tensor]:
                return [w / 2 for w in self.__dict__["made"]]

            @_flat_weights.setter
            def _flat_weights(self, weights: list[Tensor]) -> None:
                self.__dict__["made"] = weights

        return Halved

    nets = both(name, make, I, H)
    for given, hx in inputs(nets[0]):
        torch.testing.assert_close(*(flatten(net(given, hx)) for net in nets))


def encoder(base: type) -> type:
    """With a constructor, a forward, submodules, buffers and attributes of its own, some with likely names."""

    class Mixin:
        def forward(self, x: Tensor, hx: Any = None, scale: float = 1.0) -> Any:
            return super().forward(x * scale, hx)

    class Encoder(Mixin, base):
        __constants__ = (*base.__constants__, "kind")
        depth: int = 3

        def __init__(self, size: int, *, kind: str = "plain") -> None:
            super().__init__(I, size)
            self.kind, self.depth, self.names = kind, 2, ["a"]
            self._weights, self._short, self._options, self._node = {"w": 1}, 0.5, {"deep": True}, None
            self._names = ("x", "y")
            self.add_module("head", nn.Linear(size, 2))
            self.register_module("norm", nn.LayerNorm(size))
            self.register_buffer("mean", torch.zeros(I))
            self.register_parameter("gain", nn.Parameter(torch.ones(size)))

        def forward(self, x: Tensor, hx: Any = None) -> Tensor:
            y = super().forward(x - self.mean, hx, scale=2.0)
            y = y[0] if isinstance(y, tuple) else y
            return self.head(self.norm(y) * self.gain)

        def reset_parameters(self) -> None:
            for weight in self.parameters():
                nn.init.constant_(weight, 0.1)

        def extra_repr(self) -> str:
            return f"{super().extra_repr()}, kind={self.kind}"

    return Encoder


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_a_subclass_with_all_of_its_own(name: str) -> None:
    theirs, ours = both(name, encoder, H, kind="other")
    theirs, ours = theirs.double(), ours.double()
    x = (torch.randn(T, B, I) if name in LAYERS else torch.randn(B, I)).double()
    for net in (ours, copy.deepcopy(ours)):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(net(x), theirs(x))
    gradients = [torch.autograd.grad(net(x).sum(), list(net.parameters())) for net in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert (ours.depth, ours._weights, ours._names) == (2, {"w": 1}, ("x", "y"))


class Saved(fastrnn.GRU):
    """A class that pickle finds."""

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        self.seen = True

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)[0]


def test_a_subclass_is_pickled_and_copied() -> None:
    net, x = Saved(I, H), torch.randn(T, B, I)
    for clone in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net), copy.copy(net)):
        assert type(clone) is Saved
        assert torch.equal(clone(x), net(x))
        assert clone.seen


def test_a_subclass_of_a_subclass() -> None:
    """The methods of every class between are called, those of a mixin as well."""
    log: list[str] = []

    class Mixin:
        def __init_subclass__(cls, mark: str = "", **options: Any) -> None:
            super().__init_subclass__(**options)
            cls.mark = mark

        def check_forward_args(self, *args: Any) -> None:
            log.append(self.mark)
            super().check_forward_args(*args)

    class First(Mixin, fastrnn.LSTM):
        pass

    class Second(First, mark="first"):
        def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
            log.append("second")

    with torch.no_grad():
        Second(I, H)(torch.randn(1, B, I))
    assert log == ["first", "second"]


@pytest.mark.parametrize("name", LAYERS)
def test_a_subclass_compiled(name: str) -> None:
    torch._dynamo.reset()
    net = changing(getattr(fastrnn, name))(I, H)
    x = torch.randn(T, B, I)
    torch.testing.assert_close(flatten(torch.compile(net, backend="eager", fullgraph=True)(x)), flatten(net(x)))
    torch._dynamo.reset()
