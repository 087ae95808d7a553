"""What the CPU's plan knows of the machine, and that it plans alike whenever it is asked."""

import itertools
import re
import zlib

import pytest
import torch
from test_determinism import in_a_process

import fastrnn
from fastrnn import _C

AMD, INTEL, HYGON = "AuthenticAMD", "GenuineIntel", "HygonGenuine"
SIZES = list(itertools.product((1, 2, 30, 200), (1, 3, 32, 128), (40, 256), (16, 64, 160, 512), (1, 2)))


@pytest.fixture(autouse=True)
def cores() -> None:
    """As many as there are threads, and nobody else on them."""
    _C.cpu_assume(64, False)


def numbers(text: str) -> list[int]:
    """KiB of second-level cache; bytes a cycle: narrow, wide, near, far."""
    return [int(n) for n in re.findall(r"\d+", text.partition(": ")[2].replace("AVX-512", ""))]


@pytest.mark.parametrize(
    ("vendor", "family", "model", "kind", "cache", "narrow", "wide"),
    [
        (AMD, 0x17, 0x01, "AMD Zen", 512, 32, 32),
        (HYGON, 0x18, 0x01, "Hygon Zen", 512, 32, 32),
        (AMD, 0x17, 0x31, "AMD Zen 2", 512, 64, 64),
        (AMD, 0x19, 0x01, "AMD Zen 3", 512, 64, 64),
        (AMD, 0x19, 0x11, "AMD Zen 4", 1024, 64, 64),
        (AMD, 0x19, 0x61, "AMD Zen 4", 1024, 64, 64),
        (AMD, 0x1A, 0x44, "AMD Zen 5", 1024, 64, 128),
        (AMD, 0x1A, 0x24, "AMD Zen 5 mobile", 1024, 64, 64),
        (INTEL, 6, 0x3F, "Intel Haswell", 256, 64, 64),
        (INTEL, 6, 0x9E, "Intel Skylake", 256, 64, 64),
        (INTEL, 6, 0x55, "Intel Skylake Xeon", 1024, 64, 128),
        (INTEL, 6, 0x8F, "Intel Sapphire Rapids", 2048, 64, 128),
        (INTEL, 6, 0x97, "Intel Alder Lake", 1280, 64, 64),
        (INTEL, 6, 0xBE, "Intel Gracemont", 512, 32, 32),
    ],
)
def test_known_kinds(vendor: str, family: int, model: int, kind: str, cache: int, narrow: int, wide: int) -> None:
    """By what CPUID says alone: what the system says of the cache may be of another core, or of another machine."""
    text = _C.cpu_machine(vendor, family, model, 123 << 20)
    assert text.startswith(f"{kind}: ")
    assert numbers(text)[:3] == [cache, narrow, wide]


def test_an_unknown_kind_has_the_cache_that_the_system_says() -> None:
    for vendor, family, model in ((AMD, 0x20, 0), (INTEL, 6, 0), (INTEL, 15, 0x8F), ("", 0, 0)):
        text = _C.cpu_machine(vendor, family, model, 768 << 10)
        assert text.startswith("an unknown CPU: ")
        assert numbers(text)[0] == 768
        assert numbers(_C.cpu_machine(vendor, family, model, 0))[0] == 1024


def test_no_kind_is_nonsense() -> None:
    """Caches are faster than what is behind them, and wide vectors no slower than narrow ones."""
    for vendor, family, model in itertools.product((AMD, INTEL, HYGON), (6, 0x17, 0x18, 0x19, 0x1A), range(256)):
        cache, narrow, wide, near, far = numbers(_C.cpu_machine(vendor, family, model, 1 << 20))
        assert 256 <= cache <= 4096
        assert 32 <= narrow <= wide <= 128
        assert far < near


def test_it_is_told() -> None:
    kind = _C.cpu_machine().partition(":")[0]
    (line,) = fastrnn.explain(fastrnn.LSTM(4, 8), torch.randn(3, 2, 4)).layers
    assert line.kernel.startswith(f"{_C.cpu_isa()} on {kind}, ")


KINDS = [("lstm", "float32"), ("gru", "float64"), ("rnn_tanh", "float32")]


def test_one_machine_one_plan() -> None:
    """Called again and again, and in new processes, whatever else goes on there."""

    def plans() -> list[str]:
        return [_C.cpu_plan(cell, *sizes, dtype, 2) for cell, dtype in KINDS for sizes in SIZES]

    first = plans()
    for _ in range(50):
        assert plans() == first
    code = f"""
    import zlib
    _C.cpu_assume(64, False)
    assert _C.cpu_machine() == {_C.cpu_machine()!r}
    found = [_C.cpu_plan(cell, *sizes, dtype, 2) for cell, dtype in {KINDS} for sizes in {SIZES}]
    assert zlib.crc32(repr(found).encode()) == {zlib.crc32(repr(first).encode())}
    """
    for _ in range(3):
        in_a_process(code)


def shares(text: str) -> int:
    found = re.search(r"over (\d+) threads", text)
    return (int(found[1]) if found else 1) * (2 if "a direction" in text else 1)


def test_more_work_takes_no_fewer_threads() -> None:
    """Of one thread, more steps, rows or units lead to several, and never back."""
    for cell, directions in itertools.product(("lstm", "gru", "rnn_tanh"), (1, 2)):
        for sizes in itertools.product((1, 3, 32), (16, 64, 160)):
            batch, hidden = sizes
            for grow in range(3):
                several = False
                for factor in (1, 4, 16, 64):
                    n = [8, batch, hidden]
                    n[grow] *= factor
                    text = _C.cpu_plan(cell, n[0], n[1], 40, n[2], directions, "float32", 2)
                    assert shares(text) == 2 or not several, text
                    several = several or shares(text) == 2


def test_what_is_large_is_split() -> None:
    for threads in (2, 4):
        for sizes in ((100, 64, 512, 512), (100, 128, 40, 256)):
            assert shares(_C.cpu_plan("lstm", *sizes, 1, "float32", threads)) == threads
        assert "units" in _C.cpu_plan("lstm", 200, 1, 512, 512, 1, "float32", threads)
        assert "a direction" in _C.cpu_plan("lstm", 200, 1, 64, 64, 2, "float32", threads)
        assert shares(_C.cpu_plan("lstm", 1, 1, 16, 16, 1, "float32", threads)) == 1


def test_no_share_is_empty() -> None:
    for sizes, threads in itertools.product(SIZES, (2, 3, 5, 64)):
        text = _C.cpu_plan("lstm", *sizes, "float32", threads)
        assert shares(text) <= threads
        parts = sizes[1] if "rows" in text else -(-sizes[3] // 4)
        assert shares(text) <= parts * (2 if "a direction" in text else 1), text
