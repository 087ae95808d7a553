"""Launchers of Triton's kernels, C modules of Python's, for a Python that need not be the one that runs.

Triton makes a launcher for each kind of arguments, and finds it by its text and by the ending of its file's name, which
says for which Python it is.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ASK = "import json, sysconfig as s; print(json.dumps([s.get_paths()['include'], s.get_config_var('EXT_SUFFIX')]))"


class Headers(NamedTuple):
    """Of a Python: the folder of Python.h, and the ending of modules in C."""

    include: str
    suffix: str

    @classmethod
    def of(cls, python: str) -> "Headers":
        """Those of an interpreter.

        Raises:
            RuntimeError: it cannot be run, or comes without its headers.
        """
        try:
            done = subprocess.run([python, "-c", ASK], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"{python}: {error}") from error
        found = cls(*json.loads(done.stdout))
        if not Path(found.include, "Python.h").exists():
            raise RuntimeError(f"{python}: there is no {found.include}/Python.h")
        return found


def make_for(headers: Headers) -> None:
    """From now on, have each module that Triton makes in this process be made for another Python too."""
    from triton.backends.nvidia import driver

    made = driver.compile_module_from_src

    def make_both(src: str, name: str, **places: Sequence[str]) -> Any:
        _make(headers, src, name, **places)
        return made(src=src, name=name, **places)

    driver.compile_module_from_src = make_both


def _make(
    headers: Headers,
    src: str,
    name: str,
    library_dirs: Sequence[str] = (),
    include_dirs: Sequence[str] = (),
    libraries: Sequence[str] = (),
    ccflags: Sequence[str] = (),
) -> None:
    """As Triton does, into its cache."""
    from triton.runtime.build import platform_key
    from triton.runtime.cache import get_cache_manager

    manager = get_cache_manager(hashlib.sha256((src + platform_key()).encode()).hexdigest())
    file = name + headers.suffix
    if manager.get_file(file) is not None:
        return
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or "cc"
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, f"{name}.c"), Path(folder, file)
        source.write_text(src, encoding="utf-8")
        command = [compiler, str(source), "-O3", "-shared", "-fPIC", "-Wno-psabi", "-o", str(out)]
        command += [f"-l:{library}" for library in libraries]
        command += [f"-L{place}" for place in library_dirs]
        command += [f"-I{place}" for place in (*include_dirs, headers.include)]
        subprocess.run([*command, *ccflags], check=True)
        manager.put(out.read_bytes(), file, binary=True)
