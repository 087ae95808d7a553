"""``python -m fastrnn tune``: the command."""

import argparse
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import torch

from fastrnn import _cuda
from fastrnn._arguments import positive_float, positive_int
from fastrnn.kernels import measured
from fastrnn.kernels.measured import Work
from fastrnn.kernels.plan import tf32_allowed, tf32_products
from fastrnn.reference import CELLS
from fastrnn.tune import SECONDS, facts_of, tune_works, works_of

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
MODES = {"inference": False, "training": True}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command's own arguments."""
    parser = commands.add_parser(
        "tune",
        help="measure on this machine which way to compute a layer is the fastest, and plan by it from then on",
        description="Measure torch's layers and all plans of fastrnn's, on a GPU or on the CPU, for the sizes named or "
        "for the layers of a model, and keep the fastest of those that are right for all later plans: of layers with "
        "up to as many rows, but more than half, and at least half the steps.",
        epilog=f"What was measured is kept in {measured.cache_file()} (in the folder that FASTRNN_CACHE names, if it "
        "does); delete the file to forget it. float32 is measured as torch.backends.cudnn.allow_tf32 has it. On a "
        "CPU, what is found holds for the number of threads that it was measured with.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--shape", nargs="+", type=shape, default=[], metavar="B,T,I,H", help="rows, steps, sizes")
    parser.add_argument(
        "--model",
        metavar="MODULE:FUNCTION",
        help="a function without arguments that returns a model on the device and a tuple of its inputs",
    )
    parser.add_argument("--list", action="store_true", help="show what is known of the device, and measure nothing")
    parser.add_argument("--cell", nargs="+", choices=CELLS, default=["lstm"], help="of shapes (default: lstm)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"], help="of shapes (default: float32)")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES), help="default: both")
    parser.add_argument("--layers", type=positive_int, default=1, help="of shapes (default: 1)")
    parser.add_argument("--bidirectional", action="store_true", help="shapes with both directions")
    parser.add_argument("--packed", action="store_true", help="sequences that differ in length, T/10 to T")
    parser.add_argument("--tf32", choices=("on", "off"), help="allow products of float32 to be rounded, or not")
    parser.add_argument("--seconds", type=positive_float, default=SECONDS, help="of timing each (default: %(default)s)")
    parser.add_argument(
        "--device",
        type=device,
        metavar="cpu|N",
        help="for shapes: the CPU, or a GPU's number (default: 0, or cpu)",
    )
    parser.add_argument("--threads", type=positive_int, help="of a CPU (default: as many as torch takes)")
    parser.add_argument(
        "--here",
        action="store_true",
        help="try plans in this process, not in one of their own: for a GPU in exclusive mode, which takes one alone. "
        "A kernel that crashes ends it all then",
    )


def device(text: str) -> torch.device:
    """The CPU, or a GPU."""
    return torch.device("cpu") if text == "cpu" else torch.device("cuda", int(text))


def shape(text: str) -> tuple[int, ...]:
    """B, T, I and H."""
    sizes = tuple(map(positive_int, text.split(",")))
    if len(sizes) != 4:
        raise argparse.ArgumentTypeError(f"expected B,T,I,H, got {text}")
    return sizes


def run(options: argparse.Namespace) -> int:
    """Measure what is named; the exit status is 2 where that cannot be done."""
    device: torch.device = options.device or _default()
    if device.type == "cuda" and (why := _why_no_gpu(device)):
        return _refuse(why)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.list:
        for record in facts_of(device).records:
            times = ", ".join(f"{name} {1e3 * seconds:.3f} ms" for name, seconds in record.seconds)
            print(f"{record.work}: {times} ({record.source})")
        return 0
    if not options.shape and options.model is None:
        return _refuse("name shapes (--shape B,T,I,H) or a model (--model MODULE:FUNCTION)")
    if options.tf32 is not None:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = options.tf32 == "on"
    wanted = [(work, device) for work in works(options, device.type == "cpu")]
    if options.model is not None:
        try:
            model, inputs = _made(options.model)
            wanted += works_of(model, inputs, {}, [MODES[mode] for mode in options.mode])
        except (ImportError, AttributeError, ValueError) as problem:
            return _refuse(f"--model {options.model}: {problem}")
    try:
        print(tune_works(wanted, options.seconds, options.here))
    except (RuntimeError, OSError) as problem:  # of the device, or of the cache
        print(f"python -m fastrnn tune: {problem}; what was measured before is kept", file=sys.stderr)
        return 1
    print(f"kept in {measured.cache_file()}")
    return 0


def _default() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _why_no_gpu(device: torch.device) -> str | None:
    if not torch.cuda.is_available():
        return "there is no GPU that torch can use (torch.cuda.is_available() is False)"
    if not _cuda.HAS_TRITON:
        return "the kernels for GPUs need Triton: pip install triton"
    if not 0 <= device.index < torch.cuda.device_count():
        return f"--device {device.index}: there are {torch.cuda.device_count()}, numbered from 0"
    return None


def works(options: argparse.Namespace, on_cpu: bool) -> Iterator[Work]:
    """What the arguments name."""
    for batch, steps, inputs, hidden in options.shape:
        for cell in options.cell:
            for dtype in options.dtype:
                for mode in options.mode:
                    yield Work(
                        *(cell, steps, batch, inputs, hidden, DTYPES[dtype]),
                        directions=2 if options.bidirectional else 1,
                        layers=options.layers,
                        trains=MODES[mode],
                        packed=options.packed,
                        tf32=not on_cpu and tf32_allowed(DTYPES[dtype]),
                        tf32_products=not on_cpu and tf32_products(DTYPES[dtype]),
                    )


def _made(name: str) -> tuple[Any, Any]:
    """What the function of that name returns, found from the working folder as ``python -m`` finds modules."""
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError("expected MODULE:FUNCTION")
    model, inputs = getattr(importlib.import_module(module), function)()
    if not isinstance(model, torch.nn.Module) or not isinstance(inputs, (tuple, list)):
        raise ValueError("the function has to return a module and a tuple of its inputs")
    return model, inputs


def _refuse(why: str) -> int:
    print(f"python -m fastrnn tune: {why}", file=sys.stderr)
    return 2
