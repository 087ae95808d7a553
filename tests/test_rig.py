"""The part of the rig that compiles: costs of machine code without a GPU, and orders of memory in PTX.

The part that interprets is tested in tests/interpreted.
"""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import triton
import triton.language as tl
from rig.ptx import BarrierError, PollingError, check_grid_barrier, check_polling

from bench import aot
from bench.assembly import AMDGCN, PTX, SASS, Listing, Syntax

pytestmark = pytest.mark.triton


@triton.jit
def recurrent_kernel(x_ptr, w_ptr, y_ptr, steps, H: tl.constexpr):
    """Compute h = sigmoid(h W + x[t]) for all t: weights are loaded once, x once a step."""
    row, unit = tl.arange(0, 16), tl.arange(0, H)
    weights = tl.load(w_ptr + unit[:, None] * H + unit[None, :])
    h = tl.zeros((16, H), w_ptr.dtype.element_ty)
    for t in range(steps):
        place = (t * 16 + row[:, None]) * H + unit[None, :]
        gates = tl.dot(h, weights, tl.load(x_ptr + place).to(tl.float32), out_dtype=tl.float32)
        h = (1.0 / (1.0 + tl.exp(-gates))).to(w_ptr.dtype.element_ty)
        tl.store(y_ptr + place, h)


@triton.jit
def forgetful_kernel(x_ptr, w_ptr, y_ptr, steps, H: tl.constexpr):
    """As above, but for weights that are loaded in each step."""
    row, unit = tl.arange(0, 16), tl.arange(0, H)
    h = tl.zeros((16, H), w_ptr.dtype.element_ty)
    for t in range(steps):
        weights = tl.load(w_ptr + unit[:, None] * H + unit[None, :], volatile=True)
        place = (t * 16 + row[:, None]) * H + unit[None, :]
        h = tl.dot(h, weights, tl.load(x_ptr + place).to(tl.float32), out_dtype=tl.float32).to(w_ptr.dtype.element_ty)
        tl.store(y_ptr + place, h)


@triton.jit
def straight_kernel(x_ptr, y_ptr, size, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < size) * 2, mask=i < size)


@triton.jit
def exchange_kernel(x_ptr, counter_ptr, steps, SIZE: tl.constexpr, MODE: tl.constexpr):
    """Each step reads what all programs wrote in the one before; the mode says what of its barrier is missing."""
    programs = tl.num_programs(0)
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    for t in range(steps):
        row = tl.load(x_ptr + t * programs * SIZE + programs * SIZE - 1 - i, cache_modifier=".cg")
        tl.store(x_ptr + (t + 1) * programs * SIZE + i, row * 2)
        tl.debug_barrier()
        if MODE == "relaxed":
            tl.atomic_add(counter_ptr, 1, sem="relaxed", scope="gpu")
        elif MODE == "narrow":
            tl.atomic_add(counter_ptr, 1, sem="release", scope="cta")
        else:
            tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")
        if MODE == "volatile":
            while tl.load(counter_ptr, volatile=True) < (t + 1) * programs:
                pass
        else:
            while tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") < (t + 1) * programs:
                pass
        tl.debug_barrier()


@triton.jit
def polling_kernel(x_ptr, counter_ptr, steps, SIZE: tl.constexpr, MODE: tl.constexpr):
    """Each step waits for what all programs wrote in the one before; the mode says what is wrong about that."""
    programs = tl.num_programs(0)
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    for t in range(steps):
        ptrs = x_ptr + t * programs * SIZE + programs * SIZE - 1 - i
        row = tl.load(ptrs, volatile=True)
        if MODE != "once":
            while tl.min(row, 0) == -1:
                row = tl.load(ptrs, volatile=MODE != "cached")
        if MODE == "more":
            row += tl.load(ptrs + 1, volatile=True)
        if MODE == "fenced":
            tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")
        tl.store(x_ptr + (t + 1) * programs * SIZE + i, row * 2)


SIGNATURE = {"x_ptr": "*bf16", "w_ptr": "*bf16", "y_ptr": "*bf16", "steps": "i32"}


def compiled(kernel: Any = recurrent_kernel, target: str = "sm_90", hidden: int = 64, **options: Any) -> aot.Report:
    return aot.compile_kernel(kernel, SIGNATURE, {"H": hidden}, target, num_stages=1, **options)


def exchanged(mode: str, kernel: Any = exchange_kernel) -> str:
    signature = {"x_ptr": "*i32", "counter_ptr": "*i32", "steps": "i32"}
    return aot.compile_kernel(kernel, signature, {"SIZE": 128, "MODE": mode}, "sm_90").ptx


