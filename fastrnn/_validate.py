"""Checks of what a caller gave, with torch.nn's exception types and wording: expected against got."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn._dynamo import tracing
from fastrnn.reference import CELLS

NAMES = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "lstm": "LSTM", "gru": "GRU"}
TAPES = ("full", "lean")


class Stack(NamedTuple):
    """A stack of layers beside its tensors: torch.nn's constructor arguments, and the tape."""

    cell: str
    bias: bool = True
    num_layers: int = 1
    dropout: float = 0.0
    training: bool = False
    bidirectional: bool = False
    batch_first: bool = False
    tape: str = "full"
    proj_size: int = 0

    @property
    def directions(self) -> int:
        """D: 1 or 2."""
        return 2 if self.bidirectional else 1

    @property
    def params_per_direction(self) -> int:
        """Parameters of one layer and direction: two weights, two biases if any, a projection if any."""
        return 2 + (2 if self.bias else 0) + (1 if self.proj_size else 0)

    def layer_params(self, params: Sequence[Tensor], layer: int) -> list[Tensor]:
        """The parameters of one layer, both directions."""
        n = self.params_per_direction * self.directions
        return list(params[layer * n : (layer + 1) * n])


def rnn_cell_name(nonlinearity: str) -> str:
    """The cell of an Elman network."""
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    return f"rnn_{nonlinearity}"


def tape(given: str) -> None:
    """What forward keeps for backward."""
    if given not in TAPES:
        raise ValueError(f"tape: expected one of {', '.join(map(repr, TAPES))}, got {given!r}")


def options(stack: Stack, params: Sequence[Tensor]) -> None:
    """The options of a stack, and the number of its parameters."""
    tape(stack.tape)
    expected = stack.num_layers * stack.directions * stack.params_per_direction
    if len(params) != expected:
        raise RuntimeError(f"Expected {expected} parameters, got {len(params)}")


def input_dim(name: str, x: Tensor) -> None:
    """An unpacked input has 2 or 3 dimensions."""
    if x.dim() not in (2, 3):
        tensor = " tensor" if name == "RNN" else ""  # torch.nn.RNN's message has one word more
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {x.dim()}D{tensor} instead")


def hidden(name: str, hx: object, batched: bool, packed: bool) -> tuple[Tensor, ...]:
    """``hx`` as a tuple of ``(num_layers*D, B, H)`` tensors: two for an LSTM, one otherwise, none where it is None."""
    if hx is None:
        return ()
    state: tuple[Any, ...] = _two(name, hx, stacked=not batched) if name == "LSTM" else (hx,)
    for s in state:
        if not isinstance(s, Tensor):
            raise TypeError(f"{name}: Expected hx to be Tensor, got {type(s).__name__}")
    if packed:
        return state
    wanted = 3 if batched else 2
    if any(s.dim() != wanted for s in state):
        batchedness = "batched 3-D" if batched else "unbatched 2-D"
        dims = [f"{s.dim()}-D" for s in state]
        if name == "LSTM":
            got, subject = f"({dims[0]}, {dims[1]}) tensors", "hx and cx"
        else:
            got, subject = f"{dims[0]} tensor", "hx"
        raise RuntimeError(f"For {batchedness} input, {subject} should also be {wanted}-D but got {got}")
    return state if batched else tuple(s.unsqueeze(1) for s in state)


def _two(name: str, hx: object, stacked: bool) -> tuple[Tensor, Tensor]:
    """An LSTM's ``hx`` as a tuple; one tensor of both where torch.nn takes that (``stacked``)."""
    if not isinstance(hx, tuple | list) and not (stacked and isinstance(hx, Tensor)):
        raise TypeError(f"{name}: Expected hx to be a tuple of two tensors, got {type(hx).__name__}")
    if len(hx) != 2:
        raise RuntimeError(f"{name.lower().replace('cell', '_cell')} expects two hidden states")
    return hx[0], hx[1]


