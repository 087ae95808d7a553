"""``python -m fastrnn``: what this installation is, and whether it computes the right numbers on this machine."""

import argparse
import importlib.util
import platform
import sys
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

import fastrnn
from fastrnn import _C, _cpu, _cuda, _ops, _tune_command, nn, reference
from fastrnn._accuracy import allowed, away_from_the_kink, error
from fastrnn.explain import table

STEPS, BATCH, FEATURES, HIDDEN = 67, 5, 13, 37  # odd sizes: remainders at every width of vector
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def main() -> int:
    """Print the report and run the self-check, or a command; the exit status is 0 where all went well."""
    parser = argparse.ArgumentParser(
        prog="python -m fastrnn",
        description="Report versions, instruction sets and engines, then check outputs and gradients of every cell "
        "against the float64 reference: they may be off by at most twice (gradients: three times) what torch.nn's are. "
        "The exit status is 0 where all are right, else 1.",
        epilog="FASTRNN_CPU_ISA names the instruction set that the C++ engine is to use.",
    )
    _tune_command.add_parser(parser.add_subparsers(title="instead of that", metavar="COMMAND"))
    options = parser.parse_args()
    if hasattr(options, "run"):
        status: int = options.run(options)
        return status
    try:
        isa = _ops.cpu_isa()
    except (RuntimeError, ValueError) as complaint:
        print(f"fastrnn: {complaint}", file=sys.stderr)
        return 1
    triton = version("triton") if importlib.util.find_spec("triton") else "not installed"
    gpus = [
        f"{torch.cuda.get_device_name(i)}, {len(_cuda.facts_of(torch.device('cuda', i)).records)} times tuned"
        for i in range(torch.cuda.device_count())
    ]
    report = {
        "fastrnn": fastrnn.__version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton,
        "CPU": f"C++ engine with {isa}, of {', '.join(_ops.cpu_isas())}; {_threads()}, {_cpu.count()} times tuned",
        "machine": _C.cpu_machine(),
        "GPU": f"torch's own engine, or what tuning found faster: {'; '.join(gpus)}" if gpus else "none",
    }
    for name, value in report.items():
        print(f"{name:8} {value}")
    print()
    rows = [(name, str(dtype)[6:], *check(name, dtype)) for name in reference.CELLS for dtype in DTYPES]
    print(table([("cell", "dtype", "output error", "torch.nn's", "gradient error", "torch.nn's", "verdict"), *rows]))
    return 0 if all(row[-1] == "right" for row in rows) else 1


def _threads() -> str:
    threads, cores = torch.get_num_threads(), _C.cpu_cores()
    return f"{threads} threads" if threads <= cores else f"{threads} threads of torch's on {cores} cores"


def check(cell: str, dtype: torch.dtype) -> tuple[str, ...]:
    """A layer of both directions against the truth and torch.nn: the worst errors, of outputs and of gradients."""
    torch.manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device="cpu").to(dtype)

    cls: Any = {"lstm": nn.LSTM, "gru": nn.GRU}.get(cell, nn.RNN)
    options: dict[str, Any] = {"nonlinearity": cell[4:]} if cls is nn.RNN else {}
    options |= {"bidirectional": True, "device": "cpu", "dtype": dtype}
    layer = cls(FEATURES, HIDDEN, **options)
    stock = cls.stock_class(FEATURES, HIDDEN, **options)
    if cell == "rnn_relu":
        away_from_the_kink(layer)
    stock.load_state_dict(layer.state_dict())
    states = 2 if reference.CELLS[cell].has_c else 1
    inputs = [random(STEPS, BATCH, FEATURES), *(random(2, BATCH, HIDDEN) for _ in range(states))]
    upstream = [random(STEPS, BATCH, 2 * HIDDEN), *(random(2, BATCH, HIDDEN) for _ in range(states))]

    def run(module: Module) -> list[Tensor]:
        x, *state = leaves = [t.clone().requires_grad_() for t in inputs]
        y, after = module(x, tuple(state) if states == 2 else state[0])
        outputs = [y, *(after if states == 2 else [after])]
        return [*outputs, *torch.autograd.grad(outputs, [*leaves, *module.parameters()], upstream)]

    def truth() -> list[Tensor]:
        leaves = [t.detach().double().requires_grad_() for t in (*inputs, *layer.parameters())]
        x, *state = leaves[: 1 + states]
        h0, c0 = (*state, None)[:2]
        found = reference.layer(cell, x, h0, c0, leaves[1 + states :], bidirectional=True)
        outputs = [t for t in found[: 1 + states] if t is not None]
        return [*outputs, *torch.autograd.grad(outputs, leaves, [g.double() for g in upstream])]

    right, worst = True, {False: [0.0, 0.0], True: [0.0, 0.0]}  # by whether it is a gradient: ours, torch.nn's
    for i, results in enumerate(zip(run(layer), run(stock), truth(), strict=True)):
        ours, theirs, true = (t.detach() for t in results)
        gradient = i > states
        right &= error(ours, true) <= allowed(theirs, true, gradient)
        for k, result in enumerate((ours, theirs)):
            worst[gradient][k] = max(worst[gradient][k], error(result, true))
    return (*(f"{e:.1e}" for e in (*worst[False], *worst[True])), "right" if right else "WRONG")


if __name__ == "__main__":
    sys.exit(main())
