"""The memory of a launch: the storages of its tensors, each with an address range to itself.

An interpreted kernel gets addresses that are none of the machine's, so far apart that no stray access of one tensor
lands in another, and each access is translated after it has been checked.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

RANGE = 40  # bits of the addresses of one storage, which begins in the middle of them
HALF = 1 << (RANGE - 1)


class OutOfBounds(IndexError):
    """An access of memory that no tensor of the launch has."""


class Memory:
    """Which addresses there are; arguments are named for the sake of messages."""

    def __init__(self, arguments: Mapping[str, Any]):
        self._storages: list[torch.UntypedStorage] = []
        self._names: list[str] = []
        self._given = {_storage(value).data_ptr(): name for name, value in _tensors(arguments)}

    def address(self, tensor: Any) -> int:
        """Where a kernel finds a tensor."""
        storage = _storage(tensor)
        known = [other.data_ptr() for other in self._storages]
        if storage.data_ptr() not in known:
            self._storages.append(storage)
            self._names.append(self._given.get(storage.data_ptr(), "a tensor"))
            known.append(storage.data_ptr())
        offset = int(tensor.data_ptr()) - storage.data_ptr()
        return ((known.index(storage.data_ptr()) + 1) << RANGE) + HALF + offset

    def translate(
        self, pointers: npt.NDArray[np.uint64], mask: npt.NDArray[np.bool_], size: int, access: str
    ) -> npt.NDArray[np.uint64]:
        """The machine's addresses of those lanes that are not masked out.

        Args:
            pointers: what the kernel has.
            mask: lanes that access memory.
            size: bytes of an element.
            access: what kind it is, for the message.

        Raises:
            OutOfBounds: a lane is outside of its tensor's storage, or between its elements.
        """
        bases = np.array([0, *(storage.data_ptr() for storage in self._storages)], dtype=np.int64)
        sizes = np.array([-1, *(storage.nbytes() for storage in self._storages)], dtype=np.int64)
        index = np.array(pointers >> np.uint64(RANGE), dtype=np.int64)
        index[~np.broadcast_to(mask, index.shape) | (index < 1) | (index >= len(bases))] = 0
        offset = np.array(pointers & np.uint64((1 << RANGE) - 1), dtype=np.int64) - HALF
        wrong = np.asarray(mask & ((offset < 0) | (offset + size > sizes[index]) | (offset % size != 0)))
        if wrong.any():
            lane = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
            where = self._where(index[lane], np.asarray(offset)[lane], pointers[lane])
            raise OutOfBounds(f"{access} of {size} bytes {where}")
        return np.array(bases[index] + offset, dtype=np.uint64)

    def _where(self, index: int, offset: int, pointer: int) -> str:
        if index == 0:
            return f"at {pointer:#x}, which belongs to no tensor of the launch"
        size = self._storages[index - 1].nbytes()
        return f"at byte {offset} of {self._names[index - 1]!r}, whose storage has {size}"


def _storage(tensor: Any) -> torch.UntypedStorage:
    storage: torch.UntypedStorage = getattr(tensor, "base", tensor).untyped_storage()
    return storage


def _tensors(arguments: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Tensors among arguments, in tuples as well."""
    found: list[tuple[str, Any]] = []
    for name, value in arguments.items():
        if hasattr(value, "data_ptr"):
            found.append((name, value))
        elif isinstance(value, tuple):
            found += _tensors({f"{name}[{place}]": item for place, item in enumerate(value)})
    return found
