"""Numbers that kernels read are brought to a device once, and stay for the graphs that read them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastrnn.kernels import tables
from fastrnn.kernels.tables import Tables

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """What is transferred, in order."""
    done: list[tuple[int, ...]] = []
    transferred = tables.transferred

    def watched(numbers: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        done.append(numbers)
        return transferred(numbers, dtype, device)

    monkeypatch.setattr(tables, "transferred", watched)
    return done


def test_the_same_numbers_are_transferred_once(transfers: list[tuple[int, ...]]) -> None:
    kept = Tables()
    found = kept.get([3, 2, 1], torch.int32, CPU)
    assert torch.equal(found, torch.tensor([3, 2, 1], dtype=torch.int32))
    assert kept.get((3, 2, 1), torch.int32, CPU) is found
    assert kept.get([3, 2, 2], torch.int32, CPU).tolist() == [3, 2, 2]
    assert kept.get([3, 2, 1], torch.int64, CPU).dtype == torch.int64
    assert kept.get([3, 2, 1], torch.int32, META).device == META
    assert transfers == [(3, 2, 1), (3, 2, 2), (3, 2, 1), (3, 2, 1)]


def test_those_asked_for_last_are_kept(transfers: list[tuple[int, ...]]) -> None:
    kept = Tables(most=2)
    for numbers in ([1], [2], [1], [3], [1], [2]):
        kept.get(numbers, torch.int32, CPU)
    assert transfers == [(1,), (2,), (3,), (2,)]


def test_a_capture_reads_what_is_there_and_keeps_it(
    transfers: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Tables(most=1)
    found = kept.get([1], torch.int32, CPU)
    with monkeypatch.context() as capture:
        capture.setattr(tables, "capturing", lambda device: True)
        assert kept.get([1], torch.int32, CPU) is found
        with pytest.raises(RuntimeError, match="call the layer once with the same"):
            kept.get([2], torch.int32, CPU)
    for numbers in ([2], [3], [1]):
        last = kept.get(numbers, torch.int32, CPU)
    assert last is found
    assert transfers == [(1,), (2,), (3,)]


def test_threads_share_them(transfers: list[tuple[int, ...]]) -> None:
    kept = Tables()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: kept.get(range(1000), torch.int64, CPU), range(64)))
    assert all(table is found[0] for table in found)
    assert len(transfers) == 1