def sizes(
    stack: Stack, x: Tensor, batch_sizes: Tensor | None, state: tuple[Tensor, ...], params: Sequence[Tensor]
) -> None:
    """Devices, dtypes and sizes of input (time-major or packed), state and parameters."""
    dims = 3 if batch_sizes is None else 2
    w_ih, w_hh = params[0], params[1]
    packed_lstm = stack.cell == "lstm" and batch_sizes is not None
    _same_device_and_dtype(x, state, params, RuntimeError if packed_lstm else ValueError)
    if x.dim() != dims:
        raise RuntimeError(f"input must have {dims} dimensions, got {x.dim()}")
    if x.shape[-1] != w_ih.shape[1]:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {w_ih.shape[1]}, got {x.shape[-1]}")
    if x.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if not state:
        return
    batch = x.shape[1] if batch_sizes is None else batch_sizes[0].item()
    layers, cell_size = stack.num_layers * stack.directions, w_ih.shape[0] // CELLS[stack.cell].gates
    for i, s in enumerate(state):
        expected = (layers, batch, w_hh.shape[1] if i == 0 else cell_size)
        if tuple(s.shape) != expected:
            which = f"hidden[{i}]" if CELLS[stack.cell].has_c else "hidden"
            raise RuntimeError(f"Expected {which} size {expected}, got {list(s.shape)}")


def half_weights(x: Tensor, params: Sequence[Tensor]) -> bool:
    """Whether the layer computes in float32 with weights that are bfloat16; autocast makes any other mix one dtype."""
    return (
        x.dtype == torch.float32
        and params[0].dtype == torch.bfloat16
        and _weights_alone_are_bfloat16(params)
        and not autocast_enabled(x.device.type)
    )


def _weights_alone_are_bfloat16(params: Sequence[Tensor]) -> bool:
    return all(p is not None and p.dtype == (torch.bfloat16 if p.dim() == 2 else torch.float32) for p in params)


