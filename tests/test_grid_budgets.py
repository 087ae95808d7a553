"""What the kernels of the grid strategy cost on the GPUs they are for, as compiled: nothing spills, W_hh is read before
the loop through time and never in it, and what a step takes is pinned. Their barrier orders memory.

Each size, batch tile and target that there is has kernels here, ``python -m bench kernels grid_`` compiles all. As in
test_budgets.py, the numbers are those of Triton 3.6.
"""

import re

import pytest

pytest.importorskip("triton")

import triton
from rig.budgets import Budget, Which, compiled, counts, over
from rig.ptx import check_grid_barrier, check_polling

from bench import kernels
from bench.aot import compile_kernel
from bench.assembly import SASS, Listing
from fastrnn.reference import CELLS

pytestmark = pytest.mark.skipif(not triton.__version__.startswith("3.6."), reason="other compilers make other code")

BUDGETS = {
    ("gluon_grid_forward/lstm/bf16/256/all/16 rows, 16 units", "sm_80"): Budget(188, 16, 6, 32, 460, 16400),
    ("gluon_grid_backward/lstm/bf16/256/all/16 rows, 16 units", "sm_80"): Budget(220, 36, 8, 32, 351, 4112),
    ("grid_forward/gru/bf16/256/all/16 rows, 8 units", "sm_90"): Budget(128, 13, 17, 16, 421, 24576),
    ("grid_backward/gru/bf16/256/all/16 rows, 8 units", "sm_90"): Budget(128, 23, 31, 12, 429, 28672),
    ("grid_forward/lstm/bf16/256/all/16 rows, 16 units", "sm_120"): Budget(162, 14, 17, 32, 752, 49152),
    ("grid_backward/lstm/bf16/256/all/16 rows, 16 units", "sm_120"): Budget(186, 29, 35, 32, 763, 49152),
    ("grid_forward/gru/bf16/256/all/16 rows, 16 units", "gfx942"): Budget(120, 9, 19, 16, 632, 16384),
    ("grid_backward/gru/bf16/256/all/16 rows, 16 units", "gfx942"): Budget(124, 15, 38, 12, 672, 4096),
    ("gluon_grid_forward/lstm/bf16/256/all/32 rows, 16 units", "sm_80"): Budget(190, 16, 6, 32, 519, 65568),
    ("gluon_grid_backward/lstm/bf16/256/all/32 rows, 16 units", "sm_80"): Budget(194, 36, 8, 32, 365, 16416),
    ("grid_forward/gru/bf16/256/all/32 rows, 8 units", "sm_90"): Budget(168, 19, 17, 32, 654, 32768),
    ("grid_backward/gru/bf16/256/all/32 rows, 8 units", "sm_90"): Budget(168, 37, 31, 24, 632, 45056),
    ("grid_forward/lstm/bf16/256/all/32 rows, 16 units", "sm_120"): Budget(110, 12, 8, 32, 439, 49152),
    ("grid_backward/lstm/bf16/256/all/32 rows, 16 units", "sm_120"): Budget(178, 29, 46, 128, 926, 49152),
    ("grid_forward/gru/bf16/256/all/32 rows, 16 units", "gfx942"): Budget(120, 9, 17, 8, 1068, 65536),
    ("grid_backward/gru/bf16/256/all/32 rows, 16 units", "gfx942"): Budget(154, 16, 32, 12, 970, 16384),
    ("grid_forward/gru/bf16/256/all/64 rows, 8 units", "sm_90"): Budget(208, 23, 18, 32, 1105, 81920),
    ("grid_backward/gru/bf16/256/all/64 rows, 8 units", "sm_90"): Budget(220, 41, 36, 24, 1046, 45056),
    ("grid_forward/lstm/bf16/256/all/64 rows, 8 units", "sm_120"): Budget(220, 24, 18, 32, 1221, 81920),
    ("grid_backward/lstm/bf16/256/all/64 rows, 8 units", "sm_120"): Budget(250, 51, 42, 32, 1352, 49152),
    ("grid_forward/gru/bf16/256/all/64 rows, 16 units", "gfx942"): Budget(180, 14, 24, 32, 746, 8192),
    ("grid_backward/gru/bf16/256/all/64 rows, 16 units", "gfx942"): Budget(224, 33, 4, 48, 914, 1024),
    ("gluon_grid_forward/lstm/bf16/512/all/16 rows, 16 units", "sm_80"): Budget(180, 12, 6, 32, 331, 32784),
    ("gluon_grid_backward/lstm/bf16/512/all/16 rows, 16 units", "sm_80"): Budget(210, 28, 8, 32, 278, 8208),
    ("grid_forward/gru/bf16/512/all/16 rows, 8 units", "sm_90"): Budget(154, 15, 13, 16, 624, 49152),
    ("grid_backward/gru/bf16/512/all/16 rows, 8 units", "sm_90"): Budget(152, 29, 19, 12, 444, 57344),
    ("gluon_grid_forward/lstm/bf16/512/all/16 rows, 8 units", "sm_90"): Budget(130, 12, 6, 16, 312, 16400),
    ("gluon_grid_backward/lstm/bf16/512/all/16 rows, 16 units", "sm_90"): Budget(210, 28, 8, 32, 289, 8208),
    ("grid_forward/lstm/bf16/512/all/16 rows, 16 units", "sm_120"): Budget(156, 14, 17, 32, 741, 98304),
    ("grid_backward/lstm/bf16/512/all/16 rows, 16 units", "sm_120"): Budget(184, 29, 35, 32, 811, 98304),
    ("grid_forward/gru/bf16/512/all/16 rows, 16 units", "gfx942"): Budget(140, 8, 15, 16, 971, 32768),
    ("grid_backward/gru/bf16/512/all/16 rows, 16 units", "gfx942"): Budget(132, 15, 26, 12, 682, 8192),
    ("gluon_grid_forward/lstm/bf16/512/all/32 rows, 16 units", "sm_80"): Budget(232, 20, 6, 64, 554, 65568),
    ("gluon_grid_backward/lstm/bf16/512/all/32 rows, 16 units", "sm_80"): Budget(255, 52, 8, 64, 423, 16416),
    ("grid_forward/gru/bf16/512/all/32 rows, 8 units", "sm_90"): Budget(162, 19, 17, 32, 683, 65536),
    ("grid_backward/gru/bf16/512/all/32 rows, 8 units", "sm_90"): Budget(164, 37, 31, 24, 680, 90112),
    ("grid_forward/lstm/bf16/512/all/32 rows, 16 units", "sm_120"): Budget(118, 16, 8, 64, 519, 98304),
    ("grid_backward/lstm/bf16/512/all/32 rows, 16 units", "sm_120"): Budget(194, 45, 46, 256, 1240, 98304),
    ("grid_forward/gru/bf16/512/all/32 rows, 16 units", "gfx942"): Budget(144, 11, 19, 16, 1091, 65536),
    ("grid_backward/gru/bf16/512/all/32 rows, 16 units", "gfx942"): Budget(166, 22, 38, 24, 1026, 16384),
    ("grid_forward/gru/bf16/512/all/64 rows, 8 units", "sm_90"): Budget(228, 31, 18, 64, 1166, 98304),
    ("grid_backward/gru/bf16/512/all/64 rows, 8 units", "sm_90"): Budget(255, 65, 36, 48, 1160, 90112),
    ("gluon_grid_forward/lstm/bf16/512/all/32 rows, 16 units", "sm_90"): Budget(230, 20, 6, 64, 562, 65568),
    ("gluon_grid_backward/lstm/bf16/512/all/32 rows, 16 units", "sm_90"): Budget(255, 52, 8, 64, 439, 16416),
    ("grid_forward/gru/bf16/512/all/64 rows, 8 units", "sm_120"): Budget(224, 31, 18, 64, 1219, 98304),
    ("grid_backward/gru/bf16/512/all/64 rows, 8 units", "sm_120"): Budget(255, 65, 36, 48, 1177, 90112),
    ("grid_forward/gru/bf16/512/all/64 rows, 16 units", "gfx942"): Budget(276, 22, 40, 64, 867, 8192),
    ("grid_backward/gru/bf16/512/all/64 rows, 16 units", "gfx942"): Budget(326, 57, 4, 96, 1412, 1024),
    ("gluon_grid_forward/lstm/bf16/768/all/16 rows, 16 units", "sm_80"): Budget(222, 14, 6, 48, 354, 32784),
    ("gluon_grid_backward/lstm/bf16/768/all/16 rows, 16 units", "sm_80"): Budget(224, 36, 8, 48, 317, 8208),
    ("grid_forward/gru/bf16/768/all/16 rows, 8 units", "sm_90"): Budget(156, 17, 13, 24, 646, 73728),
    ("grid_backward/gru/bf16/768/all/16 rows, 8 units", "sm_90"): Budget(166, 35, 19, 18, 477, 86016),
    ("grid_forward/lstm/bf16/768/all/16 rows, 8 units", "sm_120"): Budget(162, 19, 17, 24, 850, 73728),
    ("grid_backward/lstm/bf16/768/all/16 rows, 8 units", "sm_120"): Budget(214, 45, 19, 24, 640, 98304),
    ("grid_forward/gru/bf16/768/all/16 rows, 16 units", "gfx942"): Budget(160, 9, 17, 24, 990, 32768),
    ("grid_backward/gru/bf16/768/all/16 rows, 16 units", "gfx942"): Budget(156, 18, 32, 18, 722, 8192),
    ("gluon_grid_forward/lstm/bf16/768/all/32 rows, 16 units", "sm_80"): Budget(250, 24, 6, 96, 622, 65568),
    ("gluon_grid_backward/lstm/bf16/768/all/32 rows, 16 units", "sm_80"): Budget(255, 68, 8, 96, 528, 16416),
    ("grid_forward/gru/bf16/768/all/32 rows, 8 units", "sm_90"): Budget(164, 23, 17, 48, 718, 98304),
    ("grid_backward/gru/bf16/768/all/32 rows, 8 units", "sm_90"): Budget(200, 49, 31, 36, 755, 135168),
    ("grid_forward/lstm/bf16/768/all/32 rows, 8 units", "sm_120"): Budget(164, 24, 17, 48, 798, 98304),
    ("grid_backward/lstm/bf16/768/all/32 rows, 8 units", "sm_120"): Budget(254, 63, 39, 48, 952, 98304),
    ("grid_forward/gru/bf16/768/all/32 rows, 16 units", "gfx942"): Budget(168, 13, 21, 24, 1115, 65536),
    ("grid_backward/gru/bf16/768/all/32 rows, 16 units", "gfx942"): Budget(190, 28, 44, 36, 1085, 16384),
    ("grid_forward/gru/bf16/768/all/64 rows, 8 units", "sm_90"): Budget(238, 39, 18, 96, 1229, 147456),
    ("grid_backward/gru/bf16/768/all/64 rows, 8 units", "sm_90"): Budget(255, 89, 36, 72, 1253, 135168),
    ("gluon_grid_forward/lstm/bf16/768/all/32 rows, 16 units", "sm_90"): Budget(246, 24, 6, 96, 646, 65568),
    ("gluon_grid_backward/lstm/bf16/768/all/32 rows, 16 units", "sm_90"): Budget(178, 68, 8, 96, 621, 16416),
    ("grid_forward/lstm/bf16/768/all/64 rows, 16 units", "gfx942"): Budget(386, 31, 56, 96, 1288, 8192),
    ("grid_backward/lstm/bf16/768/all/64 rows, 16 units", "gfx942"): Budget(504, 107, 4, 192, 2738, 1024),
    ("gluon_grid_forward/gru/bf16/1024/all/16 rows, 16 units", "sm_80"): Budget(216, 15, 6, 64, 333, 32784),
    ("gluon_grid_backward/gru/bf16/1024/all/16 rows, 16 units", "sm_80"): Budget(218, 34, 8, 48, 269, 8208),
    ("gluon_grid_forward/lstm/bf16/1024/all/16 rows, 8 units", "sm_90"): Budget(180, 16, 6, 32, 331, 16400),
    ("gluon_grid_forward/lstm/bf16/1024/all/16 rows, 16 units", "sm_90"): Budget(255, 16, 6, 64, 369, 32784),
    ("gluon_grid_backward/lstm/bf16/1024/all/16 rows, 16 units", "sm_90"): Budget(240, 44, 8, 64, 378, 8208),
    ("gluon_grid_forward/lstm/bf16/1024/dense/16 rows, 8 units", "sm_90"): Budget(168, 14, 6, 32, 307, 16388),
    ("gluon_grid_backward/lstm/bf16/1024/dense/16 rows, 16 units", "sm_90"): Budget(228, 41, 6, 64, 325, 8196),
    ("grid_forward/lstm/bf16/1024/all/16 rows, 8 units", "sm_90"): Budget(178, 21, 17, 32, 848, 98304),
    ("grid_backward/lstm/bf16/1024/all/16 rows, 8 units", "sm_90"): Budget(240, 53, 19, 32, 680, 131072),
    ("grid_forward/lstm/bf16/1024/all/16 rows, 8 units", "sm_120"): Budget(168, 21, 17, 32, 864, 98304),
    ("grid_backward/lstm/bf16/1024/all/16 rows, 8 units", "sm_120"): Budget(255, 53, 23, 32, 693, 98304),
    ("grid_forward/lstm/bf16/1024/all/16 rows, 16 units", "gfx942"): Budget(198, 11, 23, 32, 1290, 32768),
    ("grid_backward/lstm/bf16/1024/all/16 rows, 16 units", "gfx942"): Budget(216, 27, 46, 32, 942, 8192),
    ("gluon_grid_forward/gru/bf16/1024/all/16 rows, 16 units", "sm_90"): Budget(218, 15, 6, 64, 333, 32784),
    ("gluon_grid_backward/gru/bf16/1024/all/16 rows, 16 units", "sm_90"): Budget(216, 34, 8, 48, 285, 8208),
    ("grid_forward/lstm/bf16/1024/all/32 rows, 16 units", "sm_90"): Budget(180, 24, 8, 128, 713, 196608),
    ("grid_backward/lstm/bf16/1024/all/32 rows, 16 units", "sm_90"): Budget(208, 77, 46, 512, 1747, 196608),
    ("gluon_grid_forward/gru/bf16/1024/all/16 rows, 16 units", "sm_120"): Budget(214, 15, 6, 64, 382, 32784),
    ("gluon_grid_backward/gru/bf16/1024/all/16 rows, 16 units", "sm_120"): Budget(210, 34, 8, 48, 298, 8208),
    ("grid_forward/lstm/bf16/1024/all/32 rows, 16 units", "gfx942"): Budget(188, 16, 23, 32, 1216, 65536),
    ("grid_backward/lstm/bf16/1024/all/32 rows, 16 units", "gfx942"): Budget(246, 44, 62, 64, 1341, 16384),
    ("grid_forward/gru/tf32/256/all/16 rows, 16 units", "sm_90"): Budget(180, 17, 17, 64, 708, 81920),
    ("grid_backward/gru/tf32/256/all/16 rows, 16 units", "sm_90"): Budget(186, 35, 31, 48, 606, 81920),
    ("grid_forward/lstm/tf32/512/all/16 rows, 8 units", "sm_90"): Budget(166, 21, 17, 32, 855, 98304),
    ("grid_backward/lstm/tf32/512/all/16 rows, 8 units", "sm_90"): Budget(240, 53, 19, 32, 660, 131072),
    ("grid_forward/lstm/tf32/1024/all/16 rows, 8 units", "sm_90"): Budget(178, 29, 17, 64, 927, 196608),
    ("grid_backward/lstm/tf32/1024/all/16 rows, 8 units", "sm_90"): Budget(254, 85, 23, 64, 818, 196608),
    ("grid_forward/lstm/fp32/256/all/16 rows, 16 units", "sm_90"): Budget(230, 16, 11, 0, 2814, 81920),
    ("grid_backward/lstm/fp32/256/all/16 rows, 16 units", "sm_90"): Budget(160, 45, 35, 0, 3047, 98304),
    ("grid_forward/lstm/fp32/512/all/16 rows, 8 units", "sm_90"): Budget(168, 16, 11, 0, 1595, 98304),
    ("grid_backward/lstm/fp32/512/all/16 rows, 8 units", "sm_90"): Budget(160, 53, 19, 0, 1844, 131072),
    ("grid_forward/lstm/fp32/768/all/16 rows, 8 units", "sm_90"): Budget(168, 20, 11, 0, 2184, 147456),
    ("grid_backward/lstm/fp32/768/all/16 rows, 8 units", "sm_90"): Budget(170, 69, 19, 0, 2520, 196608),
    ("grid_forward/gru/fp32/1024/all/16 rows, 8 units", "sm_90"): Budget(168, 23, 11, 0, 2704, 196608),
    ("grid_backward/gru/fp32/1024/all/16 rows, 8 units", "sm_90"): Budget(156, 65, 21, 0, 2366, 229376),
    ("grid_forward/lstm/fp32/1024/all/16 rows, 8 units", "sm_90"): Budget(168, 24, 11, 0, 2763, 196608),
    ("grid_backward/lstm/fp32/1024/all/16 rows, 8 units", "sm_90"): Budget(255, 85, 23, 0, 3199, 196608),
    ("gluon_grid_forward/lstm/bf16/1024/all/16 rows, 8 units, data polled", "sm_90"): Budget(189, 22, 7, 32),
    ("gluon_grid_backward/lstm/bf16/1024/all/16 rows, 16 units, data polled", "sm_90"): Budget(253, 74, 28, 64),
    ("gluon_grid_forward/lstm/bf16/256/all/32 rows, 32 units", "sm_80"): Budget(254, 24, 6, 64, 904, 131104),
    ("gluon_grid_backward/lstm/bf16/256/all/32 rows, 32 units", "sm_80"): Budget(254, 52, 8, 64, 573, 32800),
    ("gluon_grid_forward/lstm/bf16/1024/all/16 rows, 8 units, in turns", "sm_90"): Budget(218, 16, 6, 32, 330, 16400),
    ("gluon_grid_forward/gru/bf16/768/all/32 rows, 16 units", "sm_90"): Budget(222, 22, 6, 96, 538, 65568),
    ("gluon_grid_backward/gru/bf16/768/all/32 rows, 16 units", "sm_90"): Budget(174, 52, 8, 72, 430, 16416),
    ("gluon_grid_forward/gru/fp16/256/all/16 rows, 32 units", "sm_90"): Budget(176, 12, 6, 28, 416, 65552),
    ("gluon_grid_backward/gru/fp16/256/all/16 rows, 32 units", "sm_90"): Budget(152, 22, 8, 24, 280, 16400),
    ("gluon_grid_forward/gru/fp16/256/all/16 rows, 32 units", "sm_80"): Budget(182, 12, 6, 32, 419, 65552),
    ("gluon_grid_backward/gru/fp16/256/all/16 rows, 32 units", "sm_80"): Budget(154, 22, 8, 24, 270, 16400),
    ("grid_forward/lstm/bf16/1024/all/32 rows, 16 units, in turns", "sm_90"): Budget(174, 24, 8, 128, 710, 196608),
    ("grid_backward/lstm/bf16/1024/all/32 rows, 16 units, in turns", "sm_90"): Budget(200, 77, 46, 512, 1825, 196608),
    ("grid_forward/lstm/bf16/256/all/16 rows, 16 units, in turns", "sm_120"): Budget(194, 14, 17, 32, 749, 49152),
    ("grid_backward/lstm/bf16/256/all/16 rows, 16 units, in turns", "sm_120"): Budget(206, 29, 35, 32, 763, 49152),
    ("grid_forward/lstm/tf32/256/all/16 rows, 16 units, in turns", "sm_80"): Budget(228, 18, 17, 64, 798, 81920),
    ("grid_backward/lstm/tf32/256/all/16 rows, 16 units, in turns", "sm_80"): Budget(253, 45, 35, 64, 810, 98304),
    ("grid_forward/lstm/tf32/256/all/16 rows, 16 units, in turns", "sm_90"): Budget(222, 18, 17, 64, 797, 81920),
    ("grid_backward/lstm/tf32/256/all/16 rows, 16 units, in turns", "sm_90"): Budget(251, 45, 35, 64, 798, 98304),
    ("grid_forward/lstm/fp32/256/all/16 rows, 16 units, in turns", "sm_90"): Budget(228, 16, 11, 0, 2829, 81920),
    ("grid_backward/lstm/fp32/256/all/16 rows, 16 units, in turns", "sm_90"): Budget(255, 45, 35, 0, 3049, 98304),
    ("gluon_grid_forward/lstm/bf16/768/all/16 rows, 16 units, in turns", "sm_90"): Budget(250, 14, 6, 48, 359, 32784),
    ("gluon_grid_forward/lstm/bf16/256/all/16 rows, 32 units, in turns", "sm_90"): Budget(246, 14, 6, 32, 518, 65552),
    ("gluon_grid_backward/lstm/bf16/256/all/16 rows, 32 units, in turns", "sm_90"): Budget(218, 28, 8, 32, 383, 16400),
    ("gluon_grid_forward/gru/bf16/512/all/16 rows, 32 units, in turns", "sm_90"): Budget(232, 14, 6, 56, 465, 65552),
    ("gluon_grid_backward/gru/bf16/512/all/16 rows, 32 units, in turns", "sm_90"): Budget(255, 28, 8, 48, 318, 16400),
    ("gluon_grid_forward/lstm/bf16/256/all/32 rows, 32 units, in turns", "sm_90"): Budget(255, 24, 6, 64, 949, 131104),
    ("gluon_grid_backward/lstm/bf16/256/all/32 rows, 32 units, in turns", "sm_90"): Budget(255, 52, 8, 64, 604, 32800),
    ("grid_forward/lstm/bf16/1024/all/16 rows, 8 units, data polled", "sm_90"): Budget(184, 27, 19, 32),
    ("grid_backward/lstm/bf16/1024/all/16 rows, 8 units, data polled", "sm_90"): Budget(225, 83, 43, 32),
    ("gluon_grid_forward/gru/bf16/512/all/16 rows, 8 units, data polled", "sm_90"): Budget(122, 13, 7, 16),
    ("gluon_grid_backward/gru/bf16/512/all/16 rows, 16 units, data polled", "sm_90"): Budget(177, 32, 22, 24),
    ("grid_forward/gru/bf16/512/all/16 rows, 8 units, data polled", "sm_90"): Budget(166, 17, 15, 16),
    ("grid_backward/gru/bf16/512/all/16 rows, 8 units, data polled", "sm_90"): Budget(168, 39, 35, 12),
}
CHAINS = {  # the most products of a step of which each waits for the one before
    ("gluon_grid_backward/lstm/bf16/512/all/16 rows, 16 units", "sm_90"): 8,
    ("gluon_grid_backward/lstm/bf16/1024/all/16 rows, 16 units", "sm_90"): 32,
    ("grid_backward/lstm/bf16/1024/all/16 rows, 8 units", "sm_90"): 16,
    ("grid_backward/lstm/bf16/1024/all/32 rows, 16 units", "sm_90"): 64,
}
BYTES = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4}
POLLED = [which for which in BUDGETS if "polled" in which[0]]


