"""What a model's recurrent layers are called with, seen in one run that leaves no trace."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules import rnn as stock
from torch.nn.utils.rnn import PackedSequence

from fastrnn._modules import Fast, has_own_forward
from fastrnn._validate import Stack
from fastrnn.autotune import observing
from fastrnn.convert import recurrent_layers


class Request(NamedTuple):
    """A call of one of fastrnn's layers.

    Attributes:
        stack, params: the layer, as the functional forms take it.
        x: the input; of packed sequences their data.
        steps, batch: T and B.
        is_cell: whether the layer is a cell.
        packed: whether the input is a PackedSequence.
        varied: whether sequences may differ in length.
        reset, return_cells: as given.
        trains: whether gradients would be wanted.
    """

    stack: Stack
    params: list[Tensor]
    x: Tensor
    steps: int
    batch: int
    is_cell: bool
    packed: bool
    varied: bool
    reset: Tensor | None
    return_cells: bool
    trains: bool

    @classmethod
    def of(
        cls,
        layer: Module,
        records: bool,
        input: Tensor | PackedSequence,
        hx: object = None,
        *,
        lengths: object = None,
        reset: Tensor | None = None,
        return_cells: bool = False,
    ) -> "Request":
        """From the arguments of a call; ``records`` says whether gradients are enabled."""
        stack, params = stack_of(layer)
        is_cell, packed = isinstance(layer, stock.RNNCellBase), isinstance(input, PackedSequence)
        x: Tensor = input.data if isinstance(input, PackedSequence) else input
        if isinstance(input, PackedSequence):
            steps, batch = input.batch_sizes.shape[0], int(input.batch_sizes[0])
        elif is_cell:
            steps, batch = 1, x.shape[0] if x.dim() == 2 else 1
        elif x.dim() == 2:
            steps, batch = x.shape[0], 1
        else:
            steps, batch = x.shape[:2][:: -1 if stack.batch_first else 1]
        trains = records and any(t.requires_grad for t in (x, *params))
        varied = packed or lengths is not None
        return cls(stack, params, x, steps, batch, is_cell, packed, varied, reset, return_cells, trains)


def stack_of(layer: Any) -> tuple[Stack, list[Tensor]]:
    """What the functional forms make of a layer of fastrnn's or torch.nn's classes; a cell is a stack of one layer."""
    if isinstance(layer, stock.RNNBase):
        params = [getattr(layer, name) for name in layer._flat_weights_names]
        batch_first = layer.batch_first
        rest = (layer.bias, layer.num_layers, layer.dropout, layer.training, layer.bidirectional, batch_first)
        tape = getattr(layer, "tape", "full")  # which torch.nn's do not have
        return Stack(layer.mode.lower(), *rest, tape=tape, proj_size=layer.proj_size), params
    cell = {"LSTMCell": "lstm", "GRUCell": "gru"}
    named = [cell[cls.__name__] for cls in type(layer).__mro__ if cls.__name__ in cell]
    params = [layer.weight_ih, layer.weight_hh]
    return Stack(named[0] if named else f"rnn_{layer.nonlinearity}", bias=layer.bias), params


def observe_calls(
    model: Module, inputs: Sequence[Any], kwargs: Mapping[str, Any], observe: Callable[[str, Request], None]
) -> None:
    """Run a model once and tell, by name, each call of one of fastrnn's layers in it."""
    layers, records = recurrent_layers(model), torch.is_grad_enabled()

    def hook(name: str, layer: Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        observe(name, Request.of(layer, records, *args, **kwargs))

    with _undisturbed(model, inputs), ExitStack() as hooks:
        for name, layer in layers.items():
            if isinstance(layer, Fast) and not has_own_forward(layer):
                hooks.callback(layer.register_forward_hook(partial(hook, name), with_kwargs=True).remove)
        model(*inputs, **kwargs)


@contextmanager
def _undisturbed(model: Module, inputs: Sequence[object]) -> Iterator[None]:
    """Run a model for its plans only: without gradients or a compiler, and leaving random numbers and buffers alone."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    tensors = [*model.parameters(), *model.buffers(), *(i for i in inputs if isinstance(i, Tensor))]
    devices = {t.device for t in tensors if t.device.type not in ("cpu", "meta")}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(observing())
        for kind in {device.type for device in devices} or {"cpu"}:
            stack.enter_context(torch.random.fork_rng([d for d in devices if d.type == kind], device_type=kind))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield
        finally:
            for module, name, buffer, value in buffers:
                if getattr(module, name) is not buffer:
                    setattr(module, name, buffer)
                if not buffer.is_meta and not torch.equal(buffer, value):
                    buffer.copy_(value)
