"""What an exchange of states takes within a cluster of thread blocks, beside the same through the second-level cache.

The kernels are CUDA C++ (``cluster.cu``), which Triton has nothing for; they are compiled on the machine that measures,
by the NVRTC that torch brings or, where that cannot be loaded, by ``nvcc``. A step of a layer could take no less than
such an exchange, by whichever way.
"""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from bench.gpu import contestants, latency, measure
from bench.results import Row

SOURCE = Path(__file__).with_name("cluster.cu")
BLOCKS = (8, 16)  # of a cluster; more than 8 need permission
ROWS, UNITS = 16, 512  # of the states, numbers of 16 bits: as in the source
WORDS = ROWS * UNITS // 2
STEPS = 10_000
CHECKED = 1_000
THREADS = 256
LEAST_CAPABILITY = (9, 0)
SHARED = 120 << 10  # bytes of shared memory, so many that each block has a multiprocessor to itself, as a layer's has
MAX_DYNAMIC_SHARED_SIZE_BYTES, NON_PORTABLE_CLUSTER_SIZE_ALLOWED = 8, 14  # of CUfunction_attribute


def rows(seconds: float, steps: int = STEPS) -> Iterator[Row]:
    """For each size of a cluster: the step by a barrier through L2, within the cluster, and the meeting alone.

    What cannot be compiled or run, or gives wrong sums, is a row without times that says so.
    """
    if contestants.DEVICE != "cuda" or find_spec("triton") is None:
        return
    from bench.gpu.launched import meet as through_l2

    device = torch.device("cuda", torch.cuda.current_device())
    for blocks in BLOCKS:
        what = f"step through L2, {blocks} programs, {ROWS} x {UNITS} numbers"
        numbers = ROWS * UNITS // blocks
        yield _row(what, blocks, partial(through_l2, blocks, steps, device, "barrier", numbers), seconds, steps)
    try:
        capability = torch.cuda.get_device_capability(device)
        if capability < LEAST_CAPABILITY:
            raise RuntimeError(f"clusters need compute capability 9.0, this GPU has {'.'.join(map(str, capability))}")
        kernels = Kernels(compiled(capability))
    except Exception as error:
        yield latency.of_times("step within a cluster", {}, {"not_measured": f"cluster: {measure.first_line(error)}"})
        return
    for kernel, words in (("exchange", f"{ROWS} x {UNITS} numbers"), ("meet", "the meeting alone")):
        for blocks in BLOCKS:
            run = partial(kernels.launch, kernel, blocks)
            check = partial(_check, kernel, blocks, run)
            what = f"step within a cluster of {blocks} blocks, {words}"
            yield _row(what, blocks, partial(run, steps), seconds, steps, check)


def _row(
    what: str,
    blocks: int,
    run: Callable[[], object],
    seconds: float,
    steps: int,
    check: Callable[[], None] | None = None,
) -> Row:
    try:
        if check is not None:
            check()
        return latency.row(what, run, seconds, {"cluster": blocks}, calls=steps)
    except Exception as error:  # whatever a launch raises: the others are to be measured all the same
        return latency.of_times(what, {}, {"cluster": blocks, "not_measured": f"{what}: {measure.first_line(error)}"})


def _check(kernel: str, blocks: int, run: Callable[[int], Tensor]) -> None:
    found = [number % 2**32 for number in run(CHECKED).tolist()]
    wanted = [expected(kernel, blocks, rank, CHECKED) for rank in range(blocks)]
    if found != wanted:
        raise ArithmeticError(f"sums of {kernel} are {found}, expected {wanted}")


def expected(kernel: str, blocks: int, rank: int, steps: int) -> int:
    """The sum that the block of a rank has to find, modulo 2³²: see the source."""
    if kernel == "meet":
        return sum(31 * s + rank for s in range(steps)) % 2**32
    of_each = WORDS // blocks
    return sum(of_each * (31 * s + r) for s in range(steps) for r in range(blocks)) % 2**32


