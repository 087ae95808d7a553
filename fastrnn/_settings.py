"""What another process needs to know to compute work as this one does: the device, and what torch is set to."""

from operator import attrgetter
from typing import Any, NamedTuple

import torch

from fastrnn.kernels.measured import Work

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


class Opening(NamedTuple):
    """What a process is to compute: the work, on a device that is known by an identity, with torch set so."""

    work: Work
    device: torch.device
    uuid: str | None
    settings: Settings


def opening(work: Work, device: torch.device) -> Opening:
    """That of a process which is to compute as this one does."""
    return Opening(work, device, uuid_of(device), settings(device))


def uuid_of(device: torch.device) -> str | None:
    """What identifies a GPU to other processes, if it says so."""
    if device.type != "cuda":
        return None
    return str(getattr(torch.cuda.get_device_properties(device), "uuid", "")) or None


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
