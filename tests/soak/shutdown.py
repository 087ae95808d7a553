"""Python ends while daemon threads are inside of calls: ``shutdown.py SECONDS [MOST]``.

Every process ends with the status 0, as its main thread did: threads come back from the engine to an interpreter that
is shutting down. Each makes one call, which lasts from before the end of the main thread to within the cleaning up:
around functions of torch's own it is torch that gives Python's lock away, and before Python 3.14 it aborts there.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

from clock import Clock

PROGRAM = """
import sys, threading, time, torch, fastrnn
torch.set_num_threads(int(sys.argv[1]))
net, started = getattr(fastrnn, sys.argv[2])(64, 192), threading.Semaphore(0)

def call(steps):
    x = torch.zeros(steps, 4, 64)
    with torch.no_grad():
        begin = time.perf_counter()
        started.release()
        net(x)
        return time.perf_counter() - begin

class Slow:  # Python is shutting down when this goes
    def __del__(self, sleep=time.sleep):
        sleep(1.5)

call(100)
seconds, slow = call(1000), Slow()
for length in map(float, sys.argv[3:]):
    threading.Thread(target=call, args=(int(1000 * length / seconds),), daemon=True).start()
for _ in range(len(sys.argv) - 1):
    started.acquire()
time.sleep(0.2)  # they are inside by then
"""


def soak(clock: Clock) -> None:
    of = random.Random()
    for _ in clock:
        lengths = [f"{of.uniform(0.4, 1.0):.2f}" for _ in range(of.choice((3, 9)))]
        arguments = [str(of.choice((1, 2))), of.choice(("LSTM", "GRU", "RNN")), *lengths]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments],
            cwd=Path(__file__).parent,  # and not where fastrnn/ lies
            env=os.environ | {"OMP_WAIT_POLICY": "passive"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, (arguments, done.returncode, done.stderr[-2000:])
    clock.report("all ended with 0")


if __name__ == "__main__":
    soak(Clock())
