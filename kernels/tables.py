"""Whole numbers that kernels read, such as lengths of sequences: brought to a device once for each content.

All layers of a stack, forward and backward, are given the same lengths on the CPU, and so are many batches. A transfer
would have each of these calls wait for the device, and cannot be captured in a CUDA graph.
"""

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import torch
from torch import Tensor

from fastrnn.kernels.graphs import capturing

MOST = 64  # copies that are kept

Key = tuple[torch.device, torch.dtype, tuple[int, ...]]


class Tables:
    """Copies of sequences of numbers on devices, those that were asked for last."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._kept: OrderedDict[Key, Tensor] = OrderedDict()
        self._in_graphs: dict[Key, Tensor] = {}
        self._lock = Lock()  # backward runs on threads of autograd's

    def get(self, numbers: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """``numbers`` on ``device``, for any stream to read and nobody to change.

        A graph reads its numbers at each replay: those of a capture are kept for good.

        Raises:
            RuntimeError: the current stream is being captured, and the numbers were not asked for before.
        """
        key = (device, dtype, tuple(numbers))
        with self._lock:
            table = self._in_graphs.get(key)
            if table is not None:
                return table
            table = self._kept.get(key)
            if capturing(device):
                if table is None:
                    raise RuntimeError(
                        "fastrnn: lengths and batch_sizes are brought to the device before a CUDA graph is captured: "
                        "call the layer once with the same, or give lengths on the device of input"
                    )
                self._in_graphs[key] = table
                return table
            if table is None:
                table = self._kept[key] = transferred(key[2], dtype, device)
            self._kept.move_to_end(key)
            if len(self._kept) > self.most:
                self._kept.popitem(last=False)
        if table.is_cuda:  # whoever drops it last, the stream that reads it may not have come so far
            table.record_stream(torch.cuda.current_stream(device))
        return table


def transferred(numbers: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy on the device. It is there when this returns, since the memory that it comes from is not pinned."""
    return torch.tensor(numbers, dtype=dtype, device="cpu").to(device)


tables = Tables()
