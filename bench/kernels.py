"""What the Triton kernels are made of on each GPU that they are for: ``python -m bench kernels``, without a GPU.

The kernels and the arguments to compile them with are those of ``kernels/catalog.py``. What was found is written as
JSON lines: the first says by what, each of the others what a kernel is made of on a target, in all and in a step of its
loop, but for counts that are zero.
"""

import dataclasses
import importlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench import results
from bench.aot import Counts, Report, compile_kernel

CATALOG = "fastrnn.kernels.catalog"
Job = tuple[str, int, str]  # a catalogue, the place of a kernel in it, a target


class Entry(Protocol):
    """A kernel with its arguments' types and values, as a catalogue has them (there, a NamedTuple)."""

    @property
    def name(self) -> str: ...
    @property
    def kernel(self) -> Any: ...
    @property
    def signature(self) -> Mapping[str, str]: ...
    @property
    def constants(self) -> Mapping[str, Any]: ...
    @property
    def num_warps(self) -> int: ...
    @property
    def num_stages(self) -> int: ...
    @property
    def divisible(self) -> Sequence[str]: ...
    @property
    def targets(self) -> Sequence[str]: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


IN_ALL = ("warps", "registers", "spills", "stack", "shared")


class Row(NamedTuple):
    """A kernel on a target: its report, or why it could not be compiled."""

    name: str
    cell: str
    dtype: str
    hidden: int | None
    target: str
    report: Report | None
    error: str

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        row = {name: value for name, value in self._asdict().items() if value and name != "report"}
        if self.report is not None:
            row |= {name: getattr(self.report, name) for name in IN_ALL}
            step = dataclasses.asdict(_step(self.report))
            row["step"] = {name: value for name, value in step.items() if value}
        return row

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Row":
        """What :meth:`plain` has made plain."""
        report = None
        if "step" in plain:
            found, step = {name: plain[name] for name in IN_ALL}, Counts(**plain["step"])
            rest = {"whole": step, "loops": (step,), "innermost": 0, "ptx": "", "assembly": ""}
            report = Report(kernel=plain["name"].split("/")[0], target=plain["target"], **found, **rest)
        known = (plain.get("cell", ""), plain.get("dtype", ""), plain.get("hidden"))
        return cls(plain["name"], *known, plain["target"], report, plain.get("error", ""))


def catalog(module: str = CATALOG) -> list[Entry]:
    """The kernels that there are."""
    try:
        return list(importlib.import_module(module).entries())
    except ModuleNotFoundError as error:
        raise results.ResultsError(f"there are no kernels to show: {error}") from error


def jobs(names: Sequence[str], targets: Sequence[str], module: str = CATALOG) -> list[Job]:
    """The catalogue's kernels in whose name one of ``names``, regular expressions, is found, for these targets.

    All of them where none are given.
    """
    return [
        (module, index, target)
        for index, entry in enumerate(catalog(module))
        if not names or any(re.search(name, entry.name) for name in names)
        for target in entry.targets
        if not targets or target in targets
    ]


def rows(jobs: Sequence[Job], processes: int) -> Iterator[Row]:
    """Compile kernels, in so many processes."""
    # A worker finds a kernel by its place, since kernels do not travel; a fork might inherit locks that threads hold.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(compiled, jobs)


def compiled(job: Job) -> Row:
    """Compile one kernel of a catalogue, known by its place, for a target."""
    module, index, target = job
    entry = catalog(module)[index]
    report, error = None, ""
    try:
        report = compile_kernel(
            entry.kernel,
            entry.signature,
            entry.constants,
            target,
            num_warps=entry.num_warps,
            num_stages=entry.num_stages,
            divisible=entry.divisible,
            **entry.options,
        )
    except Exception as problem:  # whatever a compiler raises: the others are to be shown all the same
        error = f"{type(problem).__name__}: {(str(problem).strip() or 'no message').splitlines()[-1]}"
    return Row(entry.name, _cell(entry), _dtype(entry), entry.constants.get("H"), target, report, error)


def _cell(entry: Entry) -> str:
    """What the constant CELL says, or the name: ``lstm`` of ``lstm_forward``."""
    named = re.search(r"lstm|gru|rnn(_tanh|_relu)?", entry.name)
    return str(entry.constants.get("CELL", named[0] if named else ""))


def _dtype(entry: Entry) -> str:
    """The narrowest of the kinds of numbers that its pointers point to: states may be wider than weights."""
    kinds = {kind[1:] for kind in entry.signature.values() if re.match(r"\*(bf|fp)\d+$", kind)}
    return min(kinds, key=lambda kind: (int(kind[2:]), kind), default="")


def table(compiled_rows: Iterable[Row]) -> Table:
    """A line for each kernel and target that compiled; of tensor-core instructions, the kind without the shape.

    Cell, numbers and H are in the names.
    """
    shown = Table(
        title="Registers of a thread, bytes of shared memory, instructions of a step",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in ("kernel", "target"):
        shown.add_column(column, no_wrap=True)
    for column in ("warps", "regs", "spills", "shared", "tensor", "loads", "stores", "lds", "sts", "bars", "all"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in compiled_rows:
        if row.report is None:
            continue
        report = row.report
        loop = _step(report)
        kinds = sorted({re.split("[._]", kind)[0] for kind in loop.tensor})
        counts = (
            loop.global_loads,
            loop.global_stores,
            loop.shared_loads + loop.matrix_loads,
            loop.shared_stores,
            loop.barriers,
            loop.instructions,
        )
        shown.add_row(
            *(row.name, row.target),
            *(str(report.warps), str(report.registers), _marked(report.spills, 0)),
            _marked(report.shared, report.limits.shared),
            " ".join(f"{loop.tensor_cores(kind)} {kind}" for kind in kinds),
            *map(str, counts),
        )
    return shown


def _step(report: Report) -> Counts:
    """A pass through the loop over time, or all, where it was unrolled."""
    return report.loop() if report.loops else report.whole


def _marked(value: int, limit: int) -> str:
    return f"[red]{value}[/red]" if value > limit else str(value)


def write(path: Path, compiled_rows: Iterable[Row]) -> Iterator[Row]:
    """Write by what rows are compiled and, as they come, the rows, which are passed on."""
    made = results.Provenance.here_and_now()
    by = {"triton": version("triton"), "fastrnn": made.fastrnn, "revision": made.revision, "timestamp": made.timestamp}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(by) + "\n")
        for row in compiled_rows:
            file.write(json.dumps(row.plain()) + "\n")
            file.flush()
            yield row


def read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """By what rows were compiled, and the rows."""
    try:
        by, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return by, [Row.of(line) for line in lines]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise results.ResultsError(f"{path}: not what `python -m bench kernels --out` writes ({error})") from error
