"""What the Triton kernels cost on the GPUs they are for, as compiled: a change that makes one of them spill, wait at
more barriers or load W_hh in the time loop fails here, on any machine.

The numbers are those of Triton 3.6 and are measured by ``python -m bench kernels``; who improves on them, pins them.
"""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import pytest

pytest.importorskip("triton")

import triton
from rig.ptx import check_grid_barrier, check_polling

from bench import kernels
from bench.aot import Counts, Report, compile_kernel

pytestmark = pytest.mark.skipif(not triton.__version__.startswith("3.6."), reason="other compilers make other code")

SLACK = 8  # registers by which a thread may have more: assemblers hand them out in eights


class Budget(NamedTuple):
    """At most so many, but for tensor-core instructions: exactly so many. Of the loop, or all where it was unrolled.

    The loop of a resident or a grid kernel goes through time, and its loads are those of a step: W_hh would be more.
    One or two of a resident kernel's backward are never done (see :func:`fastrnn.kernels.resident.as_loaded`).
    """

    registers: int
    loads: int
    barriers: int
    tensor: int


BUDGETS = {
    ("resident_forward/rnn_tanh/bf16/128/dense", "sm_90"): Budget(62, 2, 6, 16),
    ("resident_backward/rnn_tanh/bf16/128/dense", "sm_90"): Budget(64, 4, 6, 16),
    ("resident_forward/rnn_relu/bf16/128/dense", "sm_90"): Budget(62, 2, 6, 16),
    ("resident_backward/rnn_relu/bf16/128/dense", "sm_90"): Budget(64, 4, 6, 16),
    ("resident_forward/lstm/bf16/128/dense", "sm_90"): Budget(188, 8, 12, 64),
    ("resident_backward/lstm/bf16/128/dense", "sm_90"): Budget(164, 15, 6, 64),
    ("resident_forward/gru/bf16/128/dense", "sm_90"): Budget(189, 6, 14, 48),
    ("resident_backward/gru/bf16/128/dense", "sm_90"): Budget(128, 12, 6, 48),
    ("step_forward/rnn_tanh/bf16/512/dense/fused product", "sm_90"): Budget(39, 3, 2, 4),
    ("step_backward/rnn_tanh/bf16/512/dense/fused product", "sm_90"): Budget(40, 23, 28, 32),
    ("step_forward/rnn_relu/bf16/512/dense/fused product", "sm_90"): Budget(39, 3, 2, 4),
    ("step_backward/rnn_relu/bf16/512/dense/fused product", "sm_90"): Budget(40, 23, 28, 32),
    ("step_forward/lstm/bf16/512/dense/fused product", "sm_90"): Budget(84, 6, 2, 32),
    ("step_backward/lstm/bf16/512/dense/fused product", "sm_90"): Budget(104, 8, 2, 32),
    ("step_forward/gru/bf16/512/dense/fused product", "sm_90"): Budget(67, 5, 2, 24),
    ("step_backward/gru/bf16/512/dense/fused product", "sm_90"): Budget(80, 67, 46, 192),
    ("step_forward/lstm/bf16/512/dense/torch product", "sm_90"): Budget(32, 14, 0, 0),
    ("step_backward/gru/bf16/512/dense/torch product", "sm_90"): Budget(30, 8, 0, 0),
    ("gates_again/lstm/bf16/512/dense", "sm_90"): Budget(50, 12, 0, 0),
    ("gates_again/gru/bf16/512/dense", "sm_90"): Budget(34, 10, 0, 0),
    ("states_before/bf16/512/dense", "sm_90"): Budget(30, 4, 0, 0),
    ("resident_forward/lstm/fp32/64/dense", "sm_90"): Budget(120, 4, 2, 0),
    ("resident_backward/gru/tf32/64/dense", "sm_90"): Budget(80, 7, 4, 24),
    ("resident_backward/lstm/fp64/32/dense", "sm_90"): Budget(110, 8, 4, 8),
    ("step_forward/lstm/tf32/512/dense/fused product", "sm_90"): Budget(86, 95, 56, 512),
    ("step_backward/gru/fp64/512/dense/fused product", "sm_90"): Budget(164, 6, 6, 6),
    ("step_forward/gru/fp32/512/dense/fused product", "sm_90"): Budget(46, 4, 2, 0),
    ("resident_forward/lstm/bf16/128/all", "sm_90"): Budget(180, 11, 10, 64),
    ("resident_backward/lstm/bf16/128/all", "sm_90"): Budget(245, 19, 6, 64),
    ("resident_backward/gru/fp16/128/all", "sm_90"): Budget(165, 14, 6, 48),
    ("step_backward/lstm/bf16/512/all/fused product", "sm_90"): Budget(128, 8, 2, 32),
    ("resident_backward/lstm/bf16/128/all", "sm_80"): Budget(242, 19, 4, 64),
    ("step_forward/gru/bf16/512/dense/fused product", "sm_80"): Budget(79, 59, 27, 192),
    ("resident_forward/gru/bf16/64/dense", "sm_120"): Budget(163, 6, 14, 24),
    ("step_backward/lstm/bf16/512/all/fused product", "sm_120"): Budget(128, 8, 2, 32),
    ("resident_forward/lstm/bf16/64/dense", "gfx942"): Budget(148, 4, 10, 16),
    ("resident_backward/gru/bf16/64/all", "gfx942"): Budget(104, 9, 8, 12),
    ("step_forward/lstm/bf16/512/dense/fused product", "gfx942"): Budget(76, 5, 2, 16),
    ("resident_forward/lstm/tf32/64/dense", "sm_90"): Budget(102, 4, 14, 32),
    ("resident_backward/lstm/fp32/64/dense", "sm_90"): Budget(80, 8, 2, 0),
    ("resident_forward/lstm/fp32/64/all", "sm_90"): Budget(128, 7, 2, 0),
    ("resident_backward/lstm/fp32/64/all", "sm_90"): Budget(104, 11, 2, 0),
    ("resident_forward/lstm/fp64/32/dense", "sm_90"): Budget(128, 4, 20, 4),
    ("resident_forward/gru/bf16/64/all", "sm_90"): Budget(138, 9, 8, 24),
    ("resident_forward/lstm/bf16/128/dense", "sm_80"): Budget(191, 8, 12, 64),
    ("gates_again/lstm/bf16/512/all", "sm_90"): Budget(52, 14, 0, 0),
    ("gluon_grid_forward/lstm/bf16/1024/all/16 rows, 8 units", "sm_90"): Budget(182, 16, 7, 32),
    ("gluon_grid_backward/lstm/bf16/1024/all/16 rows, 8 units", "sm_90"): Budget(238, 44, 15, 32),
    ("grid_forward/lstm/bf16/1024/all/16 rows, 8 units", "sm_90"): Budget(182, 23, 17, 32),
    ("grid_backward/lstm/bf16/1024/all/16 rows, 8 units", "sm_90"): Budget(248, 53, 19, 32),
    ("gluon_grid_forward/lstm/bf16/768/all/16 rows, 16 units", "sm_80"): Budget(220, 14, 7, 48),
    ("gluon_grid_forward/lstm/bf16/512/all/16 rows, 8 units", "sm_90"): Budget(144, 12, 7, 16),
    ("gluon_grid_backward/lstm/bf16/512/all/16 rows, 8 units", "sm_90"): Budget(162, 28, 15, 16),
    ("grid_forward/lstm/bf16/512/all/16 rows, 8 units", "sm_90"): Budget(174, 19, 17, 16),
    ("grid_backward/lstm/bf16/512/all/16 rows, 8 units", "sm_90"): Budget(184, 37, 19, 16),
    ("gluon_grid_forward/lstm/bf16/256/all/32 rows, 16 units", "sm_90"): Budget(192, 17, 7, 32),
    ("gluon_grid_backward/lstm/bf16/256/all/32 rows, 16 units", "sm_90"): Budget(178, 37, 15, 32),
    ("gluon_grid_forward/gru/bf16/256/all/16 rows, 8 units", "sm_90"): Budget(122, 11, 7, 16),
    ("gluon_grid_backward/gru/bf16/256/all/16 rows, 8 units", "sm_90"): Budget(126, 22, 13, 12),
    ("grid_forward/gru/bf16/256/all/16 rows, 16 units", "sm_90"): Budget(232, 13, 17, 32),
    ("grid_backward/gru/bf16/256/all/32 rows, 8 units", "sm_90"): Budget(180, 37, 31, 24),
    ("gluon_grid_forward/lstm/bf16/1024/all/16 rows, 8 units, data polled", "sm_90"): Budget(189, 22, 8, 32),
    ("gluon_grid_backward/lstm/bf16/1024/all/16 rows, 8 units, data polled", "sm_90"): Budget(223, 74, 29, 32),
    ("grid_forward/lstm/bf16/1024/all/16 rows, 8 units, data polled", "sm_90"): Budget(184, 27, 19, 32),
    ("grid_backward/lstm/bf16/1024/all/16 rows, 8 units, data polled", "sm_90"): Budget(219, 83, 43, 32),
    ("gluon_grid_forward/gru/bf16/512/all/16 rows, 8 units, data polled", "sm_90"): Budget(118, 13, 8, 16),
    ("gluon_grid_backward/gru/bf16/512/all/16 rows, 8 units, data polled", "sm_90"): Budget(150, 32, 23, 12),
    ("grid_forward/gru/bf16/512/all/16 rows, 8 units, data polled", "sm_90"): Budget(166, 17, 15, 16),
    ("grid_backward/gru/bf16/512/all/16 rows, 8 units, data polled", "sm_90"): Budget(162, 39, 35, 12),
}