@pytest.mark.parametrize("target", list(aot.TARGETS))
def test_a_kernel_is_compiled_for_every_target(target: str) -> None:
    report = compiled(target=target)
    assert (report.kernel, report.target, report.warps) == ("recurrent_kernel", target, 4)
    assert (report.spills, report.stack) == (0, 0)
    assert 16 <= report.registers <= report.limits.registers
    assert 0 < report.shared <= report.limits.shared
    loop = report.loop()
    assert len(report.loops) == 1
    assert loop == report.loop("innermost")
    assert 50 < loop.instructions < report.whole.instructions
    # 16 x 64 x 64 products on 4 warps: 16 x 8 x 16 in an HMMA, 16 x 16 x 16 in an MFMA
    if target == "gfx942":
        assert loop.tensor == {"mfma_f32_16x16x16_bf16": 4}
        assert loop.tensor_cores("mfma") == loop.tensor_cores() == 4
    else:
        assert loop.tensor == {"HMMA.16816": 8}
        assert loop.tensor_cores("HMMA") == loop.tensor_cores() == 8
        assert loop.matrix_loads > 0
        assert ".target sm_" in report.ptx
    # 8 sigmoids a thread, of an exponential and a reciprocal each; exact division takes more on some targets
    assert loop.mufu >= 16 * 64 // (4 * report.limits.warp) * 2
    # a thread's part of 16 x 64 numbers is one load and one store of 16 bytes, or few smaller ones
    assert 1 <= loop.global_loads <= 4
    assert 1 <= loop.global_stores <= 4
    assert loop.shared_stores >= 1
    assert loop.barriers >= 1
    assert loop.local == loop.atomics == 0


def test_weights_that_are_loaded_in_each_step_show() -> None:
    resident, forgetful = compiled().loop(), compiled(forgetful_kernel).loop()
    assert forgetful.global_loads >= resident.global_loads + 4


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_a_kernel_that_spills_is_reported(target: str) -> None:
    report = compiled(target=target, hidden=128, maxnreg=32)
    assert report.registers <= 32
    assert report.spills > 0
    assert report.stack > 0
    assert report.loop().local > 0


def test_wide_tiles_are_products_of_a_warp_group_on_hopper_alone() -> None:
    kinds = {target: list(_tall(target).loop().tensor) for target in ("sm_80", "sm_90", "sm_120")}
    assert kinds["sm_80"] == kinds["sm_120"] == ["HMMA.16816"]
    assert [kind.split(".")[0] for kind in kinds["sm_90"]] == ["HGMMA"]


@triton.jit
def tall_kernel(x_ptr, w_ptr, y_ptr, steps, H: tl.constexpr):
    row, unit = tl.arange(0, 64), tl.arange(0, H)
    weights = tl.load(w_ptr + unit[:, None] * H + unit[None, :])
    for t in range(steps):
        place = (t * 64 + row[:, None]) * H + unit[None, :]
        tl.store(y_ptr + place, tl.dot(tl.load(x_ptr + place), weights, out_dtype=tl.float32).to(tl.bfloat16))


def _tall(target: str) -> aot.Report:
    return compiled(tall_kernel, target)


def test_double_precision_has_tensor_cores_of_its_own() -> None:
    doubles = {**SIGNATURE, "x_ptr": "*fp64", "w_ptr": "*fp64", "y_ptr": "*fp64"}
    report = aot.compile_kernel(double_kernel, doubles, {"H": 32}, "sm_90")
    assert report.loop().tensor_cores("DMMA") == report.loop().tensor_cores() > 0


@triton.jit
def double_kernel(x_ptr, w_ptr, y_ptr, steps, H: tl.constexpr):
    unit = tl.arange(0, H)
    place = unit[:, None] * H + unit[None, :]
    weights = tl.load(w_ptr + place)
    for t in range(steps):
        product = tl.dot(tl.load(x_ptr + t * H * H + place), weights, out_dtype=tl.float64)
        tl.store(y_ptr + t * H * H + place, product)


def test_a_grid_barrier_is_a_loop_in_the_time_loop() -> None:
    signature = {"x_ptr": "*fp32", "counter_ptr": "*i32", "steps": "i32"}
    report = aot.compile_kernel(exchange_kernel, signature, {"SIZE": 128, "MODE": "right"}, "sm_90")
    assert len(report.loops) == 2
    assert report.loop().instructions > report.loop("innermost").instructions
    assert report.loop().global_stores == 1
    assert report.loop("innermost").global_stores == 0


