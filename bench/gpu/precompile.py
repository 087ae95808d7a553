"""``python -m bench precompile``: what a GPU will be asked to run, compiled on a machine without one.

Fills an archive with all kernels that ``bench/gpu.sh`` launches, for compute capability 9.0, and their launchers. On
the machine with the GPU, ``python -m bench precompile --check`` fills Triton's cache with it and says whether it hits.
Both need the same version of Triton and the same sources: it is made last, of what travels. Where the other machine has
another Python, ``--python python3.12`` makes launchers for that one as well, of which its headers are all that is
needed; ``make PYTHON=python3.12`` would make all of the environment with it.
"""

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from bench import results
from bench.gpu import carried, desk, launchers, stages, wanted
from bench.gpu.carried import CarriedError, Compiler
from bench.gpu.desk import recorded
from bench.gpu.desk.recorded import Seen
from bench.gpu.launchers import Headers
from fastrnn._arguments import positive_int

ROOT = stages.ROOT
FOLDER = ROOT / "build" / "precompiled"  # what is wanted, by sources; logs
ARCHIVE = ROOT / "build" / "precompiled.tar.xz"
SOURCES = ("kernels", "fastrnn", "bench", "tests")  # that decide what is launched
OURS = ("fastrnn.", "bench.")  # modules whose kernels are carried; tests have some of their own, which take a second
EVERY = 50  # kernels, after which a line is printed
MOST_BYTES = 60 * 10**6


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command."""
    parser = commands.add_parser("precompile", help="compile what a GPU will run, without one, to be carried there")
    parser.set_defaults(run=run)
    parser.add_argument("--out", type=Path, default=ARCHIVE, help="the archive (default: build/precompiled.tar.xz)")
    parser.add_argument("--jobs", nargs="+", choices=list(wanted.jobs(1)), default=list(wanted.jobs(1)), metavar="JOB")
    parser.add_argument("--wanted", type=Path, help="compile what this file has, JSON lines, and nothing else")
    parser.add_argument(
        "--processes", type=positive_int, default=os.cpu_count() or 1, help="at a time (default: %(default)s)"
    )
    parser.add_argument("--python", help="an interpreter of the version that the other machine has (default: this one)")
    parser.add_argument(
        "--check",
        nargs="?",
        type=Path,
        const=ARCHIVE,
        metavar="ARCHIVE",
        help="fill Triton's cache with an archive, and say whether it hits (default: build/precompiled.tar.xz)",
    )


def cache_folder() -> Path:
    """Triton's cache: where ``bench/gpu.sh`` has it as well."""
    return Path(os.environ.get("TRITON_CACHE_DIR") or stages.CACHE)


def run(options: argparse.Namespace) -> int:
    """Make an archive, or check one; 0 is success, 1 that the cache misses or a kernel did not compile."""
    import torch

    os.environ["TRITON_CACHE_DIR"] = str(cache_folder())
    if options.check is None or not torch.cuda.is_available():
        desk.enter(tensors=False)
    try:
        return _check(options.check) if options.check is not None else _make(options)
    except CarriedError as error:
        print(f"precompile: miss: {error}", flush=True)
        return 1
    except RuntimeError as error:
        raise results.ResultsError(str(error)) from error


def _check(archive: Path) -> int:
    begin = time.monotonic()
    if not archive.exists():
        raise CarriedError(f"there is no {archive}, kernels are compiled as they are launched")
    found, here = carried.unpack(archive, cache_folder()), Compiler.here()
    count = len(found.filed) + len(found.missing)
    anew = "" if found.compiler.key == here.key else f", filed anew for a build with key {here.key}"
    took = f"{time.monotonic() - begin:.1f} s"
    if found.filed and not found.launchers:
        print(f"precompile: no launchers for Python {here.python}, each is compiled on first use (see --python)")
    if found.missing:
        print(
            f"precompile: miss: {len(found.missing)} of {count} kernels are not those of {found.revision}: "
            f"{', '.join(carried.names(found.missing))}"
        )
        return 1
    print(f"precompile: hit: {count} of {count} kernels are in {cache_folder()}, by {found.compiler}{anew}; {took}")
    return 0


