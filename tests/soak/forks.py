"""Processes forked while other threads compute: ``forks.py SECONDS [MOST]``. The child computes right, and ends."""

import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

import torch
from clock import Clock
from layers import draw, fast, run

import fastrnn

PATIENCE = 120.0  # seconds that a child has


def soak(clock: Clock) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    net, x = fastrnn.LSTM(16, 128, num_layers=2), torch.randn(60, 4, 16)
    problem = draw("gru", 9, 6, 5, 24, layout="lengths")
    with torch.no_grad():
        expected = net(x)[0]
    outputs, gradients = fast()(problem)[:2], None
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            with torch.no_grad():
                net(x)

    def child() -> None:
        with torch.no_grad():
            assert torch.equal(net(x)[0], expected)
        assert all(map(torch.equal, fast()(problem)[:2], outputs))
        torch.set_num_threads(1)  # for operators of torch's own, which would wait for threads that are not there
        found = run(fast(), problem)
        assert all(torch.equal(found[name], t) for name, t in gradients.items())

    torch.set_num_threads(1)
    gradients = {name: t for name, t in run(fast(), problem).items() if not name.startswith(("dw", "db"))}
    torch.set_num_threads(2)
    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in clock:
            forked: list[int] = []

            def fork(forked: list[int] = forked) -> None:
                pid = os.fork()
                if pid == 0:
                    status = 1
                    try:
                        child()
                        status = 0
                    finally:
                        os._exit(status)
                forked.append(pid)

            if number % 2:
                thread = threading.Thread(target=fork)
                thread.start()
                thread.join()
            else:
                fork()
            end = time.monotonic() + PATIENCE
            while (done := os.waitpid(forked[0], os.WNOHANG))[0] == 0:
                if time.monotonic() > end:
                    os.kill(forked[0], 9)
                    os.waitpid(forked[0], 0)
                    raise AssertionError(f"child {number} hangs")
                time.sleep(0.002)
            assert done[1] == 0, f"child {number} ended with {done[1]}"
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    clock.report("from the main thread and from another, two more computing")


if __name__ == "__main__":
    soak(Clock())