def test_a_kernel_without_a_loop_says_so() -> None:
    signature = {"x_ptr": "*fp32", "y_ptr": "*fp32", "size": "i32"}
    report = aot.compile_kernel(straight_kernel, signature, {"SIZE": 512}, "sm_90")
    assert report.whole.global_loads > 0
    with pytest.raises(LookupError, match="straight_kernel has no loop on sm_90"):
        report.loop()


def test_a_size_that_is_known_to_be_divisible_makes_for_wider_loads() -> None:
    signature = {"x_ptr": "*fp32", "y_ptr": "*fp32", "size": "i32"}
    loads = [
        aot.compile_kernel(straight_kernel, signature, {"SIZE": 512}, "sm_90", divisible=divisible).whole.global_loads
        for divisible in ((), ("size",))
    ]
    assert loads == [4, 1]


def test_arguments_that_do_not_fit_the_kernel_are_refused() -> None:
    with pytest.raises(ValueError, match=r"recurrent_kernel takes \['x_ptr', .*, 'H'\], not \['x_ptr'\]"):
        aot.compile_kernel(recurrent_kernel, {"x_ptr": "*bf16"}, {}, "sm_90")


def _in_a_pool(target: str) -> aot.Report:
    return compiled(target=target)


def test_reports_come_from_a_pool_of_processes() -> None:
    report = compiled(target="sm_80")
    assert pickle.loads(pickle.dumps(report)) == report
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        assert pool.submit(_in_a_pool, "sm_80").result() == report


def test_nothing_is_said_or_kept(capfd, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled()
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
    assert triton.knobs.nvidia.dump_ptxas_log is False


def python(program: str, interpret: bool) -> str:
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpret)), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


@pytest.mark.parametrize("interpret", [False, True])
def test_pytest_runs_interpreted_tests_apart_and_says_so(interpret: bool) -> None:
    """Given both kinds of tests, each process collects its own."""
    here = Path(__file__).parent
    both = [str(here / "interpreted" / "test_interpreter.py"), str(here / "test_main.py")]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *both]
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpret))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=here.parent)
    assert ("<Function test_a_missing_barrier_shows>" in done.stdout) is interpret
    assert ("<Module test_main.py>" in done.stdout) is not interpret
    header = "tests/interpreted, and those alone" if interpret else "left out here, run TRITON_INTERPRET=1 pytest"
    assert header in done.stdout


def test_the_two_ways_of_running_kernels_are_told_apart() -> None:
    install = "from rig import interpreter; interpreter.install()"
    assert python(install, interpret=True) == ""
    assert "RuntimeError: triton was imported without interpretation" in python(install, interpret=False)
    late = f"import triton, os; os.environ['TRITON_INTERPRET'] = '1'; {install}"
    assert "RuntimeError: triton was imported without interpretation" in python(late, interpret=False)
    compile_ = "import test_rig; test_rig.compiled()"
    assert "cannot be compiled: is TRITON_INTERPRET set?" in python(compile_, interpret=True)


def test_a_grid_barrier_that_orders_memory_is_found() -> None:
    barrier = check_grid_barrier(exchanged("right"))
    assert len(barrier.releases) == 1
    assert len(barrier.acquires) == 1
    assert ".release" in barrier.releases[0].opcode
    assert ".acquire" in barrier.acquires[0].opcode


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("volatile", r"nothing is acquired, although line \d+: .*ld\.volatile\.global.* polls"),
        ("relaxed", "nothing is released"),
        ("narrow", r"not for the whole GPU: line \d+: .*release\.cta|not for the whole GPU: line \d+: .*cta\.release"),
    ],
)
def test_a_grid_barrier_with_a_link_missing_is_caught(mode: str, message: str) -> None:
    with pytest.raises(BarrierError, match=message):
        check_grid_barrier(exchanged(mode))


def test_a_release_before_the_block_has_stored_is_caught() -> None:
    """Triton 3.9 puts a barrier before a release by itself: where it does, take it out."""
    ptx = exchanged("right")
    lines = ptx.splitlines()
    release = next(number for number, line in enumerate(lines) if ".release." in line)
    store = max(number for number, line in enumerate(lines[:release]) if "st.global" in line)
    without = [line for number, line in enumerate(lines) if not (store < number < release and "bar.sync" in line)]
    assert len(without) < len(lines)
    with pytest.raises(BarrierError, match=r"no barrier of the block between a store, line \d+: .*st\.global.*release"):
        check_grid_barrier("\n".join(without))


