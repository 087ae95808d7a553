"""What the Triton kernels cost on the GPUs they are for, as compiled: a change that makes one of them spill, wait at
more barriers or load W_hh in the time loop fails here, on any machine.

The numbers are those of Triton 3.6 and are measured by ``python -m bench kernels``; who improves on them, pins them.
Those of the grid strategy are in test_grid_budgets.py.
"""

import pytest

pytest.importorskip("triton")

import triton
from rig.budgets import Budget, Which, compiled, counts, over

from bench import kernels
from bench.aot import compile_kernel

pytestmark = pytest.mark.skipif(not triton.__version__.startswith("3.6."), reason="other compilers make other code")

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
    ("step_forward/lstm/tf32/512/dense/fused product", "sm_90"): Budget(96, 95, 56, 512),
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
    ("step_forward/lstm/bf16/256/all/fused product, 64 rows, 32 units", "sm_90"): Budget(138, 8, 2, 16),
    ("step_backward/lstm/bf16/256/all/fused product, 64 rows, 32 units", "sm_90"): Budget(154, 103, 108, 112),
    ("step_backward/lstm/bf16/256/all/torch product, 64 rows, 32 units", "sm_90"): Budget(104, 26, 3, 0),
    ("step_forward/lstm/bf16/256/all/torch product, 64 rows, 32 units", "sm_80"): Budget(92, 34, 5, 0),
    ("step_backward/lstm/tf32/256/all/fused product, 32 rows, 32 units", "sm_90"): Budget(238, 16, 2, 64),
    ("step_forward/lstm/tf32/256/all/torch product, 32 rows, 32 units", "sm_90"): Budget(90, 30, 0, 0),
    ("step_forward/lstm/tf32/512/all/fused product, 32 rows, 16 units", "sm_90"): Budget(104, 6, 2, 32),
    ("step_forward/lstm/bf16/640/all/fused product, 32 rows, 16 units", "sm_90"): Budget(100, 8, 2, 32),
}


@pytest.mark.parametrize("which", BUDGETS, ids=" ".join)
def test_a_kernel_keeps_to_its_budget(which: Which) -> None:
    row = compiled(which)
    assert row.report is not None, row.error
    assert not over(row.report, BUDGETS[which]), counts(row.report)


def test_a_kernel_that_spills_is_over_its_budget() -> None:
    """Four warps cannot hold what eight do."""
    name, target = "resident_forward/lstm/bf16/128/dense", "sm_90"
    (entry,) = (entry for entry in kernels.catalog() if entry.name == name and target in entry.targets)
    kernel, signature, constants = entry.kernel, entry.signature, entry.constants
    report = compile_kernel(kernel, signature, constants, target, num_warps=4, num_stages=entry.num_stages)
    wrong = over(report, BUDGETS[name, target])
    assert any("spilled" in line for line in wrong)
    assert any("local memory" in line for line in wrong)
