"""Checks of what a caller gave, with torch.nn's exception types and wording: expected against got."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn._dynamo import tracing
from fastrnn._onednn import takes_lstm
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


def packed(x: object, batch_sizes: object) -> None:
    """What a PackedSequence holds: NamedTuples take anything."""
    if not isinstance(x, Tensor) or not isinstance(batch_sizes, Tensor):
        got = f"{type(x).__name__} and {type(batch_sizes).__name__}"
        error = AttributeError if x is None else TypeError  # as torch.nn, which asks for its dtype
        raise error(f"PackedSequence: Expected data and batch_sizes to be Tensor, got {got}")
    if batch_sizes.dim() != 1 or batch_sizes.dtype.is_floating_point:
        got = f"{batch_sizes.dim()}D {batch_sizes.dtype}"
        raise TypeError(f"PackedSequence: Expected batch_sizes to be 1D torch.int64, got {got}")
    if batch_sizes.shape[0] == 0:
        raise IndexError("PackedSequence: Expected batch_sizes of at least one step, got none")


def hidden(name: str, hx: object, batched: bool, packed: bool) -> tuple[Tensor, ...]:
    """``hx`` as a tuple of ``(num_layers*D, B, H)`` tensors: two for an LSTM, one otherwise, none where it is None.

    What torch.nn cannot make sense of raises the same type there, mostly for want of an attribute.
    """
    if hx is None:
        return ()
    if name == "LSTM" and packed:
        pair_in_tuple(name, hx)
    state: tuple[Any, ...] = two(name, hx) if name == "LSTM" else (hx,)
    for s in state:
        if not isinstance(s, Tensor):
            no_tensor = TypeError if packed and (name == "LSTM" or hasattr(s, "size")) else AttributeError
            raise no_tensor(f"{name}: Expected hx to be Tensor, got {type(s).__name__}")
    wanted = 2 if not packed and not batched else 3
    if (not packed or name == "LSTM") and any(s.dim() != wanted for s in state):
        batchedness = "packed" if packed else "batched 3-D" if batched else "unbatched 2-D"
        wrong = IndexError if packed and any(s.dim() < 3 for s in state) else RuntimeError
        raise wrong(f"For {batchedness} input, {_should_be(name, wanted, state)}")
    return state if batched else tuple(s.unsqueeze(1) for s in state)


def _should_be(name: str, wanted: int, state: Sequence[Tensor]) -> str:
    dims = [f"{s.dim()}-D" for s in state]
    if name.startswith("LSTM"):
        return f"hx and cx should also be {wanted}-D but got ({dims[0]}, {dims[1]}) tensors"
    return f"{'hidden' if name.endswith('Cell') else 'hx'} should also be {wanted}-D but got {dims[0]} tensor"


def two(name: str, hx: Any) -> tuple[Any, Any]:
    """An LSTM's two states, looked up as torch.nn looks them up: in anything that has them."""
    try:
        first = hx[0]
        return first, (hx[1] if isinstance(first, Tensor) else first)
    except (IndexError, KeyError, TypeError) as error:
        kind = type(hx).__name__
        got = f"{kind} of shape {tuple(hx.shape)}" if isinstance(hx, Tensor) else kind
        got += f" of {len(hx)}" if isinstance(hx, tuple | list) else ""
        raise type(error)(f"{name}: Expected hx to be a tuple of two tensors, got {got}") from error


def pair_in_tuple(name: str, hx: object) -> None:
    """An LSTM's states come in a tuple or list of two; one sequence's may come in anything that has them."""
    if not isinstance(hx, tuple | list):
        raise TypeError(f"{name}: Expected hx to be a tuple of two tensors, got {type(hx).__name__}")
    if len(hx) != 2:
        raise RuntimeError(f"{name.lower().replace('cell', '_cell')} expects two hidden states")


def sizes(
    stack: Stack,
    x: Tensor,
    batch_sizes: Tensor | None,
    state: tuple[Tensor, ...],
    params: Sequence[Tensor],
    hx: object = None,
) -> None:
    """Devices, dtypes and sizes of input (time-major or packed), state and parameters, in torch.nn's order.

    ``hx`` is what the state came in, for a batch.
    """
    dims = 3 if batch_sizes is None else 2
    w_ih, w_hh = params[0], params[1]
    packed_lstm = stack.cell == "lstm" and batch_sizes is not None
    _input_dtype(x, params, RuntimeError if packed_lstm else ValueError)
    if x.dim() != dims:
        raise RuntimeError(f"input must have {dims} dimensions, got {x.dim()}")
    if x.shape[-1] != w_ih.shape[1]:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {w_ih.shape[1]}, got {x.shape[-1]}")
    if state:
        batch = x.shape[1] if batch_sizes is None else batch_sizes[0].item()
        layers, cell_size = stack.num_layers * stack.directions, w_ih.shape[0] // CELLS[stack.cell].gates
        for i, s in enumerate(state):
            expected = (layers, batch, w_hh.shape[1] if i == 0 else cell_size)
            if tuple(s.shape) != expected:
                which = f"hidden[{i}]" if CELLS[stack.cell].has_c else "hidden"
                raise RuntimeError(f"Expected {which} size {expected}, got {list(s.shape)}")
    if hx is not None and CELLS[stack.cell].has_c:
        pair_in_tuple(NAMES[stack.cell], hx)
    if x.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    _devices_and_dtypes(x, state, params, cell=False, packed=batch_sizes is not None)


