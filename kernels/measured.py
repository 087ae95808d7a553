"""What was measured: by which of the ways to compute it a layer is the fastest, on which GPU.

``python -m fastrnn tune`` measures on the user's own GPU and appends a line of JSON for each piece of work to
:func:`cache_file`. A line holds for the GPU, driver, torch, triton and fastrnn that it was measured with. What the
developers measured is in lines of the same kind in ``fastrnn/kernels/gpus/``, a file for each GPU; they hold whatever
the versions are. The user's come first, and of those for the same work the last. Beside them lie the constants of the
cost model (:mod:`fastrnn.kernels.model`) that were measured on a GPU, for work of which there is no record.
"""

import json
import os
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fastrnn.kernels.device import driver_version
from fastrnn.kernels.model import Constants

TORCH = "torch"  # its own layers, among the ways to compute one
TUNED = "tuned on this GPU"
GPUS = Path(__file__).parent / "gpus"
Choices = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Work:
    """What is to be computed.

    Attributes:
        cell: a key of :data:`fastrnn.reference.CELLS`.
        steps, batch, inputs, hidden: T, B, I, H.
        dtype: of storage.
        directions, layers: D, and the layers of the stack; 0 for a cell.
        trains: whether gradients will be wanted.
        packed: whether sequences differ in length.
        tf32: whether it is float32 of which products may be rounded to tf32.
        tf32_products: whether torch's own products of matrices would round it so, for which it has another setting.
    """

    cell: str
    steps: int
    batch: int
    inputs: int
    hidden: int
    dtype: torch.dtype
    directions: int = 1
    layers: int = 1
    trains: bool = False
    packed: bool = False
    tf32: bool = False
    tf32_products: bool = False

    def __str__(self) -> str:
        stack = f", {self.layers} layers" * (self.layers > 1) + ", both directions" * (self.directions > 1)
        stack += " cell" * (self.layers == 0)
        kind = str(self.dtype).removeprefix("torch.") + " with tf32" * self.tf32 + ", packed" * self.packed
        mode = "training" if self.trains else "inference"
        return f"{self.cell} (B, T, I, H) = {self.sizes}{stack}, {kind}, {mode}"

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """B, T, I, H."""
        return self.batch, self.steps, self.inputs, self.hidden


@dataclass(frozen=True)
class Record:
    """What some work took.

    Attributes:
        work: that was measured.
        seconds: of a call, by ``"torch"`` and by each strategy of ours that computed it right, its fastest plan.
        choices: attributes of the :class:`fastrnn.kernels.plan.Plan` that was the fastest of ours; none, if none was.
        source: where it was measured, in words.
    """

    work: Work
    seconds: tuple[tuple[str, float], ...]
    choices: Choices
    source: str = TUNED


# Functions, not methods: of objects that are constants to it, Dynamo follows attributes alone.
def find(records: Sequence[Record], work: Work, whole: bool) -> Record | None:
    """The record of the work nearest to this, if any holds for it; arguments as of :func:`holds_for`."""
    found, least = None, (0, 0)
    for record in records:
        if holds_for(record, work, whole):
            apart = (record.work.batch - work.batch, abs(record.work.steps - work.steps))
            if found is None or apart < least:
                found, least = record, apart
    return found


def holds_for(record: Record, work: Work, whole: bool) -> bool:
    """Whether work is near enough to what was measured.

    The recurrence is the same at least, with as many batch tiles or fewer (more than half the rows that were measured,
    and no more), and half the steps or more, as a step takes what it takes.

    Args:
        record: of what was measured.
        work: to be planned.
        whole: whether to compare with torch, of which layers and inputs are a part.
    """
    mine = record.work
    if whole and (mine.layers != work.layers or mine.inputs > 2 * work.inputs or work.inputs > 2 * mine.inputs):
        return False
    return (
        mine.cell == work.cell
        and mine.hidden == work.hidden
        and mine.directions == work.directions
        and mine.dtype == work.dtype
        and mine.tf32 == work.tf32
        and mine.trains == work.trains
        and mine.packed == work.packed
        and work.batch <= mine.batch < 2 * work.batch
        and mine.steps <= 2 * work.steps
    )


def seconds_of(record: Record, way: str) -> float | None:
    """What a way to compute it took, or None."""
    for name, seconds in record.seconds:
        if name == way:
            return seconds
    return None


def cache_file() -> Path:
    """Where tuning is kept: in the folder ``$FASTRNN_CACHE``, else in ``~/.cache/fastrnn``.

    ``$XDG_CACHE_HOME``, where it is set, takes the place of ``~/.cache``.
    """
    folder = os.environ.get("FASTRNN_CACHE")
    if folder:
        return Path(folder, "tuned.jsonl")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "fastrnn", "tuned.jsonl")


