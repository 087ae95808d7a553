"""Plans tried in a process of their own: a fault, a hang, whatever ends it costs the plan and nothing else.

The process is a new Python that runs :mod:`fastrnn._worker`, not a fork, and not one of multiprocessing's, which would
run the caller's script again or refuse where the caller is a daemon. It has the caller's module path, environment and
settings of torch. A process that failed so is replaced by another when the next plan is tried, and none outlives the
caller.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from multiprocessing import Pipe, spawn
from multiprocessing.connection import Connection
from threading import Lock
from typing import IO, Any, NamedTuple

from fastrnn._contest import Failed, Lost
from fastrnn._settings import Opening
from fastrnn.kernels.plan import Plan

LIMIT = 120.0  # seconds for a plan: most go to compiling, several kernels of up to 5 s each
OPENING = 300.0  # for a process to start, and torch's layer to compute the work in float64
ENDING = 10.0  # for a process that was told to end
LONGEST = 300  # characters of what a process last said
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from fastrnn._worker import main; main({pipe})"


class Running(NamedTuple):
    """A process, the pipe to it, and the file that it writes its output to."""

    process: "subprocess.Popen[bytes]"
    pipe: "Connection[Any, Any]"
    output: IO[bytes]


class Elsewhere:
    """The ways to compute a piece of work (:class:`fastrnn._contest.Ways`), in another process.

    A plan may take :data:`LIMIT` seconds, compiling included. A process is started where something is to be tried and
    there is none.

    Args:
        opening: what is to be computed.
    """

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self._running: Running | None = None
        self._ended = False
        self._lock = Lock()

    def trial(self, plan: Plan | None) -> float:
        """As :class:`fastrnn._contest.Ways` has it."""
        return float(self._ask("trial", plan))

    def turn(self, plan: Plan | None, once: float) -> float:
        """As :class:`fastrnn._contest.Ways` has it."""
        return float(self._ask("turn", plan, once))

    def check(self, plan: Plan) -> None:
        """As :class:`fastrnn._contest.Ways` has it."""
        self._ask("check", plan)

    def close(self) -> None:
        """End the process, whatever it does.

        Raises:
            Lost: it does not end, for the device's driver holds it.
        """
        with self._lock:
            running, self._running = self._running, None
        if running is None:
            return
        running.process.kill()
        running.pipe.close()
        running.output.close()
        try:
            running.process.wait(ENDING)
        except subprocess.TimeoutExpired:
            self._ended = True
            raise Lost(f"fastrnn: process {running.process.pid}, which tried a plan, does not end") from None

    def end(self) -> None:
        """End it for good, from another thread than the one that asks, which finds out."""
        with self._lock:
            self._ended = True
            if self._running is not None:
                self._running.process.kill()

    def _ask(self, name: str, plan: Plan | None, *more: object) -> Any:
        if self._running is not None and self._running.process.poll() is not None:
            self.close()  # it has ended in between
        try:
            return self._answer(self._running or self._start(), LIMIT, name, plan, *more)
        except Failed:
            if plan is not None or self._running is not None:
                raise
        return self._answer(self._start(), LIMIT, name, plan, *more)  # torch's layer paid for a plan before it

    def _start(self) -> Running:
        executable = spawn.get_executable()
        if not executable:
            raise Lost("fastrnn: this Python does not know by which command another one is started")
        with self._lock, ExitStack() as unless:
            if self._ended:
                raise Lost("fastrnn: no more plans are tried")
            mine, others = map(unless.enter_context, Pipe())
            output = unless.enter_context(tempfile.TemporaryFile())
            command = (executable, "-c", BOOT.format(pipe=others.fileno()), json.dumps([*map(str, sys.path)]))
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(others.fileno(),),
                    env=os.environ | {"FASTRNN_AUTOTUNE": "0"},
                )
            except OSError as problem:
                raise Lost(f"fastrnn: no process can be started that tries plans: {problem}") from problem
            unless.pop_all()
            others.close()
            running = self._running = Running(process, mine, output)
        try:
            self._answer(running, OPENING, "open", *self.opening)
        except Failed as problem:
            self.close()
            what = f"the process that tries plans cannot compute {self.opening.work}"
            raise Lost(f"fastrnn: {what}: {problem}") from None
        return running

    def _answer(self, running: Running, limit: float, name: str, *given: object) -> Any:
        """What the process answers.

        Raises:
            Failed: it answers that it failed, or does not answer, and has been ended.
        """
        try:
            running.pipe.send((name, given))
            if not running.pipe.poll(limit):
                self.close()
                raise Failed(f"it took longer than {limit:g} s")
            how, value = running.pipe.recv()
        except (EOFError, OSError):
            why = "no more plans are tried" if self._ended else _why_ended(running)
            self.close()
            raise Failed(why) from None
        if how == "lost":
            self.close()
        if how != "done":
            raise Failed(value)
        return value


def _why_ended(running: Running) -> str:
    """How a process ended that has closed its end of the pipe, and the last that it said."""
    try:
        status = running.process.wait(ENDING)
    except subprocess.TimeoutExpired:
        return "its process went silent"
    how = f"its process ended with status {status}"
    if status < 0:
        name = signal.Signals(-status).name if -status in {*signal.Signals} else f"signal {-status}"
        memory = ", as by a system that is out of memory" * (name == "SIGKILL")
        how = f"its process was ended by {name}{memory}"
    running.output.seek(0)
    said = [text for line in running.output.read().decode(errors="replace").splitlines() if (text := line.strip())]
    return f"{how}; the last that it said: {said[-1][:LONGEST]}" if said else how