@pytest.mark.parametrize("which", BUDGETS, ids=" ".join)
def test_a_kernel_keeps_to_its_budget(which: Which) -> None:
    row = compiled(which)
    assert row.report is not None, row.error
    assert not over(row.report, BUDGETS[which]), counts(row.report)


@pytest.mark.parametrize("which", [which for which in BUDGETS if which not in POLLED], ids=" ".join)
def test_a_grid_waits_for_what_it_reads(which: Which) -> None:
    """Every store is released and every load acquired, for all threads; and no load is begun a step ahead."""
    report = compiled(which).report
    if report.ptx:
        barrier = check_grid_barrier(report.ptx)
        assert len(barrier.releases) == 1
        assert "cp.async" not in report.ptx
    else:  # AMD's: the warp that arrives has written back what it stored, and after the wait, nothing is cached. That
        # the other warps' stores are there is not seen to, which is why barrier.launch refuses AMD's.
        assert re.search(r"buffer_wbl2.*?s_waitcnt.*?global_atomic_add.*?buffer_inv", report.assembly, re.DOTALL)
    assert report.loop().atomics == 1


@pytest.mark.parametrize("which", POLLED, ids=" ".join)
def test_a_grid_polls_all_that_it_reads(which: Which) -> None:
    """Every number of the state, or gate by gate of its gradients, in loads of 16 bytes, and without an atomic."""
    row = compiled(which)
    tile = int(re.search(r"(\d+) rows", which[0])[1])
    gates = CELLS[row.cell].gates if "backward" in which[0] else 1
    state = 2 * tile * row.hidden // (row.report.warps * row.report.limits.warp)
    assert check_polling(row.report.ptx) == (state,) * gates
    assert row.report.ptx.count("ld.volatile.global.v4.b32") == 2 * gates * state // 16
    assert row.report.loop().atomics == 0
    assert "cp.async" not in row.report.ptx


