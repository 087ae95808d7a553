"""CPU tensors in the place of a device's: which of them lie there, they and what is computed of them say so.

A mode sees every operator of torch. It makes on the CPU what is asked for on the device, marks it
(:mod:`bench.gpu.desk.memory`), marks what is computed of it, and refuses to compute of tensors from both places, as
torch does. ``Tensor.device``, ``is_cuda``, ``to`` and the like go by the marks.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.gpu.desk import machine, memory, operators, recorded
from bench.gpu.desk.memory import holds

aten = torch.ops.aten
CPU = torch.device("cpu")
# What takes tensors from both places, or from the host alone.
BOTH = {aten.copy_.default, aten._to_copy.default, aten._pack_padded_sequence.default, aten.set_.source_Tensor}
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
# Which tell the host what is on the device.
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default}


class _Here(threading.local):
    """Of each thread: where a copy goes that is being made, or None; whether an operator of ours computes."""

    target: torch.device | None = None
    ours = False


_here = _Here()


class Tensors(TorchDispatchMode):
    """The mode."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or Dynamo is imported, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _OWN:
            return _OWN[func](*args, **kwargs)
        if _is_composite(func):  # which autograd takes apart elsewhere
            with self:
                return func.decompose(*args, **kwargs)
        given = list(_tensors((*args, *kwargs.values())))
        there = [holds(t) for t in given]
        device = kwargs.get("device")
        asked = device is not None and torch.device(device).type == "cuda"
        if asked:
            kwargs["device"] = CPU
        pinned = kwargs.pop("pin_memory", None)
        if any(there):
            _together(func, given, there)
            if func in WAITS:
                machine.refuse_in_capture()
            if func.namespace == "fastrnn":
                with self:
                    return _captured(operators.compute, func, args)
        found = func(*args, **kwargs)
        target = _here.target if func is aten._to_copy.default else None
        marked = target.type == "cuda" if target is not None else asked or (any(there) and device is None)
        if marked and not func._schema.is_mutable:
            # Of a packed sequence, the sizes of batches stay on the host.
            for t in _tensors(found[0] if func is aten._pack_padded_sequence.default else found):
                memory.take(t)
        if pinned:
            machine.refuse_in_capture()
            memory.pin(found)
        if machine.here.graph is not None and (marked or any(there)):
            _record(machine.here.graph, func, args, kwargs, found)
        return found


