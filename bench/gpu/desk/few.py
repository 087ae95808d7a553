"""A plugin of pytest's: of each test function, the first of its cases alone."""

from typing import Any


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out the others."""
    first = {(item.path, getattr(item, "originalname", item.name)): item for item in reversed(items)}
    kept = {id(item) for item in first.values()}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]
