"""Lets ``torch.compile`` take fastrnn's layers into its graphs.

TorchDynamo breaks the graph at every instance of ``torch.nn.RNN``, ``LSTM`` and ``GRU``, subclasses included, for it
cannot do well with what torch's own do inside (``torch._dynamo.config.allow_rnn`` has it try). fastrnn's layers are an
operator each, which is no trouble to it. That setting is therefore turned on while Dynamo looks at one of them, and for
nothing else: how it treats torch's own layers stays the user's choice.
"""

from collections.abc import Callable
from functools import partial, wraps
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch.nn import Module

from fastrnn._imports import when_imported

try:
    from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
except ImportError:  # a torch that has another way
    set_code_exec_strategy = None  # type: ignore[assignment]

Function = TypeVar("Function", bound=Callable[..., object])
BUILDER = "torch._dynamo.variables.builder"


_PRE_DISPATCH = torch._C.DispatchKey.PreDispatch


def tracing() -> bool:
    """Whether a compiler, an exporter or another mode of torch's sees every operator that is called."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._dispatch_tls_is_dispatch_key_included(_PRE_DISPATCH)
    )


def constant(function: Function) -> Function:
    """Have Dynamo call a function and take what it gives for a constant, without looking inside.

    It is what :func:`torch.compiler.assume_constant_result` does, which would import Dynamo.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def untraced(function: Function) -> Function:
    """Have Dynamo run a function, which C++ calls, and all that it calls as they are.

    It would take them for a program of the user's otherwise, wherever it broke a graph before.
    """
    if set_code_exec_strategy is not None:
        strategy = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)
        set_code_exec_strategy(function.__code__, strategy)
    return function


def let_through(layers: type[Module]) -> None:
    """Have Dynamo trace modules of class ``layers``: now, or when it is imported (which takes over a second)."""
    when_imported(BUILDER, partial(_open, layers))


def _open(layers: type[Module], builder: ModuleType) -> None:
    wrap_module = getattr(builder.VariableBuilder, "wrap_module", None)
    if wrap_module is None:
        return  # a Dynamo that this module does not know: it breaks the graph at the layers, as at torch.nn's

    @wraps(wrap_module)
    def wrapper(self: Any, value: Module) -> Any:
        if not isinstance(value, layers):
            return wrap_module(self, value)
        with builder.config.patch(allow_rnn=True):
            return wrap_module(self, value)

    builder.VariableBuilder.wrap_module = wrapper
