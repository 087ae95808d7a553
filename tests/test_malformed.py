"""Calls that are wrong in every way: whatever torch.nn raises, or returns, fastrnn does too.

test_errors.py has the wording of the mistakes that people make; here it is the type of the exception, for all of them.
"""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_leaves

import fastrnn

np = pytest.importorskip("numpy")

T, B, I, H = 5, 3, 4, 6  # noqa: E741
LAYERS = ["RNN", "LSTM", "GRU"]
CELLS = ["RNNCell", "LSTMCell", "GRUCell"]
DTYPES = [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
Made = Callable[[], object]
# What torch.nn makes of these says nothing about the call: it computes with what no one meant, or fails by accident.
ACCIDENTS = {
    "nested": "nested tensors have no size, and torch.nn's layers do not look at a packed sequence's state",
    "quantized": "torch.nn fails in making zeros of such a dtype, fastrnn says that dtypes differ",
    "batch_sizes of fewer rows": "torch.nn leaves out rows, or reads some of the step before",
    "batch_sizes of no rows": "the same",
}


def ones(*shape: int, **options: object) -> Tensor:
    return torch.ones(shape, **options)


def kinds(*shape: int) -> dict[str, Made]:
    """Anything that may be given for a tensor of this shape, of other sizes and numbers of dimensions, too."""
    found: dict[str, Made] = {
        "right": lambda: ones(*shape),
        "meta": lambda: ones(*shape, device="meta"),
        "sparse": lambda: ones(*shape).to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(ones(*shape), 0.1, 0, torch.qint8),
        "None": lambda: None,
        "int": lambda: 3,
        "float": lambda: 1.0,
        "bool": lambda: False,
        "str": lambda: "ab",
        "list": lambda: [1.0],
        "array": lambda: np.ones(shape, np.float32),
    }
    if len(shape) > 1:
        found["nested"] = lambda: torch.nested.nested_tensor([ones(*shape[1:])] * shape[0])
    for dtype in DTYPES:
        found[str(dtype)] = lambda dtype=dtype: ones(*shape, dtype=dtype)
    for dims in range(5):
        if dims != len(shape):
            other = (1,) * (dims - len(shape)) + shape[len(shape) - min(dims, len(shape)) :]
            found[f"{dims}-D"] = lambda other=other: ones(*other)
    found["batched"] = lambda: ones(*shape[:-1], B, shape[-1])
    for dim in range(len(shape)):
        for size in (0, 1, shape[dim] + 1):
            other = (*shape[:dim], size, *shape[dim + 1 :])
            found[f"dimension {dim} of {size}"] = lambda other=other: ones(*other)
    return found


def states(name: str, *shape: int) -> dict[str, Made]:
    """Anything that may be given for ``hx``."""
    each = kinds(*shape)
    found = dict(each)
    if "LSTM" in name:
        right = each["right"]
        found = {"one tensor": right}
        for kind, made in each.items():
            found[f"h {kind}"] = lambda made=made: (made(), right())
            found[f"c {kind}"] = lambda made=made: (right(), made())
            found[f"both {kind}"] = lambda made=made: (made(), made())
        found |= {kind: each[kind] for kind in ("int", "float", "bool", "str", "array", "0-D")}
    tensor = lambda: ones(*shape)  # noqa: E731
    for count in range(4):
        found[f"tuple of {count}"] = lambda count=count: (tensor(),) * count
        found[f"list of {count}"] = lambda count=count: [tensor()] * count
    return found | {
        "two in a tensor": lambda: ones(2, *shape),
        "three in a tensor": lambda: ones(3, *shape),
        "one letter": lambda: "a",
        "dict": lambda: {"h": tensor(), "c": tensor()},
        "dict by number": lambda: {0: tensor(), 1: tensor()},
        "generator": lambda: (t for t in (tensor(), tensor())),
        "tuples in a tuple": lambda: ((tensor(), tensor()), (tensor(), tensor())),
    }


def packed(data: object = None, batch_sizes: object = (2, 2, 1, 1), order: object = None) -> PackedSequence:
    made = pack_sequence([ones(4, I), ones(2, I)])
    sizes = torch.tensor(batch_sizes) if isinstance(batch_sizes, tuple) else batch_sizes
    return made._replace(data=ones(6, I) if data is None else data, batch_sizes=sizes, sorted_indices=order)


PACKED: dict[str, Made] = {
    "right": packed,
    "data of other features": lambda: packed(ones(6, I + 1)),
    "data 1-D": lambda: packed(ones(6)),
    "data 3-D": lambda: packed(ones(6, 1, I)),
    "data an array": lambda: packed(np.ones((6, I), np.float32)),
    "data None": lambda: packed()._replace(data=None),
    "data sparse": lambda: packed(ones(6, I).to_sparse()),
    "batch_sizes of more rows": lambda: packed(batch_sizes=(2, 2, 1, 1, 1)),
    "batch_sizes of fewer rows": lambda: packed(batch_sizes=(2, 2, 1)),
    "batch_sizes of no rows": lambda: packed(batch_sizes=(3, 3, 0)),
    "batch_sizes below zero": lambda: packed(batch_sizes=(4, 3, -1)),
    "batch_sizes that rise": lambda: packed(batch_sizes=(1, 2, 2, 1)),
    "batch_sizes 2-D": lambda: packed(batch_sizes=((2, 2), (1, 1))),
    "batch_sizes int32": lambda: packed(batch_sizes=torch.tensor([2, 2, 1, 1], dtype=torch.int32)),
    "batch_sizes float": lambda: packed(batch_sizes=(2.0, 2.0, 1.0, 1.0)),
    "batch_sizes None": lambda: packed(batch_sizes=None),
    "batch_sizes a list": lambda: packed(batch_sizes=[2, 2, 1, 1]),
    "no steps": lambda: packed(ones(0, I), torch.tensor([], dtype=torch.int64)),
    **{f"data {dtype}": lambda dtype=dtype: packed(ones(6, I, dtype=dtype)) for dtype in DTYPES},
}
# torch.nn.LSTM does not look at the sizes of a packed sequence's state: it reads outside of it, or ends the process.
SIZES = ("dimension", "4-D", "batched", "two in", "three in")


def outcome(net: nn.Module, arguments: Callable[[], tuple[object, ...]]) -> object:
    """The type of the exception, or what is returned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nested, sparse and quantized tensors
        given = arguments()
        try:
            return net(*given)
        except Exception as error:  # whatever it is
            return type(error)


def same(ours: object, theirs: object) -> bool:
    if isinstance(ours, type) or isinstance(theirs, type):
        return ours is theirs
    for one, other in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
        if isinstance(one, Tensor) and not one.is_meta:
            torch.testing.assert_close(one, other)
    return True


def differences(name: str, calls: dict[str, Callable[[], tuple[object, ...]]]) -> dict[str, str]:
    found = {}
    torch.manual_seed(0)
    theirs, ours = getattr(nn, name)(I, H), getattr(fastrnn, name)(I, H)
    ours.load_state_dict(theirs.state_dict())
    for gradients in (False, True):
        for case, made in calls.items():
            with torch.set_grad_enabled(gradients):
                one, other = outcome(ours, made), outcome(theirs, made)
            if not same(one, other) and not any(case.endswith(accident) for accident in ACCIDENTS):
                found[case] = f"fastrnn {one if isinstance(one, type) else 'returns'}, torch.nn {other}"
    return found


INPUTS = {"batched": (T, B, I), "unbatched": (T, I)}
CELL_INPUTS = {"batched": (B, I), "unbatched": (I,)}


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_inputs(name: str) -> None:
    shapes = INPUTS if name in LAYERS else CELL_INPUTS
    made = {f"{how} {kind}": make for how, shape in shapes.items() for kind, make in kinds(*shape).items()}
    made |= {f"packed {kind}": make for kind, make in PACKED.items()}
    # a layer without gradients may mix meta and other tensors in torch.nn, which makes nothing of it
    made = {kind: make for kind, make in made.items() if "meta" not in kind}
    assert differences(name, {kind: lambda make=make: (make(),) for kind, make in made.items()}) == {}


@pytest.mark.parametrize("how", INPUTS)
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_states(name: str, how: str) -> None:
    x = INPUTS[how] if name in LAYERS else CELL_INPUTS[how]
    batch = (B,) if how == "batched" else ()
    shape = (1, *batch, H) if name in LAYERS else (*batch, H)
    calls = {kind: lambda make=make: (ones(*x), make()) for kind, make in states(name, *shape).items()}
    calls = {kind: call for kind, call in calls.items() if "meta" not in kind}
    assert differences(name, calls) == {}


@pytest.mark.parametrize("name", LAYERS)
def test_states_of_packed_sequences(name: str) -> None:
    made = {
        kind: make
        for kind, make in states(name, 1, 2, H).items()
        if "meta" not in kind and not (name == "LSTM" and any(word in kind for word in SIZES))
    }
    assert differences(name, {kind: lambda make=make: (packed(), make()) for kind, make in made.items()}) == {}


@pytest.mark.parametrize("wrong", [ones(T, B, I, dtype=torch.float64), ones(T, B, I + 1), ones(0, B, I)], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_the_first_of_two_mistakes_is_the_one_that_is_told(name: str, wrong: Tensor) -> None:
    made = {kind: make for kind, make in states(name, 1, B, H).items() if "meta" not in kind}
    assert differences(name, {kind: lambda make=make: (wrong, make()) for kind, make in made.items()}) == {}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["LSTM", "LSTMCell"])
def test_cell_states_of_another_dtype(name: str, dtype: torch.dtype) -> None:
    theirs, ours = getattr(nn, name)(I, H, dtype=dtype), getattr(fastrnn, name)(I, H, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    x, h = torch.randn(T, B, I).to(dtype), torch.randn(1, B, H).to(dtype)
    if name == "LSTMCell":
        x, h = x[0], h[0]
    for other in (torch.float32, *DTYPES, torch.float16):
        for given in (x, pack_sequence([x[:, 0], x[:3, 1], x[:2, 2]])) if name == "LSTM" else (x,):
            hx = (h, torch.randn(h.shape).to(other))
            for gradients in (False, True):
                with torch.set_grad_enabled(gradients):
                    one, two = (outcome(net, lambda given=given, hx=hx: (given, hx)) for net in (ours, theirs))
                if isinstance(two, type):
                    assert one is two, other
                    continue
                for result, expected in zip(tree_leaves(one), tree_leaves(two), strict=True):
                    if isinstance(result, Tensor):
                        assert result.dtype == expected.dtype
                        tolerance = torch.finfo(dtype).eps * 8
                        torch.testing.assert_close(result, expected, atol=tolerance, rtol=tolerance)
