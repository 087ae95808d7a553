"""Changes in place: whether a caller made one to what he was given, and how to give it without making one."""

import torch
from torch import Tensor

from fastrnn._dynamo import tracing

Counter = tuple[Tensor, int]
_NOTHING = torch.empty(0, device="cpu")


def counter(t: Tensor) -> Counter:
    """Counts the changes made in place to a tensor, to a view or to an alias of it; it does not keep its memory.

    Torch counts them where it saves a tensor for backward as well, but not if saved tensors go through hooks.
    """
    shares = t.detach()  # the count, and, once it has other data, nothing else
    shares.data = _NOTHING if t.is_cpu else t.new_empty(0)
    return shares, shares._version


def changed(counters: tuple[Counter, ...]) -> bool:
    """Whether there were any changes since."""
    return any(shares._version != before for shares, before in counters)


def transposed(t: Tensor, is_ordinary: bool) -> Tensor:
    """A layer's result with its first two dimensions swapped, as torch.nn has it: the tensor itself, not a view of it.

    Torch lets nobody detach views in place. What backward reads has been saved before, as it was; so this is no change.
    A compiler gets a copy where there are gradients: of changes to a view that it returns it would know nothing, and
    gradients would be wrong. Most layers want the numbers in the order that this brings them into. torch.jit.trace gets
    a view: it checks that it records the same without gradients. So does a subclass of Tensor, whose results are views
    from torch.nn as well. ``is_ordinary``: it is known that no compiler and no transform is at work.
    """
    if not is_ordinary and tracing():
        is_copied = t.requires_grad and torch.compiler.is_compiling() and not torch.compiler.is_exporting()
        t = t.transpose(0, 1)
        return t.clone(memory_format=torch.contiguous_format) if is_copied else t
    if type(t) is not Tensor or torch._C._get_tracing_state() is not None:
        return t.transpose(0, 1)
    if not t.requires_grad or (not is_ordinary and torch._C._are_functorch_transforms_active()):
        return t.transpose_(0, 1)
    before = t._version
    t.transpose_(0, 1)
    torch._C._autograd._unsafe_set_version_counter((t,), (before,))
    return t
