"""The wheel as a user gets it: its name, its files, the symbols it needs, and what a failed build says."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("bench", "csrc", "fastrnn", "kernels", "tests", "LICENSE", "README.md", "pyproject.toml", "setup.py")
BUILT = shutil.ignore_patterns("*.so", "__pycache__")


def copy_sources(folder: Path) -> Path:
    """Copy what git holds of the project, so that a build leaves nothing behind and finds nothing built before."""
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=BUILT)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def build_wheel(source: Path, into: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build as ``pip install --no-build-isolation`` does, from the sources alone: no package index, nothing fetched."""
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check", "--wheel-dir", into]
    return subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, source],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree."""
    dist = tmp_path_factory.mktemp("dist")
    result = build_wheel(copy_sources(tmp_path_factory.mktemp("source")), dist)
    assert result.returncode == 0, result.stdout
    (path,) = dist.iterdir()
    return path


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel installs, and nothing else."""
    folder = tmp_path_factory.mktemp("site-packages")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.fixture(scope="module")
def undefined_symbols(unpacked: Path) -> list[str]:
    """What the dynamic linker must find elsewhere when it loads the engine, by mangled name."""
    library = unpacked / "fastrnn" / "_C.abi3.so"
    if library.read_bytes()[:4] != b"\x7fELF":
        pytest.skip("the engine is no ELF file, and only those are read here")
    if shutil.which("nm") is None:
        pytest.skip("needs nm, of binutils")
    command = ["nm", "--dynamic", "--undefined-only", "--format=posix", library]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line.split()[0].split("@")[0] for line in listing.splitlines()]


def run_wheel(unpacked: Path, code: str, cwd: Path) -> str:
    """Run Python on the unpacked wheel, out of reach of this repository, and return what it prints."""
    # -I keeps the working folder and PYTHONPATH off sys.path; an editable install comes after what is put in front.
    code = f"import sys; sys.path.insert(0, {str(unpacked)!r})\n{code}"
    result = subprocess.run([sys.executable, "-I", "-c", code], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_one_wheel_for_every_python(wheel: Path) -> None:
    assert re.fullmatch(r"fastrnn-[^-]+-cp310-abi3-[^-]+\.whl", wheel.name)


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    (info,) = tops - {"fastrnn"}
    assert info.endswith(".dist-info")
    needed = {"__init__.py", "py.typed", "_C.pyi", "_C.abi3.so", "kernels/__init__.py"}
    assert {f"fastrnn/{name}" for name in needed} <= set(names)
    assert f"{info}/licenses/LICENSE" in names
    python = {f"fastrnn/{path.relative_to(ROOT / 'fastrnn')}" for path in (ROOT / "fastrnn").rglob("*.py")}
    python |= {f"fastrnn/kernels/{path.relative_to(ROOT / 'kernels')}" for path in (ROOT / "kernels").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == python
    assert {Path(name).suffix for name in names if name.startswith("fastrnn/")} == {".py", ".pyi", ".so", ".typed"}


def test_wheel_states_name_license_and_requirements(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = archive.read(name).decode().splitlines()
    assert {"Name: fastrnn", "License-Expression: BSD-3-Clause", "Requires-Python: >=3.10"} <= set(metadata)
    assert [line for line in metadata if line.startswith("Requires-Dist") and "extra" not in line] == [
        "Requires-Dist: torch>=2.10"
    ]


def test_wheel_works_away_from_the_repository(wheel: Path, unpacked: Path, tmp_path: Path) -> None:
    code = """
import fastrnn, fastrnn.kernels, torch
print(fastrnn.__version__)
print(fastrnn.__file__, fastrnn._C.__file__, fastrnn.kernels.__file__, sep="\\n")
y, (h, c) = fastrnn.LSTM(3, 4)(torch.randn(2, 1, 3))
print(tuple(y.shape), tuple(h.shape), tuple(c.shape))
"""
    version, *paths, shapes = run_wheel(unpacked, code, tmp_path).splitlines()
    assert version == wheel.name.split("-")[1]
    package = unpacked / "fastrnn"
    assert paths == [str(package / name) for name in ("__init__.py", "_C.abi3.so", "kernels/__init__.py")]
    assert shapes == "(2, 1, 4) (1, 1, 4) (1, 1, 4)"


def test_engine_needs_only_the_stable_shims_of_torch(undefined_symbols: list[str]) -> None:
    # In a mangled name a namespace is its length and itself: c10::, at:: and torch:: are 3c10, 2at and 5torch.
    unstable = re.compile(r"_Z.*(?<!\d)(3c10|2at|5torch)(?![a-z_])|caffe2")
    assert [symbol for symbol in undefined_symbols if unstable.search(symbol)] == []
    shims = [symbol for symbol in undefined_symbols if "torch" in symbol]
    assert shims
    assert [symbol for symbol in shims if not re.match(r"(aoti_)?torch_", symbol)] == []


def test_kernels_have_one_name(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "ImportError: this folder is installed as fastrnn.kernels" in result.stderr


@pytest.mark.parametrize(
    ("torch", "message"),
    [
        ("raise ModuleNotFoundError(\"No module named 'torch'\")", "there is none here, .*: install torch 2.10"),
        ("__version__ = '2.9.1+cpu'", r"fastrnn needs torch 2.10 or newer, and torch 2.9.1\+cpu is installed here"),
    ],
    ids=["missing", "old"],
)
def test_build_without_a_fitting_torch_says_so(torch: str, message: str, tmp_path: Path) -> None:
    for folder in ("source", "path"):
        (tmp_path / folder).mkdir()
    (tmp_path / "path" / "torch.py").write_text(torch)
    source = copy_sources(tmp_path / "source")
    result = build_wheel(source, tmp_path / "dist", PYTHONPATH=str(tmp_path / "path"))
    assert result.returncode != 0
    assert re.search(message, result.stdout), result.stdout
    assert "Traceback" not in result.stdout


def test_build_without_a_compiler_says_so(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    result = build_wheel(copy_sources(tmp_path / "source"), tmp_path / "dist", CXX="/nonexistent")
    assert result.returncode != 0
    assert "needs a C++20 compiler for its CPU engine, and '/nonexistent' was not found" in result.stdout
    assert "install g++ or clang++" in result.stdout
    assert "Traceback" not in result.stdout
