"""What the kernels of the benchmarks are compiled to: their loops do what is measured, and nothing else.

Counted as in ``test_budgets.py``, with Triton 3.6. An assembler may do several steps at once: counts are multiples.
"""

from typing import Any

import pytest

pytest.importorskip("triton")

import triton

from bench.aot import Counts, Report, compile_kernel
from bench.gpu import constants, launched, on_chip

pytestmark = pytest.mark.skipif(not triton.__version__.startswith("3.6."), reason="other compilers make other code")

M, K, N = constants.MATRIX
PRODUCT = {"SPLIT": constants.WARPS, "ROWS": M, "DEPTH": K, "COLUMNS": N}
ORDINARY = PRODUCT | dict(zip(("ROWS", "DEPTH", "COLUMNS"), constants.ORDINARY, strict=True))
PARTS = {"PARTS": constants.SHARED[0], "WIDTH": constants.SHARED[1], "WARPS": constants.WARPS}
THREADS = 32 * constants.WARPS
QUARTET = 4 * THREADS  # numbers of 4 bytes that one instruction of all threads reads at most
TYPES = {"x_ptr": "*i32", "last_ptr": "*i32", "steps": "i32", "last": "i32"}


def compiled(kernel: Any, sizes: dict[str, int], target: str, **types: str) -> Report:
    signature = {name: (TYPES | types)[name] for name in kernel.arg_names if name not in sizes}
    return compile_kernel(kernel, signature, sizes, target, num_warps=constants.WARPS)


def steps_of(report: Report, found: int, each: int) -> int:
    """How many steps a pass through the loop is."""
    assert report.spills == report.stack == report.whole.local == 0
    assert found >= each
    assert found % each == 0
    return found // each


def nothing_but(counts: Counts, **expected: int) -> None:
    """Of accesses, barriers and products there are these, and no others."""
    kinds = ("global_loads", "global_stores", "shared_loads", "shared_stores", "matrix_loads", "barriers", "atomics")
    found = {kind: getattr(counts, kind) for kind in (*kinds, "ffma")} | {"tensor": counts.tensor_cores()}
    assert found == dict.fromkeys(found, 0) | expected


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_products_are_of_registers(target: str) -> None:
    types = {"x_ptr": "*bf16", "w_ptr": "*bf16", "sums_ptr": "*fp32"}
    report = compiled(on_chip.multiply_steps, PRODUCT, target, **types)
    loop = report.loop()
    steps = steps_of(report, loop.tensor_cores("HMMA.16816"), M // 16 * K // 16 * N // 8)
    nothing_but(loop, tensor=loop.tensor_cores())
    assert loop.instructions < loop.tensor_cores() + 8 * steps


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_shared_memory_is_read_as_fast_as_can_be(target: str) -> None:
    report = compiled(on_chip.read_shared_steps, PARTS, target, sums_ptr="*i32")
    loop = report.loop()
    steps_of(report, loop.shared_loads, constants.SHARED[1] // QUARTET)
    nothing_but(loop, shared_loads=loop.shared_loads)
    assert report.ptx.count("ld.shared.v4") >= constants.SHARED[1] // QUARTET


def test_products_in_float32_are_by_ordinary_units() -> None:
    types = {"x_ptr": "*fp32", "w_ptr": "*fp32", "sums_ptr": "*fp32"}
    report = compiled(launched.dot_steps, ORDINARY, "sm_90", **types)
    rows, depth, columns = constants.ORDINARY
    loop = report.loop()
    steps_of(report, loop.ffma, rows * depth * columns // 32)
    assert loop.tensor_cores() == loop.global_loads == 0


@pytest.mark.parametrize("numbers", constants.READ)
def test_a_step_reads_past_the_first_cache(numbers: int) -> None:
    report = compiled(launched.read_steps, {"WIDTH": numbers}, "sm_90")
    loop = report.loop()
    steps_of(report, loop.global_loads, numbers // QUARTET)
    assert loop.global_stores == 0
    assert report.ptx.count("ld.global.cg.v4") == report.whole.global_loads == loop.global_loads
