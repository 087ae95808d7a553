"""The tests for after each edit are there."""

import fast
import pytest


@pytest.mark.parametrize("file", fast.FAST)
def test_what_is_fast_is_there(file: str) -> None:
    source = (fast.TESTS / file).read_text()
    assert "def test_" in source
    assert [name for name in fast.FAST[file] if f"\ndef {name}(" not in source] == []


def test_what_is_fast_is_chosen_by_file_and_name() -> None:
    engine = fast.TESTS / "test_engine.py"
    assert fast.has(engine)
    assert fast.has(engine, "test_saturated_gates")
    assert not fast.has(engine, "test_sizes")
    assert fast.has(fast.TESTS / "test_nn.py", "test_anything")
    assert not fast.has(fast.TESTS / "test_packaging.py")
    assert not fast.has(fast.TESTS.parent / "test_engine.py")
