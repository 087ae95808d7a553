"""Triton kernels of fastrnn for GPUs: gate math once, each strategy a file, and the plan that chooses among them.

Nothing here imports Triton before a layer is computed on a GPU, but the modules that hold kernels themselves:
:mod:`~fastrnn.kernels.layer` and what it imports. None of the kernels has been measured on a GPU yet.
"""

if __name__ != "fastrnn.kernels":
    raise ImportError(f"this folder is installed as fastrnn.kernels; it cannot be imported as {__name__!r}")
