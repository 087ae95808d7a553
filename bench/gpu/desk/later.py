"""Enters as soon as a process has imported torch: for processes that others start."""

import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from bench.gpu import desk


class _AfterTorch(MetaPathFinder, Loader):
    """Finds torch, once, as it is found otherwise."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        desk.enter(os.environ[desk.VARIABLE])


def watch() -> None:
    """Enter when torch is imported."""
    if "torch" in sys.modules:
        desk.enter(os.environ[desk.VARIABLE])
    else:
        sys.meta_path.insert(0, _AfterTorch())
