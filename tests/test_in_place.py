"""What a layer returned may be changed in place, and detached, wherever torch.nn's may: gradients stay right."""

from collections.abc import Callable, Iterator

import pytest
import torch
from accuracy import assert_same, flatten
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import dropout
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint
from twins import CELLS, LAYERS, B, H, I, T, pair

import fastrnn
from fastrnn import _onednn

REFUSED = "modified by an inplace operation"
DOUBLE = torch.float64


def zero_a_step(t: Tensor) -> None:
    t[0] = 0


CHANGES: dict[str, Callable[[Tensor], object]] = {
    "relu_": Tensor.relu_,
    "dropout": lambda t: dropout(t, 0.5, True, inplace=True),
    "a step": zero_a_step,
    "add_": lambda t: t.add_(1),
}
LAYOUTS = ("time first", "batch first", "one sequence", "packed", "unsorted")
STACKS = [{}, {"bidirectional": True}, {"num_layers": 2}]


def arranged(layout: str, x: Tensor) -> object:
    """``x (T, B, I)`` as the caller lays it out."""
    if layout == "batch first":
        return x.transpose(0, 1)
    if layout == "one sequence":
        return x[:, 0]
    if layout in ("packed", "unsorted"):
        lengths = torch.full((B,), max(1, len(x) - 2))
        lengths[0 if layout == "packed" else 1] = len(x)
        return pack_padded_sequence(x, lengths, enforce_sorted=layout == "packed")
    return x


def gradients(
    net: nn.Module, x: Tensor, layout: str, change: Callable[[Tensor], object], part: int, **options: object
) -> dict[str, Tensor]:
    """All gradients, if result number ``part`` is changed in place before they are computed."""
    x = x.detach().requires_grad_()
    found = flatten(net(arranged(layout, x), **options))
    torch.manual_seed(2)
    change(found[part])
    loss = sum((t.double().square() * (i + 1)).sum() for i, t in enumerate(found))
    leaves = {"x": x} | dict(net.named_parameters())
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@pytest.mark.parametrize("tape", ["full", "lean"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("steps", [1, T])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_torchs(name: str, steps: int, layout: str, tape: str) -> None:
    """In float64, where nothing of torch.nn's own refuses."""
    for options in STACKS:
        ours, torchs = pair(name, I, H, batch_first=layout == "batch first", dtype=DOUBLE, **options)
        ours.tape = tape
        x = torch.randn(steps, B, I, dtype=DOUBLE)
        for change in CHANGES.values():
            for part in range(3 if name == "LSTM" else 2):
                found, expected = (gradients(net, x, layout, change, part) for net in (ours, torchs))
                torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", CELLS)
def test_cells(name: str) -> None:
    ours, torchs = pair(name, I, H, dtype=DOUBLE)
    x = torch.randn(B, I, dtype=DOUBLE)
    for change in CHANGES.values():
        for part in range(2 if name == "LSTMCell" else 1):
            if name == "RNNCell":  # whose output is what torch's tanh keeps
                with pytest.raises(RuntimeError, match=REFUSED):
                    gradients(torchs, x, "", change, part)
                continue
            found, expected = (gradients(net, x, "", change, part) for net in (ours, torchs))
            torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's, of a setting that nobody changes here
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("mkldnn", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["time first", "batch first", "one sequence", "unsorted"])
@pytest.mark.parametrize("options", [*STACKS, {"proj_size": 3}], ids=str)
def test_an_lstm_is_refused_where_torchs_is(
    options: dict[str, object], layout: str, dtype: torch.dtype, mkldnn: bool
) -> None:
    nets = pair("LSTM", I, H, batch_first=layout == "batch first", dtype=dtype, **options)
    x = torch.randn(T, B, I).to(dtype)

    def is_refused(net: nn.Module) -> bool:
        try:
            gradients(net, x, layout, CHANGES["relu_"], 0)
        except RuntimeError as error:
            if REFUSED not in str(error):
                raise
            return True
        return False

    with torch.backends.mkldnn.flags(enabled=mkldnn):
        ours, torchs = map(is_refused, nets)
    assert ours == torchs
    if dtype == torch.float32:
        assert ours == (mkldnn and layout != "unsorted" and not {"bidirectional", "proj_size"} & options.keys())


def test_a_gpus_layers_are_refused_as_cudnns_are() -> None:
    x = torch.empty(1)
    x = torch.Tensor._make_subclass(type("OnAGpu", (Tensor,), {"is_cuda": True}), x)
    assert _onednn.keeps_output("gru", True, x, None, None, None)
    assert not _onednn.keeps_output("gru", True, x, None, torch.tensor([1]), None)
    with torch.backends.cudnn.flags(enabled=False):
        assert not _onednn.keeps_output("gru", True, x, None, None, None)


def extras() -> Iterator[tuple[str, dict[str, object]]]:
    """What torch.nn does not have, to be compared with itself, unchanged."""
    reset = torch.rand(T, B) < 0.3
    for name in LAYERS:
        yield name, {"lengths": [T, 2, 4]}
        yield name, {"reset": reset}
    yield "LSTM", {"return_cells": True}
    yield "LSTM", {"return_cells": True, "reset": reset, "lengths": [2, T, 3]}


class Subclass(Tensor):
    pass


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_tensors_of_a_subclass(name: str, layout: str) -> None:
    for options in STACKS:
        ours, torchs = pair(name, I, H, batch_first=layout == "batch first", dtype=DOUBLE, **options)
        for steps in (1, T):
            x = torch.randn(steps, B, I, dtype=DOUBLE).as_subclass(Subclass)
            for part in range(3 if name == "LSTM" else 2):
                found, expected = (gradients(net, x, layout, Tensor.relu_, part) for net in (ours, torchs))
                torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("tape", ["full", "lean"])
def test_beyond_torch(tape: str) -> None:
    """The layer has the gradients of the same results, changed in a copy."""
    for name, options in extras():
        net = getattr(fastrnn, name)(I, H, num_layers=2, dtype=DOUBLE)
        net.tape = tape
        x = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True)
        for part in (0, -1):
            found = []
            for copied in (False, True):
                results = flatten(net(x, **options))
                if copied:
                    results = [t.clone() for t in results]
                results[part].mul_(torch.arange(B).unsqueeze(1))
                loss = sum(t.square().sum() for t in results)
                leaves = [x, *net.parameters()]
                found.append(torch.autograd.grad(loss, leaves))
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), (name, options.keys(), part)


