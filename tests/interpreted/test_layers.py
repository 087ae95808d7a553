"""Every kernel computes every kind of layer: outputs and gradients by the rule of the accuracy, in the interpreter."""

from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from accuracy import assert_accurate, assert_same
from layers import DTYPES, LAYOUTS, PARTS, STRIDES, Problem, draw, fast, one_thread, readable, run, yardstick
from rig.operators import computed_by

from fastrnn import _cuda
from fastrnn.kernels import call, layer, tables
from fastrnn.kernels.model import UNMEASURED
from fastrnn.kernels.plan import DeviceFacts, Plan
from fastrnn.reference import CELLS

ALL = pytest.mark.parametrize("cell", CELLS)
WITHOUT_RELU = pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "rnn_relu"])  # as rnn_tanh but for f
PLANS = {
    "resident": Plan("resident", "a test"),
    "gates apart": Plan("resident", "a test", together=1),
    "grid": Plan("grid", "a test", units=8, depth=16),
    "grid in registers": Plan("grid", "a test", units=8, depth=16, split=2, held="registers"),
    "stepwise": Plan("stepwise", "a test", units=16, depth=16),
    "products by torch": Plan("stepwise", "a test", units=32, product="torch"),
}
KERNELS = pytest.mark.parametrize("kernels", ["resident", "grid", "stepwise", "products by torch"])
FUSED = pytest.mark.parametrize("kernels", ["resident", "grid", "stepwise"])
TAPES = ("full", "lean")