def test_a_load_before_the_block_has_acquired_is_caught() -> None:
    lines = exchanged("right").splitlines()
    acquire = next(number for number, line in enumerate(lines) if ".acquire." in line)
    without = [line for number, line in enumerate(lines) if number < acquire or "bar.sync" not in line]
    with pytest.raises(BarrierError, match=r"no barrier of the block between an acquire, line \d+: "):
        check_grid_barrier("\n".join(without))


def test_a_step_that_does_not_wait_is_caught() -> None:
    loop = ["$L__BB0_1:", "bar.sync 0;", "atom.global.gpu.release.add.u32 %r1, [%rd1], 1;", "@%p1 bra $L__BB0_1;"]
    wait = ["ld.global.gpu.acquire.b32 %r2, [%rd1];", "bar.sync 0;"]
    check_grid_barrier("\n".join([*loop[:3], *wait, loop[3], "ret;"]))
    with pytest.raises(BarrierError, match="released again without an acquire: line 3: atom"):
        check_grid_barrier("\n".join([*loop, *wait, "ret;"]))


def test_polling_that_loads_anew_is_found() -> None:
    assert check_polling(exchanged("right", polling_kernel)) == (4,)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("once", "0 bytes are asked for, and 4 polled"),  # by the loop over time, which is none that waits
        ("more", "8 bytes are asked for, and 4 polled"),
        ("cached", r"a load that polls is not volatile, line \d+: .*ld\.global"),
        ("fenced", r"memory is ordered, line \d+: .*release"),
    ],
)
def test_polling_that_may_read_too_early_is_caught(mode: str, message: str) -> None:
    with pytest.raises(PollingError, match=message):
        check_polling(exchanged(mode, polling_kernel))


def test_a_kernel_that_does_not_poll_is_caught() -> None:
    with pytest.raises(PollingError, match="nothing is polled"):
        check_polling(compiled().ptx)


LISTINGS = {
    "sass": (SASS, ["/*0000*/ {} ;", ".L_x_{}:", "BRA `(.L_x_{})", "@P0 BRA `(.L_x_{})", "EXIT"]),
    "amdgcn": (AMDGCN, ["\t{}", ".LBB0_{}:", "s_branch .LBB0_{}", "s_cbranch_scc1 .LBB0_{}", "s_endpgm"]),
    "ptx": (PTX, ["\t{};", "$L__BB0_{}:", "bra.uni $L__BB0_{}", "@%p1 bra $L__BB0_{}", "ret"]),
}


@pytest.mark.parametrize("name", list(LISTINGS))
def test_loops_are_found_wherever_their_blocks_stand(name: str) -> None:
    """Two loops, one in the other, and a slow path that stands after the end and leads back into the inner one."""
    syntax, (line, label, jump, branch, end) = LISTINGS[name]
    plain = {"sass": "NOP", "amdgcn": "s_nop 0", "ptx": "mov.u32 %r1, %r2"}[name]

    def instruction(text: str) -> str:
        return line.format(text)

    text = [
        instruction(plain),
        label.format(1),  # the outer loop: 1 to 7
        instruction(plain),
        label.format(2),  # the inner loop: 2 to 5, and 9 to 10
        instruction(plain),
        instruction(branch.format(3)),
        label.format(4),
        instruction(plain),
        instruction(branch.format(2)),
        instruction(plain),
        instruction(branch.format(1)),
        instruction(end),
        label.format(3),
        instruction(plain),
        instruction(jump.format(4)),
        label.format(5),  # a loop that nothing leads to
        instruction(jump.format(5)),
    ]
    assert _loops("\n".join(text), syntax) == [[1, 2, 3, 4, 5, 6, 7, 9, 10], [2, 3, 4, 5, 9, 10]]


def test_what_runs_where_a_warp_has_come_apart_is_not_in_the_loop() -> None:
    nop, back, apart = "/*0000*/ NOP ;", "/*0000*/ @P0 BRA `(.L_x_1) ;", "/*0000*/ BRA.DIV UR4, `(.L_x_3) ;"
    text = [".L_x_1:", nop, apart, ".L_x_2:", back, "/*0000*/ EXIT ;", ".L_x_3:", nop, "/*0000*/ BRA `(.L_x_2) ;"]
    assert _loops("\n".join(text), SASS) == [[0, 1, 2]]


def _loops(text: str, syntax: Syntax) -> list[list[int]]:
    return [sorted(loop) for loop in Listing(text, syntax).loops]
