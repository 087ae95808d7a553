"""Which tensors lie in the pretended device's memory: those whose storage was marked when it came to be."""

import threading
import weakref

from torch import Tensor

_lock = threading.Lock()
_allocated = 0
_peak = 0


def holds(t: Tensor) -> bool:
    """Whether a tensor lies on the device."""
    try:
        return hasattr(t.untyped_storage(), "_on_desk")
    except (NotImplementedError, RuntimeError):  # one without data, of a transform or a compiler
        return False


def take(t: Tensor) -> None:
    """Have a tensor's storage count as the device's memory, for as long as it lives."""
    global _allocated, _peak
    storage = t.untyped_storage()
    if hasattr(storage, "_on_desk"):
        return
    size = storage.nbytes()
    storage._on_desk = True  # type: ignore[attr-defined]
    with _lock:
        _allocated += size
        _peak = max(_peak, _allocated)
    weakref.finalize(storage, _give_back, size).atexit = False


def _give_back(size: int) -> None:
    global _allocated
    _allocated -= size  # without the lock: it may be taken by whoever is interrupted


def allocated() -> int:
    """Bytes of all tensors on the device."""
    return _allocated


def peak() -> int:
    """The most of them since :func:`reset_peak`."""
    return _peak


def reset_peak() -> None:
    """Begin anew."""
    global _peak
    _peak = _allocated