def identity(name: str, processors: int) -> dict[str, str]:
    """What tuning holds for: a GPU of that name and whatever has a part in how fast it computes.

    Of a GPU that is shared, a process may have a part of the multiprocessors.
    """
    from fastrnn import __version__

    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    versions = {"driver": _driver(), "torch": torch.__version__, "triton": triton, "fastrnn": __version__}
    return {"gpu": name, "multiprocessors": str(processors)} | versions


@cache
def _driver() -> str:
    """The version of the GPU's driver as the system's kernel tells it, else of the interface that it has for CUDA."""
    for path in ("/proc/driver/nvidia/version", "/sys/module/amdgpu/version"):
        try:
            found = re.search(r"\d+\.\d+(\.\d+)*", Path(path).read_text(encoding="utf-8"))
        except OSError:
            continue
        if found:
            return found[0]
    return str(driver_version()) if driver_version() else "unknown"


def line(record: Record, on: Mapping[str, str], left_out: Mapping[Any, str] | None = None) -> str:
    """A record as it is kept; with the plans that were left out and why, for whoever reads the file."""
    work = asdict(record.work) | {"dtype": str(record.work.dtype).removeprefix("torch.")}
    values: dict[str, Any] = {"on": dict(on), "work": work}
    values |= {"seconds": dict(record.seconds), "choices": dict(record.choices)}
    if left_out:
        values["left_out"] = [asdict(plan) | {"reason": why} for plan, why in left_out.items()]
    return json.dumps(values)


def append(record: Record, on: Mapping[str, str], left_out: Mapping[Any, str] | None = None) -> None:
    """Keep a record; a line is written at once, so that neither an end in the middle nor another process breaks it."""
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, f"{line(record, on, left_out)}\n".encode())
    finally:
        os.close(file)


def read(path: Path, on: Mapping[str, str], attributes: Collection[str], source: str) -> Iterator[Record]:
    """The records of a file that were measured on a device like this, with all that ``on`` names.

    Choices may have no other names than ``attributes``. A line that is no record is left out with a warning, and so is
    a file that cannot be read: layers are computed all the same.
    """
    return (record for _, record in read_with(path, on, attributes, source))


def read_with(
    path: Path, on: Mapping[str, str], attributes: Collection[str], source: str
) -> Iterator[tuple[Mapping[str, str], Record]]:
    """The same with all that each was measured on."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        warnings.warn(f"fastrnn: {path} cannot be read, and nothing of it is used: {error}", stacklevel=2)
        return
    for number, text_line in enumerate(text.splitlines(), 1):
        try:
            values = json.loads(text_line)
            if all(values["on"].get(name) == value for name, value in on.items()):
                yield values["on"], _record(values, attributes, source)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            warnings.warn(f"fastrnn: {path}, line {number} is no record of tuning, and not used ({what})", stacklevel=2)


def _record(values: Mapping[str, Any], attributes: Collection[str], source: str) -> Record:
    work = Work(**values["work"] | {"dtype": getattr(torch, values["work"]["dtype"])})
    for field in fields(Work):
        if type(getattr(work, field.name)) is not field.type:
            raise ValueError(f"{field.name} is {getattr(work, field.name)!r}")
    if unknown := values["choices"].keys() - set(attributes):
        raise ValueError(f"there is no {', '.join(unknown)} to choose")
    seconds = tuple((str(name), float(took)) for name, took in values["seconds"].items())
    return Record(work, seconds, tuple(values["choices"].items()), source)


def latest(records: Sequence[Record]) -> tuple[Record, ...]:
    """Of records of the same work the last one."""
    return tuple({record.work: record for record in records}.values())


def of_gpu(name: str, processors: int, attributes: Collection[str]) -> tuple[Record, ...]:
    """What was measured on the GPU of that name, the most reliable first.

    Args:
        name: of the GPU.
        processors: how many multiprocessors it has for this process.
        attributes: those of a plan.
    """
    tuned = read(cache_file(), identity(name, processors), attributes, TUNED)
    shipped = read(GPUS / f"{file_stem(name)}.jsonl", {"gpu": name}, attributes, f"measured on another {name}")
    return (*latest([*tuned]), *latest([*shipped]))


def constants_of(name: str) -> Constants | None:
    """The constants of the cost model that were measured on a GPU of that name, or None where none was.

    What is no complete set of constants is left out with a warning.
    """
    path = GPUS / f"{file_stem(name)}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["constants"]
        if missing := [field.name for field in fields(Constants) if field.name not in found]:
            raise ValueError(f"no {', '.join(missing)}")
        return Constants(**found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"fastrnn: {path} has no constants of a GPU, and is not used: {error!r}", stacklevel=2)
        return None


def file_stem(name: str) -> str:
    """The name of a GPU as a file's: ``NVIDIA-H100-80GB-HBM3``."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
