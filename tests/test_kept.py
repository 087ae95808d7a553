"""Compiled kernels that tests keep between runs: what is kept is what would be compiled now."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("triton")

from rig import catalog, kept

from bench import kernels

PRODUCT, BROKEN = catalog.entries()
JOBS = {"rig": ("rig.catalog", 0, "sm_80"), "broken": ("rig.catalog", 1, "sm_80")}


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[kernels.Job]:
    """What was compiled, in a list that grows."""
    found: list[kernels.Job] = []
    compiled = kernels.compiled
    monkeypatch.setattr(kernels, "compiled", lambda job: found.append(job) or compiled(job))
    return found


def test_what_was_compiled_is_read(tmp_path: Path, compilations: list[kernels.Job]) -> None:
    first = kept.compiled(PRODUCT, JOBS["rig"], tmp_path)
    assert first.report.loop().tensor_cores() == 8
    assert kept.compiled(PRODUCT, JOBS["rig"], tmp_path) == first
    assert compilations == [JOBS["rig"]]


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: data[:-9] + b"?" + data[-8:]])
def test_what_is_damaged_is_compiled_again(
    tmp_path: Path, compilations: list[kernels.Job], damage: Callable[[bytes], bytes]
) -> None:
    first = kept.compiled(PRODUCT, JOBS["rig"], tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert kept.compiled(PRODUCT, JOBS["rig"], tmp_path) == first
    assert kept.compiled(PRODUCT, JOBS["rig"], tmp_path) == first
    assert compilations == [JOBS["rig"]] * 2


def test_what_does_not_compile_is_not_kept(tmp_path: Path, compilations: list[kernels.Job]) -> None:
    for _ in range(2):
        row = kept.compiled(BROKEN, JOBS["broken"], tmp_path)
        assert row.error.startswith("CompilationError")
    assert compilations == [JOBS["broken"]] * 2
    assert not list(tmp_path.iterdir())


OTHERS = {
    "constants": {"H": 32},
    "num_warps": 8,
    "num_stages": 2,
    "divisible": ("steps",),
    "options": {"maxnreg": 64},
    "signature": PRODUCT.signature | {"steps": "i64"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_compiled_otherwise_has_another_name(name: str) -> None:
    names = {kept.name_of(PRODUCT, "sm_80"), kept.name_of(PRODUCT, "sm_90"), kept.name_of(PRODUCT, "gfx942")}
    assert len(names) == 3
    assert kept.name_of(PRODUCT._replace(**{name: OTHERS[name]}), "sm_80") not in names


SOURCE = """
import triton
import triton.language as tl

FACTOR = tl.constexpr(2)

@triton.jit
def helper(x):
    return x * FACTOR + 1

@triton.jit
def kernel(x_ptr):
    tl.store(x_ptr, helper(tl.load(x_ptr)))
"""


def imported(folder: Path, source: str) -> ModuleType:
    folder.mkdir()
    (folder / "toy.py").write_text(source)
    spec = importlib.util.spec_from_file_location("toy", folder / "toy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHANGES = {
    "helper": ("+ 1", "+ 3"),
    "number": ("constexpr(2)", "constexpr(4)"),
    "kernel": ("store(x_ptr", "store(x_ptr + 1"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_kernel_that_computes_something_else_has_another_name(tmp_path: Path, what: str) -> None:
    """Whether it is its own text that changed, a helper's, or a number that they use; another place changes nothing."""
    entry = catalog.Entry("a kernel", None, {"x_ptr": "*i32"}, {}, 4, 1, (), ("sm_80",), {})
    sources = {"one": SOURCE, "moved": "# moved\n" + SOURCE, "changed": SOURCE.replace(*CHANGES[what])}
    one, moved, changed = (
        kept.name_of(entry._replace(kernel=imported(tmp_path / name, source).kernel), "sm_80")
        for name, source in sources.items()
    )
    assert one == moved
    assert one != changed


@pytest.mark.parametrize("file", ["aot", "assembly", "kernels"])
def test_what_is_counted_otherwise_has_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    before = kept.name_of(PRODUCT, "sm_80")
    module = getattr(kept, file)
    (tmp_path / "other.py").write_text(Path(module.__file__).read_text() + "\n")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "other.py"))
    kept._tools.cache_clear()
    try:
        assert kept.name_of(PRODUCT, "sm_80") != before
    finally:
        kept._tools.cache_clear()
