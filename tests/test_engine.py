"""The C++ engine computes the layer: outputs and gradients by the rule of the accuracy, for everything it takes."""

import os
import subprocess
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accuracy import assert_accurate, assert_same
from layers import (
    DTYPES,
    LAYOUTS,
    PARTS,
    ROUNDS,
    STRIDES,
    Layer,
    Problem,
    draw,
    fast,
    judged,
    one_thread,
    readable,
    run,
    stock,
    yardstick,
)
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _ops, functional
from fastrnn._accuracy import error
from fastrnn._ops import LEAN_CHUNK
from fastrnn.reference import CELLS

ALL = pytest.mark.parametrize("cell", CELLS)
DIRECTIONS = pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "both"])
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
ROOT = Path(__file__).parent.parent


def check(
    problem: Problem, parts: Collection[str] = PARTS, frozen: Collection[str] = (), truth: Layer = readable
) -> None:
    """Both tapes against the truth, and against each other: what backward recomputes is what forward computed.

    Over more steps than one chunk of backward, the weights' gradients are sums in another order.
    """
    measure = yardstick(problem) if truth is readable else truth
    with one_thread():
        true, theirs = run(truth, problem.to(torch.float64), parts, frozen), run(measure, problem, parts, frozen)
    full, lean = (run(fast(tape), problem, parts, frozen) for tape in ("full", "lean"))
    judged(problem, full, lean, theirs)
    assert_accurate(full, theirs, true)
    assert_accurate(lean, theirs, true)
    if problem.x.dtype in (torch.float32, torch.float64):  # 16 bits: the lean tape knows the states as they were stored
        summed = ("dw", "db") if steps_of(problem) > LEAN_CHUNK else ()
        assert_same(*({name: t for name, t in found.items() if not name.startswith(summed)} for found in (full, lean)))


def steps_of(problem: Problem) -> int:
    return len(problem.x if problem.batch_sizes is None else problem.batch_sizes)


@pytest.mark.parametrize("reset", [False, True], ids=["", "reset"])
@pytest.mark.parametrize("layout", LAYOUTS)
@EVERY_DTYPE
@DIRECTIONS
@ALL
def test_every_kind_of_layer(cell: str, bidirectional: bool, dtype: torch.dtype, layout: str, reset: bool) -> None:
    check(draw(cell, bidirectional=bidirectional, dtype=dtype, layout=layout, reset=reset))


