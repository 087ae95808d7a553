"""The calls of ``bench/gpu.sh``: which groups run, what they go by, and that they end, whatever their processes do."""

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench.__main__ import _parser
from bench.gpu import running, smoke, stages, strategies
from bench.gpu.stages import FIRST, GROUPS, SECOND, Command, Group, Known

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "bench" / "gpu.sh"
# A python that writes down what it is asked for, and does as a machine would on which one strategy and one test fail.
PYTHON = """#!/bin/bash
case "$*" in
  *bench.gpu.running*) exec {python} "$@" ;;
esac
echo "$OMP_NUM_THREADS $*" >> {asked}
case "$*" in
  *smoke\\ grid,\\ shared,\\ data) echo "smoke: grid, shared, data, lstm: ArithmeticError: wrong"; exit 1 ;;
  *smoke*) echo "noise"; echo "smoke: right" ;;
  *"-m pytest"*)
    echo "[gw0] [  1%] PASSED tests/test_cuda.py::test_a "
    echo "[gw1] [  2%] FAILED tests/test_cuda.py::test_b[lstm-grid, data polled-float32] "
    echo "FAILED tests/test_cuda.py::test_b[lstm-grid, data polled-float32] - AssertionError: 1 - 2"
    echo "===== 1 failed, 1 passed in 3.2s ====="
    exit 1 ;;
  *bench.gpu.versions*) exit {versions} ;;
  *--graphs*) echo "a line" >&2; echo "layer lstm: 3 us"; exit 7 ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[str], Path]]:
    """Calls the script there: exit status, what was asked of Python, folder of results."""

    def call(*arguments: str, versions: int = 0) -> tuple[int, list[str], Path]:
        asked, out = tmp_path / "asked", tmp_path / "out"
        asked.write_text("")
        script = PYTHON.format(python=sys.executable, asked=asked, versions=versions)
        for name, text in (("python", script), ("nvidia-smi", "#!/bin/sh\n"), ("compute-sanitizer", "#!/bin/sh\n")):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PYTHON": str(tmp_path / "python"), "PATH": path, "OMP_NUM_THREADS": ""}
        environment = {name: value for name, value in environment.items() if name != "OMP_NUM_THREADS"}
        command = ["bash", str(SCRIPT), str(out), *arguments, "--known", str(tmp_path / "known")]
        status = subprocess.run(command, env=environment, capture_output=True, text=True)
        (tmp_path / "printed").write_text(status.stdout + status.stderr)
        return status.returncode, asked.read_text().splitlines(), out

    return call


def test_the_first_call(machine: Callable[..., tuple[int, list[str], Path]], tmp_path: Path) -> None:
    status, asked, out = machine("--first")
    assert status == 1
    assert all(line.startswith("1 ") for line in asked)  # threads
    assert [line for line in asked if "precompile" in line] == ["1 -m bench precompile --check"]
    assert sorted(line.split("smoke ")[1] for line in asked if "smoke" in line) == sorted(strategies.STRATEGIES)
    measured = [line.split("--part ")[1] for line in asked if "-m bench gpu" in line]
    half = "--cells lstm --dtype bfloat16"
    assert measured == ["barrier", f"first {half}", "first --graphs --cells lstm gru --dtype bfloat16"]
    (tests,) = [line for line in asked if "-m pytest" in line]
    assert "million" in tests
    assert "--continue-on-collection-errors" in tests
    assert "polled" in tests
    assert " or resident" not in tests
    printed = (tmp_path / "printed").read_text()
    assert printed == (out / "first.txt").read_text()
    assert "noise" not in printed
    assert "LEFT OUT: grid, shared, data: exit status 1: smoke: grid, shared, data, lstm: Arith" in printed
    assert "graphs, measure: exit status 7: a line" in printed
    assert "layer lstm: 3 us" in printed
    assert "FAILED tests/test_cuda.py::test_b[lstm-grid, data polled-float32]" in printed
    assert "PASSED tests" not in printed
    assert "first: 3 passed, 3 failed" in printed
    failed = (out / "failed-tests.txt").read_text()
    assert failed == "tests/test_cuda.py::test_b[lstm-grid, data polled-float32]\n"
    files = sorted(path.name for path in out.rglob("*"))
    assert files == ["failed-tests.txt", "first-logs.tar.gz", "first.txt", "left-out.json"]
    with tarfile.open(out / "first-logs.tar.gz") as logs:
        assert {"smoke-0.log", "tests-0.log", "graphs-0.err"} <= set(logs.getnames())


def test_the_second_call_goes_by_the_first(machine: Callable[..., tuple[int, list[str], Path]], tmp_path: Path) -> None:
    machine("--first")
    for path in (tmp_path / "out").iterdir():  # another folder of results, the same checkout
        path.unlink()
    status, asked, out = machine("--second")
    assert status == 1  # the test failed again
    measured = [line for line in asked if "-m bench gpu" in line]
    parts = [line.split("--part ")[1].split()[0] for line in measured]
    assert parts == ["constants", "targets", "targets", "targets", "lean", "cluster"]
    assert all(f"--left-out {tmp_path}/known/left-out.json" in line for line in measured)
    assert all(f"--append --out {out}/second.jsonl" in line for line in measured)
    (again,) = [line for line in asked if "-m pytest" in line]
    assert again.endswith("tests/test_cuda.py::test_b[lstm-grid, data polled-float32]")
    assert again.count("test_b[") == 1
    assert "passed: memcheck" in (out / "second.txt").read_text()
    machine("--part", "smoke", "tests")
    assert len(list(out.iterdir())) <= 8


def test_without_a_gpu_nothing_else_is_run(machine: Callable[..., tuple[int, list[str], Path]], tmp_path: Path) -> None:
    status, asked, _ = machine("--first", versions=2)
    assert status == 2
    assert not any("smoke" in line for line in asked)


def groups(monkeypatch: pytest.MonkeyPatch, seconds: int = 1, **commands: str) -> None:
    """Groups that are shell commands, with little patience."""

    def made(name: str, line: str) -> Group:
        return Group(name, seconds, lambda _: [Command(name, ("sh", "-c", line))])

    monkeypatch.setattr(running, "GROUPS", GROUPS | {name: made(name, line) for name, line in commands.items()})
    monkeypatch.setattr(running, "RESERVE", 0.2)
    monkeypatch.setattr(running, "GRACE", 0.5)
    monkeypatch.setattr(running, "LEAST", 0.2)


def called(tmp_path: Path, *arguments: str) -> tuple[int, str, float]:
    begin = time.monotonic()
    status = running.main([str(tmp_path / "out"), "--known", str(tmp_path / "known"), *arguments])
    return status, (tmp_path / "out" / "parts.txt").read_text(), time.monotonic() - begin


def test_a_group_that_hangs_costs_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child"
    hang = f"echo begun; trap '' TERM; sleep 97 & echo $! > {child}; wait; sleep 98"
    left = f"sleep 97 & echo $! >> {child}"
    groups(monkeypatch, hang=hang, left=left, after="echo after", missing="exec /nothing/there")
    status, printed, took = called(tmp_path, "--part", "hang", "left", "missing", "after")
    assert status == 1
    assert "begun" in printed
    assert "FAILED: hang in 2 s: hang (stopped after 1 s)" in printed
    assert "passed: after in 0 s" in printed
    assert "missing, missing: exit status 127: " in printed
    assert took < 10
    children = child.read_text().split()
    assert len(children) == 2
    for state in (Path("/proc", number, "stat") for number in children):
        assert not state.exists() or state.read_text().split()[2] == "Z"  # it has ended, if nobody has asked how


def test_a_call_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups(monkeypatch, seconds=60, a="sleep 0.9", b="trap '' TERM; sleep 96; sleep 95", c="echo c")
    status, printed, took = called(tmp_path, "--part", "a", "b", "c", "--seconds", "2.5")
    assert status == 1
    assert took < 3.5
    assert "passed: a in" in printed
    assert "FAILED: b in" in printed
    assert "FAILED: c: not begun, the time was up" in printed


def test_calls_leave_time_for_the_end() -> None:
    """And for the last group, if all others take the time that they may."""
    for name, own in (("first", FIRST), ("second", SECOND)):
        assert running.SECONDS[name] + 5 <= 290
        left = running.SECONDS[name] - running.RESERVE - running.GRACE - sum(group.seconds for group in own[:-1])
        assert left >= {"tests": 70, "memcheck": 15}[own[-1].name]


def test_what_an_earlier_call_has_left_may_be_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "known").mkdir()
    (tmp_path / "known" / "left-out.json").write_text('{"sideways": "it was another version"}')
    groups(monkeypatch, a="echo a")
    out = [str(tmp_path / "out"), "--known", str(tmp_path / "known"), "--part", "a"]
    assert running.main(out) == 2
    assert "there is no strategy sideways" in capsys.readouterr().err
    assert running.main([*out, "smoke", "--seconds", "0.5"]) == 1  # which finds it out anew
    assert "FAILED: smoke: not begun" in capsys.readouterr().out


def known(tmp_path: Path, *left_out: str, tests: tuple[str, ...] = ()) -> Known:
    return Known("python", tmp_path / "rows.jsonl", tmp_path / "left", dict.fromkeys(left_out, "no"), tests, 60.0)


def test_what_groups_run_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the parsers of the commands."""
    for group in (*FIRST, *SECOND):
        if group.name not in ("tests", "again", "memcheck"):
            for command in group.commands(known(tmp_path)):
                module, *arguments = command.arguments[2:] if command.arguments[0] == "python" else ("other",)
                if (module, *arguments[:1]) == ("bench", "gpu"):
                    options = _parser().parse_args(arguments)
                    assert options.append
                    assert 60 * options.minutes == pytest.approx(44, abs=0.5)  # of the 60 seconds that are known of
                elif module == "bench.gpu.smoke":
                    assert arguments[0] in smoke.STRATEGIES
    (build,) = GROUPS["build"].commands(known(tmp_path))
    assert (ROOT / build.arguments[1]).exists()
    (tune,) = GROUPS["tune"].commands(known(tmp_path))
    assert tune.environment["FASTRNN_CACHE"] == str(tmp_path)
    shapes = tune.arguments[tune.arguments.index("--shape") + 1 :]
    assert shapes[:3] == ("16,128,512,512", "16,128,256,256", "16,128,1024,1024")
    (measure,) = GROUPS["measure"].commands(replace(known(tmp_path), arguments=["--part", "stacks"]))
    assert _parser().parse_args(measure.arguments[3:]).part == ["stacks"]
    monkeypatch.setattr(stages.shutil, "which", lambda name: name)
    (watched,) = GROUPS["memcheck"].commands(known(tmp_path))
    assert (
        watched.arguments[-5:] == ("lstm", "gru", "--strategies", "grid")[-5:] or "bench.sanitize" in watched.arguments
    )
    (watched,) = GROUPS["memcheck"].commands(known(tmp_path, tests=("tests/test_cuda.py::test_b",)))
    assert watched.arguments[-1] == "tests/test_cuda.py::test_b"
    with pytest.raises(stages.NothingToDoError, match="the grid strategy is left out"):
        GROUPS["memcheck"].commands(known(tmp_path, "grid, shared, data"))


