"""Triton kernels compiled without a GPU, and what their machine code costs.

Triton brings the assemblers of NVIDIA and AMD with it, so that registers, spills, shared memory and the instructions of
the time loop are known on any machine. Only time is not. A process that interprets kernels (``TRITON_INTERPRET=1``)
cannot compile them; a :class:`Report` is plain data, so that a pool of processes may compile.
"""

import contextlib
import io
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from bench.assembly import AMDGCN, SASS, Instruction, Listing


@dataclass(frozen=True)
class Target:
    """A kind of GPU, and what one block of threads may have of it.

    Attributes:
        backend, arch, warp: as Triton knows it; threads of a warp.
        shared: bytes of shared memory.
        registers, block_registers: of a thread, and of all threads together.
    """

    backend: Literal["cuda", "hip"]
    arch: int | str
    warp: int
    shared: int
    registers: int
    block_registers: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163 << 10, 255, 64 << 10),
    "sm_86": Target("cuda", 86, 32, 99 << 10, 255, 64 << 10),
    "sm_90": Target("cuda", 90, 32, 227 << 10, 255, 64 << 10),
    "sm_100": Target("cuda", 100, 32, 227 << 10, 255, 64 << 10),
    "sm_120": Target("cuda", 120, 32, 99 << 10, 255, 64 << 10),
    "gfx942": Target("hip", "gfx942", 64, 64 << 10, 512, 128 << 10),
}

# Which opcodes count as what, by the whole of their first part (NVIDIA) or by their beginning (AMD).
OPCODES = {
    "cuda": {
        "global_loads": r"(LDG|LD|LDGSTS|UTMALDG|UBLKCP)$",
        "global_stores": r"(STG|ST|UTMASTG)$",
        "matrix_loads": r"LDSM$",
        "shared_loads": r"LDS$",
        "shared_stores": r"(STS|STSM)$",
        "local": r"(LDL|STL)$",
        "barriers": r"(BAR|UCGABAR_ARV|UCGABAR_WAIT)$",
        "atomics": r"(ATOM|ATOMG|RED|REDG)$",
        "mufu": r"MUFU$",
        "ffma": r"FFMA2?$",
    },
    "hip": {
        "global_loads": r"(global|buffer|flat|s|s_buffer)_load",
        "global_stores": r"(global|buffer|flat)_store",
        "shared_loads": r"ds_(read|load)",
        "shared_stores": r"ds_(write|store)",
        "local": r"scratch_(load|store)",
        "barriers": r"s_barrier",
        "atomics": r"(global|buffer|flat)_atomic",
        "mufu": r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_f",
        "ffma": r"v_(fma|fmac|pk_fma|pk_fmac)_f32",
    },
}
# Such as HMMA.16816 and HGMMA.64x16x16, or mfma_f32_16x16x16_bf16: the kind and the shape.
TENSOR = {"cuda": r"([A-Z]*MMA(?:\.\d[\dx]+)?)", "hip": r"v_(s?mfma\w*)"}


@dataclass(frozen=True)
class Counts:
    """Instructions of a kernel or of one of its loops, once through, by kind.

    Attributes:
        instructions: all of them.
        tensor: of tensor cores, by kind and shape.
        global_loads, global_stores, atomics: of global memory.
        shared_loads, shared_stores: of shared memory (LDS and STS, or ds_read and ds_write).
        matrix_loads: of shared memory, into the layout of tensor cores (LDSM; NVIDIA only).
        local: loads and stores of a thread's own memory, which is where spilled registers are.
        barriers: of a block's threads.
        mufu: exponentials, reciprocals and the like.
        ffma: fused multiply-adds in float32.
    """

    instructions: int = 0
    tensor: Mapping[str, int] = field(default_factory=dict)
    global_loads: int = 0
    global_stores: int = 0
    shared_loads: int = 0
    matrix_loads: int = 0
    shared_stores: int = 0
    local: int = 0
    barriers: int = 0
    atomics: int = 0
    mufu: int = 0
    ffma: int = 0

    def tensor_cores(self, kind: str = "") -> int:
        """Tensor-core instructions whose kind begins so: all of them, those of ``"HMMA"``, those of ``"mfma_f32"``."""
        return sum(times for name, times in self.tensor.items() if name.startswith(kind))


