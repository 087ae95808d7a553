"""The one format of results: JSON lines, each a measurement with everything needed to read it years later.

A row says what was run (``benchmark``, ``case``, ``threads``), what it took (``times`` in seconds for each contestant,
and ``speedup``, the ratio of the baseline's median to the contestant's), by what (``provenance``), and, in ``detail``,
what only this benchmark has to say. Contestants of a row were timed in turns in one process: seconds of different rows,
let alone of different machines, do not compare, ratios do. A row without times says in ``detail["not_measured"]`` why.
"""

import json
import platform
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch

import fastrnn
from bench import isas
from bench.grid import Shape
from bench.timing import Times

BASELINE = "torch.nn"
# On a GPU, where torch does not lay a layer's weights out as cuDNN reads them: the layer with weights that are.
FLATTENED = "torch.nn, weights flattened"
T = TypeVar("T")


class ResultsError(ValueError):
    """A results file cannot be read; the message says where and why."""


@dataclass(frozen=True)
class Case:
    """What was run: ``mode`` is ``"inference"`` (no gradients) or ``"training"`` (forward and backward)."""

    cell: str
    batch: int
    steps: int
    input: int
    hidden: int
    layers: int
    directions: int
    dtype: str
    mode: str

    @classmethod
    def of(cls, cell: str, shape: Shape, dtype: str, mode: str) -> "Case":
        """A case of the grid."""
        return cls(cell=cell, dtype=dtype, mode=mode, **asdict(shape))

    @property
    def shape(self) -> Shape:
        """The sizes alone."""
        return Shape(self.batch, self.steps, self.input, self.hidden, self.layers, self.directions)


@dataclass(frozen=True)
class Device:
    """A GPU and what drives it; ``processors`` are its multiprocessors, None where they were not written down."""

    name: str
    capability: str
    driver: str
    cuda: str
    cudnn: str
    triton: str
    processors: int | None = None

    @classmethod
    @cache
    def here(cls) -> "Device":
        """The current CUDA device."""
        major, minor = torch.cuda.get_device_capability()
        return cls(
            name=torch.cuda.get_device_name(),
            capability=f"{major}.{minor}",
            driver=_driver(),
            cuda=str(torch.version.cuda),
            cudnn=str(torch.backends.cudnn.version()),
            triton=version("triton") if find_spec("triton") else "none",
            processors=torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count,
        )


@dataclass(frozen=True)
class Provenance:
    """By what a row was measured.

    ``isa`` is the instruction set that fastrnn uses, ``torch_isa`` what torch does, "" where it was not written down.
    ``revision`` is git's, with a ``+`` where files were changed; None outside git. ``device`` is None of rows of CPUs.
    """

    torch: str
    fastrnn: str
    python: str
    isa: str
    cpu: str
    revision: str | None
    timestamp: str
    device: Device | None = None
    torch_isa: str = ""

    @classmethod
    def here_and_now(cls, device: Device | None = None) -> "Provenance":
        """Of this process."""
        return cls(
            torch=torch.__version__,
            fastrnn=fastrnn.__version__,
            python=platform.python_version(),
            isa=fastrnn._ops.cpu_isa(),
            cpu=_cpu_model(),
            revision=_revision(),
            timestamp=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            device=device,
            torch_isa=isas.torchs(),
        )


@dataclass(frozen=True)
class Row:
    """One measurement."""

    benchmark: str
    case: Case
    threads: int
    times: dict[str, Times]
    provenance: Provenance
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def baseline(self) -> str:
        """Whose time counts as torch.nn's: with flattened weights where torch itself does not flatten them."""
        return FLATTENED if FLATTENED in self.times else BASELINE

    @property
    def speedup(self) -> dict[str, float]:
        """By contestant: the baseline's median over the contestant's (above 1: faster than the baseline)."""
        if self.baseline not in self.times:
            return {}
        return {name: self.ratio(name) for name in self.times if name != self.baseline}

    @property
    def place(self) -> str:
        """Where it was measured, and how: ratios of rows of one place belong in one table."""
        device = self.provenance.device
        if device is None:
            return f"threads: {self.threads}, {self.provenance.isa}"
        tf32 = self.detail.get("tf32")
        clock = ", graphs" if self.detail.get("clock") == "graphs" else ""
        return f"{device.name}{'' if tf32 is None else ', TF32' if tf32 else ', no TF32'}{clock}"

    def ratio(self, name: str, against: str | None = None) -> float:
        """How many times as fast one contestant is as another, or as the baseline: a ratio of medians."""
        return self.times[against or self.baseline].median / self.times[name].median


def write(path: Path, rows: Iterable[Row], append: bool = False) -> None:
    """Write rows as they come, so that an interrupted run keeps what it has measured; into a new file, or behind it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({**asdict(row), "speedup": row.speedup}) + "\n")
            file.flush()


def read(path: Path) -> list[Row]:
    """Read a file of rows."""
    if not path.is_file():
        raise ResultsError(f"{path} is not a file: `python -m bench cpu` makes one")
    return list(_rows(path))


def _rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            values = json.loads(line)
            values.pop("speedup")  # follows from the times
            values["case"] = _make(Case, values["case"])
            if values["provenance"].get("device") is not None:
                values["provenance"]["device"] = _make(Device, values["provenance"]["device"])
            values["provenance"] = _make(Provenance, values["provenance"])
            values["times"] = {name: _make(Times, times) for name, times in values["times"].items()}
            yield _make(Row, values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultsError(f"{path}, line {number}: not a row of results ({error})") from error


def _make(kind: type[T], values: dict[str, Any]) -> T:
    every = fields(kind)  # type: ignore[arg-type]
    names = {f.name for f in every}
    needed = {f.name for f in every if f.default is MISSING and f.default_factory is MISSING}
    if not needed <= set(values) <= names:
        raise ValueError(f"a {kind.__name__} has {sorted(names)}, got {sorted(values)}")
    return kind(**values)


@cache
def _cpu_model() -> str:
    """The CPU's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


@cache
def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@cache
def _revision() -> str | None:
    root = Path(__file__).resolve().parent.parent
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
