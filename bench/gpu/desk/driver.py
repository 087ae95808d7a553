"""The pretended driver: ``libcuda.c`` beside this file, compiled on first use into ``build/desk``."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_name("libcuda.c")
BUILD = Path(__file__).resolve().parents[3] / "build" / "desk"
NAME = "libcuda.so.1"  # that programs ask for


def folder() -> Path:
    """Where the compiled driver is: compiled now, unless it was before.

    Raises:
        RuntimeError: there is no C compiler, or no Triton, whose header it needs.
    """
    made = BUILD / hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    if not (made / NAME).exists():
        made.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made) as beside:  # another process may compile the same
            path = Path(beside) / NAME
            subprocess.run([*_compiler(), "-o", str(path), str(SOURCE)], check=True)
            os.replace(path, made / NAME)
    return made


def _compiler() -> list[str]:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if compiler is None:
        raise RuntimeError("bench.gpu.desk: there is no C compiler; CC can name one")
    triton = find_spec("triton")
    if triton is None or triton.origin is None:
        raise RuntimeError("bench.gpu.desk: there is no triton")
    include = Path(triton.origin).parent / "backends" / "nvidia" / "include"
    return [compiler, "-O2", "-shared", "-fPIC", f"-Wl,-soname,{NAME}", f"-I{include}"]


@functools.cache
def load() -> ctypes.CDLL:
    """The driver, loaded for all that this process will link with it."""
    made = folder()
    os.environ["TRITON_LIBCUDA_PATH"] = str(made)
    library = ctypes.CDLL(str(made / NAME), mode=ctypes.RTLD_GLOBAL)
    library.desk_launches.restype = ctypes.c_long
    library.desk_launches.argtypes = [ctypes.c_char_p]
    return library


def launches(kernel: str | None = None) -> int:
    """How often a kernel of that name was launched in this process, compiled; or all of them together."""
    return int(load().desk_launches(None if kernel is None else kernel.encode()))
