"""The ways in which fastrnn's kernels compute a layer, one by one, and which of them a GPU was seen to fail at.

What fails is left out of what is measured later, in other processes and in other calls: a file, made by
:mod:`bench.gpu.stages`, has the names and the reasons.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STRATEGIES: dict[str, dict[str, Any]] = {
    "resident": {"strategy": "resident", "warps": 8},
    "grid, registers, barrier": {"strategy": "grid", "held": "registers", "exchange": "barrier"},
    "grid, shared, barrier": {"strategy": "grid", "held": "shared", "exchange": "barrier"},
    "grid, registers, data": {"strategy": "grid", "held": "registers", "exchange": "data"},
    "grid, shared, data": {"strategy": "grid", "held": "shared", "exchange": "data"},
    "stepwise": {"strategy": "stepwise", "product": "fused"},
    "stepwise, products by torch": {"strategy": "stepwise", "product": "torch"},
}
# What is in the names of the tests that compute by each: what pytest -k takes.
TESTS: dict[str, tuple[str, ...]] = {
    "resident": ("resident",),
    "grid, registers, barrier": ("registers-barrier", "grid-"),
    "grid, shared, barrier": ("shared-barrier", "grid-"),
    "grid, registers, data": ("registers-data", "polled"),
    "grid, shared, data": ("shared-data", "polled"),
    "stepwise": ("stepwise", "recorded_launches"),
    "stepwise, products by torch": ("products",),
}


def name_of(plan: Any) -> str:
    """The strategy of a :class:`fastrnn.kernels.plan.Plan`, as it is called here."""
    if plan.strategy == "grid":
        return f"grid, {plan.held}, {plan.exchange}"
    by_torch = plan.strategy == "stepwise" and plan.product == "torch"
    return "stepwise, products by torch" if by_torch else str(plan.strategy)


def read_left_out(path: Path | None) -> dict[str, str]:
    """The strategies of a file that are left out, with the reasons; none where there is no file.

    Raises:
        ValueError: the file is of another kind, or has a strategy that there is not.
    """
    if path is None or not path.exists():
        return {}
    try:
        found: Mapping[str, str] = json.loads(path.read_text(encoding="utf-8"))
        unknown = sorted(found.keys() - STRATEGIES.keys())
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: expected strategies and reasons in JSON ({error})") from error
    if unknown:
        raise ValueError(f"{path}: there is no strategy {', '.join(unknown)}")
    return dict(found)


def text_of(left_out: Mapping[str, str]) -> str:
    """The file that :func:`read_left_out` reads."""
    return json.dumps(dict(left_out), indent=2) + "\n"
