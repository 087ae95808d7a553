"""Layers of CUDA tensors: who computes them, without a GPU (by tensors without data), and with one what comes out."""

import copy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accuracy import assert_accurate
from layers import DTYPES, LAYOUTS, PARTS, Problem, draw, fast, readable, run, upstream, yardstick
from torch._subclasses.fake_tensor import FakeTensorMode

import fastrnn
from bench.gpu.clock import tf32
from fastrnn import _cuda, engine, functional
from fastrnn._accuracy import allowed, error
from fastrnn.kernels.plan import DeviceFacts, device_facts, forced
from fastrnn.reference import CELLS

H100 = DeviceFacts("NVIDIA H100", "nvidia", (9, 0), 132, 227 * 1024, 50 * 2**20)
STRATEGIES = {
    "resident": {"strategy": "resident", "warps": 8},
    "grid": {"strategy": "grid"},
    "grid, data polled": {"strategy": "grid", "exchange": "data"},
    "stepwise": {"strategy": "stepwise"},
    "products by torch": {"strategy": "stepwise", "product": "torch"},
}


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "facts_of", lambda device: H100)
    monkeypatch.setattr(_cuda, "HAS_TRITON", True)


def planned(
    hidden: int, steps: int | None = 100, dtype: torch.dtype = torch.bfloat16, **options: object
) -> engine.Plan:
    with FakeTensorMode():
        x = torch.empty(0, 3, 8, device="cuda", dtype=dtype)
        weights = [torch.empty(4 * hidden, n, device="cuda", dtype=dtype) for n in (8, hidden)]
        options = {"beyond_torch": None, "steps": steps, "batch": 3} | options
        return engine.plan("lstm", x, weights, **options)


@pytest.mark.usefixtures("h100")
def test_the_engine_follows_the_plan_of_the_kernels() -> None:
    assert planned(128).engine == "torch"
    small = planned(128, beyond_torch="reset")
    assert (small.engine, small.kernel) == ("triton", "resident, 16 rows a program, 8 warps, ieee")
    assert "unmeasured" in small.reason
    assert planned(128, steps=None, beyond_torch="reset") == small
    assert planned(128, steps=2).engine == "torch"
    large = planned(512)
    assert (large.engine, large.kernel) == ("torch", "torch.nn's own lstm")
    assert "too large" in large.reason
    assert planned(512, beyond_torch="reset").engine == "triton"
    assert planned(128, proj_size=3).engine == "torch"
    assert planned(128, dtype=torch.float32).engine == "torch"
    with forced(strategy="stepwise", graphs=True):
        assert planned(2048).reason == "forced"
        assert planned(2048).kernel.endswith("ieee, replayed as a graph")


@pytest.mark.usefixtures("h100")
def test_old_gpus_and_missing_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "facts_of", lambda device: replace(H100, name="Tesla V100", capability=(7, 0)))
    old = planned(16, beyond_torch="reset")
    assert old.engine == "reference"
    assert "Tesla V100 has 7.0, and torch's layers have no reset=" in old.reason
    monkeypatch.setattr(_cuda, "HAS_TRITON", False)
    assert planned(16).engine == "torch"
    assert "needs Triton" in planned(16).reason


@pytest.mark.usefixtures("h100")
@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_without_data(cell: str) -> None:
    """The functional form plans it, and the operators' shapes are those of any device."""
    function = getattr(functional, cell.split("_")[0])
    options = {"nonlinearity": cell.split("_")[1]} if "_" in cell else {}
    rows = CELLS[cell].gates * 16
    with FakeTensorMode(), torch.no_grad(), forced(strategy="resident"):
        weights = [torch.empty(rows, n, device="cuda") for n in (8, 16)] * 2
        x, reset = torch.empty(50, 3, 8, device="cuda"), torch.empty(50, 3, device="cuda", dtype=torch.bool)
        y, state = function(x, None, weights, bidirectional=True, reset=reset, bias=False, **options)
    assert (y.shape, y.device.type) == ((50, 3, 32), "cuda")
    assert (state[0] if cell == "lstm" else state).shape == (2, 3, 16)


