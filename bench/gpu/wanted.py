"""Which kernels the groups of ``bench/gpu.sh`` launch: found by going through them at the desk, compiling nothing.

``python -m bench.gpu.wanted JOB`` does a job's part in a process that :mod:`bench.gpu.desk` has prepared. Smoke tests,
tests and what compute-sanitizer watches run as they are. Of layers that are measured, which would take a CPU for ever,
the plans are those of the real sizes, and what is computed has few steps and inputs: no kernel depends on these.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bench.gpu import desk, stages
from bench.gpu.desk.__main__ import environment

STEPS, INPUTS = 9, 16  # of layers, at most
ROOT = stages.ROOT


def jobs(workers: int) -> dict[str, list[list[str]]]:
    """The commands of each job, as arguments of Python."""
    pytest = ["-m", "pytest", "-q", "-p", "no:benchmark", "-p", "no:cacheprovider", "-m", "gpu", "-n", str(workers)]
    tests = [*pytest, "-k", stages.chosen_tests([]), *stages.files_with_gpu_tests()]
    return {
        "least": [["-m", "bench.gpu.wanted", "least"]],
        "smoke": [["-m", "bench.gpu.smoke", name] for name in stages.STRATEGIES],
        "layers": [["-m", "bench.gpu.wanted", "layers"]],
        "sanitize": [["-m", "bench.sanitize", "--cells", "lstm", "gru", "--strategies", "grid"]],
        "tests": [tests],
    }


def record(command: Sequence[str], folder: Path, log: Path) -> int:
    """Run a command of a job; what it launches is written to the folder, and its output to the log. Its exit status."""
    given = {**os.environ, "OMP_NUM_THREADS": "1", "FASTRNN_CACHE": str(folder / "nothing")}
    with log.open("ab") as output:
        return subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment("record", folder, tiny=False, given=given),
            stdout=output,
            stderr=subprocess.STDOUT,
        ).returncode


def main(arguments: Sequence[str]) -> int:
    """Launch what a job launches."""
    {"least": _least, "layers": _layers}[arguments[0]]()
    return 0


def _least() -> None:
    """All that is measured beside layers, of few steps."""
    from bench.gpu import cases, cluster, constants, latency, meeting
    from bench.gpu.desk import tiny
    from fastrnn.kernels.model import Constants

    tiny.install()
    others = {field.name: 1e-9 for field in fields(Constants)}
    for name, constant in constants.MEASURES.items():
        try:
            constant(0.001, others)
        except ValueError as error:  # as times of nothing have it; it was launched
            print(f"{name}: {error}")
    numbers = cases.Selection().numbers()
    for rows in (latency.rows(numbers, 0.001), meeting.rows(0.001), cluster.rows(0.001)):
        for row in rows:
            print(row.detail)


def _layers() -> None:
    from bench.gpu.desk import operators

    operators.results = False
    done = set()
    for task in tasks():
        plans = _plans(task)
        key = (small(task), tuple(map(str, plans.values())))
        if key not in done:
            done.add(key)
            _launch(key[0], plans)
            print(f"{task}: {len(desk.seen())} kernels by now", flush=True)


def tasks() -> list[Any]:
    """What the groups measure of layers, in their order."""
    from bench.__main__ import _parser
    from bench.gpu import cases

    found: list[Any] = []
    known = stages.Known(sys.executable, Path("rows"), Path("left-out.json"), {}, [], 60)
    for group in (*stages.FIRST, *stages.SECOND):
        try:
            commands = group.commands(known)
        except stages.NothingToDoError:
            continue
        for command in commands:
            if tuple(command.arguments[1:4]) != ("-m", "bench", "gpu"):
                continue
            o = _parser().parse_args(command.arguments[3:])
            found += cases.tasks(cases.Selection(o.part, o.cells, o.dtype, o.tf32, o.batch, o.hidden, o.steps))
    return list(dict.fromkeys(found))


def small(task: Any) -> Any:
    """The same with few steps and inputs."""
    shape = task.shape
    return replace(task, shape=replace(shape, steps=min(shape.steps, STEPS), input=min(shape.input, INPUTS)))


def _plans(task: Any) -> Mapping[str, Any]:
    from bench.gpu import contestants

    found: Mapping[str, Any] = contestants.forced_plans(task)
    return found


def _launch(task: Any, plans: Mapping[str, Any]) -> None:
    """A training call and one of inference, by each plan and as fastrnn plans."""
    from bench.calls import calls
    from bench.gpu import clock, contestants

    forced_plans = contestants.forced_plans
    contestants.forced_plans = lambda *_: plans  # not those of few steps
    try:
        with nullcontext() if task.tf32 is None else clock.tf32(task.tf32):
            made = contestants.prepare(task)
            for name in ("fastrnn", *made.under):
                with contestants.context(made, name):
                    for mode in ("inference", "training"):
                        calls({name: made.stacks[name]}, made.x, mode)[name]()
    finally:
        contestants.forced_plans = forced_plans


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
