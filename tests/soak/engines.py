"""Engines that watch themselves, and what is loaded beside them: built into build/soak, never over the one in use."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "soak"
COMPILER = os.environ.get("CXX", "c++")
# What a sanitizer finds ends the process with this status, which no other failure has.
FOUND = 66
SANITIZERS = {
    "address": "address,undefined",
    "thread": "thread",
}


@dataclass(frozen=True)
class Engine:
    """What is to be set for a process to use an engine, or why there is none."""

    environment: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    missing: str = ""


def engine(kind: str) -> Engine:
    """The engine that is in use (``""``), or one that a sanitizer watches."""
    if not kind:
        return Engine()
    runtime, cxx = _runtime(f"lib{'asan' if kind == 'address' else 'tsan'}.so"), _runtime("libstdc++.so")
    if runtime is None or cxx is None:
        return Engine(missing=f"{COMPILER} has no runtime of {SANITIZERS[kind]}")
    folder, log = BUILD / kind, BUILD / f"{kind}.log"
    package = folder / "fastrnn"
    package.mkdir(parents=True, exist_ok=True)
    command = ["setup.py", "-q", "build_ext", "--build-lib", str(folder), "--build-temp", str(folder / "temp")]
    with log.open("w") as output:
        built = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | {"FASTRNN_SANITIZE": SANITIZERS[kind]},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if built.returncode:
        return Engine(missing=f"it was not built: {log.relative_to(ROOT)}")
    for source in (*(ROOT / "fastrnn").glob("*.py"), ROOT / "kernels"):
        link = package / source.name
        if not link.is_symlink():
            link.symlink_to(source)
    options = f"exitcode={FOUND}:halt_on_error=1"
    loaded = [runtime, cxx]  # a runtime looks for the functions that throw when it starts
    environment = {"PYTHONPATH": str(folder)}
    if kind == "address":
        # Memory that Python and torch never give back is no finding.
        environment |= {"ASAN_OPTIONS": f"{options}:detect_leaks=0", "PYTHONMALLOC": "malloc"}
        environment["UBSAN_OPTIONS"] = f"{options}:print_stacktrace=1"
        return Engine(environment | {"LD_PRELOAD": " ".join(loaded)})
    threads = library("openmp", "-fsanitize=thread")
    if threads is None:
        return Engine(missing="openmp.cpp was not built")
    # What is not instrumented has locks that cannot be seen: the dynamic linker, where it gives back a thread's own
    # variables, and oneDNN, which shares what it has made of products. Races within its products go unseen with that.
    ignored = BUILD / "thread.ignored"
    ignored.write_text("race:_dl_deallocate_tls\nrace:dnnl::impl::\n")
    options += f":suppressions={ignored}"
    environment |= {"TSAN_OPTIONS": options, "LD_PRELOAD": " ".join([*loaded, threads])}
    # Its shadow memory has places of its own, where a random layout of the process may lie.
    prefix = ("setarch", os.uname().machine, "-R")
    if shutil.which(prefix[0]) is None or subprocess.run([*prefix, "true"], check=False).returncode:
        return Engine(missing="the layout of a process cannot be fixed here (setarch -R)")
    return Engine(environment, prefix)


def library(name: str, *flags: str) -> str | None:
    """The path of one of this folder's libraries, built if need be; None where it cannot be."""
    source, built = HERE / f"{name}.cpp", BUILD / f"{name}.so"
    if not built.exists() or built.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(parents=True, exist_ok=True)
        command = [COMPILER, "-std=c++20", "-O1", "-g", "-shared", "-fPIC", *flags, str(source), "-o", str(built)]
        if subprocess.run([*command, "-ldl", "-lpthread"], check=False).returncode:
            return None
    return str(built)


def _runtime(name: str) -> str | None:
    """Where a sanitizer's runtime lies; the compiler says the bare name where it has none."""
    try:
        path = subprocess.run(
            [COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=False
        ).stdout
    except FileNotFoundError:
        return None
    return str(Path(path.strip()).resolve()) if os.sep in path else None