@pytest.mark.parametrize("which", BUDGETS, ids=" ".join)
def test_weights_are_read_before_the_loop(which: Which) -> None:
    """There are at least as many loads, of 16 bytes a thread at most, as the weights take; none in a loop."""
    row = compiled(which)
    _, cell, numbers, hidden, _, shape = row.name.split("/")
    units = int(re.search(r"(\d+) units", shape)[1])
    threads = row.report.warps * row.report.limits.warp
    least = BYTES[numbers] * CELLS[cell].gates * units * int(hidden) // (16 * threads)
    assert row.report.whole.global_loads - row.report.loop("outermost").global_loads >= least


@pytest.mark.parametrize("which", CHAINS, ids=" ".join)
def test_few_products_wait_for_one_another(which: Which) -> None:
    listing = Listing(compiled(which).report.assembly, SASS)
    length: dict[str, int] = {}  # of the chain that ends in a register
    longest = 0
    for index in sorted(listing.loops[0]):
        instruction = listing.instructions[index]
        operands = [operand.strip().split(".")[0] for operand in instruction.operands.split(",")]
        length[operands[0]] = length.get(operands[-1], 0) + 1 if "MMA" in instruction.opcode else 0
        longest = max(longest, length[operands[0]])
    assert longest == CHAINS[which]


def test_a_kernel_whose_threads_have_too_many_registers_together_is_over_its_budget() -> None:
    """Sixteen warps cannot have 255 of them each, though the assembler hands them out."""
    name, target = "gluon_grid_forward/lstm/bf16/512/all/32 rows, 16 units", "sm_90"
    (entry,) = (entry for entry in kernels.catalog() if entry.name == name and target in entry.targets)
    kernel, signature, constants = entry.kernel, entry.signature, entry.constants | {"SPLIT": 16}
    report = compile_kernel(kernel, signature, constants, target, num_warps=16, num_stages=1, **entry.options)
    assert any("all threads" in line for line in over(report, BUDGETS[name, target]))
