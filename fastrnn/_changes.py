"""Changes in place: whether a caller made one to what he was given, and how to give it without making one."""

from functools import cache

import torch
from torch import Tensor

from fastrnn._dynamo import tracing


@cache
def _nothing(device: torch.device) -> Tensor:
    return torch.empty(0, device=device)


class Changes:
    """Those made in place to a tensor, or to a view or alias of it, from now on; its memory is not kept by this.

    Torch counts them where it saves a tensor for backward as well, but not if saved tensors go through hooks.
    """

    def __init__(self, t: Tensor) -> None:
        self._counter = t.detach()  # which shares the count
        self._counter.data = _nothing(t.device)  # and from here on nothing else
        self._before = self._counter._version

    def __bool__(self) -> bool:
        """Whether there were any."""
        return self._counter._version != self._before


def transposed(t: Tensor) -> Tensor:
    """A layer's result with its first two dimensions swapped, as torch.nn has it: the tensor itself, not a view of it.

    Torch lets nobody detach views in place. What backward reads has been saved before, as it was; so this is no change.
    A compiler gets a copy where there are gradients: of changes to a view that it returns it would know nothing, and
    gradients would be wrong. Most layers want the numbers in the order that this brings them into.
    """
    if tracing():
        is_copied = t.requires_grad and torch.compiler.is_compiling() and not torch.compiler.is_exporting()
        t = t.transpose(0, 1)
        return t.clone(memory_format=torch.contiguous_format) if is_copied else t
    if not t.requires_grad or torch._C._are_functorch_transforms_active():
        return t.transpose_(0, 1)
    before = t._version
    t.transpose_(0, 1)
    torch._C._autograd._unsafe_set_version_counter((t,), (before,))
    return t
