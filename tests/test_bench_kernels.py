"""python -m bench kernels: a table of what kernels are made of."""

import json
from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench import kernels
from bench.__main__ import main as bench

pytestmark = pytest.mark.triton


@pytest.fixture(autouse=True)
def toy_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of the rig's own in place of the project's."""
    monkeypatch.setattr(kernels, "CATALOG", "rig.catalog")


def test_kernels_are_tabulated_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out" / "kernels.json"
    assert bench(["kernels", "product", "--processes", "2", "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert " 8 HMMA " in shown
    assert " mfma " in shown
    nvidia, amd = json.loads(path.read_text())
    assert (nvidia["name"], nvidia["cell"], nvidia["dtype"], nvidia["hidden"]) == ("lstm_product", "lstm", "bf16", 64)
    assert (nvidia["target"], amd["target"]) == ("sm_80", "gfx942")
    assert nvidia["report"]["spills"] == amd["report"]["spills"] == 0
    assert nvidia["report"]["loops"][0]["tensor"] == {"HMMA.16816": 8}
    assert "ptx" not in nvidia["report"]


def test_a_kernel_that_does_not_compile_is_shown_beside_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["kernels", "--target", "sm_80", "--processes", "1"]) == 1
    shown = capsys.readouterr().out
    assert " 8 HMMA " in shown
    assert "not compiled: broken for sm_80: CompilationError" in shown


def test_a_catalogue_that_is_not_there_is_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "CATALOG", "fastrnn.no_kernels")
    assert bench(["kernels"]) == 2
    assert "there are no kernels to show" in capsys.readouterr().err
