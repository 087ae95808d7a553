"""The examples in the docstrings run, and give what they show."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import fastrnn

MODULES = [
    m.name for m in pkgutil.iter_modules(fastrnn.__path__, "fastrnn.") if not m.name.endswith(("_C", "__main__"))
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    result = doctest.testmod(module, extraglobs={"torch": torch, "fastrnn": fastrnn}, optionflags=options)
    assert result.failed == 0
    names = ("autotune", "functional", "nn", "convert", "explain", "init", "own_numbers", "stream", "tbptt", "tune")
    documented = {f"fastrnn.{name}" for name in names}
    assert (result.attempted > 0) == (name in documented)
