"""What there is on a machine with a GPU, before anything else is asked of it: ``python -m bench.gpu.versions``."""

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = ("torch", "triton", "numpy", "pytest", "pytest-xdist", "pytest-timeout", "nvidia-cuda-nvrtc")
PROGRAMS = ("nvcc", "compute-sanitizer")


def main() -> int:
    """Print a line for each; 0 is success, 1 that fastrnn's kernels cannot be used here, 2 that there is no GPU."""
    for package in PACKAGES:
        print(f"{package}: {_version(package)}")
    for program in PROGRAMS:
        print(f"{program}: {shutil.which(program) or 'not found'}")
    print(f"Python: {platform.python_version()}, {sys.executable}")
    if not torch.cuda.is_available():
        print("bench/gpu.sh: there is no CUDA device that torch can use", file=sys.stderr)
        return 2
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability()
    sizes = f"{properties.total_memory >> 30} GiB, second-level cache of {properties.L2_cache_size >> 20} MiB"
    print(f"GPU: {properties.name}, {major}.{minor}, {properties.multi_processor_count} multiprocessors, {sizes}")
    print(f"CUDA: {torch.version.cuda}, cuDNN: {torch.backends.cudnn.version()}")
    import fastrnn
    from fastrnn import _cuda, _ops

    print(f"fastrnn {fastrnn.__version__}, engine: {_ops.cpu_isa()}", flush=True)
    if not _cuda.HAS_TRITON:
        print("bench/gpu.sh: there is no triton", file=sys.stderr)
        return 1
    from fastrnn.kernels import layer

    print(f"kernels: {layer.__file__}")
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
