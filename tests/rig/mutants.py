"""Modules with a part of their source changed: what a test proves to be needed is wrong without, in some order."""

import importlib.util
import linecache
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from rig.interpreter import Deadlock

SEEDS = range(8)


def mutant(folder: Path, module: ModuleType, old: str, new: str) -> ModuleType:
    """The module with a part of its source changed, which has it once."""
    source = Path(module.__file__).read_text()
    assert source.count(old) == 1
    path = folder / f"mutant_{module.__name__.rpartition('.')[2]}.py"
    path.write_text(source.replace(old, new))
    linecache.checkcache()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    changed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(changed)
    return changed


def assert_wrong_in_some_order(is_right: Callable[[int], bool]) -> None:
    """By a seed of the order of programs; one that never ends is wrong as well."""
    for seed in SEEDS:
        try:
            if not is_right(seed):
                return
        except Deadlock:
            return
    pytest.fail(f"right in {len(SEEDS)} orders")
