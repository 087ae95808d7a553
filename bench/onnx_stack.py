"""A stack as ONNX Runtime computes it: an ONNX graph of the same weights, built operator by operator.

Both packages are optional. They compute inference alone, and float32 alone is measured: there is no bfloat16.
"""

from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

OPSET, IR = 17, 8  # old enough for every ONNX Runtime that runs on the Pythons we support
# The order of the gates in the weights: torch's LSTM has i f g o, ONNX i o f c; torch's GRU r z n, ONNX z r h.
ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}
ACTIVATION = {"RNN_TANH": "Tanh", "RNN_RELU": "Relu"}


def unavailable(dtype: str) -> str | None:
    """Why there is no such stack here, if so."""
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        return f"not installed (pip install {' '.join(missing)})"
    return None if dtype == "float32" else "measured in float32 only"


def version() -> str:
    """Of ONNX Runtime."""
    return metadata.version("onnxruntime")


class OnnxStack(nn.Module):
    """The same stack in ONNX Runtime, called like the stack itself with ``x (T, B, I)``."""

    inference_only = True

    def __init__(self, stack: nn.RNNBase) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would slow the other contestants
        self.is_lstm = stack.mode == "LSTM"
        self.session = onnxruntime.InferenceSession(
            graph(stack).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | tuple[Tensor, ...]]:
        """``x (T, B, I)``, read where it lies, to ``y (T, B, D*H)`` and the last states."""
        y, *states = (torch.from_numpy(array) for array in self.session.run(None, {"x": x.numpy()}))
        return y, tuple(states) if self.is_lstm else states[0]


def graph(stack: nn.RNNBase) -> Any:
    """The ONNX model of a stack: its layers one after the other, ``y`` and the last states ``h_n``, ``c_n``."""
    from onnx import TensorProto, helper, numpy_helper

    operator = stack.mode.partition("_")[0]
    directions = 2 if stack.bidirectional else 1
    options: dict[str, Any] = {"hidden_size": stack.hidden_size}
    options["direction"] = "bidirectional" if stack.bidirectional else "forward"
    if operator == "GRU":
        options["linear_before_reset"] = 1  # the reset gate after the product, as torch has it
    if operator == "RNN":
        options["activations"] = [ACTIVATION[stack.mode]] * directions
    states = ["h", "c"] if operator == "LSTM" else ["h"]
    constants = {"shape": torch.tensor([0, 0, -1])}  # the first two sizes as they are, the rest as one
    nodes, value = [], "x"
    for layer in range(stack.num_layers):
        weights = stack.all_weights[layer * directions : (layer + 1) * directions]
        names = [f"{kind}{layer}" for kind in ("W", "R", "B")]
        constants |= dict(zip(names, _reordered(weights, stack.mode), strict=True))
        outputs = [f"{kind}{layer}" for kind in ("Y", *states)]
        nodes.append(helper.make_node(operator, [value, *names], outputs, **options))
        # Y is (T, D, B, H)
        nodes.append(helper.make_node("Transpose", [f"Y{layer}"], [f"steps{layer}"], perm=[0, 2, 1, 3]))
        value = "y" if layer == stack.num_layers - 1 else f"y{layer}"
        nodes.append(helper.make_node("Reshape", [f"steps{layer}", "shape"], [value]))
    for state in states:
        own = [f"{state}{layer}" for layer in range(stack.num_layers)]
        nodes.append(helper.make_node("Concat", own, [f"{state}_n"], axis=0))

    def tensor(name: str, *sizes: str | int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)

    hidden = stack.hidden_size
    results = [tensor("y", "T", "B", directions * hidden)]
    results += [tensor(f"{state}_n", stack.num_layers * directions, "B", hidden) for state in states]
    stored = [numpy_helper.from_array(value.numpy(), name) for name, value in constants.items()]
    body = helper.make_graph(nodes, "stack", [tensor("x", "T", "B", stack.input_size)], results, stored)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)


def _reordered(weights: list[list[Tensor]], mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """W, R and B of one layer, ``(D, ...)`` each, the gates in ONNX's order; B is both biases, one after the other."""

    def gates(weight: Tensor) -> Tensor:
        parts = weight.detach().chunk(len(ORDER[mode]))
        return torch.cat([parts[k] for k in ORDER[mode]])

    by_kind = [[gates(weight) for weight in kind] for kind in zip(*weights, strict=True)]
    w, r, b_ih, b_hh = (torch.stack(kind) for kind in by_kind)
    return w, r, torch.cat([b_ih, b_hh], 1)
