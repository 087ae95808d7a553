"""The CPU's tests under every instruction set that this CPU has: ``python tests/isas.py [arguments of pytest]``.

fastrnn and torch are capped alike, ATen, oneDNN and MKL each by its own variable; the best set is the machine as it is.
MKL takes its cap on Intel's CPUs alone, and the lowest of its paths, MKL_CBWR, on every maker's.
"""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
VARIABLES = ("FASTRNN_CPU_ISA", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
CAPS = {
    isa: dict(zip(VARIABLES, (isa, *torchs), strict=False))
    for isa, *torchs in (
        ("amx", "avx512", "AVX512_CORE_AMX", "AVX512_E4"),
        ("avx512bf16", "avx512", "AVX512_CORE_BF16", "AVX512_E3"),
        ("avx512", "avx512", "AVX512_CORE", "AVX512"),
        ("avx2", "avx2", "AVX2", "AVX2"),
        ("base", "default", "SSE41", "SSE4_2", "COMPATIBLE"),
    )
}
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
