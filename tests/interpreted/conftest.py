"""Tests of Triton kernels, run by its interpreter on the CPU: ``TRITON_INTERPRET=1 pytest tests/interpreted``."""

from rig import interpreter

interpreter.install()
