"""One process, or several started by ``torchrun``, each with its part of every batch (DistributedDataParallel).

Everything that a program asks here has an answer in a single process too, so it need not know.
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def join() -> bool:
    """Meet the other processes, if torchrun has started this one; whether there are others to part from afterwards."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        return False
    dist.init_process_group("gloo")
    return True


def part() -> None:
    """Take leave of the other processes."""
    dist.barrier()
    dist.destroy_process_group()


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """Which one this is; the first, 0, is the one that prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def parallel(model: nn.Module) -> nn.Module:
    """The model, with gradients that are averaged over the processes."""
    learns = any(weight.requires_grad for weight in model.parameters())
    return DistributedDataParallel(model) if learns and count() > 1 else model


def mean(value: float) -> float:
    """The mean over the processes."""
    if count() == 1:
        return value
    values = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(values)
    return float(values) / count()


def agreed(value: float) -> float:
    """The first process's value."""
    if count() == 1:
        return value
    values = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(values, src=0)
    return float(values)