@functools.cache
def _is_composite(func: Any) -> bool:
    return bool(func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


def _tensors(values: Any) -> Iterator[Tensor]:
    """Those among a value or a tuple or list of them, within others or not."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _together(func: Any, tensors: list[Tensor], there: list[bool]) -> None:
    """Refuse tensors from both places, but for numbers, which travel."""
    if func in BOTH or func.namespace == "fastrnn" or func._schema.name in INDEXED:
        return
    if not _here.ours and torch._C._current_graph_task_id() != -1:  # in backward, where autograd makes zeros by itself
        return
    if not all(on or t.dim() == 0 for t, on in zip(tensors, there, strict=True)):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({func})"
        )


def _captured(compute: Callable[..., Any], func: Any, args: Any) -> Any:
    """An operator of ours, which is captured as one."""
    capture = machine.here.graph
    machine.here.graph = None if capture is None else machine.Graph()  # which nobody replays
    before, _here.ours = _here.ours, True
    try:
        found = compute(func, *args)
    finally:
        machine.here.graph, _here.ours = capture, before
    if capture is not None:
        _record(capture, functools.partial(compute, func), args, {}, found)
    return found


def _record(graph: machine.Graph, call: Callable[..., Any], args: Any, kwargs: Any, found: Any) -> None:
    """Have a replay compute the same, into the same tensors; what is a view, or was changed, is there."""
    given = {t.untyped_storage().data_ptr() for t in _tensors((*args, *kwargs.values()))}
    outputs = list(_tensors(found))
    new = [t.untyped_storage().data_ptr() not in given for t in outputs]
    if outputs and not any(new) and not getattr(getattr(call, "_schema", None), "is_mutable", False):
        return

    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def again() -> None:
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(gradients),  # some operators keep more for backward
            torch._C._AutoDispatchBelowAutograd(),
        ):
            for to, result, own in zip(outputs, _tensors(call(*args, **kwargs)), new, strict=True):
                if own:
                    to.copy_(result)

    graph.work.append(again)


# What the CPU does not have.


def _product(a: Tensor, b: Tensor, out_dtype: torch.dtype, *, out: Tensor | None = None) -> Tensor:
    """``mm`` and ``bmm`` whose sums are not rounded to the dtype of their factors."""
    found = torch.matmul(a.to(out_dtype), b.to(out_dtype))
    if out is not None:
        return out.copy_(found)
    memory.take(found)
    return found


def _flat_weights(
    weights: list[Tensor], stride: int, inputs: int, mode: int, hidden: int, projected: int, layers: int,
    batch_first: bool, bidirectional: bool,
) -> Tensor:  # fmt: skip
    """All weights in one piece of memory, of which they are parts from now on."""
    flat = torch.cat([w.reshape(-1) for w in weights])
    memory.take(flat)
    at = 0
    for w in weights:
        w.set_(flat.untyped_storage(), at, w.shape, w.contiguous().stride())
        at += w.numel()
    return flat


_OWN: dict[Any, Callable[..., Any]] = {
    aten.record_stream.default: lambda t, stream: None,
    aten._cudnn_rnn_flatten_weight.default: _flat_weights,
}
for _name in ("mm", "bmm"):
    for _overload in ("dtype", "dtype_out"):
        if _overload in getattr(aten, _name).overloads():  # torch before 2.8 has none
            _OWN[getattr(getattr(aten, _name), _overload)] = _product


# What Python asks of a tensor.


@contextmanager
def _going(device: torch.device) -> Iterator[None]:
    before, _here.target = _here.target, device
    try:
        yield
    finally:
        _here.target = before


_to, _cpu, _numpy, _get_device = Tensor.to, Tensor.cpu, Tensor.numpy, Tensor.get_device
_device, _is_cuda, _is_cpu = Tensor.device, Tensor.is_cuda, Tensor.is_cpu
_tensor, _as_tensor = torch.tensor, torch.as_tensor


def _moved(t: Tensor, device: torch.device | None, dtype: torch.dtype | None, copy: bool, **options: Any) -> Tensor:
    there = holds(t)
    if device is None or (device.type == "cuda") == there or device.type not in ("cpu", "cuda"):
        rest = {} if device is None or device.type in ("cpu", "cuda") else {"device": device}
        return _to(t, dtype=dtype, copy=copy, **rest, **options)
    if there:
        machine.refuse_in_capture()
    with _going(device):
        return _to(t, dtype=dtype, copy=True, **options)


def to(t: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
    """As :meth:`torch.Tensor.to`."""
    other = args[0] if args else kwargs.get("other")
    if isinstance(other, Tensor):
        return _moved(t, other.device, other.dtype, copy)
    device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    options = {"non_blocking": non_blocking}
    if memory_format is not None:
        options["memory_format"] = memory_format
    return _moved(t, device, dtype, copy, **options)


def _to_host(t: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
    return _moved(t, CPU, None, False, memory_format=memory_format)


def _to_device(t: Tensor, device: object = None, non_blocking: bool = False, **options: Any) -> Tensor:
    return _moved(t, machine.DEVICE, None, False, non_blocking=non_blocking, **options)


def _as_array(t: Tensor, *, force: bool = False) -> Any:
    if holds(t) and not force:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")
    return _numpy(t, force=force)


def _place(t: Tensor) -> torch.device:
    return machine.DEVICE if holds(t) else _device.__get__(t)  # type: ignore[attr-defined, no-any-return]


def _reachable(position: int, t: Tensor) -> None:
    """As Triton's launchers check what they are given."""
    if t.numel() and not (holds(t) or memory.is_pinned(t)):
        raise ValueError(f"Pointer argument (at {position}) cannot be accessed from Triton (cpu tensor?)")


def _made(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.tensor or torch.as_tensor, which copy what they made to the device."""

    @functools.wraps(make)
    def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        options.pop("pin_memory", None)
        if device is None or torch.device(device).type != "cuda":
            return make(data, device=device, **options)
        wants_gradients = options.pop("requires_grad", False)
        return to(make(data, **options), machine.DEVICE).requires_grad_(wants_gradients)

    return made


_modes = torch._C._len_torch_dispatch_stack


def install() -> None:
    """Enter the mode, for good, in this thread and in those that begin later.

    Nobody is to take it for a compiler's or an exporter's. It stands for the device; only ways past the dispatcher are
    closed, as while a profiler looks on.
    """
    torch._C._len_torch_dispatch_stack = lambda: max(0, _modes() - 1)
    torch._C._autograd._profiler_enabled = lambda: True
    Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.numpy = to, _to_host, _to_device, _as_array  # type: ignore[assignment, method-assign]
    Tensor.device = property(_place)  # type: ignore[assignment]
    Tensor.is_cuda = property(lambda t: holds(t) or _is_cuda.__get__(t))  # type: ignore[assignment, attr-defined]
    Tensor.is_cpu = property(lambda t: _is_cpu.__get__(t) and not holds(t))  # type: ignore[assignment, attr-defined]
    Tensor.get_device = lambda t: 0 if holds(t) else _get_device(t)  # type: ignore[assignment, method-assign]
    Tensor.pin_memory = lambda t, device=None: memory.pin(t.clone())  # type: ignore[assignment, method-assign]
    Tensor.is_pinned = lambda t, device=None: memory.is_pinned(t)  # type: ignore[assignment, method-assign]
    Tensor.record_stream = lambda t, stream: None  # type: ignore[assignment, method-assign]
    torch.tensor, torch.as_tensor = _made(_tensor), _made(_as_tensor)
    recorded.reachable = _reachable
    Tensors().__enter__()
    run = threading.Thread.run

    def run_there(thread: threading.Thread) -> None:
        with Tensors():
            run(thread)

    threading.Thread.run = run_there  # type: ignore[method-assign]
