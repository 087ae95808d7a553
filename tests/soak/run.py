"""``python tests/soak/run.py [--minutes 20] [--only SUBJECT ...]``: the engine under what breaks it in production.

Each subject is a program of its own, in as many processes at a time as there are cores, for its part of the time; what
watches itself is built first, in build/soak (minutes, the first time). The exit status says whether anything was found.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from engines import BUILD, FOUND, ROOT, Engine, engine, library
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
HUNG = 300.0  # seconds that a subject may take beyond its time, several times that when a sanitizer slows it down
MOST_CALLS = 100_000  # of shapes that change, for which memory is to stay flat


@dataclass(frozen=True)
class Job:
    """A subject in a process: which, by what engine, for how many of a hundred parts of the time."""

    subject: str
    parts: float
    engine: str = ""
    isa: str = ""
    most: int = 1 << 62
    environment: dict[str, str] = field(default_factory=dict)

    def name(self) -> str:
        """As in the table."""
        return ", ".join(word for word in (self.subject, self.engine, self.isa) if word)


@dataclass(frozen=True)
class Result:
    """What came of a job."""

    job: Job
    cases: int
    seconds: float
    note: str
    found: bool = False


def jobs(isas: list[str]) -> list[Job]:
    """All of them, the long ones first."""
    each = 100 / len(isas)
    return [
        Job("memory", 28, most=MOST_CALLS),
        *(Job("contract", each * 0.9, isa=isa) for isa in isas),
        *(Job("contract", each * 0.3, "address", isa) for isa in isas),
        *(Job("threads", each * 0.2, "thread", isa) for isa in isas),
        Job("threads", 6, "address"),
        Job("threads", 6),
        Job("crowd", 6, "thread"),
        Job("crowd", 8),
        Job("allocation", 10),
        Job("interrupts", 5),
        Job("forks", 5),
        Job("shutdown", 6),
        Job("crowd", 2, "address"),
    ]


def run(job: Job, seconds: float, engines: dict[str, Engine]) -> Result:
    """Run a job to its end, and read what it says of itself."""
    chosen = engines[job.engine]
    if chosen.missing:
        return Result(job, 0, 0.0, f"not run: {chosen.missing}")
    loaded = library("allocation") if job.subject == "allocation" else None
    if job.subject == "allocation" and loaded is None:
        return Result(job, 0, 0.0, "not run: allocation.cpp was not built")
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "2"} | chosen.environment
    environment |= {"LD_PRELOAD": loaded} if loaded else {}
    environment |= {"FASTRNN_CPU_ISA": job.isa} if job.isa else {}
    program = [*chosen.prefix, sys.executable, str(HERE / f"{job.subject}.py"), f"{seconds:.0f}", str(job.most)]
    begin = time.monotonic()
    log = BUILD / f"{job.name().replace(', ', '-')}.out"
    with log.open("w") as output:
        try:
            status = subprocess.run(
                program,
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=(3 if job.engine else 1) * (seconds + HUNG),
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
    took, lines = time.monotonic() - begin, log.read_text(errors="replace").splitlines()
    if status == 0 and lines:
        try:
            said = json.loads(lines[-1])
        except ValueError:
            said = {"cases": 0, "note": lines[-1]}
        return Result(job, said["cases"], took, said["note"])
    what = "it hangs" if status is None else "a sanitizer's finding" if status == FOUND else f"status {status}"
    return Result(job, 0, took, f"{what}: {log.relative_to(ROOT)}", found=True)


def table(results: list[Result]) -> Table:
    """What ran, and what it found."""
    shown = Table("subject", "cases", "seconds", "", title="soak")
    for result in results:
        style = "bold red" if result.found else "yellow" if result.note.startswith("not run") else None
        note = result.note if len(result.note) < 110 else result.note[:107] + "..."
        shown.add_row(result.job.name(), f"{result.cases:,}", f"{result.seconds:.0f}", note, style=style)
    shown.add_section()
    shown.add_row("all", f"{sum(r.cases for r in results):,}", "", f"{sum(r.found for r in results)} found")
    return shown


def main() -> int:
    """Build, run, print; 1 where anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="for all subjects together, building aside")
    parser.add_argument("--only", nargs="+", metavar="SUBJECT", help="contract, memory, crowd, forks, interrupts, ...")
    given = parser.parse_args()
    from fastrnn import _ops

    BUILD.mkdir(parents=True, exist_ok=True)
    chosen = [job for job in jobs(_ops.cpu_isas()) if not given.only or job.subject in given.only]
    console = Console(width=None if sys.stdout.isatty() else 160)
    if not chosen:
        parser.error(f"no such subject: {' '.join(given.only)}")
    engines = {}
    for kind in sorted({job.engine for job in chosen}):
        if kind:
            console.print(f"building the engine that watches itself: {kind}")
        engines[kind] = engine(kind)
    at_once = os.cpu_count() or 1
    unit = given.minutes * 60 * at_once / sum(job.parts for job in chosen)

    def one(job: Job) -> Result:
        result = run(job, max(1.0, job.parts * unit), engines)
        console.print(f"{result.job.name()}: {result.cases:,} cases in {result.seconds:.0f} s; {result.note}")
        return result

    with ThreadPoolExecutor(at_once) as pool:
        results = list(pool.map(one, chosen))
    console.print(table(results))
    return int(any(result.found for result in results))


if __name__ == "__main__":
    sys.exit(main())
