"""Build fastrnn: the Python package, its kernels (installed as fastrnn.kernels) and the C++ engine.

Metadata is in pyproject.toml. The extension targets Python's limited API and the stable ABI of torch 2.10, so that one
wheel (cp310-abi3) serves every later Python and torch. Nothing is downloaded and nothing about the machine is probed:
the instruction sets are variants inside one binary, chosen at run time.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import setuptools

ROOT = Path(__file__).resolve().parent


def files(pattern: str) -> list[str]:
    """The files of csrc/ that match, relative to the root as setuptools wants them, in an order that never varies."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob(pattern))


def sanitized() -> list[str]:
    """Flags for the compiler and the linker of an engine that watches itself: make soak, which names what for."""
    sanitizers = os.environ.get("FASTRNN_SANITIZE")
    if not sanitizers:
        return []
    return ["-O1", "-g1", "-w", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", f"-fsanitize={sanitizers}"]


def check_environment() -> None:
    """End with one plain sentence where the build would otherwise end in pages of a tool's complaints."""
    if int(setuptools.__version__.split(".")[0]) < 77:
        sys.exit(
            f"fastrnn needs setuptools 77 or newer to be built, and {setuptools.__version__} is installed here: "
            "run pip install --upgrade setuptools"
        )
    try:
        from torch import __version__ as torch_version
    except ImportError:
        sys.exit(
            "fastrnn is built against torch, and there is none here, or pip's build isolation hides it: "
            "install torch 2.10 or newer, then run pip with --no-build-isolation"
        )
    if tuple(map(int, torch_version.split(".")[:2])) < (2, 10):
        sys.exit(f"fastrnn needs torch 2.10 or newer, and torch {torch_version} is installed here")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        sys.exit("fastrnn is built on Python's limited API, which free-threaded Python does not offer")
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        sys.exit(
            f"fastrnn needs a C++20 compiler for its CPU engine, and {compiler!r} was not found: "
            "install g++ or clang++, or name one in the environment variable CXX"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        sys.exit(
            f"fastrnn needs Python's C headers, and {sysconfig.get_path('include')} has no Python.h: "
            "install them (Debian and Ubuntu: python3-dev, Fedora: python3-devel)"
        )


def cpu_engine() -> dict:
    """The arguments of setup() that build fastrnn._C."""
    check_environment()
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    # ninja, which torch looks for on the PATH, is beside a Python that is run without being activated.
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    extension = CppExtension(
        "fastrnn._C",
        files("*.cpp"),
        include_dirs=[str(ROOT / "csrc")],
        depends=files("*.h"),
        extra_compile_args={
            "cxx": [
                "-std=c++20",
                "-O3",
                "-g0",
                "-Wall",
                "-Wno-psabi",  # vectors never cross a function that is not inlined
                "-fvisibility=hidden",
                "-ffp-contract=off",  # fused multiply-adds are written out: no compiler decides a rounding
                "-fno-math-errno",
                "-fno-trapping-math",
                f"-fmacro-prefix-map={ROOT}/=",  # messages name files, not whose folders they were built in
                "-DPy_LIMITED_API=0x030A0000",
                "-DTORCH_TARGET_VERSION=0x020a000000000000",
                *sanitized(),
            ]
        },
        extra_link_args=sanitized(),
        py_limited_api=True,
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setuptools.setup(
    packages=["fastrnn", "fastrnn.kernels"],
    package_dir={"fastrnn": "fastrnn", "fastrnn.kernels": "kernels"},
    package_data={"fastrnn": ["py.typed", "*.pyi"], "fastrnn.kernels": ["gpus/*.json*"]},
    **cpu_engine(),
)