def changed_loss(net: nn.Module, x: Tensor) -> Tensor:
    y, state = net(x)
    y.mul_(3)
    (state[0] if isinstance(state, tuple) else state).add_(1)
    return y.square().sum() + y[0].sum()


@pytest.mark.parametrize("name", LAYERS)
def test_more_than_one_backward(name: str) -> None:
    """Once again, differentiated, and after a change between two of them."""
    ours, torchs = pair(name, I, H, dtype=DOUBLE)
    x = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True)
    found = []
    for net in (ours, torchs):
        loss = changed_loss(net, x)
        (first,) = torch.autograd.grad(loss, x, retain_graph=True)
        (dx,) = torch.autograd.grad(loss, x, create_graph=True)
        found.append([first, dx, *torch.autograd.grad(dx.square().sum(), [x, *net.parameters()], allow_unused=True)])
    torch.testing.assert_close(*found)
    y, _ = ours(x)
    before = torch.autograd.grad(y[1].sum(), x, retain_graph=True)
    with torch.no_grad():
        y.zero_()
    assert torch.equal(torch.autograd.grad(y[1].sum(), x)[0], before[0])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_saved_tensors_elsewhere(name: str, batch_first: bool) -> None:
    """Torch does not count changes of what goes through hooks."""
    ours, torchs = pair(name, I, H, batch_first=batch_first, dtype=DOUBLE)
    x = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True)
    expected = torch.autograd.grad(changed_loss(torchs, x), x)
    with torch.autograd.graph.save_on_cpu():
        loss = changed_loss(ours, x)
    torch.testing.assert_close(torch.autograd.grad(loss, x), expected)
    for reentrant in (False, True):
        again = checkpoint(changed_loss, ours, x, use_reentrant=reentrant)
        torch.testing.assert_close(torch.autograd.grad(again, x) if not reentrant else expected, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_a_change_inside_a_checkpoint(name: str) -> None:
    """Where hooks save tensors, an LSTM's backward may read what is changed by then: torch.nn's gradients are wrong."""
    net, x = pair(name, I, H)[0], torch.randn(T, B, I)
    y = checkpoint(lambda v: net(v)[0].relu_(), x, use_reentrant=False)
    expected = torch.autograd.grad(net(x)[0].relu().square().sum(), list(net.parameters()))
    for found, true in zip(torch.autograd.grad(y.square().sum(), list(net.parameters())), expected, strict=True):
        assert torch.equal(found, true)


@pytest.mark.parametrize("name", LAYERS)
def test_an_output_without_memory_is_refused(name: str) -> None:
    """Not read: there is nothing where it was."""
    y, _ = pair(name, I, H)[0](torch.randn(T, B, I))
    loss = y.clone().sum()
    y.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="y: expected the result of forward, got a tensor whose storage was freed"):
        loss.backward()


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_both_directions_are_no_views(name: str, create_graph: bool) -> None:
    net = pair(name, I, H, bidirectional=True)[0]
    loss = net(torch.randn(T, B, I))[0].sum()
    for gradient in torch.autograd.grad(loss, list(net.parameters()), create_graph=create_graph):
        gradient.mul_(2)
        gradient.detach_()


