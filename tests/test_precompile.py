"""Kernels compiled ahead of time, carried, and found by Triton where they arrive."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from bench.gpu import carried, wanted
from bench.gpu import precompile as precompile_command
from bench.gpu.carried import Compiler, Kernel
from bench.gpu.desk import recorded
from bench.gpu.desk.__main__ import environment
from bench.gpu.desk.recorded import Seen

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
LAUNCHED = """
import torch
import triton
from bench.gpu import desk
from bench.gpu.launched import read, touch

missed = []
triton.knobs.compilation.listener = lambda **found: found["cache_hit"] or missed.append(found["src"].name)
zeros = torch.zeros(1024, dtype=torch.int32, device="cuda")
for launch in {order}:
    launch()
assert desk.launches() == 3
assert not missed, missed
"""
LAUNCHES = ["lambda: touch(zeros)", "lambda: touch(zeros.float())", "lambda: read(zeros, 4, 5)"]


def python(*arguments: str, mode: str = "record", folder: Path | None = None, **variables: str) -> str:
    given = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    made = environment(mode, folder, given=given)
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=made, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def precompile(*arguments: object, cache: Path) -> tuple[int, str]:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1", "FASTRNN_DESK": ""}
    command = [sys.executable, "-m", "bench", "precompile", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_what_was_compiled_is_found_in_another_folder_and_order(tmp_path: Path) -> None:
    """By a process that could compile neither kernels nor launchers unseen: there is no compiler of C for these."""
    code = LAUNCHED.format(order=f"({', '.join(LAUNCHES)})")
    python("-c", code, folder=tmp_path / "seen")
    (seen,) = (tmp_path / "seen").glob("*.jsonl")
    assert len(recorded.read(seen.read_text())) == 3
    archive, here, there = tmp_path / "kernels.tar.xz", tmp_path / "here", tmp_path / "there"
    status, printed = precompile("--wanted", seen, "--out", archive, "--processes", 2, cache=here)
    assert (status, "3 kernels, " in printed) == (0, True), printed
    assert f"for triton {Compiler.here().triton}" in printed
    changed(archive, lambda manifest: manifest["compiler"].update(key="0123456789abcdef"))  # of another build
    status, printed = precompile("--check", archive, cache=there)
    assert status == 0, printed
    assert "precompile: hit: 3 of 3 kernels" in printed
    assert f"filed anew for a build with key {Compiler.here().key}" in printed
    code = LAUNCHED.format(order=f"({', '.join(reversed(LAUNCHES))})")
    python("-c", code, mode="compile", TRITON_CACHE_DIR=str(there), CC="/bin/false")


def changed(archive: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write an archive with a changed manifest."""
    with tarfile.open(archive) as given:
        contents = {member.name: carried._content(given, member) for member in given}
    manifest = json.loads(contents[carried.MANIFEST])
    change(manifest)
    contents[carried.MANIFEST] = json.dumps(manifest).encode()
    with tarfile.open(archive, "w:xz") as made:
        for name, content in contents.items():
            carried._add(made, name, content)


SEEN = Seen("bench.gpu.launched", "no_such_kernel", "{}")


def empty(archive: Path, *kernels: Kernel, **compiler: str) -> None:
    """An archive with a manifest alone."""
    lines = [{"seen": kernel.seen._asdict(), "key": kernel.key, "name": kernel.name} for kernel in kernels]
    made_by = Compiler.here()._asdict() | compiler
    with tarfile.open(archive, "w:xz") as made:
        content = json.dumps({"compiler": made_by, "revision": "abc", "kernels": lines}).encode()
        carried._add(made, carried.MANIFEST, content)


def test_an_archive_of_another_triton_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "kernels.tar.xz"
    empty(archive, triton="3.5.1")
    with pytest.raises(carried.CarriedError, match=r"was compiled by triton 3\.5\.1 .* here is triton"):
        carried.unpack(archive, tmp_path)
    archive.write_bytes(b"no archive")
    with pytest.raises(carried.CarriedError, match=r"kernels\.tar\.xz: "):
        carried.unpack(archive, tmp_path)


def test_kernels_that_are_others_here_are_missed(tmp_path: Path) -> None:
    """And named; a line says so, and nothing is raised."""
    archive = tmp_path / "kernels.tar.xz"
    empty(archive, Kernel(SEEN, "key", "name"))
    status, printed = precompile("--check", archive, cache=tmp_path / "cache")
    assert status == 1
    assert "precompile: miss: 1 of 1 kernels are not those of abc: no_such_kernel" in printed
    status, printed = precompile("--check", tmp_path / "none", cache=tmp_path / "cache")
    assert status == 1
    assert f"precompile: miss: there is no {tmp_path / 'none'}" in printed


def test_kernels_of_the_tests_are_not_carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process but pytest's can import them."""
    kept = tmp_path / precompile_command._sources() / "tests.jsonl"
    kept.parent.mkdir()
    own = Seen("fastrnn.kernels.grid", "grid_forward", "{}")
    kept.write_text(recorded.written([Seen("faults", "stray", "{}"), own]), encoding="utf-8")
    monkeypatch.setattr(precompile_command, "FOLDER", tmp_path)
    assert list(precompile_command._wanted(["tests"], 1)) == [own]


def test_what_is_measured_is_what_is_wanted() -> None:
    """Layers of all groups of bench/gpu.sh, with few steps."""
    tasks = wanted.tasks()
    assert {task.benchmark for task in tasks} == {"layer", "lean", "packed", "reset"}
    assert {task.cell for task in tasks} == {"lstm", "gru"}
    assert {(task.dtype, task.tf32) for task in tasks} == {("bfloat16", None), ("float32", True)}
    few = {wanted.small(task).shape for task in tasks}
    assert {shape.hidden for shape in few} == {task.shape.hidden for task in tasks}
    assert max(max(shape.steps, shape.input) for shape in few) <= 16
