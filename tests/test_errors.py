"""Whatever is wrong with a call, fastrnn raises what torch.nn raises: the same exception with the same message.

Each case is run on torch.nn's module and on fastrnn's. ACCIDENTS lists the cases where torch.nn fails only somewhere
inside, or after something that is not a check, and what fastrnn says instead, with the same type of exception.
"""

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import fastrnn

T, B, I, H = 5, 3, 4, 6  # noqa: E741
LAYERS = ["RNN", "LSTM", "GRU"]
CELLS = ["RNNCell", "LSTMCell", "GRUCell"]
Case = Callable[[nn.Module], object]


def zeros(module: nn.Module, *shape: int, **options: object) -> Tensor | tuple[Tensor, Tensor]:
    """A state of this shape, for whatever module."""
    state = torch.zeros(shape, **options)
    return (state, state) if isinstance(module, nn.LSTM | nn.LSTMCell) else state


def x(*shape: int, **options: object) -> Tensor:
    return torch.ones(shape or (T, B, I), **options)


def packed(features: int = I, **options: object) -> PackedSequence:
    return pack_sequence([x(4, features, **options), x(2, features, **options)])


def without(module: nn.Module, name: str) -> nn.Module:
    setattr(module, name, None)
    return module


LAYER_CASES: dict[str, Case] = {
    "input 0-D": lambda m: m(torch.tensor(1.0)),
    "input 1-D": lambda m: m(x(I)),
    "input 4-D": lambda m: m(x(1, T, B, I)),
    "input features": lambda m: m(x(T, B, I + 1)),
    "input features, unbatched": lambda m: m(x(T, I + 1)),
    "input features, packed": lambda m: m(packed(I + 1)),
    "input dtype": lambda m: m(x(dtype=torch.float64)),
    "input integers": lambda m: m(x(dtype=torch.int64)),
    "input complex": lambda m: m(x(dtype=torch.complex64)),
    "input dtype, packed": lambda m: m(packed(dtype=torch.float64)),
    "input device": lambda m: m(x(device="meta")),
    "input no steps": lambda m: m(x(0, B, I)),
    "input no steps, unbatched": lambda m: m(x(0, I)),
    "input missing": lambda m: m(),
    "input None": lambda m: m(None),
    "input list": lambda m: m([1.0]),
    "hx 1-D": lambda m: m(x(), zeros(m, H)),
    "hx 2-D": lambda m: m(x(), zeros(m, B, H)),
    "hx 2-D, packed": lambda m: m(packed(), zeros(m, 2, H)),
    "hx 3-D, unbatched": lambda m: m(x(T, I), zeros(m, 1, B, H)),
    "hx layers": lambda m: m(x(), zeros(m, 2, B, H)),
    "hx layers, unbatched": lambda m: m(x(T, I), zeros(m, 2, H)),
    "hx batch": lambda m: m(x(), zeros(m, 1, B + 1, H)),
    "hx batch, packed": lambda m: m(packed(), zeros(m, 1, 3, H)),
    "hx batch 1, packed": lambda m: m(packed(), zeros(m, 1, 1, H)),
    "hx features": lambda m: m(x(), zeros(m, 1, B, H + 1)),
    "hx features, unbatched": lambda m: m(x(T, I), zeros(m, 1, H + 1)),
    "hx dtype": lambda m: m(x(), zeros(m, 1, B, H, dtype=torch.float64)),
    "hx 16 bit": lambda m: m(x(), zeros(m, 1, B, H, dtype=torch.bfloat16)),
    "hx dtype, packed": lambda m: m(packed(), zeros(m, 1, 2, H, dtype=torch.float64)),
    "hx device": lambda m: m(x(), zeros(m, 1, B, H, device="meta")),
    "hx int": lambda m: m(x(), 3),
    "hx str": lambda m: m(x(), "ab"),
    "hx of one": lambda m: m(x(), (x(1, B, H),)),
    "hx of three": lambda m: m(x(), (x(1, B, H),) * 3),
    "hx of None": lambda m: m(x(), (None, None)),
    "no such argument": lambda m: m(x(), hx0=1),
    "too many arguments": lambda m: m(x(), None, None),
    "bias removed": lambda m: without(m, "bias_hh_l0")(x()),
}
LSTM_CASES: dict[str, Case] = {
    "hx Tensor": lambda m: m(x(), x(1, B, H)),
    "hx Tensor of both": lambda m: m(x(), x(2, 1, B, H)),
    "hx Tensor, packed": lambda m: m(packed(), x(1, 2, H)),
    "h 2-D": lambda m: m(x(), (x(B, H), x(1, B, H))),
    "c 2-D": lambda m: m(x(), (x(1, B, H), x(B, H))),
    "c batch": lambda m: m(x(), (x(1, B, H), x(1, B + 1, H))),
    "c features": lambda m: m(x(), (x(1, B, H), x(1, B, H + 1))),
}
CELL_CASES: dict[str, Case] = {
    "input 0-D": lambda m: m(torch.tensor(1.0)),
    "input 3-D": lambda m: m(x()),
    "input features": lambda m: m(x(B, I + 1)),
    "input features, unbatched": lambda m: m(x(I + 1)),
    "input dtype": lambda m: m(x(B, I, dtype=torch.float64)),
    "input integers": lambda m: m(x(B, I, dtype=torch.int64)),
    "input device": lambda m: m(x(B, I, device="meta")),
    "input list": lambda m: m([1.0]),
    "hx 0-D": lambda m: m(x(B, I), zeros(m)),
    "hx 1-D": lambda m: m(x(B, I), zeros(m, H)),
    "hx 3-D": lambda m: m(x(B, I), zeros(m, 1, B, H)),
    "hx 2-D, unbatched": lambda m: m(x(I), zeros(m, B, H)),
    "hx batch": lambda m: m(x(B, I), zeros(m, B + 1, H)),
    "hx features": lambda m: m(x(B, I), zeros(m, B, H + 1)),
    "hx dtype": lambda m: m(x(B, I), zeros(m, B, H, dtype=torch.float64)),
    "hx device": lambda m: m(x(B, I), zeros(m, B, H, device="meta")),
    "hx int": lambda m: m(x(B, I), 3),
    "hx of one": lambda m: m(x(B, I), (x(B, H),)),
    "hx of three": lambda m: m(x(B, I), (x(B, H),) * 3),
    "hx of None": lambda m: m(x(B, I), (None, None)),
}
LSTM_CELL_CASES: dict[str, Case] = {
    "hx Tensor": lambda m: m(x(B, I), x(B, H)),
    "c 3-D": lambda m: m(x(B, I), (x(B, H), x(1, B, H))),
    "c batch": lambda m: m(x(B, I), (x(B, H), x(B + 1, H))),
    "c features": lambda m: m(x(B, I), (x(B, H), x(B, H + 1))),
}

