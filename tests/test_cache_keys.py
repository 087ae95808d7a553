"""Triton's keys of compiled kernels: the same in every process, whatever it computed before."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import torch
from triton.runtime.jit import JITCallable

from fastrnn.kernels import barrier

ROOT = Path(__file__).resolve().parent.parent
KERNELS = sorted(path.stem for path in (ROOT / "kernels").glob("*.py") if "jit" in path.read_text(encoding="utf-8"))
MODULES = [*(f"fastrnn.kernels.{name}" for name in KERNELS), "bench.gpu.launched", "bench.gpu.on_chip"]
# Prints the keys of one kernel in the catalogue of each name, as Triton's cache has them, asked for in an order.
KEYS = """
import json, sys
from triton._C.libtriton import get_cache_invalidating_env_vars
from triton.compiler.compiler import make_backend
from triton.runtime.cache import get_cache_key
from bench import aot, kernels

def key(entry):
    shape = {"num_warps": entry.num_warps, "num_stages": entry.num_stages, "divisible": entry.divisible}
    source, gpu, options = aot.given(entry.kernel, entry.signature, entry.constants, "sm_90", **shape, **entry.options)
    backend = make_backend(gpu)
    return get_cache_key(source, backend, backend.parse_options(options), env_vars=get_cache_invalidating_env_vars())

entries = {entry.kernel.__name__: entry for entry in kernels.catalog() if "sm_90" in entry.targets}
order = sorted(entries, reverse=sys.argv[1] == "backwards")
print(json.dumps({name: key(entries[name]) for name in order}))
"""


def keys(order: str) -> dict[str, str]:
    done = subprocess.run([sys.executable, "-c", KEYS, order], cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_keys_do_not_depend_on_the_order_of_first_use() -> None:
    there, back = keys("forwards"), keys("backwards")
    assert {"gluon_grid_forward", "grid_backward", "step_forward"} <= set(there)
    assert list(there) == list(reversed(back))
    assert [name for name in there if there[name] != back[name]] == []


@pytest.mark.parametrize("module", MODULES)
def test_jitted_functions_read_no_constants_of_modules(module: str) -> None:
    """Which are in the key of a kernel or not, by the order in which the functions that it calls were first used."""
    for name, function in vars(importlib.import_module(module)).items():
        if isinstance(function, JITCallable):
            assert function.cache_key
            assert function.used_global_vals == {}, name


def test_all_error_words_are_aligned() -> None:
    """Triton compiles apart what takes a pointer to 16 bytes: it must not matter which kernel is launched first."""
    errors = barrier._Errors(torch.device("cpu"))
    words = [errors.word(f"kernel {k}") for k in range(barrier.MOST_KERNELS)]
    assert {word.data_ptr() % 16 for word in words} == {0}
    assert len({word.data_ptr() for word in words}) == len(words)
    words[5].fill_(8)
    with pytest.raises(RuntimeError, match="programs of kernel 5 at step 7 waited in vain"):
        errors.check()
