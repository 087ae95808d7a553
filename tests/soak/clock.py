"""How a subject of the soak runs: case after case until its time is over, and what it says then."""

import json
import sys
import time
from collections.abc import Iterator


class Clock:
    """``for number in clock:`` is a case after the other, for the seconds that the command line names.

    The time begins with the first case, or with over(). A subject that found something has ended by then, with its
    error and another status.
    """

    def __init__(self) -> None:
        self.seconds = float(sys.argv[1])
        self.most = int(sys.argv[2]) if len(sys.argv) > 2 else 1 << 62
        self.cases, self.begin = 0, 0.0

    def over(self) -> bool:
        """Whether the time is."""
        self.begin = self.begin or time.monotonic()
        return time.monotonic() - self.begin > self.seconds

    def __iter__(self) -> Iterator[int]:
        while not self.over() and self.cases < self.most:
            yield self.cases
            self.cases += 1

    def report(self, note: str) -> None:
        """What the run's table says of it: the last line of the output."""
        print(json.dumps({"cases": self.cases, "seconds": time.monotonic() - self.begin, "note": note}), flush=True)
