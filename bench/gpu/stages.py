"""What ``bench/gpu.sh`` runs on a machine with a GPU: groups of processes, each with a limit, in order of importance.

``--first`` finds out which kernels are right, and how fast the most important layers are; ``--second`` what follows
for the cost model and all targets; :mod:`bench.gpu.running` runs them. A group is no more than what it runs and how its
processes depend on what is known by then: on strategies that were seen to fail, and on tests that did.
"""

import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench.gpu.strategies import STRATEGIES, TESTS

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "triton"  # Triton's, which python -m bench precompile fills
WORKERS = min(14, os.cpu_count() or 1)  # of the tests
TEST_SECONDS = 60  # of each
LONG_TESTS = ("ten_million_steps", "million_steps_of_polling")  # the barrier's group does the same
AGAIN = 40  # failed tests at most
FAILED = re.compile(r"(?:\[gw\d+\] \[ *\d+%\] )?(?:FAILED|ERROR) (tests/.+?)(?: - .*)? *")  # a line of pytest's
TESTED = re.compile(r".*\b(?:FAILED|ERROR|crashed)\b.*|=+ .*\d (?:passed|failed|error).*")


@dataclass(frozen=True)
class Known:
    """What a group may depend on.

    Attributes:
        python: that groups are run by.
        rows: the file that rows are written behind.
        left_out: the file of strategies that are left out, and those that it has, with the reasons.
        failed_tests: their names.
        seconds: that the group has.
        arguments: of the caller, for ``measure``.
    """

    python: str
    rows: Path
    left_out_file: Path
    left_out: dict[str, str]
    failed_tests: Sequence[str]
    seconds: float
    arguments: Sequence[str] = ()


class Command(NamedTuple):
    """A process: a name among those of its group, how it is called, and its own environment variables."""

    name: str
    arguments: Sequence[str]
    environment: dict[str, str] = {}  # noqa: RUF012


@dataclass(frozen=True)
class Group:
    """Processes that run at the same time.

    Attributes:
        name: of the group.
        seconds: that it may take.
        commands: what is run; may raise NothingToDoError.
        shown: which lines of the output are printed as they come; all, where there is no pattern.
    """

    name: str
    seconds: int
    commands: Callable[[Known], list[Command]]
    shown: re.Pattern[str] = field(default=re.compile(r".*"))


class NothingToDoError(Exception):
    """A group has nothing to run; the message says why."""


def _module(known: Known, name: str, module: str, *arguments: str) -> Command:
    return Command(name, (known.python, "-m", module, *arguments))


def _versions(known: Known) -> list[Command]:
    query = "name,driver_version,compute_mode,mig.mode.current,clocks.sm,clocks.max.sm,memory.used,temperature.gpu"
    return [
        _module(known, "versions", "bench.gpu.versions"),
        Command("nvidia-smi", ("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")),
        _module(known, "cache", "bench", "precompile", "--check"),
    ]


def _smoke(known: Known) -> list[Command]:
    return [_module(known, name, "bench.gpu.smoke", name) for name in STRATEGIES]


def _measure(*arguments: str) -> Callable[[Known], list[Command]]:
    """``python -m bench gpu``, which begins nothing more when a part of the time is left."""

    def commands(known: Known) -> list[Command]:
        minutes = f"{max(known.seconds - 16, 0.6 * known.seconds) / 60:.2f}"  # since torch was imported
        files = ("--append", "--out", str(known.rows), "--left-out", str(known.left_out_file))
        return [_module(known, "measure", "bench", "gpu", "--minutes", minutes, *files, *arguments, *known.arguments)]

    return commands


def _pytest(known: Known, *arguments: str) -> Command:
    # -p no:benchmark: a plugin that warns where it finds pytest-xdist, and warnings are errors
    options = ["-v", "-rfE", "--tb=short", "-p", "no:benchmark", "-p", "no:cacheprovider", "-m", "gpu"]
    options += ["--continue-on-collection-errors"]  # a file that cannot be imported costs its own tests
    return _module(known, "pytest", "pytest", *options, *arguments)


def _on_workers(workers: int, seconds: float) -> list[str]:
    """Options of plugins, where they are: a test that takes too long costs its worker, and so does a fault."""
    options = []
    if importlib.util.find_spec("xdist") is not None:
        options += ["-n", str(workers), "--max-worker-restart", "1000"]
    if importlib.util.find_spec("pytest_timeout") is not None:
        options += [f"--timeout={seconds:.0f}", "--timeout-method=thread"]
    return options