@pytest.fixture
def without_tf32() -> Iterator[None]:
    """For results that are judged by those of a CPU; not by monkeypatch, which cannot put torch's setting back."""
    with tf32(False):
        yield


def on_gpu(p: Problem) -> Problem:
    moved = {name: getattr(p, name).cuda() for name in ("lengths", "reset") if getattr(p, name) is not None}
    return replace(p.put({name: t.cuda() for name, t in p.tensors().items()}), **moved)


@pytest.mark.gpu
@pytest.mark.usefixtures("without_tf32")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("cell", CELLS)
def test_kernels_on_the_gpu(cell: str, strategy: str, dtype: torch.dtype, layout: str) -> None:
    """As tests/interpreted has them, compiled."""
    for hidden, tape in ((20, "lean"), (32 if dtype == torch.float64 else 64, "full")):
        p = draw(cell, 70, 17, 7, hidden, bidirectional=True, layout=layout, reset=True, cells=True, dtype=dtype)
        true, theirs = run(readable, p.to(torch.float64)), run(yardstick(p), p)
        with forced(**STRATEGIES[strategy]):
            found = {name: t.cpu() for name, t in run(fast(tape), on_gpu(p)).items()}
        if "cells" in found:
            found, theirs = (t | {"cells": t["cells"].to(dtype)} for t in (found, theirs))
        assert_accurate(found, theirs, true)


