"""What convert says: that there was nothing to do, and which tools need revert first."""

import inspect
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import fastrnn
from fastrnn import _reports


class OwnLSTM(nn.LSTM):
    """A user's, which may compute something else."""


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(3, 3)


CustomLSTM = type("CustomLSTM", (Custom,), {})


def told(call: object) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(warning.category is UserWarning and warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


@pytest.fixture
def nobody_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reports, "_told", set())


@pytest.mark.parametrize("options", [{}, {"tape": "lean"}, {"weight_dtype": torch.bfloat16}], ids=str)
def test_a_model_without_recurrent_layers(options: dict) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    returned = []
    (message,) = told(lambda: returned.append(fastrnn.convert(model, **options)))
    assert message == "fastrnn.convert changed nothing: Sequential has no RNN, LSTM, GRU or cell of torch.nn"
    assert returned == [model]


def test_layers_of_other_classes_are_named_where_there_is_nothing_else() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Sequential(CustomLSTM())})
    (message,) = told(lambda: fastrnn.convert(model))
    assert message.endswith(f"; of other classes with such names there are b.0 ({__name__}.CustomLSTM)")
    model["c"] = nn.GRU(3, 3)
    assert told(lambda: fastrnn.convert(model)) == []


def test_a_model_of_which_all_is_left_alone() -> None:
    model = nn.Sequential(OwnLSTM(3, 4))
    (message,) = told(lambda: fastrnn.convert(model))
    assert f"left alone: 0 ({__name__}.OwnLSTM, a subclass of torch.nn.LSTM)" in message
    assert message.endswith("There is no other recurrent layer, so nothing was changed")
    assert type(model[0]) is OwnLSTM
    model.append(nn.LSTM(4, 4))
    for _ in range(2):
        (message,) = told(lambda: fastrnn.convert(model))
        assert "nothing" not in message


def test_converted_models_are_converted_again_in_silence() -> None:
    class Mine(fastrnn.GRU):
        pass

    model = nn.Sequential(nn.LSTM(3, 3), nn.GRUCell(3, 3))
    assert [told(lambda: fastrnn.convert(model)) for _ in range(2)] == [[], []]
    assert [type(layer) for layer in model] == [fastrnn.LSTM, fastrnn.GRUCell]
    assert told(lambda: fastrnn.convert(Mine(3, 3))) == []
    assert told(lambda: fastrnn.convert(fastrnn.RNN(3, 3), tape="lean")) == []


@pytest.mark.usefixtures("nobody_told")
def test_installed_tools_that_look_for_classes_are_named_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("thop", "ptflops"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    already = fastrnn.LSTM(3, 4)
    assert told(lambda: fastrnn.convert(already)) == []  # which is no conversion
    (message,) = told(lambda: fastrnn.convert(nn.LSTM(3, 4)))
    assert message.startswith("fastrnn.convert: ")
    assert {"thop", "ptflops"} <= set(message.removeprefix("fastrnn.convert: ").split(", installed")[0].split(", "))
    assert "fastrnn.revert(model)" in message
    assert told(lambda: fastrnn.convert(nn.LSTM(3, 4))) == []
    assert "thop" not in sys.modules


@pytest.mark.usefixtures("nobody_told")
def test_nothing_is_said_where_none_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reports, "_installed", lambda name: False)
    assert told(lambda: fastrnn.convert(nn.LSTM(3, 4))) == []
    monkeypatch.setattr(_reports, "_installed", lambda name: name == "opacus")
    (message,) = told(lambda: fastrnn.convert(nn.LSTM(3, 4)))
    assert message.startswith("fastrnn.convert: opacus, installed here, ")


def test_packages_are_found_without_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _reports._installed("torch")
    assert not _reports._installed("no_such_package_as_this")
    made_by_hand = type(sys)("made_by_hand")
    monkeypatch.setitem(sys.modules, "made_by_hand", made_by_hand)
    assert _reports._installed("made_by_hand")


def test_the_docstring_names_the_tools() -> None:
    text = inspect.getdoc(fastrnn.convert).lower()
    assert all(tool in text for tool in (*_reports.TOOLS, "torch.ao.quantization", "deepspeed", "revert"))


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_tools_that_ask_by_isinstance_find_layers(name: str) -> None:
    stock = getattr(nn, name)
    model = fastrnn.convert(nn.Sequential(stock(3, 4)))
    counted = []
    for layer in model.modules():
        if isinstance(layer, stock):
            layer.register_forward_hook(lambda layer, inputs, output: counted.append((layer, inputs[0].shape)))
    with torch.no_grad():
        model(torch.randn(2, 3))
    assert counted == [(model[0], (2, 3))]
