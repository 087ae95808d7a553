"""States as modules take and return them: None, a tensor, or tuples, lists and dicts of states."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor


class Recurrent(Protocol):
    """A recurrent layer, or anything that takes and returns a state as a layer does."""

    def __call__(self, input: Tensor, hx: Any = None, /) -> tuple[Tensor, Any]:
        """An input and the state before it to the output and the state after it."""


def pair(returned: Any) -> tuple[Tensor, Any]:
    """What a module returned, if it is an output and a state."""
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], Tensor)):
        raise TypeError(f"module: expected it to return an output and a state, got {type(returned).__name__}")
    return returned


def each(function: Callable[..., Tensor], state: Any, *others: Any) -> Any:
    """The state with a function of every tensor in its place, and of those that other states have there."""
    if isinstance(state, Tensor):
        return function(state, *others)
    if isinstance(state, dict):
        return {key: each(function, part, *(other[key] for other in others)) for key, part in state.items()}
    if isinstance(state, list | tuple):
        parts = [each(function, *same) for same in zip(state, *others, strict=True)]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state
