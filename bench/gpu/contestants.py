"""Layers on the device that share one set of weights, and the strategies of fastrnn's kernels one by one."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from bench.contestants import CELL_LOOP, CellLoop, fastrnn_stack, torch_stack
from bench.gpu import strategies
from bench.gpu.cases import Task
from bench.packed import SHORTEST, Packed
from bench.plan import DTYPES
from bench.resets import PART, Loop, Resetting
from bench.results import BASELINE, FLATTENED

DEVICE = "cuda"  # the current one
LEAN = ", lean tape"  # behind the name of a strategy
Contexts = dict[str, Callable[[], AbstractContextManager[None]]]
Theirs = Mapping[str, nn.RNNBase]  # torch.nn's layer, and the one with flattened weights where it takes part


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


def prepare(task: Task, with_strategies: bool = True, left_out: Mapping[str, str] | None = None) -> Prepared:
    """Make the stacks of a case; fastrnn as its plan has it, and then with each strategy that it could have planned.

    Where torch does not flatten its layer's weights, another such layer takes part whose weights are. The reference is
    a copy of torch.nn's layer: in float64, and a loop over thousands of steps would take too long.

    Args:
        task: the case.
        with_strategies: whether fastrnn's strategies take part one by one.
        left_out: those that do not, by the names of :mod:`bench.gpu.strategies`.

    Raises:
        RuntimeError: fastrnn would compute the case by a strategy that is left out.
    """
    torch.manual_seed(0)
    layer = torch_stack(task.cell, task.shape, DTYPES[task.dtype])
    ours = fastrnn_stack(layer).to(DEVICE)
    layer = layer.to(DEVICE)
    shape = task.shape
    x = torch.randn(shape.steps, shape.batch, shape.input, device=DEVICE).to(DTYPES[task.dtype])
    theirs, not_flattened = {BASELINE: layer}, ""
    if not flattened(layer) and can_flatten(layer):
        try:
            theirs[FLATTENED] = flatten(copy.deepcopy(layer))
        except Exception as error:  # whatever torch or cuDNN raises: the layer as torch has it is to be measured
            not_flattened = f"{type(error).__name__}: {error}"
    prepare_own = {"packed": _packed, "reset": _reset, "state": _state}
    made = prepare_own.get(task.benchmark, _dense)(theirs, ours, x)
    made.detail["flattened"] = {name: flattened(stack) for name, stack in theirs.items()}
    if not_flattened:
        made.detail["not_flattened"] = not_flattened
    plans = forced_plans(task, left_out) if with_strategies else {}
    stacks = {"": made.stacks["fastrnn"]} | ({LEAN: _with_lean_tape(layer)} if task.benchmark == "lean" else {})
    for name, plan in plans.items():
        for tape, stack in stacks.items():
            made.stacks[name + tape] = stack
            made.under[name + tape] = partial(forced, plan)
    made.detail["strategies"] = {name: str(plan) for name, plan in plans.items()}
    made.detail["choices"] = {name: _choices(plan) for name, plan in plans.items()}
    return made


def flattened(layer: nn.RNNBase) -> bool:
    """Whether a layer's weights lie in one piece of memory, as cuDNN reads them: else it packs them at each call."""
    return len({weight.untyped_storage().data_ptr() for weight in layer.parameters()}) == 1


def can_flatten(layer: nn.RNNBase) -> bool:
    """Whether cuDNN computes a layer, in a kind of numbers that it has."""
    weight = next(layer.parameters())
    return weight.is_cuda and torch.version.hip is None and torch.backends.cudnn.is_available()


def flatten(layer: nn.RNNBase) -> nn.RNNBase:
    """Have a layer's weights lie as cuDNN reads them, whatever torch knows of their dtype; returns the layer.

    :meth:`torch.nn.RNNBase.flatten_parameters` does that for the dtypes in ``torch.backends.cudnn.CUDNN_TENSOR_DTYPES``
    alone, which cuDNN's own list may be longer than.
    """
    from torch.backends.cudnn.rnn import get_cudnn_mode

    mode, per_direction = get_cudnn_mode(layer.mode), 4 if layer.bias else 2
    sizes = (layer.input_size, mode, layer.hidden_size, layer.proj_size, layer.num_layers)
    with torch.no_grad():
        torch._cudnn_rnn_flatten_weight(
            layer._flat_weights, per_direction, *sizes, layer.batch_first, layer.bidirectional
        )
    return layer


