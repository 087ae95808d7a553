"""A batch of sequences of different lengths, as a PackedSequence that is packed before the clock starts."""

import copy
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from bench.calls import calls, timed
from bench.check import check_stacks
from bench.contestants import State, fastrnn_stack, torch_stack
from bench.grid import Shape
from bench.plan import DTYPES, MODES, Job, Plan
from bench.results import BASELINE, Row

SHAPE = Shape(32, 200, 128, 128)  # steps: the longest that a sequence may be
SHORTEST = 20  # of the longest sequence, one part in as many


def jobs(plan: Plan) -> list[Job]:
    """Two rows for each cell."""
    return [Job(f"packed {cell}", len(MODES), partial(measure, cell, plan)) for cell in plan.gated]


class Packed(nn.Module):
    """A layer that is given and gives the data of packed sequences."""

    def __init__(self, layer: nn.Module, like: PackedSequence) -> None:
        super().__init__()
        self.layer = layer
        self.like = like

    def forward(self, data: Tensor) -> tuple[Tensor, State]:
        """``data (all steps of all rows, I)``."""
        y, state = self.layer(self.like._replace(data=data))
        return y.data, state


def measure(cell: str, plan: Plan, shape: Shape = SHAPE) -> Iterator[Row]:
    """Check and time a layer on packed sequences, lengths drawn uniformly."""
    torch.manual_seed(0)
    dtype = DTYPES[plan.dtype]
    lengths = torch.randint(max(1, shape.steps // SHORTEST), shape.steps + 1, (shape.batch,))
    x = torch.randn(shape.steps, shape.batch, shape.input, dtype=dtype)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    layer = torch_stack(cell, shape, dtype)
    stacks = {BASELINE: Packed(layer, packed), "fastrnn": Packed(fastrnn_stack(layer), packed)}
    reference = Packed(copy.deepcopy(layer), packed)
    error_ratio = check_stacks({"fastrnn": stacks["fastrnn"]}, stacks[BASELINE], packed.data, reference)
    detail = {"error_ratio": error_ratio, "lengths": lengths.tolist()}
    for mode in MODES:
        contestants = calls(stacks, packed.data, mode)
        yield timed("packed", (cell, shape, mode), plan, contestants, detail, packed.batch_sizes.tolist())