Use = Callable[[str], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Have the operators computed by the kernels that are named."""

    def use(kernels: str) -> None:
        computed_by(monkeypatch, partial(layer.forward, PLANS[kernels]), partial(layer.backward, PLANS[kernels]))

    return use


def check(problem: Problem, parts: Collection[str] = PARTS, tapes: Collection[str] = TAPES) -> None:
    with one_thread():
        true, theirs = run(readable, problem.to(torch.float64), parts), run(yardstick(problem), problem, parts)
    for tape in tapes:
        ours = run(fast(tape), problem, parts)
        if "cells" in ours and ours["cells"].dtype != problem.x.dtype:
            # float32, but of products of 16-bit numbers: to be judged as what a layer returns of them.
            ours, theirs = (t | {"cells": t["cells"].to(problem.x.dtype)} for t in (ours, theirs))
        assert_accurate(ours, theirs, true)


@pytest.mark.parametrize("layout", LAYOUTS)
@KERNELS
@ALL
def test_every_kind_of_layer(use: Use, cell: str, kernels: str, layout: str) -> None:
    use(kernels)
    check(draw(cell, 4, bidirectional=True, layout=layout, reset=True, cells=True))
    check(draw(cell, 4, layout=layout), tapes=["full"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@FUSED
@WITHOUT_RELU
def test_every_dtype(use: Use, cell: str, kernels: str, dtype: torch.dtype) -> None:
    use(kernels)
    check(draw(cell, 4, bidirectional=True, dtype=dtype), tapes=["full"])
    check(draw(cell, 4, 3, layout="packed", reset=True, cells=True, dtype=dtype), tapes=["lean"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_of_short_numbers_by_torch(use: Use, dtype: torch.dtype) -> None:
    use("products by torch")
    for cell in ("lstm", "gru"):
        check(draw(cell, 5, layout="lengths", dtype=dtype), tapes=["full"])


@pytest.mark.parametrize("layout", LAYOUTS)
@ALL
def test_weights_in_registers(use: Use, cell: str, layout: str) -> None:
    """Kernels in Gluon, for 16-bit numbers: every kind of layer; H has several parts, and is no multiple of them."""
    use("grid in registers")
    kind = {"layout": layout, "reset": True, "cells": True, "dtype": torch.bfloat16}
    check(draw(cell, 3, 5, 4, 37, bidirectional=True, **kind))
    check(draw(cell, 4, 17, 3, 20, layout=layout, dtype=torch.float16), tapes=["full"])


@ALL
def test_gates_one_at_a_time(use: Use, cell: str) -> None:
    """As float32 without tf32 is computed."""
    use("gates apart")
    check(draw(cell, 3, 17, bidirectional=True, layout="lengths", reset=True, cells=True), tapes=["full"])


@FUSED
@ALL
def test_absent_arguments(use: Use, cell: str, kernels: str) -> None:
    use(kernels)
    check(draw(cell, 4, state=False, bidirectional=True))
    check(draw(cell, 4, bias=False), tapes=["full"])


@pytest.mark.parametrize("missing", ["h0", "c0"])
def test_one_state_without_the_other(use: Use, missing: str) -> None:
    use("resident")
    check(replace(draw("lstm", 4, reset=True), **{missing: None}))


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 3, 5, 5), (2, 17, 1, 20), (2, 1, 0, 33), (1, 33, 3, 16)], ids=str)
@FUSED
@ALL
def test_sizes(use: Use, cell: str, kernels: str, sizes: tuple[int, int, int, int]) -> None:
    """``T, B, I, H`` around the tiles of 16 rows and 16 units."""
    use(kernels)
    check(draw(cell, *sizes), tapes=["full" if kernels == "resident" else "lean"])


@pytest.mark.parametrize(
    ("cell", "kernels"), [("rnn_tanh", "resident"), ("gru", "resident"), ("lstm", "stepwise"), ("lstm", "grid")]
)
def test_more_steps_than_a_chunk(use: Use, cell: str, kernels: str) -> None:
    """The lean tape keeps a cell state every 64 steps."""
    use(kernels)
    check(draw(cell, 66, 2, 3, 5, layout="lengths", reset=True), tapes=["lean"])


def test_two_hundred_steps(use: Use) -> None:
    use("resident")
    check(draw("gru", 200, 2, 3, 5), tapes=["full"])


@pytest.mark.parametrize("layout", ["lengths", "packed"])
@FUSED
@WITHOUT_RELU
def test_chunks_of_time(use: Use, cell: str, kernels: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory is short: what a chunk hands to the next is all that it needs."""
    use(kernels)
    monkeypatch.setattr(layer, "WORKSPACE", 2 * 5 * 11 * 2 * 30)
    check(draw(cell, 5, bidirectional=True, layout=layout, reset=True))


def test_chunks_that_recompute(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    use("resident")
    monkeypatch.setattr(layer, "WORKSPACE", 0)
    check(draw("lstm", 66, 2, 3, 5, layout="lengths"), tapes=["lean"])


@pytest.mark.parametrize("layout", LAYOUTS)
@WITHOUT_RELU
def test_without_a_tape(use: Use, cell: str, layout: str) -> None:
    problem = draw(cell, 4, bidirectional=True, layout=layout, cells=True)
    for kernels in ("resident", "grid", "stepwise", "products by torch"):
        use(kernels)
        with torch.no_grad():
            found = dict(zip(PARTS, fast()(problem), strict=True))
        kept = dict(zip(PARTS, fast("full")(problem), strict=True))
        assert_same(found, {name: t.detach() for name, t in kept.items()})


@pytest.mark.parametrize("parts", [("y",), ("h_n",), ("c_n",), ("cells",), ("h_n", "c_n")], ids="-".join)
@FUSED
def test_gradients_through_some_outputs(use: Use, kernels: str, parts: tuple[str, ...]) -> None:
    use(kernels)
    for cell in ("rnn_tanh", "lstm", "gru") if parts in (("y",), ("h_n",)) else ("lstm",):
        check(draw(cell, 3, bidirectional=True, layout="lengths", reset=True, cells="cells" in parts), parts)


@ALL
def test_frozen_tensors_change_no_other_gradient(use: Use, cell: str) -> None:
    use("resident")
    problem = draw(cell, 3, bidirectional=True)
    names, everything = set(problem.tensors()), run(fast(), problem)
    for wanted in ({"x"}, {"h0"}, {"w_hh"}, names - {"x"}):
        found = run(fast(), problem, frozen=names - wanted)
        assert_same(found, {name: everything[name] for name in found})


@pytest.mark.parametrize("strides", [name for name in STRIDES if name != "negated"])  # torch resolves it on the way
@WITHOUT_RELU
def test_inputs_of_any_strides(use: Use, cell: str, strides: str) -> None:
    use("resident")
    plain = draw(cell, 3, bidirectional=True, layout="lengths", reset=True)
    laid = plain.put({name: STRIDES[strides](t) for name, t in plain.tensors().items()})
    laid = replace(laid, reset=plain.reset.t().contiguous().t())
    assert_accurate(*(run(fast(), p) for p in (laid, plain)), run(readable, plain.to(torch.float64)))


def test_gradients_of_any_strides(use: Use) -> None:
    """``y.sum()`` sends back one number with strides of zero."""
    use("resident")
    problem = draw("lstm", 3, bidirectional=True, cells=True)
    ones = {"y": torch.ones(3, 5, 22), "h_n": torch.ones(2, 5, 11), "cells": torch.ones(3, 5, 22)}
    sums = {name: torch.ones(()).expand(t.shape) for name, t in ones.items()}
    assert_same(run(fast(), problem, sums), run(fast(), problem, ones))


@FUSED
@WITHOUT_RELU
def test_what_lies_behind_the_end_is_not_looked_at(use: Use, cell: str, kernels: str) -> None:
    use(kernels)
    problem = draw(cell, 4, bidirectional=True, layout="lengths")
    behind = torch.arange(4)[:, None] >= problem.lengths
    poisoned = problem.put({"x": problem.x.masked_fill(behind[..., None], torch.nan)})
    for tape in TAPES:
        assert_same(run(fast(tape), poisoned), run(fast(tape), problem))


@KERNELS
@ALL
def test_rows_keep_to_themselves(use: Use, cell: str, kernels: str) -> None:
    """NaN in one row's input or state, or a reset of it, leaves the others as they are."""
    use(kernels)
    problem = draw(cell, 3, 4)
    y = fast()(problem)[0]
    bad = fast()(problem.put({"x": problem.x.index_fill(1, torch.tensor([2]), torch.nan)}))[0]
    assert bad[:, 2].isnan().all()
    others = [0, 1, 3]
    assert torch.equal(bad[:, others], y[:, others])
    state = problem.put({"h0": problem.h0.index_fill(1, torch.tensor([2]), torch.inf)})
    reset = torch.zeros(3, 4, dtype=torch.bool)
    reset[0, 2] = True
    assert fast()(replace(state, c0=problem.c0, reset=reset))[0].isfinite().all()


@ALL
def test_no_rows(use: Use, cell: str) -> None:
    for kernels in PLANS:
        use(kernels)
        found = run(fast(), draw(cell, 3, 0, bidirectional=True))
        assert found["y"].shape == (3, 0, 22)
        assert not any(t.any() for t in found.values())


@FUSED
@ALL
def test_saturated_gates(use: Use, cell: str, kernels: str) -> None:
    use(kernels)
    drawn = draw(cell, 1, 17, 7, 20)
    short = {
        name: torch.randint(-8, 9, t.shape) / 8 if name in ("x", "h0", "c0") else torch.randint(-32, 33, t.shape) / 4
        for name, t in drawn.tensors().items()
    }
    check(drawn.put(short))


def test_outputs_are_shaped_as_the_operators_say(use: Use) -> None:
    """As the C++ engine's, whatever is kept."""
    use("resident")
    for cell in ("lstm", "gru"):
        for tape in TAPES:
            p = draw(cell, 66, 3, layout="packed", bidirectional=True, dtype=torch.bfloat16)
            args = (cell, p.x, p.h0, p.c0, p.weights, True, p.batch_sizes, None, None, tape, False)
            ours, cpus = layer.forward(PLANS["resident"], *args), torch.ops.fastrnn.layer_forward(*args)
            assert [(t.shape, t.dtype) for t in ours] == [(t.shape, t.dtype) for t in cpus]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cell": "lstmm"}, "cell: expected rnn_tanh"),
        ({"h0": torch.zeros(1, 5, 10)}, r"h0: expected size \[1, 5, 11\], got \[1, 5, 10\]"),
        ({"h0": torch.zeros(1, 5, 11).double()}, "h0: expected torch.float32, got torch.float64"),
        ({"weights": [torch.zeros(44, 7)]}, "weights: expected 2 or 4, got 1"),
        ({"x": torch.zeros(5, 7)}, "x: expected 3 dimensions, got 2"),
        ({"x": torch.zeros(0, 5, 7)}, "x: expected at least one step"),
        ({"reset": torch.zeros(4, 5)}, r"reset: expected size \[9, 5\]"),
        ({"lengths": torch.tensor([9, 9, 9, 0, 9])}, "lengths: expected numbers from 1 to 9, got 0"),
        ({"lengths": torch.tensor([9, 9, 9, 9, 10])}, "lengths: expected numbers from 1 to 9, got 10"),
        ({"batch_sizes": torch.tensor([2, 3]), "x": torch.zeros(5, 7)}, "never rise"),
        ({"batch_sizes": torch.tensor([3, 3]), "x": torch.zeros(5, 7)}, "a sum of 5, the rows of x, got 6"),
    ],
    ids=str,
)
def test_wrong_arguments_are_reported(use: Use, wrong: dict[str, object], message: str) -> None:
    use("resident")
    with pytest.raises(RuntimeError, match=message):
        fast()(replace(draw("lstm"), **wrong))


