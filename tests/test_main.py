"""``python -m fastrnn``: the report, the self-check and its exit status."""

import os
import subprocess
import sys

import pytest
import torch

import fastrnn
from fastrnn import _C
from fastrnn import __main__ as program


def test_the_report_and_the_check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fastrnn"])
    assert program.main() == 0
    report, check = capsys.readouterr().out.split("\n\n")
    values = dict(line.split(maxsplit=1) for line in report.splitlines())
    assert values["fastrnn"] == fastrnn.__version__
    assert values["torch"] == torch.__version__
    assert f"C++ engine with {_C.cpu_isa()}, of {', '.join(_C.cpu_isas())}" in values["CPU"]
    assert values["CPU"].endswith(f"{torch.get_num_threads()} threads, 0 times tuned")
    rows = [line.split() for line in check.splitlines()[2:]]
    assert [(cell, dtype) for cell, dtype, *_ in rows] == [
        (cell, dtype)
        for cell in ("rnn_tanh", "rnn_relu", "lstm", "gru")
        for dtype in ("float32", "float64", "bfloat16")
    ]
    assert {row[-1] for row in rows} == {"right"}


def test_what_is_wrong_is_called_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GRU whose backward loses a gradient, which is all it takes."""

    class Forgetful(fastrnn.GRU):
        def forward(self, *args: object) -> object:
            y, h_n = super().forward(*args)
            return y, h_n.detach() + 0 * h_n

    monkeypatch.setattr(program.nn, "GRU", Forgetful)
    monkeypatch.setattr(sys, "argv", ["fastrnn"])
    assert program.main() == 1
    verdicts = [line.split() for line in capsys.readouterr().out.split("\n\n")[1].splitlines()[2:]]
    assert {row[0] for row in verdicts if row[-1] == "WRONG"} == {"gru"}
    assert {row[-1] for row in verdicts if row[0] != "gru"} == {"right"}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastrnn", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_help() -> None:
    result = run("--help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage: python -m fastrnn")


def test_an_unknown_instruction_set_is_an_error() -> None:
    result = run(FASTRNN_CPU_ISA="mmx")
    assert result.returncode != 0
    assert result.stdout == ""
    assert result.stderr.startswith("fastrnn: FASTRNN_CPU_ISA=mmx: expected ")
    assert "Traceback" not in result.stderr


def test_the_report_of_more_threads_than_cores(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fastrnn"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(program, "check", lambda *_: ("right",) * 5)
    _C.cpu_assume(2, False)
    assert program.main() == 0
    assert "; 8 threads of torch's on 2 cores, 0 times tuned\n" in capsys.readouterr().out