# (names, case): what fastrnn says where torch.nn has no check of its own, or a confusing one. The type is the same.
NOT_A_TENSOR = r"Expected (hx|hidden|hx\[0\]) to be Tensor, got \w+$"
NOT_A_TUPLE = r"LSTM(Cell)?: Expected hx to be a tuple of two tensors, got \w+"
HIDDEN_DTYPE = r"^Expected hidden dtype torch.float32, got torch.(float64|bfloat16)$"
WEIGHT_DTYPE = r"^RNN input dtype \(torch.\w+\) does not match weight dtype \(torch.float32\). Convert"
DEVICE = r"^Input and (parameter|hidden) tensors are not at the same device, found .* at (cpu|meta) and"
DIMENSIONS = r"^For (batched 2|unbatched 1)-D input, (hidden|hx and cx) should also be [12]-D but got "
NOT_TENSORS = ("hx int", "hx of one", "hx of three")
ACCIDENTS: dict[tuple[str, str], str] = {
    **{(name, case): HIDDEN_DTYPE for name in LAYERS for case in ("hx dtype", "hx 16 bit", "hx dtype, packed")},
    **{(name, case): NOT_A_TENSOR for name in ("RNN", "GRU") for case in (*NOT_TENSORS, "hx str")},
    **{(name, "hx of None"): NOT_A_TENSOR for name in LAYERS + CELLS},
    **{(name, case): NOT_A_TENSOR for name in ("RNNCell", "GRUCell") for case in NOT_TENSORS},
    **{("LSTM", case): NOT_A_TUPLE for case in ("hx int", "hx of one", "hx Tensor", "hx Tensor of both")},
    ("LSTM", "hx Tensor, packed"): NOT_A_TUPLE,
    ("LSTM", "hx str"): NOT_A_TENSOR,
    **{("LSTMCell", case): NOT_A_TUPLE for case in ("hx int", "hx Tensor")},
    **{(name, case): WEIGHT_DTYPE for name in CELLS for case in ("input dtype", "input integers")},
    **{(name, "hx dtype"): HIDDEN_DTYPE for name in CELLS},
    **{(name, case): DEVICE for name in CELLS for case in ("input device", "hx device")},
    **{(name, case): DIMENSIONS for name in CELLS for case in ("hx 1-D", "hx 2-D, unbatched")},
    # torch.nn.LSTM does not check packed inputs, which its other layers do.
    ("LSTM", "input features, packed"): r"^input.size\(-1\) must be equal to input_size. Expected 4, got 5$",
    ("LSTM", "input dtype, packed"): WEIGHT_DTYPE,
    ("LSTM", "hx 2-D, packed"): r"^For packed input, hx and cx should also be 3-D but got \(2-D, 2-D\) tensors$",
    ("LSTM", "hx batch, packed"): r"^Expected hidden\[0\] size \(1, 2, 6\), got \[1, 3, 6\]$",
    ("LSTM", "hx batch 1, packed"): r"^Expected hidden\[0\] size \(1, 2, 6\), got \[1, 1, 6\]$",
}
SPECIFIC = {"LSTM": LSTM_CASES, "LSTMCell": LSTM_CELL_CASES}
ALL = [
    pytest.param(name, case, call, id=f"{name}: {case}")
    for names, cases in ((LAYERS, LAYER_CASES), (CELLS, CELL_CASES))
    for name in names
    for case, call in (cases | SPECIFIC.get(name, {})).items()
]