@pytest.mark.parametrize("layout", ["lengths", "packed"])
def test_lengths_are_transferred_once(use: Use, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By all steps of a training; so a step can be captured, which allows no transfers."""
    use("resident")
    transfers: list[object] = []
    transferred = tables.transferred
    monkeypatch.setattr(tables, "transferred", lambda *args: transfers.append(args[0]) or transferred(*args))
    monkeypatch.setattr(call, "tables", tables.Tables())
    first = draw("gru", 3, 4, layout=layout)
    run(fast(), first)
    assert len(transfers) == {"lengths": 1, "packed": 2}[layout]
    monkeypatch.setattr(tables, "capturing", lambda device: True)
    second = draw("gru", 3, 4)
    again = first.put(second.tensors() | {"x": first.x * 2})
    check(again, tapes=["full"])
    other = (
        replace(first, lengths=torch.tensor([1, 1, 1, 3])) if layout == "lengths" else draw("gru", 2, 3, layout=layout)
    )
    with pytest.raises(RuntimeError, match="before a CUDA graph is captured"):
        run(fast(), other)


@pytest.mark.parametrize(("hidden", "steps"), [(20, 2), (70, 2), (70, 8)], ids=["resident", "stepwise", "grid"])
def test_the_operators_for_cuda_plan_for_themselves(hidden: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered for CUDA, on CPU tensors: facts come from elsewhere, and no device is set."""
    sizes = ("NVIDIA H100", "nvidia", (9, 0), 132, 227 * 1024, 50 * 2**20)
    facts = DeviceFacts(*sizes, constants=UNMEASURED)  # or no plan would have programs exchange states
    monkeypatch.setattr(_cuda, "facts_of", lambda device: facts)
    monkeypatch.setattr(
        _cuda, "tf32_allowed", lambda dtype: False
    )  # torch's layer on the CPU, to compare with, has none
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    computed_by(monkeypatch, _cuda.layer_forward, _cuda.layer_backward)
    check(draw("gru", steps, 3, 5, hidden, layout="packed", reset=True), tapes=["full"])


@pytest.mark.parametrize("offset", [0, 1])
def test_kernels_read_weights_at_multiples_of_16_bytes(offset: int) -> None:
    """Of weights in one piece of memory, as cuDNN has them, those of a layer may lie anywhere."""
    p = draw("gru", 3, 2, 7, 5)
    piece = torch.zeros(p.weights[1].numel() + offset)
    weight = piece[offset:].view_as(p.weights[1]).copy_(p.weights[1])
    given = call.Call.of("gru", p.x, None, None, [p.weights[0], weight, *p.weights[2:]], False, None, None, None)
    assert given.w_hh.data_ptr() % 16 == 0
    assert torch.equal(given.w_hh[0], weight)
    assert (given.w_hh.data_ptr() == weight.data_ptr()) == (offset == 0)


@pytest.mark.parametrize("room", [2**25, 100], ids=["blocks together", "one by one"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru"])
def test_sums_of_weight_gradients_are_short(cell: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small terms far from a large one are not rounded away; nor are those of other chunks."""
    monkeypatch.setattr(layer, "PARTIAL", room)
    p = draw(cell, 100, 100, 3, 5)
    given = call.Call.of(cell, p.x, p.h0, None, p.weights, False, None, None, None)
    sums = layer._WeightGradients(given)
    first, second = torch.zeros(2, 5001, given.width * 5)
    first[0], first[1000::500], second[::500] = 2.0**24, 0.75, 0.75
    for chunk in (first, second):
        sums.add(chunk, [(chunk, torch.ones(5001, 5))], torch.ones(5001, 3))
    expected = torch.tensor(2.0**24 + 0.75 * 20, dtype=torch.float64).float()
    for found in layer._results([sums]):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected.expand(found.shape))
