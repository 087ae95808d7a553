"""Layers on the device that share one set of weights, and the strategies of fastrnn's kernels one by one."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from bench.contestants import CELL_LOOP, CellLoop, fastrnn_stack, torch_stack
from bench.gpu.cases import Task
from bench.packed import SHORTEST, Packed
from bench.plan import DTYPES
from bench.resets import PART, Loop, Resetting
from bench.results import BASELINE

DEVICE = "cuda"  # the current one
LEAN = ", lean tape"  # behind the name of a strategy
Contexts = dict[str, Callable[[], AbstractContextManager[None]]]


@dataclass
class Prepared:
    """A case on the device.

    Attributes:
        stacks: by name, torch.nn's first.
        x: what they are given.
        reference: computes the same; it becomes float64.
        detail: what the rows have to say of the case.
        batch_sizes: the rows that are alive at each step, where not all are.
        under: the contexts of those stacks that have one.
    """

    stacks: dict[str, nn.Module]
    x: Tensor
    reference: nn.Module
    detail: dict[str, Any] = field(default_factory=dict)
    batch_sizes: list[int] | None = None
    under: Contexts = field(default_factory=dict)


def prepare(task: Task, with_strategies: bool = True) -> Prepared:
    """Make the stacks of a case; fastrnn as its plan has it, and then with each strategy that it could have planned.

    The reference is a copy of torch.nn's layer: in float64, and a loop over thousands of steps would take too long.
    """
    torch.manual_seed(0)
    layer = torch_stack(task.cell, task.shape, DTYPES[task.dtype])
    ours = fastrnn_stack(layer).to(DEVICE)
    layer = layer.to(DEVICE)
    shape = task.shape
    x = torch.randn(shape.steps, shape.batch, shape.input, device=DEVICE).to(DTYPES[task.dtype])
    prepare_own = {"packed": _packed, "reset": _reset, "state": _state}
    made = prepare_own.get(task.benchmark, _dense)(layer, ours, x)
    strategies = forced_plans(task) if with_strategies else {}
    stacks = {"": made.stacks["fastrnn"]} | ({LEAN: _with_lean_tape(layer)} if task.benchmark == "lean" else {})
    for name, plan in strategies.items():
        for tape, stack in stacks.items():
            made.stacks[name + tape] = stack
            made.under[name + tape] = partial(_forced, plan)
    made.detail["strategies"] = {name: str(plan) for name, plan in strategies.items()}
    return made


def forced_plans(task: Task) -> Mapping[str, Any]:
    """The strategies that fit a case, each with the best plan that fastrnn has for it, by the contestant's name."""
    if find_spec("fastrnn.kernels.plan") is None:
        return {}
    from fastrnn import _cuda
    from fastrnn.kernels.measured import Work
    from fastrnn.kernels.plan import forced, plan_kernels

    shape, facts = task.shape, replace(_cuda.facts_of(torch.device(DEVICE)), records=())
    sizes = (shape.steps, shape.batch, shape.input, shape.hidden)
    tf32 = {"tf32": bool(task.tf32), "tf32_products": bool(task.tf32)}
    work = Work(task.cell, *sizes, DTYPES[task.dtype], shape.directions, **tf32)
    # where nothing fits one program, it may be spread over a grid; where nothing fits on chip, the plan is stepwise
    plans = [plan_kernels(work, f) for f in (facts, replace(facts, shared_memory_per_block=0))]
    if task.benchmark == "recorded":
        return {"fastrnn stepwise": plans[1], "fastrnn recorded": replace(plans[1], graphs=True)}
    with forced(strategy="grid"):
        spread = plan_kernels(work, facts)
    if spread.split > 1:  # else it does not fit
        plans.insert(1, replace(spread, reason="the grid strategy"))
    polled = {}
    if spread.split > 1 and facts.vendor == "nvidia":
        polled = {"fastrnn polled": replace(spread, exchange="data")}
    return {f"fastrnn {plan.strategy}": plan for plan in plans} | polled


def _forced(plan: Any) -> AbstractContextManager[None]:
    from fastrnn._contest import way

    return way(plan)


def _dense(layer: nn.RNNBase, ours: nn.Module, x: Tensor) -> Prepared:
    return Prepared({BASELINE: layer, "fastrnn": ours}, x, copy.deepcopy(layer))


class Started(nn.Module):
    """A layer that is given its states, which are parameters of its own."""

    def __init__(self, layer: nn.Module, states: Sequence[Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.states = nn.ParameterList(states)

    def forward(self, x: Tensor) -> Any:
        """As the layer returns it."""
        return self.layer(x, tuple(self.states) if len(self.states) > 1 else self.states[0])


def _state(layer: nn.RNNBase, ours: nn.Module, x: Tensor) -> Prepared:
    shape = (layer.num_layers * (2 if layer.bidirectional else 1), x.shape[1], layer.hidden_size)
    states = [torch.randn(shape, device=DEVICE).to(x.dtype) for _ in range(2 if layer.mode == "LSTM" else 1)]
    started = {name: Started(stack, states) for name, stack in ((BASELINE, layer), ("fastrnn", ours))}
    return Prepared(dict(started), x, copy.deepcopy(started[BASELINE]))


def _with_lean_tape(layer: nn.RNNBase) -> nn.Module:
    stack = fastrnn_stack(layer).to(DEVICE)
    stack.tape = "lean"
    return stack


def _packed(layer: nn.RNNBase, ours: nn.Module, x: Tensor) -> Prepared:
    steps, batch = x.shape[:2]
    lengths = torch.randint(max(1, steps // SHORTEST), steps + 1, (batch,))
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    stacks: dict[str, nn.Module] = {BASELINE: Packed(layer, packed), "fastrnn": Packed(ours, packed)}
    reference = Packed(copy.deepcopy(layer), packed)
    sizes = packed.batch_sizes.tolist()
    return Prepared(stacks, packed.data, reference, {"lengths": lengths.tolist()}, sizes)


def _reset(layer: nn.RNNBase, ours: nn.Module, x: Tensor) -> Prepared:
    reset = torch.rand(x.shape[:2], device=DEVICE) < PART
    cells = [CellLoop(layer).cells[0].to(DEVICE) for _ in range(2)]
    loops = [Loop(network, reset, layer.hidden_size) for network in (layer, *cells)]
    stacks = {BASELINE: loops[0], CELL_LOOP: loops[1], "fastrnn": Resetting(ours, reset)}
    return Prepared(stacks, x, loops[2], {"resets": int(reset.sum())})


def context(made: Prepared, name: str) -> AbstractContextManager[None]:
    """What a contestant computes in."""
    return made.under.get(name, nullcontext)()