def raised(call: Callable[[], object]) -> Exception:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception) as caught:  # noqa: PT011  which one is what the test is about
            call()
    return caught.value


@pytest.mark.parametrize(("name", "case", "call"), ALL)
def test_wrong_calls_raise_what_torch_raises(name: str, case: str, call: Case) -> None:
    theirs = raised(lambda: call(getattr(nn, name)(I, H)))
    ours = raised(lambda: call(getattr(fastrnn, name)(I, H)))
    if (name, case) not in ACCIDENTS:
        assert (type(ours), str(ours)) == (type(theirs), str(theirs))
        return
    assert type(ours) is type(theirs)
    assert re.search(ACCIDENTS[name, case], str(ours)), str(ours)
    assert str(ours) != str(theirs), "torch.nn says the same: this is no accident"


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_tells_dimensions_apart_where_sizes_do_not(name: str) -> None:
    cell = getattr(fastrnn, name)(I, B)
    for batch, kind, wanted, given in (((), "unbatched", 1, 2), ((B,), "batched", 2, 1)):
        got = rf"\({given}-D, {given}-D\) tensors" if name == "LSTMCell" else f"{given}-D tensor"
        message = f"For {kind} {wanted}-D input, .* should also be {wanted}-D but got {got}$"
        with pytest.raises(RuntimeError, match=message):
            cell(x(*batch, I), zeros(cell, *(B,) * given))


def test_the_engine_does_not_say_where_it_was_built() -> None:
    net = fastrnn.LSTM(I, H)
    net.weight_hh_l0 = nn.Parameter(x(4 * H, H - 1))
    with pytest.raises(RuntimeError, match=r", csrc/call.h:\d+, w_ih: expected size \[20, 4\], got \[24, 4\]$"):
        net(x())


PROJECTED_CASES: dict[str, Case] = {
    "h": lambda m: m(x(), (x(1, B, H), x(1, B, H))),
    "c": lambda m: m(x(), (x(1, B, 2), x(1, B, 2))),
    "features": lambda m: m(x(T, B, I + 1)),
}


@pytest.mark.parametrize("case", PROJECTED_CASES)
def test_projections(case: str) -> None:
    call = PROJECTED_CASES[case]
    theirs = raised(lambda: call(nn.LSTM(I, H, proj_size=2)))
    ours = raised(lambda: call(fastrnn.LSTM(I, H, proj_size=2)))
    assert (type(ours), str(ours)) == (type(theirs), str(theirs))


CONSTRUCTIONS: dict[str, dict] = {
    "input_size 0": {"input_size": 0},
    "input_size float": {"input_size": 3.0},
    "hidden_size 0": {"hidden_size": 0},
    "hidden_size str": {"hidden_size": "6"},
    "num_layers 0": {"num_layers": 0},
    "bias int": {"bias": 1},
    "batch_first int": {"batch_first": 1},
    "dropout 2": {"dropout": 2.0},
    "dropout bool": {"dropout": True},
    "proj_size": {"proj_size": H},
    "proj_size negative": {"proj_size": -1},
    "nonlinearity": {"nonlinearity": "sin"},
    "unknown": {"units": 3},
}


