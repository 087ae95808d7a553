"""Kernels that go wrong on a GPU, in the place of a strategy's, for the process that tries plans."""

import os

import torch
import triton
import triton.language as tl

NAMED = "FASTRNN_TEST_FAULT"  # in the environment: which


@triton.jit
def stray(ptr):
    tl.store(ptr + (tl.program_id(0).to(tl.int64) + (1 << 42)), 1.0)


@triton.jit
def endless(ptr):
    seen = tl.load(ptr, volatile=True)
    while seen == 0.0:
        seen = tl.load(ptr, volatile=True)


def install() -> None:
    """Have the resident strategy launch one of them."""
    from fastrnn.kernels import layer

    kernel = {"stray": stray, "endless": endless}[os.environ[NAMED]]
    layer.FORWARD["resident"] = lambda *given: kernel[(1,)](torch.zeros(1, device="cuda"))


# As fastrnn._elsewhere.BOOT, with these kernels.
BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import faults; faults.install(); "
    "from fastrnn._worker import main; main({pipe})"
)
