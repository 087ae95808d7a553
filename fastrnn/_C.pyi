from collections.abc import Sequence
from typing import Any

def cpu_isa() -> str: ...
def cpu_isas() -> list[str]: ...
def cpu_plan(
    cell: str,
    steps: int,
    batch: int,
    inputs: int,
    hidden: int,
    directions: int,
    dtype: str,
    threads: int,
    trains: bool = ...,
    packed: bool = ...,
    backward: bool = ...,
    /,
) -> str: ...
def cpu_tell(calls: list[tuple[object, ...]], layers: list[tuple[object, ...]], /) -> None: ...
def cpu_whose(
    cell: str,
    dtype: str,
    directions: int,
    layers: int,
    trains: int,
    packed: int,
    sizes: tuple[int, int, int, int],
    threads: int,
    /,
) -> str: ...
def cpu_force(way: int, teams: int, shares: int, by_units: bool, /) -> None: ...
def cpu_own(on: bool, /) -> None: ...
def cpu_tuned() -> bool: ...
def cpu_cores() -> int: ...
def cpu_assume(cores: int, busy: bool, /) -> None: ...
def cpu_quota(root: str, /) -> float: ...
def cpu_ledger(entries: list[tuple[int, int, int]], /) -> list[int]: ...
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
