"""Kernels of the catalogue as compiled, kept between runs in ``build/compiled`` (``make clean`` empties it).

What is kept is known by all that it follows from: the intermediate code that the compiler is given, which is made anew
each time from the kernel's text and whatever that uses; the target and the settings; the compiler, its assembler and
its disassembler; the code that counts instructions. A change of any of them is another name, and compiles.
"""

import functools
import gzip
import hashlib
import os
import pickle
import sys
import tempfile
from pathlib import Path

import triton
from triton._C.libtriton import get_cache_invalidating_env_vars, ir
from triton.compiler.compiler import make_backend
from triton.runtime.cache import get_cache_key

from bench import aot, assembly, kernels

FOLDER = Path(__file__).resolve().parents[2] / "build" / "compiled"


def compiled(entry: kernels.Entry, job: kernels.Job, folder: Path = FOLDER) -> kernels.Row:
    """A kernel compiled by ``bench.kernels``, now or before."""
    try:
        path = folder / name_of(entry, job[-1])
    except Exception:  # what does not become intermediate code does not compile, and the row says why
        return kernels.compiled(job)
    try:
        return pickle.loads(gzip.decompress(path.read_bytes()))
    except Exception:  # there is none, or none that is whole: gzip keeps a checksum
        row = kernels.compiled(job)
    if row.report is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:  # another process may write the same
            file.write(gzip.compress(pickle.dumps(row), 1))
        os.replace(file.name, path)
    return row


def name_of(entry: kernels.Entry, target: str) -> str:
    """A hash of all that a row follows from."""
    shape = {"num_warps": entry.num_warps, "num_stages": entry.num_stages, "divisible": entry.divisible}
    source, gpu, settings = aot.given(entry.kernel, entry.signature, entry.constants, target, **shape, **entry.options)
    backend = make_backend(gpu)
    options = backend.parse_options(settings | source.parse_options())
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions, modules = backend.get_codegen_implementation(options), backend.get_module_map()
    code = _Code(source.make_ir(gpu, options, functions, modules, context).str_nodebug())
    by = get_cache_key(code, backend, options, env_vars=get_cache_invalidating_env_vars())
    known = repr((entry.name, entry.signature, entry.constants, target, shape, entry.options, by, *_tools()))
    return hashlib.sha256(known.encode()).hexdigest()


class _Code(str):
    """In the place of a source: Triton's own key has a kernel's text and the lines where it stands."""

    __slots__ = ()

    def hash(self) -> str:
        return hashlib.sha256(self.encode()).hexdigest()


@functools.cache
def _tools() -> tuple[str, ...]:
    """By what code is read, and instructions are counted."""
    files = [aot.__file__, assembly.__file__, kernels.__file__, __file__, triton.knobs.nvidia.nvdisasm.path]
    return sys.version, *(hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files)
