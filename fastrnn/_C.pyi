from collections.abc import Sequence
from typing import Any

def cpu_isa() -> str: ...
def cpu_isas() -> list[str]: ...
def cpu_plan(
    cell: str, steps: int, batch: int, inputs: int, hidden: int, directions: int, dtype: str, threads: int
) -> str: ...
def shortcut(
    cell: str,
    input: object,
    hx: object,
    params: Sequence[object],
    layers: int,
    bidirectional: bool,
    batch_first: bool,
    most_rows: int,
    compute: bool,
    /,
) -> Any: ...
def flat_weights(attributes: dict[str, Any], methods: tuple[str, ...], /) -> list[Any] | None: ...
