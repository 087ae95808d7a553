"""Tiny layers, forward and backward, by every strategy of the kernels for GPUs: what compute-sanitizer watches.

``compute-sanitizer --tool memcheck python -m bench.sanitize``. Sizes are no multiples of a tile's, so that every mask
is at work. Results are only looked at for NaN: whether they are right is for the tests to say.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any

import torch

import fastrnn
from bench.contestants import LAYERS
from bench.plan import DTYPES

STEPS, BATCH, INPUT, HIDDEN = 5, 3, 7, 20
KINDS = (("float32", "full"), ("float16", "lean"))  # dtypes and tapes: all pairs would compile twice as long
STRATEGIES: dict[str, dict[str, Any]] = {
    "resident": {"strategy": "resident", "warps": 8},
    "grid": {"strategy": "grid"},
    "stepwise": {"strategy": "stepwise"},
    "stepwise, products by torch": {"strategy": "stepwise", "product": "torch"},
}


def main(arguments: list[str] | None = None) -> int:
    """Run the cases; 0 is success, 1 a result that is not finite, 2 that there is nothing to run on."""
    parser = argparse.ArgumentParser(prog="python -m bench.sanitize", description="Tiny layers for compute-sanitizer.")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--cells", nargs="+", choices=list(LAYERS), default=list(LAYERS), help="default: all")
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES), metavar="S")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench.sanitize: there is no CUDA device here", file=sys.stderr)
        return 2
    if find_spec("fastrnn.kernels.plan") is None:
        print("bench.sanitize: fastrnn has no kernels for GPUs", file=sys.stderr)
        return 2
    bad = [name for name, finite in _cases(options) if not finite]
    for name in bad:
        print(f"not finite: {name}", file=sys.stderr)
    return 1 if bad else 0


def _cases(options: argparse.Namespace) -> Iterator[tuple[str, bool]]:
    """Each case by name, and whether its results are finite."""
    for cell in options.cells:
        for dtype, tape in KINDS:
            for strategy in options.strategies:
                name = f"{cell} {dtype} {strategy}, {tape} tape"
                print(name, flush=True)
                with _forced(STRATEGIES[strategy]):
                    yield name, _run(cell, DTYPES[dtype], tape, options.device)


def _forced(choices: dict[str, Any]) -> AbstractContextManager[None]:
    from fastrnn.kernels.plan import forced

    return forced(**choices)


def _run(cell: str, dtype: torch.dtype, tape: str, device: str) -> bool:
    """A layer of two directions, on sequences of different lengths, with resets, in inference and in training."""
    torch.manual_seed(0)
    options = {"nonlinearity": cell.removeprefix("rnn_")} if cell.startswith("rnn_") else {}
    layer = getattr(fastrnn, LAYERS[cell])(INPUT, HIDDEN, bidirectional=True, dtype=dtype, **options).to(device)
    layer.tape = tape
    reset = torch.rand(STEPS, BATCH, device=device) < 0.3
    lengths = torch.tensor([STEPS, 1, STEPS - 1], device=device)
    x = torch.randn(STEPS, BATCH, INPUT, device=device).to(dtype).requires_grad_()
    with torch.no_grad():
        inferred, _ = layer(x, lengths=lengths, reset=reset)
    y, state = layer(x, lengths=lengths, reset=reset)
    outputs = [y, *(state if isinstance(state, tuple) else [state])]
    gradients = torch.autograd.grad(outputs, [x, *layer.parameters()], [torch.randn_like(v) for v in outputs])
    results = [inferred, *outputs, *gradients]
    return all(bool(torch.isfinite(result).all()) for result in results)


if __name__ == "__main__":
    sys.exit(main())