@pytest.mark.parametrize("case", CONSTRUCTIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_construction(name: str, case: str) -> None:
    options = {"input_size": I, "hidden_size": H} | CONSTRUCTIONS[case]
    if name == "RNN" and case == "unknown":
        options.pop("units")
        options["units_"] = 3
    theirs = raised(lambda: getattr(nn, name)(**options))
    ours = raised(lambda: getattr(fastrnn, name)(**options))
    assert (type(ours), str(ours)) == (type(theirs), str(theirs))


def test_an_unknown_nonlinearity_of_a_cell_shows_when_it_is_called() -> None:
    theirs = raised(lambda: nn.RNNCell(I, H, nonlinearity="sin")(x(B, I)))
    ours = raised(lambda: fastrnn.RNNCell(I, H, nonlinearity="sin")(x(B, I)))
    assert (type(ours), str(ours)) == (type(theirs), str(theirs))


ACCEPTED: dict[str, tuple[list[str], Case]] = {
    "no rows": (LAYERS, lambda m: m(x(T, 0, I))),
    "no rows, with hx": (LAYERS, lambda m: m(x(T, 0, I), zeros(m, 1, 0, H))),
    "hx as a list": (["LSTM"], lambda m: m(x(), [x(1, B, H), x(1, B, H)])),
    "hx as one tensor, unbatched": (["LSTM"], lambda m: m(x(T, I), x(2, 1, H))),
    "hx as one tensor, unbatched cell": (["LSTMCell"], lambda m: m(x(I), x(2, H))),
    "no rows, cell": (CELLS, lambda m: m(x(0, I))),
    "one bias": (CELLS, lambda m: without(m, "bias_hh")(x(B, I))),
    "the other bias": (CELLS, lambda m: without(m, "bias_ih")(x(B, I))),
}


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for case, (names, _) in ACCEPTED.items() for name in names], ids=str
)
def test_what_torch_accepts_is_accepted(name: str, case: str) -> None:
    ours, theirs = getattr(fastrnn, name)(I, H), getattr(nn, name)(I, H)
    ours.load_state_dict(theirs.state_dict())
    call = ACCEPTED[case][1]
    torch.testing.assert_close(call(ours), call(theirs))


LENGTHS: dict[str, object] = {
    "zero": [5, 3, 0],
    "negative": torch.tensor([5, 3, -1]),
    "too few": [5, 3],
    "too many": [5, 3, 2, 1],
    "2-D": torch.ones(3, 1, dtype=torch.int64),
}


@pytest.mark.parametrize("case", LENGTHS)
@pytest.mark.parametrize("name", LAYERS)
def test_lengths_are_checked_as_packing_checks_them(name: str, case: str) -> None:
    net, lengths = getattr(fastrnn, name)(I, H), LENGTHS[case]
    theirs = raised(lambda: pack_padded_sequence(x(), torch.as_tensor(lengths)))
    ours = raised(lambda: net(x(), lengths=lengths))
    assert (type(ours), str(ours).split(", but got")[0]) == (type(theirs), str(theirs).split(", but got")[0])


@pytest.mark.parametrize("name", LAYERS)
def test_arguments_beyond_torch_are_checked(name: str) -> None:
    net = getattr(fastrnn, name)(I, H)
    no_reset = torch.zeros(T, B, dtype=torch.bool)
    wrong: list[tuple[type[Exception], str, Case]] = [
        (
            RuntimeError,
            "lengths: expected at most 5, the number of steps of input, got 6",
            lambda m: m(x(), lengths=[6, 1, 1]),
        ),
        (TypeError, "lengths: expected integers, got torch.float32", lambda m: m(x(), lengths=torch.ones(3))),
        (TypeError, "lengths: expected integers, got torch.bool", lambda m: m(x(), lengths=no_reset[0])),
        (ValueError, "lengths: expected a batched 3-D input", lambda m: m(x(T, I), lengths=[5])),
        (ValueError, "lengths: expected None with a PackedSequence", lambda m: m(packed(), lengths=[4, 2])),
        (RuntimeError, "1D CPU int64 tensor", lambda m: m(x(), lengths=torch.ones(3, dtype=int, device="meta"))),
        (TypeError, "reset: expected a Tensor, got list", lambda m: m(x(), reset=no_reset.tolist())),
        (ValueError, "reset: expected dtype torch.bool, got torch.float32", lambda m: m(x(), reset=no_reset.float())),
        (RuntimeError, r"Expected reset size \(5, 3\), got \[3, 5\]", lambda m: m(x(), reset=no_reset.t())),
        (RuntimeError, r"Expected reset size \(5,\), got \[5, 3\]", lambda m: m(x(T, I), reset=no_reset)),
        (RuntimeError, r"Expected reset size \(4, 2\), got \[5, 3\]", lambda m: m(packed(), reset=no_reset)),
        (RuntimeError, "not at the same device", lambda m: m(x(), reset=no_reset.to("meta"))),
    ]
    for kind, message, call in wrong:
        with pytest.raises(kind, match=message):
            call(net)


@pytest.mark.parametrize("beyond", [{"reset": torch.zeros(T, B, dtype=torch.bool)}, {"return_cells": True}], ids=str)
def test_projections_have_nothing_beyond_torch(beyond: dict) -> None:
    with pytest.raises(NotImplementedError, match=f"{next(iter(beyond))}= is not supported together with proj_size"):
        fastrnn.LSTM(I, H, proj_size=2)(x(), **beyond)


def test_only_the_lstm_returns_cells() -> None:
    with pytest.raises(TypeError, match="return_cells"):
        fastrnn.GRU(I, H)(x(), return_cells=True)