def counts(report: Report) -> Counts:
    return report.loop() if report.loops else report.whole


def over(report: Report, budget: Budget) -> list[str]:
    """What a kernel has too much of."""
    found, limits = counts(report), report.limits
    return [
        f"{what}: {value}, at most {most}"
        for what, value, most in (
            ("bytes spilled", report.spills + report.stack, 0),
            ("local memory accesses", report.whole.local, 0),
            ("bytes of shared memory", report.shared, limits.shared),
            ("registers", report.registers, min(limits.registers, budget.registers + SLACK)),
            ("global loads", found.global_loads, budget.loads),
            ("barriers", found.barriers, budget.barriers),
            ("tensor-core instructions", abs(found.tensor_cores() - budget.tensor), 0),
        )
        if value > most
    ]


@pytest.fixture(scope="module")
def reports() -> Iterator[Mapping[tuple[str, str], kernels.Row]]:
    """All of them, compiled by two processes."""
    place = {(entry.name, target): i for i, entry in enumerate(kernels.catalog()) for target in entry.targets}
    jobs = [(kernels.CATALOG, place[which], which[1]) for which in BUDGETS]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield {(row.name, row.target): row for row in pool.map(kernels.compiled, jobs)}


@pytest.mark.parametrize("which", BUDGETS, ids=" ".join)
def test_a_kernel_keeps_to_its_budget(which: tuple[str, str], reports: Mapping[tuple[str, str], kernels.Row]) -> None:
    row = reports[which]
    assert row.report is not None, row.error
    assert not over(row.report, BUDGETS[which]), counts(row.report)