def forced_plans(task: Task, left_out: Mapping[str, str] | None = None) -> Mapping[str, Any]:
    """The strategies that fit a case, each with the best plan that fastrnn has for it, by the contestant's name.

    Raises:
        RuntimeError: fastrnn would compute the case by a strategy that is left out.
    """
    if find_spec("fastrnn.kernels.plan") is None:
        return {}
    from fastrnn.kernels.plan import plan_kernels

    facts, work, left_out = _facts(), work_of(task), left_out or {}
    # where nothing fits one program, it may be spread over a grid; where nothing fits on chip, the plan is stepwise
    on_chip, stepwise = (plan_kernels(work, f) for f in (facts, replace(facts, shared_memory_per_block=0)))
    if task.benchmark == "reset" and (own := strategies.name_of(on_chip)) in left_out:
        raise RuntimeError(f"fastrnn would compute it by a strategy that is left out: {own}: {left_out[own]}")
    if task.benchmark == "recorded":
        plans = {"fastrnn stepwise": stepwise, "fastrnn recorded": replace(stepwise, graphs=True)}
    else:
        plans = {f"fastrnn {plan.strategy}": plan for plan in (on_chip, stepwise)}
        for exchange, contestant in (("barrier", "fastrnn grid"), ("data", "fastrnn polled")):
            grids = {f"grid, {held}, {exchange}" for held in ("registers", "shared")}
            if best := best_plan(task, grids - left_out.keys()):
                plans[contestant] = best
    return {name: plan for name, plan in plans.items() if strategies.name_of(plan) not in left_out}


def best_plan(task: Task, wanted: Collection[str]) -> Any:
    """The plan of some strategies that the model of cost says is the fastest of theirs; None where none fits."""
    from fastrnn.kernels.plan import candidates, seconds

    facts, work = _facts(), work_of(task)
    plans = list(candidates(work, facts))
    plans += [replace(plan, exchange="data") for plan in plans if plan.strategy == "grid"]
    able = [plan for plan in plans if strategies.name_of(plan) in wanted]
    return min(able, key=lambda plan: seconds(plan, work, facts), default=None)


def _facts() -> Any:
    """Of the device, without what was measured on it: every strategy is to be measured anew."""
    from fastrnn import _cuda

    return replace(_cuda.facts_of(torch.device(DEVICE)), records=())


def work_of(task: Task) -> Any:
    """What a layer of a case has to compute: a :class:`fastrnn.kernels.measured.Work`."""
    from fastrnn.kernels.measured import Work

    shape = task.shape
    sizes = (shape.steps, shape.batch, shape.input, shape.hidden)
    tf32 = {"tf32": bool(task.tf32), "tf32_products": bool(task.tf32)}
    return Work(task.cell, *sizes, DTYPES[task.dtype], shape.directions, **tf32)


def _choices(plan: Any) -> dict[str, Any]:
    from fastrnn._contest import choices

    return choices(plan)


def forced(plan: Any) -> AbstractContextManager[None]:
    from fastrnn._contest import way

    return way(plan)


def _dense(theirs: Theirs, ours: nn.Module, x: Tensor) -> Prepared:
    return Prepared({**theirs, "fastrnn": ours}, x, copy.deepcopy(theirs[BASELINE]))


class Started(nn.Module):
    """A layer that is given its states, which are parameters of its own."""

    def __init__(self, layer: nn.Module, states: Sequence[Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.states = nn.ParameterList(states)

    def forward(self, x: Tensor) -> Any:
        """As the layer returns it."""
        return self.layer(x, tuple(self.states) if len(self.states) > 1 else self.states[0])


def _state(theirs: Theirs, ours: nn.Module, x: Tensor) -> Prepared:
    layer = theirs[BASELINE]
    shape = (layer.num_layers * (2 if layer.bidirectional else 1), x.shape[1], layer.hidden_size)
    states = [torch.randn(shape, device=DEVICE).to(x.dtype) for _ in range(2 if layer.mode == "LSTM" else 1)]
    started = {name: Started(stack, states) for name, stack in {**theirs, "fastrnn": ours}.items()}
    return Prepared(dict(started), x, copy.deepcopy(started[BASELINE]))


def _with_lean_tape(layer: nn.RNNBase) -> nn.Module:
    stack = fastrnn_stack(layer).to(DEVICE)
    stack.tape = "lean"
    return stack


def _packed(theirs: Theirs, ours: nn.Module, x: Tensor) -> Prepared:
    steps, batch = x.shape[:2]
    lengths = torch.randint(max(1, steps // SHORTEST), steps + 1, (batch,))
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    stacks = {name: Packed(stack, packed) for name, stack in {**theirs, "fastrnn": ours}.items()}
    reference = Packed(copy.deepcopy(theirs[BASELINE]), packed)
    sizes = packed.batch_sizes.tolist()
    return Prepared(stacks, packed.data, reference, {"lengths": lengths.tolist()}, sizes)


def _reset(theirs: Theirs, ours: nn.Module, x: Tensor) -> Prepared:
    reset = torch.rand(x.shape[:2], device=DEVICE) < PART
    layer = theirs[BASELINE]
    *networks, reference = (*theirs.values(), *(CellLoop(layer).cells[0].to(DEVICE) for _ in range(2)))
    loops = [Loop(network, reset, layer.hidden_size) for network in networks]
    stacks = {**dict(zip((*theirs, CELL_LOOP), loops, strict=True)), "fastrnn": Resetting(ours, reset)}
    return Prepared(stacks, x, Loop(reference, reset, layer.hidden_size), {"resets": int(reset.sum())})


def context(made: Prepared, name: str) -> AbstractContextManager[None]:
    """What a contestant computes in."""
    return made.under.get(name, nullcontext)()
