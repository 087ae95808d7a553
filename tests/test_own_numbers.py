"""The switch that keeps fastrnn's own numbers: single steps here, what tuning found in test_tune_cpu.py."""

import sys

import pytest
import torch
from torch import nn

import fastrnn

OWN = sys.modules["fastrnn.own_numbers"]


def test_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the engine computes is its own, single steps too, and a row's numbers are the same in every batch."""
    cell, x = fastrnn.GRUCell(24, 40), torch.randn(40, 24)
    with fastrnn.own_numbers(True):
        assert fastrnn.is_own_numbers_enabled()
        assert torch.equal(cell(x)[:3], cell(x[:3]))
        assert [fastrnn.explain(cell, x).layers[0].engine] == ["cpu"]
        with torch.no_grad():
            assert torch.equal(cell(x)[:3], cell(x[:3]))
            assert not torch.equal(cell(x), nn.GRUCell.forward(cell, x))
    assert not fastrnn.is_own_numbers_enabled()
    with torch.no_grad():
        assert torch.equal(cell(x), nn.GRUCell.forward(cell, x))
    with pytest.raises(TypeError, match="expected a bool, got int"):
        fastrnn.own_numbers(1)
    for value, expected in (("", False), ("0", False), ("1", True)):
        monkeypatch.setenv(OWN.VARIABLE, value)
        assert OWN.of_environment(OWN.VARIABLE) is expected
    monkeypatch.setenv(OWN.VARIABLE, "yes")
    with pytest.raises(ValueError, match="FASTRNN_OWN_NUMBERS: expected 0 or 1, got yes"):
        OWN.of_environment(OWN.VARIABLE)