GRIDS = [which for which in BUDGETS if "grid_" in which[0]]


@pytest.mark.parametrize("which", [which for which in GRIDS if "polled" not in which[0]], ids=" ".join)
def test_a_grid_waits_for_what_it_reads(which: tuple[str, str], reports: Mapping[tuple[str, str], kernels.Row]) -> None:
    """Every store is released and every load acquired, for all threads; and no load is begun a step ahead."""
    report = reports[which].report
    if report.ptx:
        barrier = check_grid_barrier(report.ptx)
        assert len(barrier.releases) == 1
        assert "cp.async" not in report.ptx
    assert report.loop().atomics == 1


@pytest.mark.parametrize("which", [which for which in GRIDS if "polled" in which[0]], ids=" ".join)
def test_a_grid_polls_all_that_it_reads(which: tuple[str, str], reports: Mapping[tuple[str, str], kernels.Row]) -> None:
    """Every number of the state, or gate by gate of its gradients, in loads of 16 bytes, and without an atomic."""
    row = reports[which]
    tile = int(re.search(r"(\d+) rows", which[0])[1])
    gates = {"lstm": 4, "gru": 3}[row.cell] if "backward" in which[0] else 1
    state = 2 * tile * row.hidden // (row.report.warps * row.report.limits.warp)
    assert check_polling(row.report.ptx) == (state,) * gates
    assert row.report.ptx.count("ld.volatile.global.v4.b32") == 2 * gates * state // 16
    assert row.report.loop().atomics == 0
    assert "cp.async" not in row.report.ptx


def test_weights_that_stay_on_chip_are_no_loads_of_a_step(
    reports: Mapping[tuple[str, str], kernels.Row],
) -> None:
    """Before the loop there are at least as many loads, of 16 bytes a thread at most, as the weights take."""
    for (name, target), row in reports.items():
        if "grid_forward" in name:
            units, gates = int(re.search(r"(\d+) units", name)[1]), {"lstm": 4, "gru": 3}[row.cell]
            threads = row.report.warps * row.report.limits.warp
            least = 2 * gates * units * row.hidden // (16 * threads)
            assert row.report.whole.global_loads - row.report.loop().global_loads >= least, (name, target)


def test_a_kernel_that_spills_is_over_its_budget() -> None:
    """Four warps cannot hold what eight do."""
    name, target = "resident_forward/lstm/bf16/128/dense", "sm_90"
    (entry,) = (entry for entry in kernels.catalog() if entry.name == name and target in entry.targets)
    kernel, signature, constants = entry.kernel, entry.signature, entry.constants
    report = compile_kernel(kernel, signature, constants, target, num_warps=4, num_stages=entry.num_stages)
    wrong = over(report, BUDGETS[name, target])
    assert any("spilled" in line for line in wrong)
    assert any("local memory" in line for line in wrong)