@dataclass(frozen=True)
class Report:
    """What a compiled kernel is made of; memory in bytes, per block of threads (spills, stack: per thread)."""

    kernel: str
    target: str
    warps: int
    registers: int
    spills: int
    stack: int
    shared: int
    whole: Counts
    loops: tuple[Counts, ...]  # the largest first
    innermost: int | None  # of loops, the largest that has no loop within
    ptx: str = field(repr=False)  # empty but for NVIDIA
    assembly: str = field(repr=False)
    in_turns: bool = False  # whether the loop over time is within one over tiles

    @property
    def limits(self) -> Target:
        """What the target has."""
        return TARGETS[self.target]

    @property
    def block_registers(self) -> int:
        """Registers of all threads of a block: a warp gets them in eights for each of its threads."""
        return -(-self.registers // 8) * 8 * self.warps * self.limits.warp

    def loop(self, which: Literal["time", "outermost", "innermost"] = "time") -> Counts:
        """What one pass through a loop executes, slow paths included that lead back into it.

        A grid barrier is a loop as well, within the time loop: that is the outermost or, where a kernel goes through
        tiles in a loop of its own, the smallest with all products.
        """
        if self.innermost is None:
            raise LookupError(f"{self.kernel} has no loop on {self.target}")
        if which == "innermost":
            return self.loops[self.innermost]
        products = [loop.tensor_cores() or loop.ffma for loop in self.loops]
        nested = self.in_turns and which == "time"
        return self.loops[max(place for place, n in enumerate(products) if n == max(products)) if nested else 0]


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    target: str,
    *,
    num_warps: int = 4,
    num_stages: int = 3,
    divisible: Collection[str] = (),
    **options: Any,
) -> Report:
    """Compile a kernel for a GPU that need not be here.

    Args:
        kernel: a function under ``triton.jit``, or Gluon's ``jit``.
        signature: Triton's types of the arguments that are known at run time, such as ``"*bf16"`` and ``"i32"``.
        constants: the values of the others.
        target: one of :data:`TARGETS`.
        num_warps, num_stages: as at a launch.
        divisible: integer arguments that are multiples of 16; pointers are taken to be, as torch allocates them so.
        options: further options of a launch, such as ``maxnreg``.
    """
    source, gpu, settings = given(
        kernel, signature, constants, target, num_warps=num_warps, num_stages=num_stages, divisible=divisible, **options
    )
    limits = TARGETS[target]
    with _from_scratch() as log:
        compiled = triton.compile(source, target=gpu, options=settings)
    costs = _nvidia_costs(log.getvalue()) if limits.backend == "cuda" else _amd_costs(compiled.asm["amdgcn"])
    assembly = _disassembled(compiled) if limits.backend == "cuda" else compiled.asm["amdgcn"]
    listing = Listing(assembly, SASS if limits.backend == "cuda" else AMDGCN)
    nested = [any(inner < outer for inner in listing.loops) for outer in listing.loops]
    return Report(
        kernel=kernel.__name__,
        target=target,
        warps=num_warps,
        shared=compiled.metadata.shared,
        whole=_count(listing.instructions, limits.backend),
        loops=tuple(
            _count((listing.instructions[index] for index in sorted(loop)), limits.backend) for loop in listing.loops
        ),
        innermost=nested.index(False) if nested else None,
        ptx=compiled.asm.get("ptx", ""),
        assembly=assembly,
        in_turns=bool(constants.get("TURNS")),
        **costs,
    )


def given(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    target: str,
    *,
    num_warps: int,
    num_stages: int,
    divisible: Collection[str] = (),
    **options: Any,
) -> tuple[ASTSource, GPUTarget, dict[str, Any]]:
    """What Triton's compiler is given for :func:`compile_kernel`: the source, the GPU and the settings."""
    names: list[str] = getattr(kernel, "arg_names", [])
    if not isinstance(kernel, triton.JITFunction):
        raise TypeError(f"{kernel!r} cannot be compiled: is TRITON_INTERPRET set?")
    if sorted([*signature, *constants]) != sorted(names):
        raise ValueError(f"{kernel.__name__} takes {names}, not {[*signature, *constants]}")
    aligned = [name for name, kind in signature.items() if kind.startswith("*") or name in divisible]
    source = _source_type(kernel)(
        kernel,
        {name: signature.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    limits = TARGETS[target]
    # Fusing is the default up to triton 3.9, which warns of a change unless the option is given.
    settings = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True, **options}
    return source, GPUTarget(limits.backend, limits.arch, limits.warp), settings


def _source_type(kernel: Any) -> type[ASTSource]:
    if getattr(kernel, "is_gluon", lambda: False)():
        from triton.experimental.gluon._runtime import GluonASTSource

        return GluonASTSource
    return ASTSource


@contextlib.contextmanager
def _from_scratch() -> Iterator[io.StringIO]:
    """Compile what was compiled before as well, leave nothing behind, and catch what the assembler says."""
    knobs = triton.knobs
    log = io.StringIO()
    with contextlib.ExitStack() as stack:
        for scope in (knobs.compilation, knobs.nvidia, knobs.cache):
            stack.enter_context(scope.scope())
        knobs.cache.dir = stack.enter_context(tempfile.TemporaryDirectory())
        knobs.compilation.always_compile = True
        knobs.nvidia.dump_ptxas_log = True
        stack.enter_context(contextlib.redirect_stdout(log))
        yield log


def _nvidia_costs(log: str) -> dict[str, int]:
    """From what ptxas says of a kernel and the functions that it calls."""

    def largest(pattern: str) -> int:
        return max(int(number) for number in re.findall(pattern, log))

    return {
        "registers": largest(r"Used (\d+) registers"),
        "spills": largest(r"(\d+) bytes spill stores"),
        "stack": largest(r"(\d+) bytes stack frame"),
    }


def _amd_costs(assembly: str) -> dict[str, int]:
    """From the metadata of a kernel; registers are those of vectors, accumulators included."""

    def entry(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s+(\d+)", assembly)[-1])

    return {
        "registers": entry("vgpr_count"),
        "spills": 4 * entry("vgpr_spill_count"),
        "stack": entry("private_segment_fixed_size"),
    }


def _disassembled(compiled: CompiledKernel) -> str:
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "kernel.cubin")
        binary.write_bytes(compiled.asm["cubin"])
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", str(binary)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _count(instructions: Iterable[Instruction], backend: str) -> Counts:
    opcodes = [instruction.opcode for instruction in instructions]
    tensor: Counter[str] = Counter()
    fields: Counter[str] = Counter()
    for opcode in opcodes:
        if match := re.match(TENSOR[backend], opcode):
            tensor[match[1]] += 1
        stem = opcode.split(".")[0]
        fields.update(name for name, pattern in OPCODES[backend].items() if re.match(pattern, stem))
    return Counts(instructions=len(opcodes), tensor=dict(sorted(tensor.items())), **fields)