def test_tests_of_strategies_that_are_left_out_are_not_run() -> None:
    """As pytest collects them, from the files that have tests of GPUs."""
    files = stages.files_with_gpu_tests()
    assert {"tests/test_cuda.py", "tests/test_nn.py", "tests/test_explain.py"} <= set(files)

    chosen = stages.chosen_tests(["grid, registers, data", "stepwise"])
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", "-k", chosen, *files]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tests = [line for line in printed.splitlines() if "::" in line]
    assert len(tests) > 150
    for word in ("million", "registers-data", "polled", "stepwise", "recorded"):
        assert not any(word in test for test in tests), word
    for word in ("resident", "grid-", "registers-barrier", "shared-data", "products", "test_gpu_tensors_are_computed"):
        assert any(word in test for test in tests), word


def test_strategies_have_names() -> None:
    from fastrnn.kernels.plan import Plan

    assert strategies.TESTS.keys() == strategies.STRATEGIES.keys()
    for name, choices in strategies.STRATEGIES.items():
        assert strategies.name_of(Plan(reason="", **choices)) == name


@pytest.mark.parametrize(
    ("text", "message"), [("[", "expected strategies"), ("[]", "expected"), ('{"x": ""}', "no strategy x")]
)
def test_a_file_of_something_else(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "left-out.json"
    assert strategies.read_left_out(None) == strategies.read_left_out(path) == {}
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        strategies.read_left_out(path)
    path.write_text(strategies.text_of({"stepwise": "why"}))
    assert strategies.read_left_out(path) == json.loads(path.read_text()) == {"stepwise": "why"}


def test_the_script_explains_itself() -> None:
    said = subprocess.run(["bash", str(SCRIPT), "--help"], capture_output=True, text=True, check=True).stdout
    words = " ".join(said.split())
    for name, own in (("first", FIRST), ("second", SECOND)):
        assert f"--{name} {', '.join(group.name for group in own)}" in words
    assert set(GROUPS) - {group.name for group in (*FIRST, *SECOND)} == {"build", "tune", "measure"}
    environment = os.environ | {"PYTHON": sys.executable}
    for arguments in ([], ["--part", "speed"], ["--first", "--second"], ["out"]):
        done = subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, env=environment)
        assert done.returncode == 2


def test_a_checkout_gets_its_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fastrnn").mkdir()
    (tmp_path / "kernels").mkdir()
    monkeypatch.setattr(running, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "meta_path", [])
    running.link()
    assert (tmp_path / "fastrnn" / "kernels").resolve() == tmp_path / "kernels"
    monkeypatch.undo()
    monkeypatch.setattr(running, "ROOT", tmp_path)
    (tmp_path / "kernels" / "__init__.py").touch()
    running.link()  # found: nothing to do
