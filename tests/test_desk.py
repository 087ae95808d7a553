"""A machine without a GPU taken for one with an H100: what a process of it sees, launches and computes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from bench.gpu import desk
from bench.gpu.desk import machine, memory
from bench.gpu.desk.__main__ import environment

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

LAYERS = """
import copy
import pytest, torch, fastrnn
from bench.gpu import desk
from fastrnn.kernels.plan import forced

x = torch.randn(9, 3, 4, device="cuda")
net = fastrnn.LSTM(4, 20, bidirectional=True).cuda()
same = copy.deepcopy(net).cpu()
assert {w.device for w in net.parameters()} == {torch.device("cuda", 0)}
assert {w.device.type for w in same.parameters()} == {"cpu"}

def trained(net, x, **options):
    y, (h, c) = net(x, **options)
    return [y, h, c, *torch.autograd.grad(y.square().sum() + c.sum(), list(net.parameters()))]

kernels = {"resident": "resident_backward", "grid": "grid_backward", "stepwise": "step_backward"}
for tape in ("full", "lean"):
    net.tape = same.tape = tape
    for strategy, kernel in kernels.items():
        before = desk.launches(kernel)
        with forced(strategy=strategy, warps=8):
            found = trained(net, x, lengths=torch.tensor([9, 1, 4]))
        assert desk.launches(kernel) > before, strategy
        for ours, right in zip(found, trained(same, x.cpu(), lengths=torch.tensor([9, 1, 4])), strict=True):
            assert ours.device.type == "cuda"
            assert torch.equal(ours.cpu(), right)
names = {seen.name for seen in desk.seen()}
assert {"resident_forward", "grid_forward", "step_forward", "states_before", "gates_again"} <= names

with forced(strategy="stepwise"), torch.no_grad():  # a graph computes with what lies there now
    graph, y = torch.cuda.CUDAGraph(), None
    with torch.cuda.graph(graph):
        y = net(x)[0] + 1
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            y.sum().item()
    x.copy_(torch.randn(9, 3, 4))
    graph.replay()
    assert torch.equal(y.cpu(), same(x.cpu())[0] + 1)
"""

TENSORS = """
import pytest, torch
x = torch.arange(4.0, device="cuda")
for made in (x + 1, x[1:], x.to(torch.bfloat16), torch.empty_like(x), torch.tensor([1], device="cuda"), x.detach(),
             torch.ones(2).to("cuda:0"), torch.ones(2).cuda(), torch.randn(2, device="cuda"), x.cpu().to(x)):
    assert made.device == torch.device("cuda", 0)
    assert made.is_cuda
for made in (x.cpu(), torch.ones(2), x.to("cpu"), torch.tensor([1]), x.cpu().to(torch.float64)):
    assert (made.device.type, made.is_cuda) == ("cpu", False)
moved = x.cpu()
moved.zero_()
assert x.sum().item() == 6  # a copy
with pytest.raises(RuntimeError, match="at least two devices"):
    x + torch.ones(4)
assert (x + torch.tensor(1.0)).sum() == 10  # a number travels
with pytest.raises(TypeError, match="can't convert cuda:0"):
    x.numpy()
a, b = torch.randn(3, 4, device="cuda").half(), torch.randn(4, 5, device="cuda").half()
out = torch.empty(3, 5, device="cuda")
torch.mm(a, b, out_dtype=torch.float32, out=out)
assert torch.equal(out.cpu(), a.cpu().float() @ b.cpu().float())
layer = torch.nn.GRU(3, 4, device="cuda")
torch._cudnn_rnn_flatten_weight(layer._flat_weights, 4, 3, 3, 4, 0, 1, False, False)
assert len({w.untyped_storage().data_ptr() for w in layer.parameters()}) == 1

from bench.gpu.launched import touch
with pytest.raises(ValueError, match=r"at 0\\) cannot be accessed from Triton"):
    touch(torch.zeros(1))
touch(torch.zeros(1, pin_memory=True))
touch(x)

before = torch.cuda.memory_allocated()
torch.cuda.reset_peak_memory_stats()
large = torch.zeros(1000, 250, device="cuda")
assert torch.cuda.memory_allocated() - before == 10**6
large = None
assert torch.cuda.memory_allocated() == before
assert torch.cuda.max_memory_allocated() - before == 10**6

begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
begin.record(), end.record(), end.synchronize()
assert begin.elapsed_time(end) > 0
assert torch.cuda.get_device_properties(0).multi_processor_count == 132
"""


def at_the_desk(code: str, tmp_path: Path, mode: str = "record", **variables: str) -> None:
    given = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(tmp_path / "cache"), **variables}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(mode, given=given), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_layers_are_launched_and_right(tmp_path: Path) -> None:
    at_the_desk(LAYERS, tmp_path)


def test_tensors_lie_on_the_device_or_not(tmp_path: Path) -> None:
    at_the_desk(TENSORS, tmp_path)


COMPILED = """
import torch
import triton
from bench.gpu import desk
from bench.gpu.launched import meet, touch

hits = []
triton.knobs.compilation.listener = lambda **found: hits.append(found["cache_hit"])
x = torch.zeros(1, device="cuda")
kernels = dict(_touch=lambda: touch(x), grid_meeting=lambda: meet(16, 4, x.device))
for name in {order}:
    kernels[name]()
    kernels[name]()
    assert desk.launches(name) == 2
assert not meet(16, 4, x.device).any()
assert hits == {hits}, hits
"""


def test_kernels_are_compiled_once_whatever_comes_first(tmp_path: Path) -> None:
    """By Triton's own compiler, and launched by its launchers, which need a compiler of C when they are new."""
    at_the_desk(COMPILED.format(order=["_touch", "grid_meeting"], hits=[False, False]), tmp_path, "compile")
    again = COMPILED.format(order=["grid_meeting", "_touch"], hits=[True, True])
    at_the_desk(again, tmp_path, "compile", CC="/bin/false")


def test_the_environment_reaches_every_python(tmp_path: Path) -> None:
    """Those that others start too; and what they launch is written down where that is asked for."""
    code = "import torch; from bench.gpu.launched import touch; touch(torch.zeros(1, device='cuda'))"
    command = ["-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], check=True)"]
    start = [sys.executable, "-m", "bench.gpu.desk", "--record", str(tmp_path), *command]
    subprocess.run(start, cwd=ROOT, check=True)
    (file,) = tmp_path.glob("*.jsonl")
    assert '"_touch"' in file.read_text()
    assert '"extern_libs"' not in file.read_text()
    program = [sys.executable, "-m", "bench.gpu.desk", "nvidia-smi"]
    assert "H100" in subprocess.run(program, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_modes_have_names() -> None:
    with pytest.raises(ValueError, match="mode: expected one of compile, record, got both"):
        desk.enter("both")
    assert not torch.cuda.is_available()
    assert not memory.holds(torch.zeros(1))
    assert machine.PROPERTIES.name.startswith("NVIDIA H100")
