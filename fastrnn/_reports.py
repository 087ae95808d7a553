"""What :func:`fastrnn.convert` and :func:`fastrnn.revert` say about layers that stay as they are, and about tools."""

import importlib.util
import warnings
from collections.abc import Mapping, Sequence

from torch.nn import Module

# Packages that are for models alone and look layers up by their exact class: fastrnn's they skip, or count as nothing.
TOOLS = ("opacus", "thop", "ptflops", "calflops")

_told: set[str] = set()  # of these tools, in this process


def left_alone(caller: str, left: Mapping[str, str], nothing_done: bool = False) -> None:
    """Warn of layers that stay as they are.

    Args:
        caller: the function's name.
        left: what they are and why, by their names in the model.
        nothing_done: whether these are all that the model has.
    """
    if left:
        each = "; ".join(f"{name or 'the model'} ({what})" for name, what in left.items())
        also = ". There is no other recurrent layer, so nothing was changed" if nothing_done else ""
        warnings.warn(f"fastrnn.{caller} left alone: {each}{also}", UserWarning, stacklevel=3)


def nothing_found(model: Module) -> None:
    """Warn that there is nothing to convert, and name what one might have meant."""
    words = ("RNN", "LSTM", "GRU")
    alike = [
        f"{name or 'the model'} ({type(module).__module__}.{type(module).__qualname__})"
        for name, module in model.named_modules()
        if any(word in type(module).__name__ for word in words)
    ]
    also = f"; of other classes with such names there are {', '.join(alike)}" if alike else ""
    warnings.warn(
        f"fastrnn.convert changed nothing: {type(model).__name__} has no RNN, LSTM, GRU or cell of torch.nn{also}",
        UserWarning,
        stacklevel=3,
    )


def tools_by_class(tools: Sequence[str] = TOOLS) -> None:
    """Warn, once in a process, of installed tools that do not know fastrnn's layers."""
    found = [tool for tool in tools if tool not in _told and _installed(tool)]
    _told.update(found)
    if found:
        warnings.warn(
            f"fastrnn.convert: {', '.join(found)}, installed here, look layers up by their exact class and skip "
            "fastrnn's in silence: call fastrnn.revert(model) before you give them the model",
            UserWarning,
            stacklevel=3,
        )


def _installed(name: str) -> bool:
    """Whether a top-level package can be imported; it is not."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a module made by hand, with no spec
        return True
