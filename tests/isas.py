"""The CPU's tests under every instruction set that this CPU has: ``python tests/isas.py [arguments of pytest]``.

fastrnn and torch are capped alike, as for benchmarks (bench/isas.py); the best set is the machine as it is.
"""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS.parent))

from bench.isas import CAPS, VARIABLES  # noqa: E402

# What the C++ engine computes, and autograd with it. The others have no numbers of it, or train for them.
ENGINE = [
    "autocast",
    "autograd",
    "compile",
    "convert",
    "copies",
    "determinism",
    "engine",
    "errors",
    "explain",
    "func",
    "fuzz",
    "gradient_flow",
    "graphs",
    "half_weights",
    "init",
    "main",
    "nn",
    "nonfinite",
    "operators",
    "properties",
    "reference",
    "routes",
    "shortcut",
    "stream",
    "tbptt",
    "training",
    "weight_gradients",
    "weights",
]


def main(arguments: list[str]) -> int:
    """Run the tests once for each instruction set; the exit status says whether all passed."""
    from fastrnn import _ops

    best, *others = _ops.cpu_isas()
    uncapped = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    files = [str(TESTS / f"test_{name}.py") for name in ENGINE]
    failed = []
    for isa in (best, *others):
        caps = {} if isa == best else CAPS[isa]
        print(f"{isa}: {' '.join(f'{name}={value}' for name, value in caps.items()) or 'as it is'}", flush=True)
        done = subprocess.run([sys.executable, "-m", "pytest", *files, *arguments], env=uncapped | caps, check=False)
        if done.returncode:
            failed.append(isa)
    print(f"failed with {', '.join(failed)}" if failed else f"passed with each of {', '.join((best, *others))}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
