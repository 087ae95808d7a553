"""``--isa`` of benchmarks: both contestants are capped, in a process of their own, and rows say to what."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rows import make_row

from bench import contestants, isas, results, style
from bench.__main__ import main as bench
from bench.workloads import command
from fastrnn import _ops

REPOSITORY = Path(__file__).resolve().parent.parent
OTHERS = [isa for isa in _ops.cpu_isas() if isa in ("avx2", "base")]
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="there are caps for x86 alone")


def test_every_cap_is_recognized_and_no_half_of_one() -> None:
    for isa, caps in isas.CAPS.items():
        assert isas.capped(caps) == isa
        assert isas.capped(caps | {"PATH": "/bin"}) == isa
        assert isas.capped({isas.VARIABLES[0]: isa}) is None
    assert isas.capped({}) is None


def test_the_environment_of_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of another cap does not stay."""
    for name in isas.VARIABLES:
        monkeypatch.setenv(name, "something else")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    made = isas.environment("avx2")
    assert {name: made[name] for name in isas.VARIABLES if name in made} == isas.CAPS["avx2"]
    assert made["OMP_NUM_THREADS"] == "3"


def test_another_process_is_told_all_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def run(command: list[str], env: dict[str, str], check: bool) -> subprocess.CompletedProcess[str]:
        ran.append((command, isas.capped(env)))
        return subprocess.CompletedProcess(command, 7)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(isas, "refusal", lambda isa: None)
    monkeypatch.setattr(isas, "capped", lambda given=None: None if given is None else given["FASTRNN_CPU_ISA"])
    for arguments in (["cpu", "--isa", "avx2", "--cells", "gru"], ["workloads", "tagging", "--isa", "avx2"]):
        assert bench(arguments) == 7
        assert ran.pop() == ([sys.executable, "-m", "bench", *arguments], "avx2")


def test_what_the_cpu_does_not_have(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(_ops, "cpu_isas", lambda: ["avx2", "base"])
    assert bench(["cpu", "--isa", "amx"]) == 2
    assert "this CPU does not have amx, only avx2, base" in capsys.readouterr().err
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert isas.refusal("base") == "torch's libraries can be capped on x86 alone"


def test_who_cannot_be_capped_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestants.onnx_stack, "unavailable", lambda dtype: None)
    for best, cap, out in (
        ("amx", None, False),
        ("amx", "avx512", False),
        ("avx512bf16", "avx2", True),
        ("avx2", "avx2", False),
        ("avx2", "base", True),
    ):
        monkeypatch.setattr(_ops, "cpu_isas", lambda best=best: [best, "base"])
        monkeypatch.setattr(isas, "capped", lambda cap=cap: cap)
        assert bool(contestants.unavailable(contestants.ONNX, "float32")) is out
        assert contestants.unavailable("fastrnn", "float32") is None


def test_old_rows_do_not_say_what_torch_used(tmp_path: Path) -> None:
    new = make_row()
    path = tmp_path / "rows.jsonl"
    results.write(path, [new])
    line = json.loads(path.read_text())
    assert line["provenance"].pop("torch_isa") == ""
    path.write_text(json.dumps(line))
    assert results.read(path) == [new]
    for kept in sorted((REPOSITORY / "bench/results").glob("core*.jsonl")):
        assert results.read(kept)
    assert "torch 2, a CPU" in style.where(new)


@x86
@pytest.mark.skipif(not OTHERS, reason="this CPU has nothing to be capped to")
def test_a_capped_run(tmp_path: Path) -> None:
    """Rows of a process that is capped say so, of both, and files are told apart."""
    isa = OTHERS[0]
    command = [sys.executable, "-m", "bench", "cpu", "--isa", isa, "--cells", "rnn_tanh", "--seconds", "0.001"]
    environment = {name: value for name, value in os.environ.items() if name not in isas.VARIABLES}
    environment["PYTHONPATH"] = str(REPOSITORY)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = results.read(tmp_path / f"out/cpu-{isa}.jsonl")
    assert (tmp_path / f"out/cpu-{isa}.png").is_file()
    caps = isas.CAPS[isa]
    for row in rows:
        assert row.provenance.isa == isa
        assert row.provenance.torch_isa.startswith(caps["ATEN_CPU_CAPABILITY"].upper())
        if torch.backends.mkldnn.is_available():
            assert row.provenance.torch_isa.endswith(f"oneDNN {caps['ONEDNN_MAX_CPU_ISA']}")


def test_files_of_workloads_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(command.plot, "draw", lambda rows, folder, stem: drawn.append(stem))
    for cap, name in ((None, "tagging"), ("avx2", "tagging-avx2")):
        monkeypatch.setattr(isas, "capped", lambda cap=cap: cap)
        command._write(make_row(benchmark="tagging"), tmp_path)
        assert (tmp_path / f"{name}.jsonl").is_file()
        assert drawn.pop() == name
