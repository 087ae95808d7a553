"""Instruction sets: how fastrnn and torch are capped alike, and which ones they use.

Caps are read once, when the libraries are loaded, so that what is capped runs in a process of its own.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence

import torch

from fastrnn import _ops

# fastrnn, ATen, oneDNN and MKL each have a variable. MKL takes its cap on Intel's CPUs alone, and the lowest of its
# paths, MKL_CBWR, on every maker's.
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
WIDE = ("amx", "avx512bf16", "avx512")  # which compute float32 alike


def environment(isa: str) -> dict[str, str]:
    """That of a process that is capped so, and not otherwise."""
    return {name: value for name, value in os.environ.items() if name not in VARIABLES} | CAPS[isa]


def capped(given: Mapping[str, str] = os.environ) -> str | None:
    """The instruction set that a process with this environment is capped to, all libraries alike; None: to none."""
    own = {name: given[name] for name in VARIABLES if name in given}
    return next((isa for isa, caps in CAPS.items() if caps == own), None)


def refusal(isa: str) -> str | None:
    """Why nothing can be capped to it here, if so."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "torch's libraries can be capped on x86 alone"
    if isa in _ops.cpu_isas():
        return None
    return f"this CPU does not have {isa}, only {', '.join(_ops.cpu_isas())}"


def run(isa: str | None, arguments: Sequence[str]) -> int | None:
    """Run ``python -m bench`` with these arguments, capped; its exit status, or None where this process is capped."""
    if isa is None or isa == capped():
        return None
    reason = refusal(isa)
    if reason is not None:
        print(f"bench: --isa {isa}: {reason}", file=sys.stderr)
        return 2
    return subprocess.run([sys.executable, "-m", "bench", *arguments], env=environment(isa), check=False).returncode


def torchs() -> str:
    """What torch uses here: ATen's instruction set and, where there is one, oneDNN's cap."""
    aten = torch.backends.cpu.get_cpu_capability()
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return f"{aten}, oneDNN {cap}" if cap else aten


def without_cap() -> str | None:
    """Why those do not take part that cannot be capped: ONNX Runtime takes all that the CPU has."""
    isa, best = capped(), _ops.cpu_isas()[0]
    if isa is None or isa == best or {isa, best} <= set(WIDE):
        return None
    return f"it cannot be capped to {isa}: it uses whatever the CPU has"