def _make(options: argparse.Namespace) -> int:
    headers = None if options.python is None else Headers.of(options.python)
    also = "" if headers is None else f", launchers for {options.python} as well"
    print(f"precompile: for {Compiler.here()}{also}; with another triton nothing is found", flush=True)
    if options.wanted is not None:
        kernels = recorded.read(options.wanted.read_text(encoding="utf-8"))
    else:
        kernels = list(dict.fromkeys(_wanted(options.jobs, options.processes)))
    failed: dict[Seen, str] = {}
    begin = time.monotonic()
    for done, (seen, error) in enumerate(_compiled(kernels, options.processes, headers), 1):
        if error:
            failed[seen] = error
            print(f"precompile: {seen.name}: {error}", flush=True)
        if done % EVERY == 0 or done == len(kernels):
            minutes = (time.monotonic() - begin) / 60
            print(f"precompile: {done} of {len(kernels)} compiled, {minutes:.1f} minutes", flush=True)
    made_of = results.Provenance.here_and_now().revision
    count = carried.pack(options.out, [seen for seen in kernels if seen not in failed], cache_folder(), made_of)
    size = options.out.stat().st_size
    print(f"precompile: {count} kernels, {size / 1e6:.1f} MB: {options.out}")
    if size > MOST_BYTES:
        print(f"precompile: more than {MOST_BYTES / 1e6:.0f} MB", file=sys.stderr)
    return 1 if failed or size > MOST_BYTES else 0


def _wanted(jobs: Sequence[str], workers: int) -> Iterator[Seen]:
    """What the jobs launch; what is known of the same sources is not found out again."""
    folder = FOLDER / _sources()
    for job, commands in wanted.jobs(workers).items():
        if job not in jobs:
            continue
        kept, log, begin = folder / f"{job}.jsonl", folder / f"{job}.log", time.monotonic()
        if not kept.exists():
            parts = folder / job
            parts.mkdir(parents=True, exist_ok=True)
            for command in commands:
                if status := wanted.record(command, parts, log):
                    print(f"precompile: python {' '.join(command)}: exit status {status}, see {log}", flush=True)
            texts = [path.read_text(encoding="utf-8") for path in sorted(parts.glob("*.jsonl"))]
            kept.write_text(recorded.written(recorded.read("".join(texts))), encoding="utf-8")
        kernels = [seen for seen in recorded.read(kept.read_text(encoding="utf-8")) if seen.module.startswith(OURS)]
        print(f"precompile: {job}: {len(set(kernels))} kernels ({time.monotonic() - begin:.0f} s)", flush=True)
        yield from kernels


def _sources() -> str:
    made = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            made.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return made.hexdigest()[:16]


def _compiled(kernels: Sequence[Seen], processes: int, headers: Headers | None) -> Iterator[tuple[Seen, str]]:
    """Have Triton's cache hold kernels and their launchers: each, and why it could not be compiled, or nothing."""
    spawn = get_context("spawn")  # a fork might inherit locks that threads hold
    with ProcessPoolExecutor(processes, spawn, partial(_prepare, str(cache_folder()), headers)) as pool:
        yield from zip(kernels, pool.map(_compile, kernels, chunksize=4), strict=True)


def _prepare(cache: str, headers: Headers | None) -> None:
    os.environ |= {"TRITON_CACHE_DIR": cache, "TRITON_STORE_BINARY_ONLY": "1", "OMP_NUM_THREADS": "1"}
    desk.enter(tensors=False)
    if headers is not None:
        launchers.make_for(headers)


def _compile(seen: Seen) -> str:
    try:
        carried.function_of(seen).preload(seen.specialization)._init_handles()  # which makes the launcher
    except Exception as error:  # whatever a compiler raises: the others are wanted all the same
        return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    return ""