class Kernels:
    """The kernels of a binary, on the current device, in torch's context there and on its current stream."""

    def __init__(self, binary: bytes) -> None:
        """Load them.

        Raises:
            RuntimeError: the driver refuses it.
        """
        torch.zeros(1, device=contestants.DEVICE)  # which makes the context
        self.driver, self.module = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(self.module), binary)

    def launch(self, kernel: str, blocks: int, steps: int) -> Tensor:
        """Have a cluster exchange, or only meet, so often; the sums that its blocks have found, int32.

        Raises:
            RuntimeError: the driver refuses it.
        """
        function = ctypes.c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(function), self.module, f"{kernel}_{blocks}".encode())
        self._call("cuFuncSetAttribute", function, NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)
        self._call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_SIZE_BYTES, SHARED)
        sums = torch.zeros(blocks, dtype=torch.int32, device=contestants.DEVICE)
        arguments = (ctypes.c_int(steps), ctypes.c_void_p(sums.data_ptr()))
        pointers = (ctypes.c_void_p * 2)(*(ctypes.addressof(argument) for argument in arguments))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        sizes = (blocks, 1, 1, THREADS, 1, 1, SHARED)
        self._call("cuLaunchKernel", function, *sizes, stream, pointers, None)
        return sums

    def _call(self, name: str, *arguments: object) -> None:
        if status := getattr(self.driver, name)(*arguments):
            raise RuntimeError(f"{name}: CUDA error {status}")


def compiled(capability: tuple[int, int]) -> bytes:
    """The binary for GPUs of a compute capability, by NVRTC or else by nvcc.

    Raises:
        RuntimeError: there is neither, or the source does not compile.
    """
    target = "sm_{}{}".format(*capability)
    library = _nvrtc()
    if library is not None:
        return by_nvrtc(library, target)
    if shutil.which("nvcc") is not None:
        return by_nvcc(target)
    raise RuntimeError("there is neither NVRTC nor nvcc")


def by_nvcc(target: str) -> bytes:
    """The binary by the compiler that is found on the path.

    Raises:
        RuntimeError: the source does not compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "cluster.cubin")
        command = ["nvcc", f"-arch={target}", "-cubin", "-o", str(out), str(SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc: {done.stderr.strip()}")
        return out.read_bytes()


def by_nvrtc(library: ctypes.CDLL, target: str) -> bytes:
    """The binary by a library that compiles at run time.

    Raises:
        RuntimeError: the source does not compile.
    """
    program, size = ctypes.c_void_p(), ctypes.c_size_t()

    def checked(status: int, what: str) -> None:
        if status:
            library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(max(1, size.value))
            library.nvrtcGetProgramLog(program, log)
            raise RuntimeError(f"NVRTC: {what} failed with {status}: {log.value.decode().strip()}")

    source = SOURCE.read_bytes()
    checked(library.nvrtcCreateProgram(ctypes.byref(program), source, b"cluster.cu", 0, None, None), "to begin")
    options = (ctypes.c_char_p * 1)(f"--gpu-architecture={target}".encode())
    checked(library.nvrtcCompileProgram(program, len(options), options), "to compile")
    checked(library.nvrtcGetCUBINSize(program, ctypes.byref(size)), "to ask for the size")
    binary = ctypes.create_string_buffer(size.value)
    checked(library.nvrtcGetCUBIN(program, binary), "to ask for the binary")
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return binary.raw


def _nvrtc() -> ctypes.CDLL | None:
    """The library, where a package of NVIDIA's has it, as torch's builds with CUDA need, or the system has."""
    name = f"libnvrtc.so.{(torch.version.cuda or '').split('.')[0]}"
    package = find_spec("nvidia")
    places = list(package.submodule_search_locations or ()) if package else []
    found = sorted(path for place in places for path in Path(place).glob(f"**/{name}"))
    for path in (*found, Path(name)):
        try:
            return load_nvrtc(path)
        except OSError:
            continue
    return None


def load_nvrtc(path: Path) -> ctypes.CDLL:
    """A library that compiles, and before it what it looks for by name, and does not find beside itself.

    Raises:
        OSError: it cannot be loaded.
    """
    for builtins in sorted(path.parent.glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(builtins))
    return ctypes.CDLL(str(path))
