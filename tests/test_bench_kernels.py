"""python -m bench kernels: a table of what kernels are made of."""

import json
from importlib.metadata import version
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
    path = tmp_path / "out" / "kernels.jsonl"
    assert bench(["kernels", "^lstm.*product$", "--processes", "2", "--out", str(path)]) == 0
    shown = capsys.readouterr().out
    assert " 8 HMMA " in shown
    assert " mfma " in shown
    by, nvidia, amd = map(json.loads, path.read_text().splitlines())
    assert (by["triton"], set(by)) == (version("triton"), {"triton", "fastrnn", "revision", "timestamp"})
    assert (nvidia["name"], nvidia["cell"], nvidia["dtype"], nvidia["hidden"]) == ("lstm_product", "lstm", "bf16", 64)
    assert (nvidia["target"], amd["target"]) == ("sm_80", "gfx942")
    assert nvidia["spills"] == amd["spills"] == 0
    assert nvidia["step"]["tensor"] == {"HMMA.16816": 8}
    assert "ptx" not in nvidia
    assert "local" not in nvidia["step"]
    assert bench(["kernels", "--show", str(path)]) == 0
    again = capsys.readouterr().out
    assert again.startswith(f"triton {version('triton')}, ")
    assert again.endswith(shown[shown.index("Registers") :])


def test_a_kernel_that_does_not_compile_is_shown_beside_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["kernels", "--target", "sm_80", "--processes", "1"]) == 1
    shown = capsys.readouterr().out
    assert " 8 HMMA " in shown
    assert "not compiled: broken for sm_80: CompilationError" in shown


def test_what_is_no_expression_and_no_file_of_kernels_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench(["kernels", "("])
    assert "'(' is no regular expression" in capsys.readouterr().err
    (tmp_path / "other").write_text("{}\n{}\n")
    assert bench(["kernels", "--show", str(tmp_path / "other")]) == 2
    assert "not what `python -m bench kernels --out` writes ('name')" in capsys.readouterr().err


def test_a_catalogue_that_is_not_there_is_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "CATALOG", "fastrnn.no_kernels")
    assert bench(["kernels"]) == 2
    assert "there are no kernels to show" in capsys.readouterr().err
