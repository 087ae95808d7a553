"""Threads only where there are cores for them: affinity, quotas, others that keep a core busy; and the same bits."""

import itertools
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accuracy import assert_same
from layers import draw, fast, run
from test_determinism import by_row, in_a_process

import fastrnn
from fastrnn import _C
from fastrnn.reference import CELLS

SMALL, LARGE = (150, 37, 5, 40), (40, 33, 5, 256)  # steps, batch, inputs, hidden
LONG = (1000, 1, 256, 512, 1)  # units are split, however many threads have to take turns
MS = 1_000_000  # nanoseconds


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The number of threads, and of cores that tests assume, are as they were."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    _C.cpu_assume(64, False)


def plan(sizes: tuple[int, ...], threads: int, cell: str = "lstm") -> str:
    """How a pass is split, without the instruction set."""
    return _C.cpu_plan(cell, *sizes, "float32", threads).partition(", ")[2]


@pytest.mark.parametrize("cores", [1, 2, 3, 5])
def test_no_more_shares_than_cores(cores: int) -> None:
    _C.cpu_assume(cores, False)
    assert _C.cpu_cores() == cores
    for threads in (1, 2, 3, 8, 64):
        used = min(threads, cores)
        how = plan(LONG, threads)
        assert how.startswith("one thread" if used == 1 else f"units split over {used} threads")
        noun = "core" if cores == 1 else "cores"
        assert how.endswith(f" (torch's {threads} have {cores} {noun})") == (threads > cores)


def test_threads_without_cores_are_not_woken_for_little() -> None:
    """Each region wakes all of torch's: with more than cores, that takes as long as the pass of a short sequence."""
    short = (20, 1, 256, 256, 1)
    _C.cpu_assume(2, False)
    assert plan(short, 2) == "units split over 2 threads"
    assert plan(short, 64) == "one thread (torch's 64 have 2 cores)"
    assert plan(LONG, 64).startswith("units split over 2 threads")
    assert plan((2, 1, 8, 8, 1), 64) == "one thread"  # as it would be with a core for each


def test_one_thread_while_others_are_busy() -> None:
    for sizes in (LONG, (*LARGE, 1), (*SMALL, 2)):
        _C.cpu_assume(2, True)
        assert plan(sizes, 2) == "one thread (others keep a core busy: more are tried again soon)"
        _C.cpu_assume(2, False)
        assert "threads" in plan(sizes, 2)
        assert "(" not in plan(sizes, 2)


def test_explain_says_why() -> None:
    torch.set_num_threads(8)
    layer, x = fastrnn.LSTM(256, 512), torch.randn(500, 1, 256)
    for cores, busy, words in (
        (2, True, "others keep a core busy"),
        (2, False, "torch's 8 have 2 cores"),
        (8, False, ""),
    ):
        _C.cpu_assume(cores, busy)
        (line,) = fastrnn.explain(layer, x).layers
        assert words in line.kernel
        assert bool(words) == ("(" in line.kernel)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_the_affinity_mask_of_the_moment() -> None:
    """A mask that is set later is honoured, and one of another thread is another thread's."""
    code = """
    import time
    _C.cpu_assume(0, False)
    everything = os.sched_getaffinity(0)
    def cores():
        time.sleep(0.05)
        return _C.cpu_cores()
    before = cores()
    assert 1 <= before <= len(everything)
    os.sched_setaffinity(0, {min(everything)})
    assert cores() == 1
    assert "one thread (torch's 8 have 1 core)" in _C.cpu_plan("lstm", 1000, 1, 256, 512, 1, "float32", 8)
    os.sched_setaffinity(0, everything)
    assert cores() == before
    """
    in_a_process(code)