@pytest.mark.parametrize("layout", LAYOUTS)
@EVERY_DTYPE
@DIRECTIONS
def test_cell_states_of_all_steps(bidirectional: bool, dtype: torch.dtype, layout: str) -> None:
    problem = draw("lstm", bidirectional=bidirectional, dtype=dtype, layout=layout, reset=True, cells=True)
    check(problem)
    without = replace(problem, cells=False)
    for tape in ("full", "lean"):
        ours, theirs = run(fast(tape), problem, PARTS[:3]), run(fast(tape), without, PARTS[:3])
        ours.pop("cells")
        assert_same(ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@DIRECTIONS
@ALL
def test_short_dtypes_are_storage(cell: str, bidirectional: bool, dtype: torch.dtype, layout: str) -> None:
    """What comes out is what float32 computes from the same numbers, rounded once, at the end."""
    if dtype == torch.bfloat16 and ROUNDS:
        pytest.skip("bfloat16 is what this one computes in; the others are tested in processes of their own")
    problem = draw(cell, bidirectional=bidirectional, dtype=dtype, layout=layout, reset=True, cells=True)
    for tape in ("full", "lean"):
        ours, wide = fast(tape)(problem), fast(tape)(problem.to(torch.float32))
        assert torch.equal(ours[3], wide[3]), "cell states are float32 as they are"
        for result, exact in zip(ours[:3], wide[:3], strict=True):
            assert torch.equal(result, exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_dtypes_are_rounded_as_torch_rounds(dtype: torch.dtype) -> None:
    """Y = relu(w x), a product that is exact in float32, for every x there is: ties, subnormals, infinities, NaN."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    if dtype == torch.bfloat16 and ROUNDS:
        x = x[(x.abs() >= torch.finfo(dtype).tiny * 2**40) | x.isnan() | (x == 0)]  # no subnormals there
    for width in (1, 16, 37):
        w = (torch.randn(width) * 2.0 ** torch.randint(-12, 3, (width,))).to(dtype)
        w[0] = 1
        problem = Problem(
            "rnn_relu", x[None, :, None], None, None, [w[:, None], torch.zeros(width, width, dtype=dtype)]
        )
        y, exact = fast()(problem)[0][0], (x[:, None].float() * w.float()).relu().to(dtype)
        assert torch.equal(y.isnan(), exact.isnan())
        assert torch.equal(y.nan_to_num(nan=-1), exact.nan_to_num(nan=-1))


@pytest.mark.skipif(not ROUNDS, reason="what AMX and AVX-512 BF16 do")
@pytest.mark.parametrize("sizes", [(3, 1, 5, 11), (3, 16, 32, 16), (3, 17, 33, 48), (4, 33, 64, 70), (2, 65, 130, 129)])
@ALL
def test_short_factors_are_rounded(cell: str, sizes: tuple[int, ...]) -> None:
    """Step after step as float32 computes it from the state rounded to bfloat16: tiles of every size, whole and not."""
    problem = draw(cell, *sizes, dtype=torch.bfloat16, cells=True)
    y, h_n, c_n, cells = fast()(problem)
    h, c = problem.h0, problem.c0
    for t in range(sizes[0]):
        c = None if c is None else c.float()
        one = replace(problem, x=problem.x[t : t + 1], h0=h).to(torch.float32)
        out = readable(replace(one, c0=c))
        assert error(y[t], out[0][0].double()) < 2**-8, t  # half a unit of bfloat16, and what order of summation makes
        if c is not None:
            assert error(cells[t], out[3][0].double()) < 1e-5, t
            c = cells[t][None]
        # A GRU also carries its state unrounded past the product: only its first step is judged.
        if cell == "gru":
            break
        h = y[t][None]
    assert torch.equal(h_n[0], y[-1])
    assert c_n is None or c is None or torch.equal(c_n[0], cells[-1].to(torch.bfloat16))


@pytest.mark.parametrize("given", ["no state", "no bias", "x and weights"])
@EVERY_DTYPE
@DIRECTIONS
@ALL
def test_absent_arguments(cell: str, bidirectional: bool, dtype: torch.dtype, given: str) -> None:
    options = {"state": given == "no bias", "bias": given == "no state"}
    problem = draw(cell, bidirectional=bidirectional, dtype=dtype, **options)
    check(problem)
    if not options["state"]:
        zeros = torch.zeros(2 if bidirectional else 1, 5, 11, dtype=dtype)
        given = replace(problem, h0=zeros, c0=zeros if cell == "lstm" else None)
        ours, theirs = (run(fast(), p, frozen=("h0", "c0")) for p in (problem, given))
        assert_same(ours, theirs)


@pytest.mark.parametrize("missing", ["h0", "c0"])
def test_one_state_without_the_other(missing: str) -> None:
    check(replace(draw("lstm", reset=True), **{missing: None}))


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1, 1),
        (1, 33, 3, 16),
        (2, 1, 5, 17),
        (2, 7, 1, 130),
        (3, 3, 130, 130),
        (4, 2, 512, 512),
        (9, 97, 3, 5),
        (63, 3, 4, 5),
        (64, 2, 17, 64),
        (65, 1, 3, 67),
        (65, 33, 2, 16),
        (130, 1, 8, 130),
        (130, 7, 33, 64),
        (193, 2, 5, 17),
    ],
    ids=str,
)
@ALL
def test_sizes(cell: str, sizes: tuple[int, int, int, int]) -> None:
    """``T, B, I, H`` around the vectors, the tiles and the 64 steps between two kept cell states."""
    check(draw(cell, *sizes))
    check(draw(cell, *sizes, bidirectional=True, layout="lengths", reset=True, dtype=torch.float64))
    check(draw(cell, *sizes, bidirectional=True, layout="packed", dtype=torch.bfloat16))


@pytest.mark.parametrize("layout", ["dense", "lengths"])
@DIRECTIONS
@ALL
def test_no_rows(cell: str, bidirectional: bool, layout: str) -> None:
    problem = draw(cell, batch=0, bidirectional=bidirectional)
    theirs = run(stock, problem)
    if layout == "lengths":
        problem = replace(problem, lengths=torch.empty(0, dtype=torch.int64))
    for tape in ("full", "lean"):
        ours = run(fast(tape), problem)
        assert_same(ours, theirs)
        assert not any(t.any() for t in ours.values())


@DIRECTIONS
@ALL
def test_no_inputs(cell: str, bidirectional: bool) -> None:
    check(draw(cell, inputs=0, bidirectional=bidirectional))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@ALL
def test_a_thousand_steps(cell: str, dtype: torch.dtype) -> None:
    check(draw(cell, 1024, 2, 5, 17, dtype=dtype), truth=stock)


def folded(p: Problem) -> tuple[Tensor | None, ...]:
    """One long sequence that is reset every 70 steps, as a batch of sequences of 70 steps."""
    count, rows = len(p.x) // 70, p.x.unflatten(0, (-1, 70))[:, :, 0].transpose(0, 1)

    def initial(s: Tensor | None) -> Tensor | None:  # forwards the first sequence has it, backwards the last
        return None if s is None else torch.cat([pad(s[:1], (0, 0, 0, count - 1)), pad(s[1:], (0, 0, count - 1, 0))])

    y, *finals = readable(replace(p, x=rows, h0=initial(p.h0), c0=initial(p.c0), reset=None))[:3]
    last = [None if s is None else torch.cat([s[:1, -1:], s[1:, :1]]) for s in finals]
    return y.transpose(0, 1).flatten(0, 1)[:, None], *last


@DIRECTIONS
@ALL
def test_more_steps_than_sixteen_bits_count(cell: str, bidirectional: bool) -> None:
    reset = torch.zeros(70_000, 1, dtype=torch.bool)
    reset[70::70] = True
    # Wide enough that the worst of many sums is judged: of a dozen sums of random sign, the worst is a matter of luck.
    check(replace(draw(cell, 70_000, 1, 8, 16, bidirectional=bidirectional), reset=reset), truth=folded)


@EVERY_DTYPE
@DIRECTIONS
@ALL
def test_saturated_gates(cell: str, bidirectional: bool, dtype: torch.dtype) -> None:
    """One step of numbers so short that their products are exact, for what comes of roundings is soon chaos."""
    drawn = draw(cell, 1, 33, 7, 67, bidirectional=bidirectional)
    short = {
        name: torch.randint(-8, 9, t.shape) / 8 if name in ("x", "h0", "c0") else torch.randint(-32, 33, t.shape) / 4
        for name, t in drawn.tensors().items()
    }
    check(drawn.put(short).to(dtype))


@EVERY_DTYPE
@ALL
def test_gates_from_nothing_to_saturation(cell: str, dtype: torch.dtype) -> None:
    """One step from pre-activations that are exact in every dtype: errors are those of the gates alone."""
    size = CELLS[cell].gates * 41
    values = torch.cat([torch.arange(-20, 21) / 4, torch.arange(-20, 21) * 8.0, torch.arange(-20, 21) / 2.0**12])
    for k in range(5):
        drawn = draw(cell, 1, 1, 1, 41)
        columns = values[torch.randint(len(values), (size, 1), generator=torch.Generator().manual_seed(k))]
        zeros = torch.zeros(size)
        exact = replace(drawn, x=torch.ones(1, 1, 1), weights=(columns, torch.zeros(size, 41), zeros, zeros)).to(dtype)
        check(exact, frozen=["x"])  # whose gradient is a single number


@pytest.mark.parametrize(
    "parts", [("y",), ("h_n",), ("c_n",), ("cells",), ("h_n", "c_n"), ("y", "cells")], ids="-".join
)
@DIRECTIONS
@ALL
def test_gradients_through_some_outputs(cell: str, bidirectional: bool, parts: tuple[str, ...]) -> None:
    if cell != "lstm" and any(part in ("c_n", "cells") for part in parts):
        pytest.skip("has no cell state")
    check(draw(cell, bidirectional=bidirectional, cells="cells" in parts), parts)
    check(draw(cell, 70, 2, bidirectional=bidirectional, layout="lengths", reset=True, cells="cells" in parts), parts)


@ALL
def test_gradients_of_any_strides(cell: str) -> None:
    """``y.sum()`` sends back one number with strides of zero; a transposition, columns that are apart."""
    problem = draw(cell, bidirectional=True, layout="lengths", cells=True)
    for tape in ("full", "lean"):
        ones = {"y": torch.ones(9, 5, 22), "h_n": torch.ones(2, 5, 11), "cells": torch.ones(9, 5, 22)}
        theirs = run(fast(tape), problem, ones)
        sums = {name: torch.ones(()).expand(t.shape) for name, t in ones.items()}
        assert_same(run(fast(tape), problem, sums), theirs)
        drawn = {name: torch.randn(t.shape) for name, t in ones.items()}
        apart = {name: t.transpose(0, -1).contiguous().transpose(0, -1) for name, t in drawn.items()}
        assert_same(run(fast(tape), problem, apart), run(fast(tape), problem, drawn))


@pytest.mark.parametrize("tape", ["full", "lean"])
@DIRECTIONS
@ALL
def test_frozen_tensors_change_no_other_gradient(cell: str, bidirectional: bool, tape: str) -> None:
    problem = draw(cell, bidirectional=bidirectional)
    names = set(problem.tensors())
    weights = {name for name in names if name.startswith(("w", "b"))}
    everything = run(fast(tape), problem)
    for wanted in ({"x"}, {"h0"}, {"w_hh"}, weights, names - weights, names - {"x"}, {"x", "b_ih"}, names - {"h0"}):
        found = run(fast(tape), problem, frozen=names - wanted)
        assert {name for name in found if name.startswith("d")} == {f"d{name}" for name in wanted}
        assert_same(found, {name: everything[name] for name in found})


@pytest.mark.parametrize("strides", STRIDES)
@EVERY_DTYPE
@ALL
def test_inputs_of_any_strides(cell: str, dtype: torch.dtype, strides: str) -> None:
    """The same numbers, wherever they lie; what lies between them is not looked at."""
    plain = draw(cell, bidirectional=True, layout="lengths", reset=True, dtype=dtype)
    laid = plain.put({name: STRIDES[strides](t) for name, t in plain.tensors().items()})
    apart = torch.stack([plain.lengths, -plain.lengths], 1)[:, 0]
    laid = replace(laid, reset=plain.reset.t().contiguous().t(), lengths=apart)
    assert_same(plain.tensors(), laid.tensors())
    for tape in ("full", "lean"):
        assert_same(run(fast(tape), laid), run(fast(tape), plain))


@ALL
def test_expanded_inputs(cell: str) -> None:
    """One row, one step, one number for all."""
    for shape in ((9, 1, 7), (1, 5, 7), (1, 1, 7), (9, 5, 1)):
        problem = replace(draw(cell, bidirectional=True), x=torch.randn(shape).expand(9, 5, 7))
        reset = torch.tensor([True, False, False, True, False]).expand(9, 5)
        problem = replace(problem, h0=torch.randn(2, 1, 11).expand(2, 5, 11), reset=reset)
        same = replace(problem, x=problem.x.contiguous(), h0=problem.h0.contiguous(), reset=reset.contiguous())
        for tape in ("full", "lean"):
            assert_same(run(fast(tape), problem), run(fast(tape), same))


@EVERY_DTYPE
@ALL
def test_the_functional_forms_are_the_operators(cell: str, dtype: torch.dtype) -> None:
    function = getattr(functional, cell.split("_")[0])
    options = {"nonlinearity": cell.split("_")[1]} if "_" in cell else {"return_cells": True} if cell == "lstm" else {}
    for layout in LAYOUTS:
        p = draw(cell, bidirectional=True, layout=layout, reset=True, cells=True, dtype=dtype)
        x = p.x if layout != "packed" else PackedSequence(p.x, p.batch_sizes)
        hx = (p.h0, p.c0) if cell == "lstm" else p.h0
        for tape in ("full", "lean"):
            y, state, *cells = function(
                x, hx, p.weights, bidirectional=True, lengths=p.lengths, reset=p.reset, tape=tape, **options
            )
            found = [y, *(state if cell == "lstm" else [state]), *cells]
            found = [t.data if isinstance(t, PackedSequence) else t for t in found]
            expected = [t for t in fast(tape)(p) if t.shape != (0,)]
            for ours, theirs in zip(found, expected, strict=True):
                assert torch.equal(ours, theirs.to(dtype))


def other_process(code: list[str], isa: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"FASTRNN_CPU_ISA": isa}
    return subprocess.run([sys.executable, *code], env=env, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(bool(os.environ.get("FASTRNN_CPU_ISA")), reason="this is such a process, or the user's choice")
@pytest.mark.parametrize("isa", _ops.cpu_isas()[1:])
def test_other_instruction_sets(isa: str) -> None:
    """A process has one instruction set: these files in another process have another."""
    found = other_process(["-c", "from fastrnn import _ops; print(_ops.cpu_isa())"], isa)
    assert found.stdout.strip() == isa
    chosen = [
        "-k",
        "kind_of_layer or cell_states or short or sizes or saturat or strides or row_of_every_dtype",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    tests = other_process(["-m", "pytest", "tests/test_engine.py", "tests/test_determinism.py", *chosen], isa)
    assert tests.returncode == 0, tests.stdout + tests.stderr
    assert " passed" in tests.stdout


def test_an_unknown_instruction_set_is_refused() -> None:
    """Where the engine is asked for its name and where it is to compute, every time."""
    code = """
import torch
from fastrnn import _ops

w = [torch.randn(12, 3), torch.randn(12, 3)]
asked = [
    _ops.cpu_isa,
    lambda: _ops.layer_forward("lstm", torch.randn(2, 1, 3), None, None, w, False, None, None, None, "full", False),
]
for ask in asked * 2:
    try:
        ask()
    except RuntimeError as error:
        assert "FASTRNN_CPU_ISA=sse9: expected amx, avx512bf16, avx512, avx2 or base" in str(error), error
    else:
        raise AssertionError("not refused")
print("refused", *_ops.cpu_isas())
"""
    found = other_process(["-c", code], "sse9")
    assert found.stdout.split() == ["refused", *_ops.cpu_isas()], found.stderr


def test_the_best_instruction_set_is_the_default() -> None:
    assert _ops.cpu_isas()[-1] == "base"
    assert _ops.cpu_isa() == (os.environ.get("FASTRNN_CPU_ISA") or _ops.cpu_isas()[0])