def inference(x: Tensor, state: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    """No gradients are to be recorded."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *state, *params)):
        raise NotImplementedError(
            "fastrnn: bfloat16 weights with float32 activations are for inference, and have no gradients. Call the "
            "layer under torch.no_grad(), or convert it back: fastrnn.revert(model) makes its weights float32 again"
        )


def lengths(
    given: Tensor | Sequence[int] | None, steps: int, batch: int, batched: bool, device: torch.device
) -> Tensor | None:
    """``lengths=`` as an int64 tensor ``(B,)``: on the CPU, with values in ``1..T``, or on the input's ``device``."""
    if given is None:
        return None
    if not batched:
        raise ValueError("lengths: expected a batched 3-D input, got an unbatched 2-D one")
    # not on the default device; of no numbers torch would make floating-point ones
    kind = None if isinstance(given, Tensor) or len(given) else torch.int64
    checked = given if isinstance(given, Tensor) else torch.as_tensor(given, dtype=kind, device="cpu")
    if checked.dtype.is_floating_point or checked.dtype.is_complex or checked.dtype == torch.bool:
        raise TypeError(f"lengths: expected integers, got {checked.dtype}")
    on_cpu = checked.device.type == "cpu"
    if checked.dim() != 1 or (not on_cpu and checked.device != device):
        kind = f"{checked.dim()}D {checked.device.type} {checked.dtype}"
        raise RuntimeError(f"'lengths' argument should be a 1D CPU int64 tensor, but got {kind} tensor")
    if checked.shape[0] != batch:
        raise RuntimeError(
            f"Expected `len(lengths)` to be equal to batch_size, but got {checked.shape[0]} (batch_size={batch})"
        )
    checked = checked.to(torch.int64)
    # Where they are traced or mapped, or on another device, the values are not at hand; the engine checks them again.
    if batch and on_cpu and not tracing() and not torch._C._functorch.is_batchedtensor(checked):
        low, high = int(checked.min()), int(checked.max())
        if low <= 0:
            raise RuntimeError(
                "Length of all samples has to be greater than 0, but found an element in 'lengths' that is <= 0"
            )
        if high > steps:
            raise RuntimeError(f"lengths: expected at most {steps}, the number of steps of input, got {high}")
    return checked


def no_lengths_when_packed(given: object) -> None:
    """A PackedSequence brings its own lengths."""
    if given is not None:
        raise ValueError("lengths: expected None with a PackedSequence, which has its own")


def reset(given: Tensor, steps: int, batch: int, batched: bool, batch_first: bool, device: torch.device) -> Tensor:
    """``reset=`` as a bool tensor ``(T, B)`` from the caller's layout."""
    if not isinstance(given, Tensor):
        raise TypeError(f"reset: expected a Tensor, got {type(given).__name__}")
    if given.dtype != torch.bool:
        raise ValueError(f"reset: expected dtype torch.bool, got {given.dtype}")
    if given.device != device:
        raise RuntimeError(
            f"Input and reset tensors are not at the same device, found input tensor at {device} and reset tensor at "
            f"{given.device}"
        )
    expected = (steps,) if not batched else (batch, steps) if batch_first else (steps, batch)
    if tuple(given.shape) != expected:
        raise RuntimeError(f"Expected reset size {expected}, got {list(given.shape)}")
    if not batched:
        return given.unsqueeze(1)
    return given.t() if batch_first else given


def cell_dims(name: str, input: Tensor, hx: object) -> None:
    """Dimensions of a cell's input and state."""
    if input.dim() not in (1, 2):
        raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
    if hx is None:
        return
    named: list[tuple[str, Any]]
    if name == "LSTMCell":
        named = [(f"hx[{i}]", s) for i, s in enumerate(_two(name, hx, stacked=input.dim() == 1))]
    else:
        named = [("hidden", hx)]
    for which, s in named:
        if not isinstance(s, Tensor):
            raise TypeError(f"{name}: Expected {which} to be Tensor, got {type(s).__name__}")
        if s.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected {which} to be 1D or 2D, got {s.dim()}D instead")


def cell_sizes(cell: str, x: Tensor, state: tuple[Tensor, ...], params: Sequence[Tensor]) -> None:
    """Devices, dtypes and sizes of a cell's input ``(B, I)``, state ``(B, H)`` and parameters."""
    w_ih, w_hh = params[0], params[1]
    if x.shape[1] != w_ih.shape[1]:
        raise RuntimeError(f"input has inconsistent input_size: got {x.shape[1]} expected {w_ih.shape[1]}")
    for i, s in enumerate(state):
        if s.shape[0] != x.shape[0]:
            raise RuntimeError(f"Input batch size {x.shape[0]} doesn't match hidden{i} batch size {s.shape[0]}")
        if s.dim() != 2 or s.shape[1] != w_hh.shape[1]:
            got = s.shape[1 if s.dim() > 1 else 0]
            raise RuntimeError(f"hidden{i} has inconsistent hidden_size: got {got}, expected {w_hh.shape[1]}")
    _same_device_and_dtype(x, state, params, RuntimeError)


def autocast_enabled(device: str) -> bool:
    """Whether autocast acts on a type of device, which may be one that has no autocast."""
    if not torch._C._is_any_autocast_enabled():
        return False
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _same_device_and_dtype(
    x: Tensor, state: tuple[Tensor, ...], params: Sequence[Tensor], wrong_dtype: type[Exception]
) -> None:
    weight = params[0]
    if x.device != weight.device:
        raise RuntimeError(
            f"Input and parameter tensors are not at the same device, found input tensor at {x.device} and parameter "
            f"tensor at {weight.device}"
        )
    autocast = autocast_enabled(x.device.type)
    mixed = (x.dtype == torch.float32 or autocast) and _weights_alone_are_bfloat16(params)
    if x.dtype != weight.dtype and not autocast and not mixed:
        raise wrong_dtype(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). Convert input: "
            f"input.to({weight.dtype}), or convert model: model.to({x.dtype})"
        )
    for s in state:
        if s.device != x.device:
            raise RuntimeError(
                f"Input and hidden tensors are not at the same device, found input tensor at {x.device} and hidden "
                f"tensor at {s.device}"
            )
        if s.dtype != x.dtype and not autocast:
            raise RuntimeError(f"Expected hidden dtype {x.dtype}, got {s.dtype}")
    for i, p in enumerate(params):
        if p is None:
            raise TypeError(f"expected Tensor as element {i} in argument 2, but got NoneType")
        if p.device != weight.device or (p.dtype != weight.dtype and not mixed):
            raise RuntimeError(
                f"Expected every parameter to be {weight.dtype} on {weight.device}, got {p.dtype} on {p.device}"
            )
