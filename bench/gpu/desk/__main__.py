"""``python -m bench.gpu.desk [--record FOLDER] [--tiny] COMMAND ...``: a command as on a machine with an H100.

So is every Python that it starts, ``$PYTHON`` being this one; and there are an ``nvidia-smi``, an ``nvcc`` and a
``compute-sanitizer``, which do nothing of their own. COMMAND is a program, or arguments of Python such as ``-m pytest
-m gpu``. With ``--record`` nothing is compiled, and each process writes to FOLDER which kernels it launched. With
``--tiny`` the benchmarks of GPUs take tiny sizes, and of each test there is one case.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.gpu import desk

SITE = Path(__file__).with_name("site")
BIN = Path(__file__).with_name("bin")  # programs that come with a GPU's driver and compilers
ROOT = Path(__file__).resolve().parents[3]


def environment(
    mode: str, folder: Path | None = None, tiny: bool = False, given: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Variables under which a Python takes its machine for one with an H100.

    Args:
        mode: as of :func:`bench.gpu.desk.enter`.
        folder: where each process writes what it launched, or None.
        tiny: whether benchmarks take tiny sizes.
        given: the other variables.
    """
    path = os.pathsep.join([str(SITE), str(ROOT), *filter(None, [given.get("PYTHONPATH")])])
    own = {
        "PATH": os.pathsep.join([str(BIN), given.get("PATH", os.defpath)]),
        "PYTHON": given.get("PYTHON") or sys.executable,
        "PYTHONPATH": path,
        desk.VARIABLE: mode,
        desk.SEEN: "" if folder is None else str(folder.resolve()),
        desk.TINY: "1" if tiny else "",
    }
    if tiny:
        own["PYTEST_PLUGINS"] = ",".join(filter(None, [given.get("PYTEST_PLUGINS"), "bench.gpu.desk.few"]))
    return {**given, **own}


def main(arguments: Sequence[str]) -> None:
    """Become that process."""
    mode, folder, tiny, rest = "compile", None, False, list(arguments)
    while rest[:1] in (["--record"], ["--tiny"]):
        if rest.pop(0) == "--tiny":
            tiny = True
        else:
            mode, folder = "record", Path(rest.pop(0) if rest else "")
    if not rest:
        sys.exit(str(__doc__))
    command = [sys.executable, *rest] if rest[0].startswith("-") else rest
    os.execvpe(command[0], command, environment(mode, folder, tiny))


if __name__ == "__main__":
    main(sys.argv[1:])
