"""Gradients to any order, whatever asks for them: numerical checks, torch.autograd's tools, torch.func's transforms."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from accuracy import assert_accurate, assert_same
from layers import Layer, Problem, draw, fast, readable, run
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import fastrnn
from fastrnn.reference import CELLS

ALL = pytest.mark.parametrize("cell", CELLS)
DEPRECATED_JIT = "ignore:.torch.jit.script. is deprecated"  # torch's own forward mode uses it
TAPES = pytest.mark.parametrize("tape", ["full", "lean"])
KINDS = {
    "dense": {},
    "x and weights": {"state": False, "bias": False},
    "both directions": {"bidirectional": True},
    "lengths and reset": {"bidirectional": True, "layout": "lengths", "reset": True, "cells": True},
    "packed and reset": {"bidirectional": True, "layout": "packed", "reset": True, "cells": True},
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def small(cell: str, kind: str) -> Problem:
    """A problem that can be differentiated numerically."""
    return draw(cell, 3, 2, 2, 2, dtype=torch.float64, **KINDS[kind])


def function(layer: Layer, problem: Problem) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """The layer as a function of its differentiable tensors, and these."""
    names = list(problem.tensors())

    def outputs(*given: Tensor) -> tuple[Tensor, ...]:
        found = layer(problem.put(dict(zip(names, given, strict=True))))[: 4 if problem.cells else 3]
        return tuple(t for t in found if t is not None and t.shape != (0,))

    return outputs, [t.detach().requires_grad_() for t in problem.tensors().values()]


def assert_equal(ours: object, theirs: object) -> None:
    """The rule of the accuracy in float64, the reference being the truth; for any nesting of tensors."""
    ours, theirs = (torch.utils._pytree.tree_leaves(t) for t in (ours, theirs))
    named = [{f"d{i}": t for i, t in enumerate(tensors)} for tensors in (ours, theirs)]
    assert_accurate(*named, named[1])


@EVERY_KIND
@TAPES
@ALL
def test_first_derivatives_numerically(cell: str, tape: str, kind: str) -> None:
    outputs, leaves = function(fast(tape), small(cell, kind))
    assert torch.autograd.gradcheck(outputs, leaves)


@EVERY_KIND
@TAPES
@ALL
def test_second_derivatives_numerically(cell: str, tape: str, kind: str) -> None:
    outputs, leaves = function(fast(tape), small(cell, kind))
    assert torch.autograd.gradgradcheck(outputs, leaves)


@EVERY_KIND
@TAPES
@ALL
def test_batched_gradients(cell: str, tape: str, kind: str) -> None:
    outputs, leaves = function(fast(tape), small(cell, kind))
    found = outputs(*leaves)
    given = [torch.randn(4, *t.shape, dtype=t.dtype) for t in found]
    batched = torch.autograd.grad(found, leaves, given, retain_graph=True, is_grads_batched=True)
    for k in range(4):
        one = torch.autograd.grad(found, leaves, [g[k] for g in given], retain_graph=True)
        assert_equal([t[k] for t in batched], one)


@EVERY_KIND
@TAPES
@ALL
def test_higher_derivatives(cell: str, tape: str, kind: str) -> None:
    """Of a gradient penalty's gradient: the second and third derivative along one way, against the reference's."""

    def penalties(layer: Layer) -> list[Tensor]:
        outputs, leaves = function(layer, draw(cell, 4, 3, 2, 3, dtype=torch.float64, **KINDS[kind]))
        found, loss = [], sum(t.square().sum() for t in outputs(*leaves))
        for _ in range(3):
            gradients = torch.autograd.grad(loss, leaves, create_graph=True)
            found += [g.detach() for g in gradients]
            loss = sum(g.square().sum() for g in gradients)
        return found

    torch.manual_seed(1)
    ours = penalties(fast(tape))
    torch.manual_seed(1)
    assert_equal(ours, penalties(readable))


@TAPES
@ALL
def test_second_derivatives_of_some_inputs(cell: str, tape: str) -> None:
    """Only x requires a gradient, only some outputs send one, and the penalty's own gradient is the weights'."""

    def penalty(layer: Layer, part: int, wanted: int) -> tuple[Tensor, ...]:
        outputs, leaves = function(layer, problem)
        (first,) = torch.autograd.grad(outputs(*leaves)[part].square().sum(), leaves[wanted], create_graph=True)
        return torch.autograd.grad(first.square().sum(), [leaves[0], leaves[-3]])

    problem = draw(cell, 4, 3, 2, 3, dtype=torch.float64)
    for part, wanted in ((0, 0), (1, 0), (0, 1), (1, -3)):
        assert_equal(penalty(fast(tape), part, wanted), penalty(readable, part, wanted))


def loss(layer: Layer, problem: Problem, names: list[str]) -> Callable[..., Tensor]:
    """A number in which y and the last states take part, as a function of the tensors of those names."""

    def number(*given: Tensor) -> Tensor:
        found = layer(problem.put(dict(zip(names, given, strict=True))))
        return sum(t.square().sum() * (k + 1) for k, t in enumerate(found[:3]) if t is not None)

    return number


TRANSFORMS = {
    "grad": grad,
    "vjp": lambda f: lambda x: vjp(f, x)[1](torch.tensor(2.0, dtype=x.dtype)),
    "jacrev of grad": lambda f: jacrev(grad(f)),
    "grad of grad": lambda f: grad(lambda x: grad(f)(x).square().sum()),
    "vmap of grad": lambda f: lambda x: vmap(grad(f))(torch.stack([x, x + 1, x * 2])),
    "grad of vmap": lambda f: grad(lambda x: vmap(f)(torch.stack([x, x + 1, x * 2])).sum()),
    "jvp": lambda f: lambda x: jvp(f, (x,), (x,)),
    "jvp of jvp": lambda f: lambda x: jvp(lambda x: jvp(f, (x,), (x * x,))[1], (x,), (x + 1,)),
}


@pytest.mark.filterwarnings(DEPRECATED_JIT)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["x", "h0", "w_hh"])
@pytest.mark.parametrize("kind", ["dense", "lengths and reset", "packed and reset"])
@TAPES
@ALL
def test_transforms(cell: str, tape: str, kind: str, name: str, transform: str) -> None:
    problem = replace(small(cell, kind), cells=False)
    at = problem.tensors()[name]
    ours, theirs = (TRANSFORMS[transform](loss(layer, problem, [name]))(at) for layer in (fast(tape), readable))
    assert_equal(ours, theirs)
    assert not any(t.requires_grad for t in torch.utils._pytree.tree_leaves(ours))


@pytest.mark.parametrize("mapped", [("x",), ("x", "h0"), ("w_hh",), ("x", "w_ih", "b_hh"), ("h0",)], ids="-".join)
@pytest.mark.parametrize("kind", ["dense", "lengths and reset", "packed and reset"])
@ALL
def test_vmap(cell: str, kind: str, mapped: tuple[str, ...]) -> None:
    """Over batches, over weights (ensembles) and over both, along any dimension, and twice over."""
    problem = replace(small(cell, kind), cells=False)
    tensors = [torch.stack([problem.tensors()[name] * k for k in (1, 2, 3)]) for name in mapped]

    def outputs(layer: Layer, *given: Tensor) -> tuple[Tensor, ...]:
        found = layer(problem.put(dict(zip(mapped, given, strict=True))))[:3]
        return tuple(t for t in found if t is not None and t.shape != (0,))

    for tape in ("full", "lean"):
        ours = vmap(partial(outputs, fast(tape)))(*tensors)
        each = [outputs(fast(tape), *(t[k] for t in tensors)) for k in range(3)]
        theirs = [torch.stack(parts) for parts in zip(*each, strict=True)]
        assert_equal(ours, theirs)
        last = vmap(partial(outputs, fast(tape)), in_dims=-1, out_dims=1)(*(t.movedim(0, -1) for t in tensors))
        assert_equal([t.movedim(1, 0) for t in last], theirs)
        twice = vmap(vmap(partial(outputs, fast(tape))))(*(torch.stack([t, t.flip(0)]) for t in tensors))
        assert_equal(twice, [torch.stack([t, t.flip(0)]) for t in theirs])


@pytest.mark.parametrize("name", ["lengths", "reset"])
@ALL
def test_vmap_over_lengths_and_resets(cell: str, name: str) -> None:
    problem = small(cell, "lengths and reset")
    mapped = {"lengths": torch.tensor([[3, 1], [2, 3], [1, 1]]), "reset": torch.rand(3, 3, 2) < 0.5}[name]
    ours = vmap(lambda t: fast()(replace(problem, **{name: t}))[0])(mapped)
    assert_equal(ours, torch.stack([readable(replace(problem, **{name: t}))[0] for t in mapped]))


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_per_sample_gradients_and_ensembles(name: str) -> None:
    """As torch's tutorials have them, of modules."""
    net = getattr(fastrnn, name)(3, 4, num_layers=2, dtype=torch.float64)
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    weights = {key: p.detach() for key, p in net.named_parameters()}

    def number(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(net, weights, (sample,))[0].square().sum()

    ours = vmap(grad(number), in_dims=(None, 1))(weights, x)
    for b in range(6):
        net.zero_grad()
        net(x[:, b])[0].square().sum().backward()
        assert_equal({key: t[b] for key, t in ours.items()}, {key: p.grad for key, p in net.named_parameters()})
    nets = [getattr(fastrnn, name)(3, 4, num_layers=2, dtype=torch.float64) for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(nets)
    ours = vmap(lambda w: functional_call(net, w, (x,))[0])({key: t.detach() for key, t in stacked.items()})
    assert_equal(ours, torch.stack([one(x)[0] for one in nets]).detach())


@pytest.mark.filterwarnings(DEPRECATED_JIT)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_forward_mode(name: str) -> None:
    """Which the engine does not have: the modules go to the reference, and compute the same."""
    net = getattr(fastrnn, name)(3, 4, dtype=torch.float64)
    shape = (5, 3) if name.endswith("Cell") else (5, 2, 3)
    x, direction = (torch.randn(shape, dtype=torch.float64) for _ in range(2))

    def first(x: Tensor) -> Tensor:
        output = net(x)
        return output[0] if isinstance(output, tuple) else output

    y, tangent = jvp(first, (x,), (direction,))
    assert_equal(y, first(x).detach())
    (expected,) = torch.autograd.functional.jvp(first, x, direction)[1:]
    assert_equal(tangent, expected)
    assert_equal(jacfwd(first)(x), jacrev(first)(x))
    square = lambda x: first(x).square().sum()  # noqa: E731
    assert_equal(hessian(square)(x), torch.autograd.functional.hessian(square, x))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(first(forward_ad.make_dual(x, direction)))
        assert_equal(dual.tangent, expected)


@pytest.mark.filterwarnings(DEPRECATED_JIT)
@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_forward_mode_without_data(name: str) -> None:
    net, x = getattr(fastrnn, name)(3, 4, device="meta"), torch.empty(2, 3, device="meta")
    outputs, tangents = jvp(net, (x,), (x,))
    for output, tangent in zip(*map(torch.utils._pytree.tree_leaves, (outputs, tangents)), strict=True):
        assert tangent.is_meta
        assert tangent.shape == output.shape


@TAPES
@ALL
def test_a_graph_can_be_used_again(cell: str, tape: str) -> None:
    problem = draw(cell, bidirectional=True, cells=True)
    outputs, leaves = function(fast(tape), problem)
    y = outputs(*leaves)[0]
    first = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(y.sum(), leaves)
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(y.sum(), leaves)
    for _ in range(2):
        outputs(*leaves)[0].sum().backward()
    assert all(torch.equal(t.grad, g + g) for t, g in zip(leaves, first, strict=True))


@pytest.mark.parametrize("reentrant", [True, False])
@ALL
def test_checkpoint(cell: str, reentrant: bool) -> None:
    outputs, leaves = function(fast(), draw(cell, bidirectional=True))
    plain = torch.autograd.grad(outputs(*leaves)[0].square().sum(), leaves)
    checkpoint(outputs, *leaves, use_reentrant=reentrant)[0].square().sum().backward()
    assert all(map(torch.equal, plain, (t.grad for t in leaves)))


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@ALL
def test_anomaly_detection(cell: str) -> None:
    problem = draw(cell)
    expected = run(fast(), problem)
    with torch.autograd.set_detect_anomaly(True):
        assert_same(run(fast(), problem), expected)
        outputs, leaves = function(fast(), replace(problem, x=problem.x * torch.nan))
        with pytest.raises(RuntimeError, match="returned nan values"):
            outputs(*leaves)[0].sum().backward()


@TAPES
@ALL
def test_gradients_in_evaluation_and_none_where_none_are_wanted(cell: str, tape: str) -> None:
    net = fastrnn.convert(torch.nn.ModuleDict({"lstm": torch.nn.LSTM(3, 4), "gru": torch.nn.GRU(3, 4)})).eval()
    for layer in net.values():
        layer(torch.randn(5, 2, 3))[0].sum().backward()
        assert all(p.grad is not None for p in layer.parameters())
    outputs, leaves = function(fast(tape), draw(cell))
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert not any(t.requires_grad for t in outputs(*leaves))
    assert not any(t.requires_grad for t in outputs(*(t.detach() for t in leaves)))
    assert all(t.requires_grad for t in outputs(*leaves))


@TAPES
@ALL
def test_changing_what_backward_needs_is_reported(cell: str, tape: str) -> None:
    outputs, leaves = function(fast(tape), draw(cell, cells=True))
    for needed in (leaves[0], leaves[-1]):
        found = outputs(*leaves)
        loss = found[0].sum() + found[1].sum()
        with torch.no_grad():
            needed.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    # The last states are the caller's own.
    found = outputs(*leaves)
    loss = found[0].sum() + found[1].sum()
    with torch.no_grad():
        found[1].mul_(2)
    loss.backward()


@pytest.mark.parametrize(("tape", "kept"), [("full", 6), ("lean", 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@ALL
def test_what_a_tape_keeps(cell: str, dtype: torch.dtype, tape: str, kept: int) -> None:
    """In outputs' worth of memory: the lean tape y, and a cell state for every 64 steps; the full one gates as well."""
    problem = draw(cell, 256, 4, 16, 32, dtype=dtype, layout="lengths")
    kept = {"lstm": kept, "gru": min(kept, 5)}.get(cell, 1)
    memory: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        memory[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    outputs, leaves = function(fast(tape), problem)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = outputs(*leaves)[0]
    for given in (*leaves, problem.lengths):
        memory.pop(given.untyped_storage().data_ptr(), None)
    size = y.numel() * y.element_size()
    assert kept * size <= sum(memory.values()) <= (kept + (1 / 64 if cell == "lstm" else 0)) * size
    assert len(memory) <= 3


@TAPES
@ALL
def test_saved_tensors_may_be_kept_elsewhere(cell: str, tape: str) -> None:
    problem = draw(cell, layout="packed", reset=True, cells=True)
    expected = run(fast(tape), problem)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy().copy(), torch.from_numpy):
        assert_same(run(fast(tape), problem), expected)
    with torch.autograd.graph.save_on_cpu():
        assert_same(run(fast(tape), problem), expected)


@ALL
def test_what_does_not_exist_has_no_gradient(cell: str) -> None:
    """Outputs that a cell does not have, or was not asked for, are outside the graph; so is an unused output."""
    _, leaves = function(fast(), problem := draw(cell))
    y, _, c_n, cells = fast()(problem.put(dict(zip(problem.tensors(), leaves, strict=True))))
    assert c_n.requires_grad == CELLS[cell].has_c
    assert not cells.requires_grad
    unused = torch.autograd.grad(y[:0].sum(), leaves)
    assert not any(t.any() for t in unused)
