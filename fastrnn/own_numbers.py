"""Whether fastrnn's own engine computes on the CPU all that it can, whoever is faster."""

from fastrnn import _C
from fastrnn._switch import Switch, of_environment

__all__ = ["is_own_numbers_enabled", "own_numbers"]

VARIABLE = "FASTRNN_OWN_NUMBERS"


_enabled = of_environment(VARIABLE)
_C.cpu_own(_enabled)


class own_numbers(Switch):
    """Whether fastrnn's own engine computes on the CPU all that it can; off by default.

    Some calls torch computes faster: single steps with gradients or of many rows, and what :func:`fastrnn.tune` has
    found. It promises less: a row's output may depend on the other rows of the batch, on the number of threads, and so
    on what was tuned. With this on, nothing is left to torch for its speed, and a row's output, and its input gradient,
    is bitwise the same in every batch. ``FASTRNN_OWN_NUMBERS=1`` turns it on as well. How threads split work still goes
    by what was tuned: that changes no bit.

    What only torch can compute (``proj_size``, other dtypes) is torch's all the same, plans on GPUs do not change, and
    what ``torch.compile`` has compiled stays as it is. Weight gradients are sums over the batch.

    Args:
        mode: whether to. It holds from now on or, as a context manager, within: for all threads.

    Raises:
        TypeError: ``mode`` is not a bool.

    Examples::

        >>> with fastrnn.own_numbers(True):
        ...     h = fastrnn.GRUCell(10, 20)(torch.randn(100, 10))
        >>> fastrnn.is_own_numbers_enabled()
        False
    """

    @staticmethod
    def _exchange(mode: bool) -> bool:
        global _enabled
        before, _enabled = _enabled, mode
        _C.cpu_own(mode)
        return before


def is_own_numbers_enabled() -> bool:
    """Whether fastrnn's own engine computes on the CPU all that it can."""
    return _enabled


def why_own() -> str | None:
    """Why nothing is left to torch, or None where some may be."""
    return "fastrnn.own_numbers is on" if _enabled else None