def files_with_gpu_tests() -> list[str]:
    """Of the tests, as pytest takes them; others are not collected."""
    paths = sorted((ROOT / "tests").glob("test_*.py"))
    return [f"tests/{path.name}" for path in paths if "pytest.mark.gpu" in path.read_text(encoding="utf-8")]


def chosen_tests(left_out: Sequence[str]) -> str:
    """For ``pytest -k``: all but the long ones, and but those that compute by strategies that are left out."""
    words = [*LONG_TESTS, *(word for name in left_out for word in TESTS[name])]
    return f"not ({' or '.join(dict.fromkeys(words))})"


def _tests(known: Known) -> list[Command]:
    chosen = ["-k", chosen_tests(list(known.left_out))]
    return [_pytest(known, *_on_workers(WORKERS, TEST_SECONDS), *chosen, *files_with_gpu_tests())]


def _again(known: Known) -> list[Command]:
    if not known.failed_tests:
        raise NothingToDoError("no test has failed")
    tests = known.failed_tests[:AGAIN]
    workers = min(len(tests), WORKERS)
    return [_pytest(known, *_on_workers(workers, known.seconds - 5), "--tb=long", *tests)]


def _memcheck(known: Known) -> list[Command]:
    """Of a test that failed, or else of tiny layers by the grid strategy."""
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is None:
        raise NothingToDoError("there is no compute-sanitizer")
    if known.failed_tests:
        watched = _pytest(known, known.failed_tests[0])
    elif any(name.startswith("grid") for name in known.left_out):
        raise NothingToDoError("the grid strategy is left out")
    else:
        cases = ("--cells", "lstm", "gru", "--strategies", "grid")
        watched = _module(known, "sanitize", "bench.sanitize", *cases)
    arguments = (sanitizer, "--tool", "memcheck", "--error-exitcode", "9", *watched.arguments)
    # Without torch's cache of memory, what is read past a tensor is read past an allocation.
    return [Command("memcheck", arguments, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})]


def _build(known: Known) -> list[Command]:
    return [Command("build", (known.python, "setup.py", "-q", "build_ext", "--inplace"))]


def _tune(known: Known) -> list[Command]:
    """The sizes that torch's layers are weakest at, the most usual first."""
    shapes = [f"{batch},128,{hidden},{hidden}" for batch in (16, 64, 1) for hidden in (512, 256, 1024, 768)]
    tune = ("tune", "--cell", "lstm", "gru", "--dtype", "bfloat16", "--shape", *shapes)
    command = _module(known, "tune", "fastrnn", *tune)
    return [command._replace(environment={"FASTRNN_CACHE": str(known.rows.parent)})]


HALF, LSTM, GRU = ("--dtype", "bfloat16"), ("--cells", "lstm"), ("--cells", "gru")
FIRST = (
    Group("versions", 35, _versions),
    Group("smoke", 45, _smoke, re.compile(r"smoke: .*")),
    Group("barrier", 44, _measure("--part", "barrier")),
    Group("lstm", 49, _measure("--part", "first", *LSTM, *HALF)),
    Group("graphs", 34, _measure("--part", "first", "--graphs", "--cells", "lstm", "gru", *HALF)),
    Group("tests", 120, _tests, TESTED),
)
SECOND = (
    Group("constants", 45, _measure("--part", "constants")),
    Group("gru", 50, _measure("--part", "targets", *GRU, *HALF)),
    Group("lstm-special", 55, _measure("--part", "targets", *LSTM, *HALF)),
    Group("lstm-tf32", 35, _measure("--part", "targets", "--dtype", "float32", "--tf32", "on", *LSTM)),
    Group("lean", 25, _measure("--part", "lean", *LSTM, *HALF)),
    Group("cluster", 20, _measure("--part", "cluster")),
    Group("again", 30, _again, TESTED),
    Group("memcheck", 60, _memcheck, re.compile(r"=+ +(?:ERROR|Invalid|.*error).*")),
)
BY_HAND = (
    Group("build", 560, _build),
    Group("tune", 560, _tune),
    Group("measure", 560, _measure()),
)
GROUPS = {group.name: group for group in (*FIRST, *SECOND, *BY_HAND)}


def environment() -> dict[str, str]:
    """For all processes: the checkout's own packages, kernels that were compiled before, lines as they are printed, and
    one thread for each process.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(CACHE)),
    }
