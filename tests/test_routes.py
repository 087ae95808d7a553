"""Derivatives by every route that torch has to a layer: the reference's numbers or an error, never zeros or None."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accuracy import assert_accurate
from torch import Tensor, nn
from torch.func import functional_call, functionalize, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

import fastrnn
from fastrnn import _ops, reference

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*deprecated:DeprecationWarning",  # torch's own, at the first forward-mode derivative
    "ignore::DeprecationWarning:torch._inductor",
    "ignore:.torch._prims_common.check. is deprecated:FutureWarning",  # Inductor's own
)

T, B, I, H = 2, 2, 2, 3  # noqa: E741
SUBJECTS = {"layers": "LSTM", "cells": "GRUCell", "packed": "LSTM", "lengths": "GRU", "reset": "LSTM"}
SIZES, LENGTHS = torch.tensor([2, 1]), torch.tensor([1, 2])
RESET = torch.tensor([[True, False], [False, True]])


class Net(nn.Module):
    """A recurrent layer, or two steps of a cell, behind another layer; all of its outputs in a row."""

    def __init__(self, subject: str) -> None:
        super().__init__()
        self.subject = subject
        self.inner = nn.Linear(I, I, dtype=torch.float64)
        self.rnn = getattr(fastrnn, SUBJECTS[subject])(I, H, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([t.flatten() for t in self.outputs(torch.tanh(self.inner(x)))])

    def outputs(self, x: Tensor) -> list[Tensor]:
        if self.subject == "cells":
            return [self.rnn(x[1], self.rnn(x[0]))]
        if self.subject == "packed":
            packed, state = self.rnn(PackedSequence(x, SIZES))
            return [packed.data, *state]
        if self.subject == "lengths":
            y, h_n = self.rnn(x, lengths=LENGTHS)
            return [y, h_n]
        y, state = self.rnn(x, reset=RESET if self.subject == "reset" else None)
        return [y, *state]


class Reference(Net):
    """The same by :mod:`fastrnn.reference`."""

    def outputs(self, x: Tensor) -> list[Tensor]:
        cell = SUBJECTS[self.subject].removesuffix("Cell").lower()
        weights = [getattr(self.rnn, name) for name, _ in self.rnn.named_parameters()]
        described = {"packed": {"batch_sizes": SIZES}, "lengths": {"lengths": LENGTHS}, "reset": {"reset": RESET}}
        found = reference.layer(cell, x, None, None, weights, **described.get(self.subject, {}))[:3]
        return [found[1]] if self.subject == "cells" else [t for t in found if t is not None]


Parameters = dict[str, Tensor]
Function = Callable[[Parameters, Tensor], Any]


def function(net: nn.Module) -> Function:
    return lambda parameters, x: functional_call(net, parameters, (x,))


def number(f: Function) -> Function:
    return lambda parameters, x: f(parameters, x).square().sum()


def leaves(f: Function, gradients: Callable[[Tensor, list[Tensor]], object]) -> Function:
    """Gradients as torch.autograd gives them, for leaves."""

    def derivative(parameters: Parameters, x: Tensor) -> object:
        parameters = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
        x = x.detach().clone().requires_grad_()
        return gradients(number(f)(parameters, x), [*parameters.values(), x])

    return derivative


def of_gradients(loss: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    first = torch.autograd.grad(loss, inputs, create_graph=True)
    return (*first, *torch.autograd.grad(sum(g.square().sum() for g in first), inputs))


def backward(loss: Tensor, inputs: list[Tensor]) -> list[Tensor | None]:
    loss.backward()
    return [t.grad for t in inputs]


def pulled(f: Function, parameters: Parameters, x: Tensor) -> object:
    y, pull = vjp(f, parameters, x)
    return pull(torch.ones_like(y))


BY_TRANSFORM: dict[str, Callable[[Function], Function]] = {
    "grad": lambda f: grad(number(f), argnums=(0, 1)),
    "vjp": lambda f: lambda p, x: pulled(f, p, x),
    "jacrev": lambda f: jacrev(f, argnums=(0, 1)),
    "jacfwd": lambda f: jacfwd(f, argnums=1),
    "hessian": lambda f: hessian(number(f), argnums=1),
    "vmap": lambda f: lambda p, x: vmap(f, in_dims=(None, 0))(p, torch.stack([x, 2 * x])),
    "vmap of grad": lambda f: lambda p, x: vmap(grad(number(f)), in_dims=(None, 0))(p, torch.stack([x, 2 * x])),
    "jvp": lambda f: lambda p, x: jvp(f, (p, x), (p, torch.ones_like(x))),
}
BY_AUTOGRAD: dict[str, Callable[[Function], Function]] = {
    "autograd.grad": lambda f: leaves(f, torch.autograd.grad),
    "create_graph": lambda f: leaves(f, of_gradients),
    "backward": lambda f: leaves(f, backward),
}
DERIVATIVES = BY_TRANSFORM | BY_AUTOGRAD

Route = Callable[[Function, Parameters, Tensor], Function]


def compiled(backend: str) -> Route:
    return lambda f, p, x: torch.compile(f, backend=backend, fullgraph=True)


# Of a function; the transforms of torch.func are taken along.
ROUTES: dict[str, Route] = {
    "eager": lambda f, p, x: f,
    "compile(eager)": compiled("eager"),
    "compile(aot_eager)": compiled("aot_eager"),
    "make_fx": lambda f, p, x: make_fx(f)(p, x),
    "functionalize": lambda f, p, x: functionalize(f),
}
# Of a module: what becomes of it is differentiated.
PROGRAMS: dict[str, Callable[[nn.Module, Parameters, Tensor], Function]] = {
    "export": lambda net, p, x: function(torch.export.export(net, (x,)).module()),
    "export strict": lambda net, p, x: function(torch.export.export(net, (x,), strict=True).module()),
    "make_fx of the net": lambda net, p, x: make_fx(function(net))(p, x),
    "make_fx before dispatch": lambda net, p, x: make_fx(function(net), pre_dispatch=True)(p, x),
    "functionalize the net": lambda net, p, x: functionalize(function(net)),
}


def expected_error(route: str, derivative: str, subject: str) -> str | None:
    """What torch says of any operator, or of its own layers too."""
    if derivative == "create_graph" and route in ("compile(aot_eager)", "compile(inductor)"):
        return "does not currently support double backward|requires create_graph=False"
    if subject == "packed" and route.startswith("make_fx"):
        return "trying to get value out of a tracing tensor"  # the number of sequences
    if subject == "packed" and route.startswith("compile") and derivative not in ("grad", "vjp", *BY_AUTOGRAD):
        return "data-dependent expression"  # the same
    return None


def check(subject: str, derivative: str, route: str, differentiated: Callable[..., Function]) -> None:
    net, true = Net(subject), Reference(subject)
    true.load_state_dict(net.state_dict())
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    x = torch.randn(*((3,) if subject == "packed" else (T, B)), I, dtype=torch.float64)
    error = expected_error(route, derivative, subject)
    if error is not None:
        with pytest.raises(RuntimeError, match=error):
            differentiated(net, parameters, x)(parameters, x)
        return
    found = tree_leaves(differentiated(net, parameters, x)(parameters, x))
    theirs = tree_leaves(DERIVATIVES[derivative](function(true))(parameters, x))
    named = [{f"d{i}": t for i, t in enumerate(tensors)} for tensors in (found, theirs)]
    assert all(t.count_nonzero() for t in theirs)
    assert_accurate(*named, named[1])


@pytest.fixture(autouse=True)
def dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_functions(subject: str, route: str, derivative: str) -> None:
    """What is compiled or traced has the derivative in it, where that is a function's; else it is differentiated."""
    along, derive = ROUTES[route], DERIVATIVES[derivative]
    if derivative in BY_TRANSFORM:
        check(subject, derivative, route, lambda net, p, x: along(derive(function(net)), p, x))
    else:
        check(subject, derivative, route, lambda net, p, x: derive(along(function(net), p, x)))


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("route", PROGRAMS)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_programs(subject: str, route: str, derivative: str) -> None:
    program, derive = PROGRAMS[route], DERIVATIVES[derivative]
    check(subject, derivative, route, lambda net, p, x: derive(program(net, p, x)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("subject", "derivative"),
    [*(("layers", derivative) for derivative in DERIVATIVES), *((s, "vmap of grad") for s in list(SUBJECTS)[1:])],
)
def test_inductor(subject: str, derivative: str) -> None:
    """Which gets what AOTAutograd made of the rest: of every kind one, of one kind everything."""
    along, derive = compiled("inductor"), DERIVATIVES[derivative]
    if derivative in BY_TRANSFORM:
        check(subject, derivative, "compile(inductor)", lambda net, p, x: along(derive(function(net)), p, x))
    else:
        check(subject, derivative, "compile(inductor)", lambda net, p, x: derive(along(function(net), p, x)))


@pytest.mark.parametrize("op", [_ops.layer, _ops.layer_forward, _ops.layer_backward], ids=str)
def test_rules_belong_to_the_operators(op: torch._ops.OpOverload) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "Autograd")
