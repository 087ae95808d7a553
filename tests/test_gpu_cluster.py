"""How programs and thread blocks hand each other numbers: what can be known without a GPU. No row here was measured."""

import ctypes
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from bench.gpu import clock, cluster, contestants, launched, measure, meeting
from bench.results import Device
from bench.timing import by_host

GPU = Device("a GPU", "9.0", "580", "13.0", "91300", "3.6.0", 132)


def source() -> str:
    return cluster.SOURCE.read_text(encoding="utf-8")


@pytest.mark.parametrize("kernel", ["exchange", "meet"])
def test_the_source_has_every_kernel(kernel: str) -> None:
    for blocks in cluster.BLOCKS:
        assert f"KERNELS({blocks})" in source()
    assert f"{kernel}_##BLOCKS" in source()
    assert f"exchange<BLOCKS, {cluster.ROWS}, {cluster.UNITS}>" in source()
    assert f"__launch_bounds__({cluster.THREADS}, 1)" in source()
    assert 2 * 4 * cluster.WORDS < cluster.SHARED  # the two places
    assert 2 * cluster.SHARED > 227 * 1024  # no multiprocessor has two blocks


@pytest.mark.parametrize("blocks", cluster.BLOCKS)
def test_every_place_is_stored_to_by_one_block(blocks: int) -> None:
    """The source's own index arithmetic, as Python understands it: so the sums that are expected are right."""
    found = dict(re.findall(r"\b(block|row|column) = ([^,;]+)", source()))
    assert found.keys() == {"block", "row", "column"}
    lines = cluster.UNITS // 8
    every = cluster.ROWS * lines
    sizes = {"ALL": every, "PART": every // blocks, "LINE": lines // blocks}
    places = {name: compile(text.replace("/", "//"), name, "eval") for name, text in found.items()}
    stored: Counter[tuple[int, int]] = Counter()
    words = [0] * blocks  # of step 0, read by each block: r in every word of block r
    for mine in range(blocks):
        for i in range(every):
            block, row, column = (eval(place, {}, sizes | {"i": i, "mine": mine}) for place in places.values())
            stored[block, row * lines + column] += 1
            words[block] += 4 * mine
    assert stored == Counter({(block, place): 1 for block in range(blocks) for place in range(every)})
    assert words == [cluster.expected("exchange", blocks, rank, 1) for rank in range(blocks)]


def test_sums() -> None:
    assert cluster.expected("meet", 8, 3, 2) == 3 + 31 + 3
    assert cluster.expected("exchange", 8, 0, 2) == cluster.WORDS * 31 + 2 * cluster.WORDS // 8 * sum(range(8))
    assert cluster.expected("exchange", 16, 0, cluster.STEPS) < 2**32


def nvrtc() -> ctypes.CDLL | None:
    return cluster._nvrtc() if torch.version.cuda else None


@pytest.mark.skipif(not shutil.which("nvcc"), reason="there is no nvcc")
def test_nvcc_compiles_it() -> None:
    assert cluster.by_nvcc("sm_90")[:4] == b"\x7fELF"


@pytest.mark.skipif(nvrtc() is None, reason="torch has brought no NVRTC")
def test_nvrtc_compiles_it() -> None:
    assert cluster.by_nvrtc(nvrtc(), "sm_90")[:4] == b"\x7fELF"


def test_what_does_not_compile_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cluster, "_nvrtc", lambda: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="there is neither NVRTC nor nvcc"):
        cluster.compiled((9, 0))


class Right:
    """Kernels that find what is expected."""

    def __init__(self, binary: bytes) -> None:
        assert binary == b"made"

    def launch(self, kernel: str, blocks: int, steps: int) -> torch.Tensor:
        sums = [cluster.expected(kernel, blocks, rank, steps) for rank in range(blocks)]
        return torch.tensor(sums, dtype=torch.int64).to(torch.int32)


class Wrong(Right):
    def launch(self, kernel: str, blocks: int, steps: int) -> torch.Tensor:
        found = super().launch(kernel, blocks, steps)
        return found + (torch.arange(blocks) == 5) if (kernel, blocks) == ("exchange", 16) else found


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run believes to be a GPU; nothing is computed there."""
    pytest.importorskip("triton")
    monkeypatch.setattr(contestants, "DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(launched, "meet", lambda *_: None)
    monkeypatch.setattr(measure, "device", lambda: GPU)
    monkeypatch.setattr(clock, "by_events", by_host)
    monkeypatch.setattr(cluster, "compiled", lambda capability: b"made")
    monkeypatch.setattr(cluster, "Kernels", Right)


@pytest.mark.usefixtures("device")
def test_rows_of_each_size_and_of_the_way_through_l2() -> None:
    rows = list(cluster.rows(1e-3, steps=10))
    assert [row.detail["what"] for row in rows] == [
        "step through L2, 8 programs, 16 x 512 numbers",
        "step through L2, 16 programs, 16 x 512 numbers",
        "step within a cluster of 8 blocks, 16 x 512 numbers",
        "step within a cluster of 16 blocks, 16 x 512 numbers",
        "step within a cluster of 8 blocks, the meeting alone",
        "step within a cluster of 16 blocks, the meeting alone",
    ]
    assert [row.detail["cluster"] for row in rows] == [8, 16] * 3
    assert all(row.times for row in rows)


@pytest.mark.usefixtures("device")
def test_wrong_sums_have_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "Kernels", Wrong)
    rows = list(cluster.rows(1e-3, steps=10))
    assert [bool(row.times) for row in rows] == [True, True, True, False, True, True]
    assert "ArithmeticError: sums of exchange are [" in rows[3].detail["not_measured"]


@pytest.mark.usefixtures("device")
def test_older_gpus_have_no_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    *_, last = rows = list(cluster.rows(1e-3, steps=10))
    assert len(rows) == 3
    assert last.detail["not_measured"] == (
        "cluster: RuntimeError: clusters need compute capability 9.0, this GPU has 8.6"
    )


@pytest.fixture
def programs(device: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many wrong numbers programs read, by the exchange."""
    from fastrnn.kernels import barrier

    wrong = {"barrier": 0, "data": 0}

    def meet(programs: int, steps: int, device: torch.device, how: str = "barrier") -> torch.Tensor:
        return torch.tensor([0, wrong[how]])

    monkeypatch.setattr(launched, "meet", meet)
    monkeypatch.setattr(meeting, "poll_under_load", lambda *_: wrong["data"])
    monkeypatch.setattr(barrier, "most_programs", lambda device: 100)
    monkeypatch.setattr(barrier, "check", lambda device: None)
    return wrong


def test_programs_meet_by_each_exchange(programs: dict[str, int]) -> None:
    """What takes long comes last."""
    what = [row.detail["what"] for row in meeting.rows(1e-3, 10, 1000, 100)]
    assert what == [
        *(f"step with a barrier of {n} programs" for n in (16, 64, 100)),
        *(f"step with data polled of {n} programs" for n in (16, 64, 100)),
        "step with a barrier of 100 programs, of 1000, all right",
        "step with data polled of 100 programs, of 100, all right",
    ]


@pytest.mark.parametrize("how", ["barrier", "data"])
def test_wrong_numbers_are_no_end(how: str, programs: dict[str, int]) -> None:
    programs[how] = 3
    rows = list(meeting.rows(1e-3, 10, 1000, 100))
    at = {"barrier": 6, "data": 7}[how]
    assert [bool(row.times) for row in rows] == [n != at for n in range(8)]
    assert rows[at].detail["not_measured"].endswith("all right: no: ArithmeticError: 3 wrong numbers")