@pytest.mark.parametrize("what", ["input", "weight", "state"])
@pytest.mark.parametrize("name", LAYERS)
def test_what_backward_cannot_do_without_is_refused(name: str, what: str) -> None:
    net = getattr(fastrnn, name)(I, H)
    x, h = torch.randn(T, B, I), torch.randn(1, B, H)
    y, _ = net(x, (h, h.clone()) if name == "LSTM" else h)
    y.mul_(2)
    with torch.no_grad():
        {"input": x, "weight": net.weight_hh_l0, "state": h}[what].mul_(2)
    with pytest.raises(RuntimeError, match=REFUSED):
        y.sum().backward()


@pytest.mark.parametrize("name", LAYERS)
def test_the_memory_of_the_output_is_not_kept(name: str) -> None:
    """After backward, as long as the graph is there."""
    net, x = getattr(fastrnn, name)(I, H), torch.randn(T, B, I)
    y, _ = net(x)
    memory, loss = StorageWeakRef(y.untyped_storage()), y.sum()
    del y
    assert not memory.expired()
    loss.backward()
    assert memory.expired()


@pytest.mark.parametrize("transform", ["grad", "grad of grad", "vmap of grad", "forward over reverse"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
def test_transforms(name: str, transform: str) -> None:
    net = getattr(fastrnn, name)(I, H, batch_first=True, dtype=DOUBLE)
    x = torch.randn(B, T, I, dtype=DOUBLE)

    def loss(x: Tensor, copied: bool = False) -> Tensor:
        y = net(x)[0]
        y = y.clone() if copied else y
        y.mul_(3)
        return y.square().sum()

    func = torch.func
    ways: dict[str, Callable[[Callable[[Tensor], Tensor]], Tensor]] = {
        "grad": lambda f: func.grad(f)(x),
        "grad of grad": lambda f: func.grad(lambda x: func.grad(f)(x).square().sum())(x),
        "vmap of grad": lambda f: func.vmap(func.grad(f))(x),
        "forward over reverse": lambda f: func.jvp(func.grad(f), (x,), (x.cos(),))[1],
    }
    way = ways[transform]
    torch.testing.assert_close(way(loss), way(lambda x: loss(x, copied=True)))


def results(net: nn.Module, steps: int, rows: int, layout: str, dtype: torch.dtype) -> list[Tensor]:
    x = torch.randn(steps, rows, I).to(dtype)
    if isinstance(net, nn.RNNCellBase):
        return flatten(net(x[0, 0] if layout == "one sequence" else x[0]))
    return flatten(net(x[:, 0] if layout == "one sequence" else arranged(layout, x) if rows == B else x))


MODES = {"grad": torch.enable_grad, "no grad": torch.no_grad, "inference": torch.inference_mode}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_views_are_torchs(name: str, layout: str, mode: str) -> None:
    """What torch.nn returns can be detached in place where it is no view; results share memory where torch.nn's do."""
    is_cell = name in CELLS
    stacks = [{}] if is_cell else [*STACKS, *([{"proj_size": 3}] if name == "LSTM" else [])]
    for options in stacks:
        layers = {} if is_cell else {"batch_first": layout == "batch first"}
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            ours, torchs = pair(name, I, H, dtype=dtype, **layers, **options)
            for steps in (1,) if is_cell else (1, T):
                for rows in (B, 20):
                    with MODES[mode]():
                        found, expected = (results(net, steps, rows, layout, dtype) for net in (ours, torchs))
                        for a, b in zip(found, expected, strict=True):
                            assert not a._is_view() or b._is_view(), (options, dtype, steps, rows)
                            if not b._is_view():
                                a.detach_()
                    memories = [len({t.untyped_storage().data_ptr() for t in r}) for r in (found, expected)]
                    assert memories[0] >= memories[1]


@pytest.mark.parametrize("name", LAYERS)
def test_truncated_backpropagation_by_detaching_in_place(name: str) -> None:
    found = []
    for net in pair(name, I, H, batch_first=True):
        torch.manual_seed(3)
        state, total = None, {}
        for steps in (4, 1, 1, 3):
            y, state = net(torch.randn(B, steps, I), state)
            y.square().sum().backward()
            for s in state if name == "LSTM" else (state,):
                s.detach_()
        found.append(total | {key: p.grad for key, p in net.named_parameters()})
    torch.testing.assert_close(*found)


def test_the_same_bits_with_a_change_and_without() -> None:
    net, x = fastrnn.GRU(I, H, bidirectional=True), torch.randn(T, B, I)
    found = []
    for copied in (False, True):
        y, _ = net(x)
        y = y.clone() if copied else y
        y.relu_()
        y.square().sum().backward()
        found.append({key: p.grad.clone() for key, p in net.named_parameters()})
        net.zero_grad()
    assert_same(*found)
