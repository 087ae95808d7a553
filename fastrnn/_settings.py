"""What torch is set to that has a part in how layers are computed on a GPU, to be the same in another process."""

from operator import attrgetter
from typing import Any

import torch

# Attributes of torch; which of them there are depends on its version.
_NAMES = (
    "backends.cuda.matmul.fp32_precision",
    "backends.cudnn.conv.fp32_precision",
    "backends.cudnn.rnn.fp32_precision",
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_fp16_accumulation",
    "backends.cudnn.enabled",
    "backends.cudnn.benchmark",
    "backends.cudnn.deterministic",
    "utils.deterministic.fill_uninitialized_memory",
)
Settings = dict[str, Any]


def settings(device: torch.device) -> Settings:
    """Those of this process; what environment variables set is not among them."""
    found: Settings = {"debug_mode": torch.get_deterministic_debug_mode()}
    for name in _NAMES:
        try:
            found[name] = attrgetter(name)(torch)
        except (AttributeError, RuntimeError):  # not there, or set by halves in the names of before
            continue
    if device.type == "cuda" and hasattr(torch.cuda, "get_per_process_memory_fraction"):
        found["memory_fraction"] = torch.cuda.get_per_process_memory_fraction(device)
    return found


def restore(found: Settings, device: torch.device) -> None:
    """Set this process to them."""
    torch.set_deterministic_debug_mode(found["debug_mode"])
    for name in _NAMES:
        if name in found:
            owner, _, attribute = name.rpartition(".")
            setattr(attrgetter(owner)(torch), attribute, found[name])
    if "memory_fraction" in found:
        torch.cuda.set_per_process_memory_fraction(found["memory_fraction"], device)
