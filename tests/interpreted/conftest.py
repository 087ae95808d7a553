"""Tests of Triton kernels, run by its interpreter on the CPU: ``TRITON_INTERPRET=1 pytest``, or ``make test``."""

import triton
from rig import interpreter

if triton.knobs.runtime.interpret:  # else tests/conftest.py leaves these tests out, even if they are named
    interpreter.install()

    from rig import gluon

    from fastrnn.kernels import gluon_grid

    gluon.interpret(gluon_grid)