def foreign(x: Tensor, state: Sequence[Tensor]) -> str | None:
    """Why checked tensors are for torch's layers alone, or None: what it computes by accident is someone's habit."""
    for t in (x, *state):
        if t.layout is not torch.strided:
            return f"fastrnn's own engines take dense tensors, not {str(t.layout).removeprefix('torch.')} ones"
    if any(s.dtype != x.dtype for s in state) and not autocast_enabled(x.device.type):
        return f"fastrnn's own engines take states of the input's dtype, {str(x.dtype).removeprefix('torch.')}"
    return None


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
    dtype = None if isinstance(given, Tensor) or len(given) else torch.int64
    checked = given if isinstance(given, Tensor) else torch.as_tensor(given, dtype=dtype, device="cpu")
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


def cell_dims(name: str, input: Tensor, hx: Any) -> tuple[Any, ...]:
    """Dimensions of a cell's input and state; the state as a tuple."""
    if input.dim() not in (1, 2):
        raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
    if hx is None:
        return ()
    named: list[tuple[str, Any]] = [("hidden", hx)]
    if name == "LSTMCell":
        try:
            named = [(f"hx[{i}]", s) for i, s in enumerate(hx)]
        except TypeError as error:
            raise TypeError(f"{name}: Expected hx to be a tuple of two tensors, got {type(hx).__name__}") from error
    for which, s in named:
        if not isinstance(s, Tensor):
            raise AttributeError(f"{name}: Expected {which} to be Tensor, got {type(s).__name__}")
        if s.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected {which} to be 1D or 2D, got {s.dim()}D instead")
    if name != "LSTMCell":
        return (hx,)
    if input.dim() == 2:
        pair_in_tuple(name, hx)
    return two(name, hx)


def cell_sizes(cell: str, x: Tensor, state: tuple[Tensor, ...], params: Sequence[Tensor]) -> None:
    """Devices, dtypes and sizes of a cell's input ``(B, I)``, state ``(B, H)`` and parameters."""
    w_ih, w_hh = params[0], params[1]
    if x.shape[1] != w_ih.shape[1]:
        raise RuntimeError(f"input has inconsistent input_size: got {x.shape[1]} expected {w_ih.shape[1]}")
    if any(s.dim() != 2 for s in state):  # 3: one sequence's, which was given a batch
        batched = all(s.dim() < 3 for s in state)
        given = state if batched else [s[0] for s in state]
        kind, wanted = ("batched 2-D", 2) if batched else ("unbatched 1-D", 1)
        raise RuntimeError(f"For {kind} input, {_should_be(f'{NAMES[cell]}Cell', wanted, given)}")
    for i, s in enumerate(state):
        if s.shape[0] != x.shape[0]:
            raise RuntimeError(f"Input batch size {x.shape[0]} doesn't match hidden{i} batch size {s.shape[0]}")
        if s.shape[1] != w_hh.shape[1]:
            raise RuntimeError(f"hidden{i} has inconsistent hidden_size: got {s.shape[1]}, expected {w_hh.shape[1]}")
    _input_dtype(x, params, RuntimeError)
    _devices_and_dtypes(x, state, params, cell=True)


def autocast_enabled(device: str) -> bool:
    """Whether autocast acts on a type of device, which may be one that has no autocast."""
    if not torch._C._is_any_autocast_enabled():
        return False
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _mixed(x: Tensor, params: Sequence[Tensor]) -> bool:
    """Whether the weights alone are bfloat16, and that is allowed."""
    return (x.dtype == torch.float32 or autocast_enabled(x.device.type)) and _weights_alone_are_bfloat16(params)


def _input_dtype(x: Tensor, params: Sequence[Tensor], wrong: type[Exception]) -> None:
    weight = params[0]
    if x.dtype != weight.dtype and not autocast_enabled(x.device.type) and not _mixed(x, params):
        raise wrong(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). Convert input: "
            f"input.to({weight.dtype}), or convert model: model.to({x.dtype})"
        )


def _takes_cell_state(x: Tensor, dtype: torch.dtype, cell: bool, packed: bool) -> bool:
    """Whether torch computes with a cell state of another dtype than the input's."""
    if cell:
        return True
    if not packed and x.dtype in (torch.float32, torch.bfloat16) and x.numel() and takes_lstm(x.dtype):
        return x.dtype == torch.bfloat16 and dtype == torch.float32
    return torch.promote_types(dtype, x.dtype) == x.dtype


def _devices_and_dtypes(
    x: Tensor, state: tuple[Tensor, ...], params: Sequence[Tensor], *, cell: bool, packed: bool = False
) -> None:
    weight = params[0]
    if x.device != weight.device:
        raise RuntimeError(
            f"Input and parameter tensors are not at the same device, found input tensor at {x.device} and parameter "
            f"tensor at {weight.device}"
        )
    autocast = autocast_enabled(x.device.type)
    for i, s in enumerate(state):
        if s.device != x.device:
            raise RuntimeError(
                f"Input and hidden tensors are not at the same device, found input tensor at {x.device} and hidden "
                f"tensor at {s.device}"
            )
        if s.dtype != x.dtype and not autocast and not (i == 1 and _takes_cell_state(x, s.dtype, cell, packed)):
            raise RuntimeError(f"Expected hidden dtype {x.dtype}, got {s.dtype}")
    mixed = _mixed(x, params)
    for i, p in enumerate(params):
        if p is None:
            raise TypeError(f"expected Tensor as element {i} in argument 2, but got NoneType")
        if p.device != weight.device or (p.dtype != weight.dtype and not mixed):
            raise RuntimeError(
                f"Expected every parameter to be {weight.dtype} on {weight.device}, got {p.dtype} on {p.device}"
            )