@pytest.mark.gpu
@pytest.mark.usefixtures("without_tf32")
@pytest.mark.parametrize("layout", ["dense", "lengths", "lengths on the CPU", "packed"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_captured_training_step(strategy: str, layout: str) -> None:
    """Forward and backward in one CUDA graph, replayed with other numbers in the same tensors."""
    options = {"bidirectional": True, "layout": layout.split()[0], "reset": True, "cells": True}
    first = draw("lstm", 20, 5, 7, 32, **options)
    other = first.put(draw("lstm", 20, 5, 7, 32, **options | {"layout": "dense"}).tensors() | {"x": first.x.flip(0)})
    p = on_gpu(first)
    if layout == "lengths on the CPU":
        p = replace(p, lengths=first.lengths)
    with forced(**STRATEGIES[strategy]):
        shapes = {name: t.shape for name, t in run(fast(), p).items() if name in PARTS}
        arriving = {name: upstream(shape).cuda() for name, shape in shapes.items()}
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run(fast(), p, arriving)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            found = run(fast(), p, arriving)
    for name, t in p.tensors().items():
        t.copy_(other.tensors()[name])
    graph.replay()
    found = {name: t.cpu() for name, t in found.items()}
    assert_accurate(found, run(yardstick(other), other), run(readable, other.to(torch.float64)))


@pytest.mark.gpu
@pytest.mark.usefixtures("without_tf32")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", CELLS)
def test_recorded_launches(cell: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a training one after another, each with other numbers: those that replay are right as well."""
    from fastrnn.kernels import graphs, stepwise

    recordings = graphs.Recordings()
    monkeypatch.setattr(stepwise, "recordings", recordings)
    for step in range(6):
        torch.manual_seed(step)
        p = draw(cell, 20, 5, 7, 32, bidirectional=True, layout=layout)
        with forced(strategy="stepwise", graphs=True):
            found = {name: t.cpu() for name, t in run(fast(), on_gpu(p)).items()}
        assert_accurate(found, run(yardstick(p), p), run(readable, p.to(torch.float64)))
    if layout == "dense":  # others' shapes change
        assert any(recording is not None for recording in recordings._known.values())


@pytest.mark.gpu
def test_wrong_lengths_on_the_gpu_are_noticed() -> None:
    """By the device, which is of no use to that process any more."""
    code = """
import torch, fastrnn
net = fastrnn.LSTM(3, 4).cuda()
with fastrnn.kernels.plan.forced(strategy="resident", warps=8):
    net(torch.randn(5, 2, 3, device="cuda"), lengths=torch.tensor([5, 6], device="cuda"))
torch.cuda.synchronize()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "lengths: expected numbers from 1 to 5" in done.stderr


@pytest.mark.gpu
def test_ten_million_steps_with_a_barrier() -> None:
    """As many programs as run at once, each of which reads at every step what all have stored."""
    from bench.gpu.launched import meet
    from fastrnn.kernels import barrier

    device = torch.device("cuda", torch.cuda.current_device())
    assert not meet(min(128, barrier.most_programs(device)), 10_000_000, device).any()
    barrier.check(device)


@pytest.mark.gpu
def test_a_million_steps_of_polling() -> None:
    """The same, of tiles as layers have, while another stream copies memory."""
    from bench.gpu.meeting import STEPS, poll_under_load
    from fastrnn.kernels import barrier

    device = torch.device("cuda", torch.cuda.current_device())
    assert not poll_under_load(barrier.most_programs(device), 1_000_000, STEPS, device)
    barrier.check(device)


@pytest.mark.gpu
@pytest.mark.usefixtures("without_tf32")
@pytest.mark.parametrize("hidden", [256, 512, 768, 1024])
@pytest.mark.parametrize("exchange", ["barrier", "data"])
@pytest.mark.parametrize("held", ["shared", "registers"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_layers_spread_over_the_gpu(cell: str, held: str, exchange: str, hidden: int) -> None:
    """The sizes that the grid strategy is for, as it would be planned."""
    p = draw(cell, 40, 17, 16, hidden, layout="lengths", dtype=torch.bfloat16)
    true, theirs = run(readable, p.to(torch.float64)), run(yardstick(p), p)
    with forced(strategy="grid", held=held, exchange=exchange):
        found = {name: t.cpu() for name, t in run(fast("full"), on_gpu(p)).items()}
    assert_accurate(found, theirs, true)


@pytest.mark.gpu
@pytest.mark.usefixtures("without_tf32")
@pytest.mark.parametrize("exchange", ["barrier", "data"])
@pytest.mark.parametrize("held", ["shared", "registers"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_batch_tiles_in_turns_on_the_gpu(cell: str, held: str, exchange: str) -> None:
    """Of three groups, some of which have more to do than others."""
    p = draw(cell, 24, 200, 16, 256, layout="lengths", reset=True, dtype=torch.bfloat16)
    true, theirs = run(readable, p.to(torch.float64)), run(yardstick(p), p)
    with forced(strategy="grid", held=held, exchange=exchange, groups=3):
        found = {name: t.cpu() for name, t in run(fast("full"), on_gpu(p)).items()}
    assert_accurate(found, theirs, true)


@pytest.mark.gpu
@pytest.mark.usefixtures("without_tf32")
@pytest.mark.parametrize("strategy", [{"strategy": "grid"}, {"strategy": "stepwise", "product": "torch"}], ids=str)
def test_thousands_of_rows_on_the_gpu(strategy: dict[str, object]) -> None:
    p = draw("lstm", 5, 4096, 16, 256, reset=True, dtype=torch.bfloat16)
    true, theirs = run(readable, p.to(torch.float64)), run(yardstick(p), p)
    with forced(**strategy):
        found = {name: t.cpu() for name, t in run(fast("full"), on_gpu(p)).items()}
    assert_accurate(found, theirs, true)


@pytest.mark.gpu
def test_what_was_tuned_on_the_gpu_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the engine and by the operators, which compute what torch's layer does."""
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path))
    device_facts.cache_clear()
    layer, x = fastrnn.GRU(24, 64, device="cuda"), torch.randn(40, 16, 24, device="cuda")
    with forced(strategy="torch"):
        theirs = layer(x)[0]
    truth = copy.deepcopy(layer).double()(x.double())[0]
    tuning = fastrnn.tune(layer, x)
    assert [result.record.work.trains for result in tuning.results] == [False, True]
    for result in tuning.results:
        assert {"torch", "resident", "stepwise"} <= dict(result.record.seconds).keys(), result.left_out
    (line,) = fastrnn.explain(layer, x).layers
    assert "tuned on this GPU at (B, T, I, H) = (16, 40, 24, 64)" in line.reason
    assert error(layer(x)[0], truth) <= allowed(theirs, truth, gradient=False)
    device_facts.cache_clear()
