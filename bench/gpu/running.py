"""``bench/gpu.sh``: runs the groups of :mod:`bench.gpu.stages`, each in processes of its own, until the time is up.

Nothing here imports torch. What is printed is also written, line by line, and so are the rows of measurements; logs go
into one archive after each group, since the machine may be lost. A group that fails or takes too long does not keep
the next one from running.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from bench.gpu import stages, strategies
from bench.gpu.stages import BY_HAND, FIRST, GROUPS, ROOT, SECOND, Command, Group, Known, NothingToDoError

SECONDS = {"first": 285.0, "second": 285.0, "parts": 560.0}  # of a call: each ends by itself within 290
RESERVE = 4.0  # seconds for what is to be written at the end
GRACE = 4.0  # seconds between being asked to end and being ended
LEAST = 5.0  # seconds; with less, no group is begun
LOG_BYTES = 4 << 20  # of each log, the end that is kept
KNOWN = ROOT / "out" / "gpu"  # where a later call finds what an earlier one has found out
LEFT_OUT, FAILED_TESTS = "left-out.json", "failed-tests.txt"
NO_DEVICE = 2  # exit status of the group that looks for it
MISTAKE = 2  # and of a call that was not understood


@dataclass
class Process:
    """One that runs, and its output, which is read from a file: what it leaves behind cannot keep a pipe open."""

    command: Command
    shown: stages.re.Pattern[str]
    log: Path
    popen: "subprocess.Popen[bytes] | None" = None
    output: IO[str] | None = None
    rest: str = ""
    lines: list[str] = field(default_factory=list)
    status: int | str = "not begun"

    def begin(self) -> None:
        """Start it, the leader of a process group of its own."""
        environment = stages.environment() | self.command.environment
        with self.log.open("wb") as out, self.log.with_suffix(".err").open("wb") as err:
            try:
                self.popen = subprocess.Popen(
                    self.command.arguments, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                    stdout=out, stderr=err, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                self.status = str(error)
        self.output = self.log.open(encoding="utf-8", errors="replace")

    def running(self) -> bool:
        """Whether it has not ended yet."""
        if self.popen is None or (status := self.popen.poll()) is None:
            return self.popen is not None
        if self.status == "not begun":
            self.status = status
        return False

    def new_lines(self, ended: bool = False) -> Iterator[str]:
        """What it has printed since, as far as it is to be shown."""
        if self.output is None:
            return
        *lines, self.rest = (self.rest + self.output.read()).split("\n")
        if ended and self.rest:
            lines.append(self.rest)
        for line in lines:
            self.lines.append(line)
            if line.strip() and self.shown.fullmatch(line):
                yield line

    def send(self, number: signal.Signals) -> None:
        """To all of its processes."""
        if self.popen is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.popen.pid, number)

    def close(self) -> None:
        """No more of its output."""
        if self.output is not None:
            self.output.close()
        if self.popen is not None:
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(0.1)

    def reason(self) -> str:
        """Why it failed, in a line."""
        said = self.lines + self.log.with_suffix(".err").read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((line.strip() for line in reversed(said) if line.strip()), "no output")
        how = self.status if isinstance(self.status, str) else f"exit status {self.status}"
        return f"{how}: {last}"


@dataclass
class Call:
    """A call.

    Attributes:
        name: of its files.
        out: the folder of its results.
        before: the folder where an earlier call has left what it has found out.
        end: by :func:`time.monotonic`.
        python: runs the groups.
        logs: the folder of logs, for the time of the call.
        arguments: for ``measure``.
        patience: how many times its limit a group may take.
        passed, failed: groups, in words.
    """

    name: str
    out: Path
    before: Path
    end: float
    python: str
    logs: Path
    arguments: Sequence[str] = ()
    patience: float = 1.0
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        """Print a line, and keep it."""
        print(line, flush=True)
        with (self.out / f"{self.name}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def left(self) -> float:
        """Seconds that processes may still take."""
        return self.end - time.monotonic() - RESERVE - GRACE

    def known(self, seconds: float) -> Known:
        """What the next group may depend on."""
        left_out = self.find(LEFT_OUT)
        failed = self.find(FAILED_TESTS)
        tests = failed.read_text(encoding="utf-8").splitlines() if failed.exists() else []
        rows = self.out / f"{self.name}.jsonl"
        found = strategies.read_left_out(left_out)
        return Known(self.python, rows, left_out, found, tests, seconds, self.arguments)

    def find(self, name: str) -> Path:
        """A file of what is known: of this folder, else of an earlier call."""
        own, before = self.out / name, self.before / name
        return own if own.exists() or not before.exists() else before

    def keep(self, name: str, text: str) -> None:
        """Write such a file, for this call and for later ones."""
        for folder in (self.out, self.before):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")

    def forget(self, name: str) -> None:
        """Remove such a file: what it says is found out anew."""
        for folder in (self.out, self.before):
            (folder / name).unlink(missing_ok=True)

    def run(self, group: Group) -> list[Process]:
        """Run a group to its end, or to the end of its time, and say how it went."""
        if self.left() < LEAST:
            self.failed.append(f"{group.name}: not begun, the time was up")
            return []
        begin, seconds = time.monotonic(), min(self.patience * group.seconds, self.left())
        try:
            known = self.known(seconds)
            commands = group.commands(known)
        except NothingToDoError as reason:
            self.say(f"== {group.name}: nothing to do, {reason}")
            return []
        without = f", without {'; '.join(known.left_out)}" if known.left_out else ""
        self.say(f"== {group.name} (at most {seconds:.0f} s{without})")
        processes = [Process(c, group.shown, self.logs / f"{group.name}-{i}.log") for i, c in enumerate(commands)]
        try:
            for process in processes:
                process.begin()
            self._wait(processes, begin + seconds, seconds)
        finally:
            for process in processes:
                process.send(signal.SIGKILL)  # and what it has started and left behind
        for process in processes:
            for line in process.new_lines(ended=True):
                self.say(line)
            process.close()
        took = time.monotonic() - begin
        bad = [process for process in processes if process.status != 0]
        for process in bad:
            self.say(f"{group.name}, {process.command.name}: {process.reason()}")
        if bad:
            names = ", ".join(f"{process.command.name} ({process.status})" for process in bad)
            self.failed.append(f"{group.name} in {took:.0f} s: {names}")
        else:
            self.passed.append(f"{group.name} in {took:.0f} s")
        self.archive()
        return processes

    def _wait(self, processes: Sequence[Process], end: float, seconds: float) -> None:
        """Until all have ended or been ended; those that cannot be are left behind."""
        asked = False
        while any([process.running() for process in processes]):
            now = time.monotonic()
            for process in processes:
                for line in process.new_lines():
                    self.say(line)
            if now > end and not asked:
                asked = True
                self._end(processes, signal.SIGTERM, f"stopped after {seconds:.0f} s")
            if now > end + GRACE:
                self._end(processes, signal.SIGKILL, "")
            if now > end + GRACE + 1:
                break
            time.sleep(0.1)

    def _end(self, processes: Sequence[Process], number: signal.Signals, status: str) -> None:
        for process in processes:
            if process.running():
                process.status = status or process.status
                process.send(number)

    def archive(self) -> None:
        """All logs so far in one file; made beside it, so that there is a whole one at any time."""
        made = self.logs / "archive"
        with tarfile.open(made, "w:gz", compresslevel=6) as archive:
            for path in sorted((*self.logs.glob("*.log"), *self.logs.glob("*.err"))):
                size = path.stat().st_size
                with path.open("rb") as file:
                    file.seek(max(0, size - LOG_BYTES))
                    info = tarfile.TarInfo(path.name)
                    info.size, info.mtime = min(size, LOG_BYTES), int(path.stat().st_mtime)
                    archive.addfile(info, file)
        part = self.out / f".{self.name}-logs"
        shutil.copyfile(made, part)
        part.replace(self.out / f"{self.name}-logs.tar.gz")

    def summary(self) -> int:
        """Say what passed and what did not; the exit status."""
        self.say(f"== {self.name}: {len(self.passed)} passed, {len(self.failed)} failed; {self.out}")
        for line in self.passed:
            self.say(f"passed: {line}")
        for name, reason in self.known(0).left_out.items():
            self.say(f"LEFT OUT: {name}: {reason}")
        for line in self.failed:
            self.say(f"FAILED: {line}")
        return 1 if self.failed else 0


def main(arguments: list[str] | None = None) -> int:
    """Run a call; 0 is success, 1 that a group failed or was not begun, 2 a mistake in the arguments or no GPU."""
    begin = time.monotonic()
    options = _parser().parse_args(arguments)
    name = "first" if options.first else "second" if options.second else "parts"
    groups = {"first": FIRST, "second": SECOND}.get(name) or [GROUPS[part] for part in options.part]
    end = begin + (options.seconds or SECONDS[name])
    options.out.mkdir(parents=True, exist_ok=True)
    link()
    with tempfile.TemporaryDirectory() as logs:
        python = os.environ.get("PYTHON") or sys.executable
        folders = (options.out.resolve(), options.known.resolve())
        call = Call(name, *folders, end, python, Path(logs), options.arguments, options.patience)
        for file in call.out.glob(f"{name}[.-]*"):
            file.unlink()
        for group, file_name in (("smoke", LEFT_OUT), ("tests", FAILED_TESTS)):
            if GROUPS[group] in groups:
                call.forget(file_name)
        try:
            call.known(0)
        except ValueError as error:  # of another version, say
            print(f"bench/gpu.sh: {error}", file=sys.stderr)
            return MISTAKE
        for group in groups:
            processes = call.run(group)
            if group.name == "versions" and processes and processes[0].status == NO_DEVICE:
                print(processes[0].reason(), file=sys.stderr)
                return NO_DEVICE
            if group.name == "smoke":
                _left_out(call, processes)
            if group.name == "tests" and processes:
                _failed_tests(call, processes)
        return call.summary()


def link() -> None:
    """What an installation in place does: a checkout has no ``fastrnn/kernels`` of its own."""
    folder = [str(ROOT / "fastrnn")]
    finders = (finder for finder in sys.meta_path if hasattr(finder, "find_spec"))
    found = (finder.find_spec("fastrnn.kernels", folder, None) for finder in finders)
    if not any(found):
        (ROOT / "fastrnn" / "kernels").unlink(missing_ok=True)  # a link to nowhere
        (ROOT / "fastrnn" / "kernels").symlink_to("../kernels")


def _left_out(call: Call, processes: Sequence[Process]) -> None:
    """Strategies that failed, which what follows does without."""
    failed = {p.command.name: p.reason() for p in processes if p.status != 0}
    call.keep(LEFT_OUT, strategies.text_of(failed))


def _failed_tests(call: Call, processes: Sequence[Process]) -> None:
    matches = (stages.FAILED.fullmatch(line) for process in processes for line in process.lines)
    tests = dict.fromkeys(match[1] for match in matches if match)
    call.keep(FAILED_TESTS, "".join(f"{test}\n" for test in tests))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/gpu.sh", description="All that only a GPU can tell.")
    default = Path(os.environ.get("OUT") or "bench/results/gpu")
    parser.add_argument("out", nargs="?", type=Path, default=default, help="folder of results (default: %(default)s)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--first", action="store_true", help=", ".join(group.name for group in FIRST))
    what.add_argument("--second", action="store_true", help=", ".join(group.name for group in SECOND))
    listed = ", ".join(group.name for group in BY_HAND)
    what.add_argument("--part", nargs="+", choices=list(GROUPS), metavar="GROUP", help=f"any of these, and {listed}")
    parser.add_argument("--known", type=Path, default=KNOWN, help="what a later call goes by (default: out/gpu)")
    parser.add_argument("--seconds", type=float, help="of the call (default: 285; with --part, 560)")
    parser.add_argument("--patience", type=float, default=1.0, help="times the limits of groups, for slow machines")
    parser.add_argument("--arguments", nargs=argparse.REMAINDER, default=[], help="of python -m bench gpu, to the end")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # and with it ends what runs
    sys.exit(main())
