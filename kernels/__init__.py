"""Triton kernels of fastrnn. There are none yet: CUDA tensors go to torch's own engine, and ``explain`` says so."""

if __name__ != "fastrnn.kernels":
    raise ImportError(f"this folder is installed as fastrnn.kernels; it cannot be imported as {__name__!r}")
