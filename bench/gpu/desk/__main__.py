"""``python -m bench.gpu.desk [--record FOLDER] -m MODULE ARGUMENTS ...``: a module as on a machine with an H100.

So is every Python that it starts. With ``--record`` nothing is compiled, and each process writes to FOLDER which
kernels it launched.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.gpu import desk

SITE = Path(__file__).with_name("site")
ROOT = Path(__file__).resolve().parents[3]


def environment(mode: str, folder: Path | None = None, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables under which a Python takes its machine for one with an H100.

    Args:
        mode: as of :func:`bench.gpu.desk.enter`.
        folder: where each process writes what it launched, or None.
        given: the other variables.
    """
    path = [str(SITE), str(ROOT), *filter(None, [given.get("PYTHONPATH")])]
    kept = {} if folder is None else {desk.SEEN: str(folder.resolve())}
    return {**given, "PYTHONPATH": os.pathsep.join(path), desk.VARIABLE: mode, **kept}


def main(arguments: Sequence[str]) -> None:
    """Become that process."""
    mode, folder, rest = os.environ.get(desk.VARIABLE) or "compile", None, list(arguments)
    if rest[:1] == ["--record"] and len(rest) > 1:
        mode, folder, rest = "record", Path(rest[1]), rest[2:]
    if not rest:
        sys.exit(str(__doc__))
    os.execve(sys.executable, [sys.executable, *rest], environment(mode, folder))


if __name__ == "__main__":
    main(sys.argv[1:])
