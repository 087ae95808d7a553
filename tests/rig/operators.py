"""The operators of a layer, computed by something else for the length of a test."""

from collections.abc import Callable
from typing import Any

import pytest

from fastrnn import _autograd, _ops


def computed_by(monkeypatch: pytest.MonkeyPatch, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
    """Have ``forward`` and ``backward``, of the arguments of :mod:`fastrnn.kernels.layer`, stand for the engine.

    How the operators are differentiated stays as it is.
    """

    def engine(op: Callable[..., Any], *args: Any) -> Any:
        if op is _ops.layer:
            return forward(*args[:-2], "none", args[-1])[:4]
        return (forward if op is _ops.layer_forward else backward)(*args)

    monkeypatch.setattr(_autograd, "_directly", lambda *args: None)
    monkeypatch.setattr(_autograd, "_engine", engine)
