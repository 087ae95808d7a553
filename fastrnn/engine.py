"""Which engine computes a layer, and why: what :mod:`fastrnn.functional` follows and ``explain`` shows."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.jit._trace import is_tracing

from fastrnn import _cpu, _cuda, _validate
from fastrnn._autocast import under_autocast
from fastrnn._dynamo import tracing
from fastrnn.autotune import facts_for
from fastrnn.kernels import plan as kernels
from fastrnn.kernels.measured import TORCH, Work
from fastrnn.own_numbers import is_own_numbers_enabled, why_own

FORWARD_MODE = "forward-mode differentiation is not in the C++ engine, nor in all of torch's"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
COMPILED = "a single step in a compiled program: the compiler fuses torch's operators with what is around them"
LEAN = "layer.tape = 'lean' keeps less for backward"
SINGLE_ROWS = 16  # up to here a step without gradients is faster in the C++ engine (measured for H from 128 to 512)


@dataclass(frozen=True)
class Plan:
    """The outcome of :func:`plan`.

    Attributes:
        engine: ``"cpu"`` (the C++ engine), ``"triton"`` (the kernels for GPUs), ``"torch"`` (torch's own layers) or
            ``"reference"`` (torch operations, a step at a time: right, and slow).
        kernel: what runs there, e.g. ``"avx512 on AMD Zen 4, units split over 2 threads"``.
        reason: why this one, in words.
    """

    engine: str
    kernel: str
    reason: str

    def __str__(self) -> str:
        return f"{self.engine} ({self.kernel}): {self.reason}"


def plan(
    cell: str,
    x: Tensor,
    weights: list[Tensor],
    *,
    beyond_torch: str | None,
    proj_size: int = 0,
    single: int = 0,
    trains: bool = False,
    steps: int | None = None,
    batch: int | None = None,
    directions: int = 1,
    layers: int = 1,
    packed: bool = False,
    foreign: str | None = None,
    tape: str = "full",
) -> Plan:
    """Choose the engine for a stack.

    Args:
        cell: a key of :data:`fastrnn.reference.CELLS`.
        x: the stack's input; device and dtype decide.
        weights: the stack's weights; where they are bfloat16 and ``x`` is float32, torch cannot take both.
        beyond_torch: the name of an argument in use that torch's layers do not have (``reset``, ``return_cells``), or
            None. It keeps the torch engine out.
        proj_size: the LSTM's projection; the C++ engine has none.
        single: in a call of a single step that torch may compute faster by plain operators, the number of rows; else 0.
        trains: whether gradients will be wanted.
        steps, batch: T and B, which decide on a GPU; None where they are not known, which counts as many.
        directions, layers, packed: D, layers (0 for a cell) and whether sequences differ in length, which decide there
            too, and what tuning has found on a CPU.
        foreign: why the tensors are for torch's layers alone, or None.
        tape: what forward may keep for backward; ``"lean"`` keeps torch's layers out of what tuning has found.

    Raises:
        NotImplementedError: nothing can compute it.
    """
    half_weights = _validate.half_weights(x, weights)
    widened = "; the bfloat16 weights are widened to float32" if half_weights else ""
    why = foreign or why_not_ours(x, proj_size)
    if why is None and x.device.type == "cuda":
        work = work_of(cell, x, weights, trains, steps, batch, directions, layers, packed)
        facts, also = facts_for(work, x.device, called=steps is not None)
        chosen = kernels.plan(work, facts, beyond_torch)
        if facts.no_grid is not None:
            also += f"; {facts.no_grid}"
        if chosen.strategy != "torch":
            return Plan("triton", str(chosen), f"{chosen.reason}{also}{widened}")
        why = f"{chosen.reason}{also}"
    if why is None and beyond_torch is None and not half_weights:
        measured = None
        if x.device.type == "cpu" and steps is not None and _cpu.matters() and follows_records():
            cpu_work = cpu_work_of(cell, x, weights, trains, steps, batch, directions, layers, packed)
            measured = None if cpu_work is None else _cpu.plan(cpu_work)
        if measured is not None:
            why_ours = why_own() or (LEAN if trains and tape == "lean" else None)
            if measured.strategy != TORCH or why_ours:
                reason = f"{why_ours}: torch is {measured.reason}" if measured.strategy == TORCH else measured.reason
                return Plan("cpu", "C++", reason)
            why = measured.reason
        elif single and not is_own_numbers_enabled():
            why = _why_torch_is_faster(x.dtype, single, trains)
    if why is None:
        also = ", with bfloat16 weights" if half_weights else ""
        return Plan("cpu", "C++", f"a CPU tensor of a dtype that the C++ engine takes{also}")
    why += widened
    if beyond_torch is None and not why.startswith(FORWARD_MODE):
        return Plan("torch", f"torch.nn's own {cell}", why)
    if proj_size:
        with_what = f"{beyond_torch}=" if beyond_torch is not None else "forward-mode differentiation"
        raise NotImplementedError(f"fastrnn: {with_what} is not supported together with proj_size")
    also = "" if beyond_torch is None else f", and torch's layers have no {beyond_torch}="
    return Plan("reference", "torch operations, one step at a time", f"{why}{also}")


def _why_torch_is_faster(dtype: torch.dtype, rows: int, trains: bool) -> str | None:
    if torch._C._are_functorch_transforms_active():
        return None  # torch's cells have no rule for vmap
    if torch.compiler.is_compiling():
        return COMPILED
    if trains and dtype is not torch.float16:
        return "a single step with gradients: torch's operators take less to call"
    if rows > SINGLE_ROWS and dtype in (torch.float32, torch.float64):
        return f"a single step of more than {SINGLE_ROWS} rows, where torch's products are faster"
    return None


def work_of(
    cell: str,
    x: Tensor,
    weights: list[Tensor],
    trains: bool,
    steps: int | None,
    batch: int | None,
    directions: int,
    layers: int,
    packed: bool,
) -> Work:
    """What a stack's call is to the plan for GPUs; under autocast it computes in another dtype than x's."""
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    return Work(
        cell,
        kernels.FEWEST_STEPS if steps is None else steps,
        1 if batch is None else batch,
        x.shape[-1],
        weights[1].shape[1],
        dtype,
        directions,
        layers,
        trains,
        packed,
        tf32=kernels.tf32_allowed(dtype),
        tf32_products=kernels.tf32_products(dtype),
    )


def cpu_work_of(
    cell: str,
    x: Tensor,
    weights: list[Tensor],
    trains: bool,
    steps: int,
    batch: int | None,
    directions: int,
    layers: int,
    packed: bool,
) -> Work | None:
    """What a call is to tuning on CPUs; None for one whose results are of another dtype than it computes in."""
    dtype = x.dtype
    if _validate.autocast_enabled("cpu"):
        cast, *_, result = under_autocast(cell, packed or layers == 0, x[:0], (), [weights[0][:0]])
        if result is not None:
            return None
        dtype = cast.dtype
    rows = 1 if batch is None else batch
    return Work(cell, steps, rows, x.shape[-1], weights[1].shape[1], dtype, directions, layers, trains, packed)


def follows_records() -> bool:
    """Whether a call may be left to torch's layer on a CPU because that was measured to be faster.

    A program that is recorded or transformed has fastrnn's operator: compilers take torch's layer apart into its steps,
    and transforms do not know it.
    """
    return not (tracing() or is_tracing() or torch._C._are_functorch_transforms_active())


def why_not_ours(x: Tensor, proj_size: int) -> str | None:
    """None where an engine of fastrnn's own takes the layer, else the reason why none does."""
    if proj_size:
        return "the C++ engine has no proj_size"
    if x.device.type not in ("cpu", "meta", "cuda"):
        return f"fastrnn has no engine of its own for {x.device.type} tensors yet"
    if x.device.type == "cuda" and not _cuda.HAS_TRITON:
        return "the engine for CUDA tensors needs Triton, which is not installed"
    if x.dtype not in DTYPES:
        return f"the C++ engine takes float32, float64, bfloat16 and float16, not {str(x.dtype).removeprefix('torch.')}"
    if torch.compiler.is_compiling():
        return None
    if is_tracing():
        return "torch.jit.trace records torch's own operators"
    if forward_ad._current_level >= 0:
        return FORWARD_MODE
    return None