def groups(root: Path, cgroup: str, mountinfo: str, **files: str) -> float:
    """The quota that such files give; names of files have + for /."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(mountinfo)
    for name, text in files.items():
        path = root / name.replace("+", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return _C.cpu_quota(str(root))


V2 = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
V1 = (
    "28 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    "29 28 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "30 28 0:30 / /sys/fs/cgroup/cpu rw shared:9 master:2 - cgroup cgroup rw,cpu,cpuacct\n"
)
INSIDE = "35 24 0:30 /pod/box /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
TOP, OLD = "sys+fs+cgroup", "sys+fs+cgroup+cpu"
GROUPS = {
    "one group": ("0::/a\n", V2, {f"{TOP}+a+cpu.max": "150000 100000\n"}, 1.5),
    "the smallest upwards": (
        "0::/a/b/c\n",
        V2,
        {f"{TOP}+a+cpu.max": "50000 100000\n", f"{TOP}+a+b+cpu.max": "max 100000\n", f"{TOP}+a+b+c+cpu.max": "4 2\n"},
        0.5,
    ),
    "no limit": ("0::/a\n", V2, {f"{TOP}+a+cpu.max": "max 100000\n"}, math.inf),
    "the top one": ("0::/\n", V2, {f"{TOP}+cpu.max": "300000 100000\n"}, 3.0),
    "no files": ("0::/a/b\n", V2, {}, math.inf),
    "nothing": ("", "", {}, math.inf),
    "nonsense": ("0\n:\nx:y\n", "a b c\n - \n\n", {}, math.inf),
    "a limit that is nonsense": ("0::/a\n", V2, {f"{TOP}+a+cpu.max": "lots\n", f"{TOP}+cpu.max": "-1 0\n"}, math.inf),
    "another's group": ("0::/a\n", V2, {f"{TOP}+ab+cpu.max": "100000 100000\n"}, math.inf),
    "a container's own view": ("0::/\n", V2, {f"{TOP}+cpu.max": "250000 100000\n"}, 2.5),
    "a container's part": ("0::/pod/box/a\n", INSIDE, {f"{TOP}+a+cpu.max": "1 1\n", f"{TOP}+cpu.max": "7 2\n"}, 1.0),
    "a group outside of the mount": ("0::/pod/boxes/a\n", INSIDE, {f"{TOP}+cpu.max": "7 2\n"}, 3.5),
    "a path out of the namespace": ("0::/../b\n", V2, {f"{TOP}+cpu.max": "9 2\n"}, 4.5),
    "the old hierarchies": (
        "5:cpuset:/x\n4:cpu,cpuacct:/x/y\n",
        V1,
        {
            f"{OLD}+x+y+cpu.cfs_quota_us": "-1\n",
            f"{OLD}+x+y+cpu.cfs_period_us": "100000\n",
            f"{OLD}+x+cpu.cfs_quota_us": "220000\n",
            f"{OLD}+x+cpu.cfs_period_us": "100000\n",
        },
        2.2,
    ),
    "both": (
        "4:cpu:/x\n0::/x\n",
        V1 + V2.replace("/cgroup ", "/cgroup/unified "),
        {f"{TOP}+unified+x+cpu.max": "3 1\n", f"{OLD}+x+cpu.cfs_quota_us": "2", f"{OLD}+x+cpu.cfs_period_us": "1"},
        2.0,
    ),
    "a quota without a period": ("4:cpu:/\n", V1, {f"{OLD}+cpu.cfs_quota_us": "2"}, math.inf),
}


@pytest.mark.parametrize("name", GROUPS)
def test_quotas_of_control_groups(name: str, tmp_path: Path) -> None:
    cgroup, mountinfo, files, expected = GROUPS[name]
    assert groups(tmp_path, cgroup, mountinfo, **files) == expected


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert _C.cpu_quota(str(tmp_path)) == math.inf
    assert _C.cpu_quota("") > 0


def test_a_ledger_that_threads_fill() -> None:
    """Work on two threads that takes 1 ms instead of 2; then one is late, by less and by more than was saved."""
    quiet = [(2 * MS, MS, t * MS) for t in range(1, 100)]
    assert not any(_C.cpu_ledger(quiet))
    again = [(2 * MS, MS, t * MS) for t in range(107, 116)]
    assert not any(_C.cpu_ledger([*quiet, (2 * MS, 6 * MS, 106 * MS), *again, (2 * MS, 6 * MS, 121 * MS)]))
    late = _C.cpu_ledger([*quiet, (2 * MS, 22 * MS, 121 * MS)])
    assert late[-1] == (121 + 8 * 20) * MS  # alone for eight times what was lost


def test_a_ledger_of_small_losses() -> None:
    """Where threads take as long as one thread or longer, again and again, that ends them as well."""
    found = _C.cpu_ledger([(MS, 3 * MS, 3 * t * MS) for t in range(1, 4)])
    assert found == [0, 0, (9 + 8 * 6) * MS]


def losses(after: list[int]) -> list[int]:
    """The pauses, in ms, that follow each loss of 20 ms which comes so many ms after the pause before."""
    entries, pauses, time = [], [], 1000 * MS
    for wait in after:
        time += wait * MS
        entries.append((0, 20 * MS, time))
        pauses.append((_C.cpu_ledger(entries)[-1] - time) // MS)
        time += pauses[-1] * MS
    return pauses


def test_a_ledger_under_a_busy_neighbour() -> None:
    assert losses([1] * 6) == [160, 320, 640, 640, 640, 640]  # in the end, a 32nd part of the time is lost
    assert losses([1, 1, 321, 1, 1]) == [160, 320, 160, 320, 640]  # threads lasted for longer than the pause before
    (endless,) = _C.cpu_ledger([(0, 3_600_000 * MS, 1)])
    assert endless == 8 * 100 * MS + 1  # as of a process that was stopped for an hour


def test_a_ledger_leaves_out_what_began_before_the_pause() -> None:
    found = _C.cpu_ledger([(0, 20 * MS, 100 * MS), (0, 20 * MS, 101 * MS), (0, 20 * MS, 259 * MS), (2, 1, 261 * MS)])
    assert found == [260 * MS] * 3 + [0]


@pytest.mark.parametrize("tape", ["full", "lean"])
@pytest.mark.parametrize("sizes", [SMALL, LARGE, (150, 1, 33, 512)], ids=["small", "large", "one row"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_same_bits_with_and_without_cores(cell: str, sizes: tuple[int, ...], tape: str) -> None:
    """All results of torch's 2 threads, whether others are busy or not, rows' also of 8 threads and of one."""
    problem = draw(cell, *sizes, bidirectional=True, layout="lengths", cells=True)
    rows = range(sizes[1])
    torch.set_num_threads(1)
    expected = by_row(run(fast(tape), problem), rows)
    for threads in (2, 8):
        torch.set_num_threads(threads)
        _C.cpu_assume(2, False)
        both = run(fast(tape), problem)
        assert_same(by_row(both, rows), expected)
        for _ in range(2):
            _C.cpu_assume(2, True)
            assert_same(run(fast(tape), problem), both)
            _C.cpu_assume(2, False)
            assert_same(run(fast(tape), problem), both)


def test_the_same_bits_on_this_machine() -> None:
    """Under the real ledger and the real number of cores, with more threads than those."""
    code = f"""
    _C.cpu_assume(0, False)
    for cell in CELLS:
        problem, rows = draw(cell, 20, 2, 5, 256, bidirectional=True), range(2)
        torch.set_num_threads(1)
        expected = by_row(run(fast(), problem), rows)
        torch.set_num_threads(2 * {os.cpu_count()} + 2)
        for _ in range(10):
            assert_same(by_row(run(fast(), problem), rows), expected)
    """
    in_a_process(code)


@pytest.mark.skipif(sys.platform != "linux", reason="fork, and torch's threads are another library's elsewhere")
def test_a_forked_child_trains() -> None:
    """Products of matrices take one thread there, as everything of a layer does, and no thread is waited for."""
    code = """
    import signal
    torch.set_num_threads(2)
    problem = draw("lstm", 40, 4, 64, 128)
    expected = run(fast(), problem)
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        assert "one thread (a forked process has no others)" in _C.cpu_plan("lstm", 40, 4, 64, 128, 1, "float32", 2)
        found = run(fast(), problem)
        torch.set_num_threads(1)  # for torch's own operators, which compare
        assert_same(found, expected)
        print("trained", flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    """
    assert in_a_process(code) == "trained\n"


def test_plans_of_every_cell_have_a_core_for_each_share() -> None:
    for cell, cores, threads in itertools.product(CELLS, (1, 2, 3), (2, 8)):
        _C.cpu_assume(cores, False)
        for sizes in ((*SMALL, 1), (*LARGE, 1), (*SMALL, 2), (*LARGE, 2)):
            how = plan(sizes, threads, cell)
            shares = 1 if "over" not in how else int(how.partition("over ")[2].split()[0])
            assert shares * (2 if "team" in how else 1) <= cores
