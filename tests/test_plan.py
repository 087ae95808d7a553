"""What the plan of the GPU kernels chooses, for GPUs that need not be there."""

import math
from dataclasses import fields, replace
from itertools import product

import pytest
import torch

from fastrnn.kernels import model
from fastrnn.kernels import plan as planning
from fastrnn.kernels.measured import Record, Work
from fastrnn.kernels.plan import (
    DeviceFacts,
    Plan,
    candidates,
    forced,
    plan,
    plan_kernels,
    programs,
    resident_memory,
    resident_plan,
)
from fastrnn.kernels.plan import seconds as step_seconds
from fastrnn.kernels.tiles import cdiv
from fastrnn.reference import CELLS

H100 = DeviceFacts("NVIDIA H100", "nvidia", (9, 0), 132, 227 * 1024, 50 * 2**20)
A100 = DeviceFacts("NVIDIA A100", "nvidia", (8, 0), 108, 163 * 1024, 40 * 2**20)
RTX5090 = DeviceFacts("NVIDIA GeForce RTX 5090", "nvidia", (12, 0), 170, 99 * 1024, 96 * 2**20)
T4 = DeviceFacts("Tesla T4", "nvidia", (7, 5), 40, 64 * 1024, 4 * 2**20)
MI300 = DeviceFacts("AMD Instinct MI300X", "amd", (9, 4), 304, 64 * 1024, 4 * 2**20)
KNOWN = replace(H100, constants=model.UNMEASURED, cudnn=91300)  # as if somebody had measured just these
GPUS = (KNOWN, H100, A100, RTX5090, T4, MI300)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def choose(
    cell: str = "lstm",
    hidden: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    facts: DeviceFacts = H100,
    steps: int = 100,
    batch: int = 16,
    beyond_torch: str | None = "reset",
    inputs: int = 64,
    **options: object,
) -> Plan:
    return plan(Work(cell, steps, batch, inputs, hidden, dtype, **options), facts, beyond_torch)


def test_small_layers_are_resident() -> None:
    for cell, dtype, hidden in product(CELLS, (torch.bfloat16, torch.float16), (1, 20, 64, 128)):
        chosen = choose(cell, hidden, dtype)
        assert chosen.strategy == "resident"
        assert "unmeasured" in chosen.reason
    assert choose(hidden=64, dtype=torch.float32).strategy == "resident"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "no GPU has shown yet"),
        ({"hidden": 129}, "too large for one program"),
        ({"hidden": 65, "dtype": torch.float32}, "too large for one program"),
        ({"facts": RTX5090}, "too large for one program"),
        ({"steps": 7}, "fewer than 8 steps"),
        ({"facts": MI300, "hidden": 16}, "unmeasured on AMD Instinct MI300X"),
        ({"dtype": torch.float64, "hidden": 20}, "silent on float64"),
        ({"facts": T4}, "compute capability 8.0 and newer, and Tesla T4 has 7.5"),
        ({"dtype": torch.complex64}, "not complex64"),
    ],
    ids=str,
)
def test_what_is_left_to_torch_and_why(options: dict[str, object], reason: str) -> None:
    chosen = choose(**options, beyond_torch=None)
    assert chosen.strategy == "torch"
    assert reason in chosen.reason
    assert str(chosen) == "torch"


def test_what_torch_does_not_have_is_for_our_kernels() -> None:
    for facts, dtype, hidden in product((H100, A100, RTX5090, MI300), DTYPES, (20, 128, 1000, 5000)):
        chosen = choose(hidden=hidden, dtype=dtype, facts=facts, beyond_torch="reset", steps=1)
        assert chosen.strategy in ("resident", "stepwise")  # and no grid for a single step
        assert "no reset=" in chosen.reason
    assert choose(facts=T4, beyond_torch="reset").strategy == "torch"


def test_kernels_fit_the_device() -> None:
    sizes = product(CELLS, (1, 3, 16, 17, 100, 1000), (1, 16, 33, 64, 100, 128, 200, 513, 2048), DTYPES, GPUS, (1, 2))
    for cell, batch, hidden, dtype, facts, directions in sizes:
        chosen = plan_kernels(Work(cell, 50, batch, 64, hidden, dtype, directions), facts)
        assert chosen.strategy in ("resident", "grid", "stepwise")
        assert all(n & (n - 1) == 0 and n >= 16 for n in (chosen.tile, chosen.units * chosen.split, chosen.depth))
        if chosen.strategy == "grid":  # all of its programs at the same time, each with its part of W_hh
            at_once = chosen.groups or cdiv(batch, chosen.tile)
            assert at_once * cdiv(hidden, chosen.units) * directions <= facts.sm_count
            part = CELLS[cell].gates * hidden * chosen.units * dtype.itemsize
            in_memory = facts.vendor == "nvidia" and chosen.held == "shared"
            assert part <= (facts.shared_memory_per_block if in_memory else 4 * 65536)
        if chosen.strategy == "resident":
            assert resident_memory(cell, hidden, dtype.itemsize) <= facts.shared_memory_per_block


def test_layers_that_fit_a_grid_are_spread_over_it() -> None:
    for cell, hidden, batch in product(CELLS, (192, 256, 512, 768, 1000, 1024), (1, 16, 32)):
        chosen = choose(cell, hidden, batch=batch, facts=KNOWN)
        assert chosen.strategy == "grid"
        assert chosen.reason == "torch's layers have no reset= (with constants measured on such a GPU)"
    assert (choose(hidden=512, facts=KNOWN).strategy, choose(hidden=512, facts=KNOWN).held) == ("grid", "registers")
    chosen = choose(hidden=512, dtype=torch.float32, facts=KNOWN)
    assert (chosen.strategy, chosen.held) == ("grid", "shared")
    assert choose(hidden=512, facts=replace(MI300, constants=model.UNMEASURED)).strategy == "stepwise"


def test_fewer_programs_read_the_gradients_of_all_gates() -> None:
    """Where weights are in registers, a program backward has 16 units: how many one has forward costs a step once."""
    for hidden in (256, 512, 768, 1024):
        chosen = choose(hidden=hidden, facts=KNOWN)
        assert chosen.held == "registers"
        assert model.backward_units(chosen.units, chosen.held) == 16
    slow = replace(model.UNMEASURED, read_by_all=1e9)  # all else takes no time beside it
    step = model.Step(4, 16, 512, 1, 2, True, H100.sm_count, H100.l2_bytes, True)
    state = 2 * 16 * 512 / 1e9  # read by one program
    for units, held, readers in ((8, "registers", (64, 32)), (16, "registers", (32, 32)), (8, "shared", (64, 64))):
        forward, backward = readers
        took = model.grid_seconds(16, units, 1, held, step, slow)
        assert took == pytest.approx(state * (forward + 4 * backward), rel=0.01)


def test_the_model_is_asked_where_its_constants_were_measured() -> None:
    """And where cuDNN computes a layer by its standard algorithm."""
    chosen = choose(hidden=512, facts=KNOWN, beyond_torch=None)
    assert chosen.strategy == "grid"
    assert "times as fast as torch by a model of the hardware, with constants measured on such a GPU" in chosen.reason
    slow = replace(KNOWN, constants=replace(model.UNMEASURED, barrier=1e-4, rest=1e-4))
    for facts, options, reason in (
        (slow, {"hidden": 512}, "the grid strategy is not 1.25 times as fast as torch by a model of the hardware"),
        (KNOWN, {"hidden": 128}, "knows nothing of how torch computes this"),  # cuDNN keeps these on chip itself
        (KNOWN, {"hidden": 512, "dtype": torch.float16, "inputs": 128}, "knows nothing of how torch computes this"),
        (replace(KNOWN, cudnn=91200), {"hidden": 512}, "knows nothing of how torch computes this"),
        (KNOWN, {"hidden": 512, "steps": 7}, "fewer than 8 steps"),
        (KNOWN, {"hidden": 20, "dtype": torch.float64}, "silent on float64"),
    ):
        left = choose(facts=facts, beyond_torch=None, **options)
        assert left.strategy == "torch"
        assert reason in left.reason
    trains = choose(hidden=160, facts=KNOWN, beyond_torch=None, trains=True)  # where only its forward pass does
    assert trains.strategy == "torch"
    assert choose(hidden=192, packed=True, facts=KNOWN, beyond_torch=None).strategy == "grid"


def can_be_spread(facts: DeviceFacts, cell: str, batch: int, hidden: int, itemsize: int) -> bool:
    sizes = (CELLS[cell].gates, max(CELLS[cell].tape, 1), batch, hidden, itemsize, 1)
    limits = (facts.sm_count, facts.shared_memory_per_block)
    return any(model.spreads(facts.vendor, facts.capability, *sizes, *limits))


def test_how_far_a_grid_goes() -> None:
    """To 64 rows of 16-bit numbers on an H100, and with float32 as far as there is shared memory for it."""
    for cell, hidden in product(CELLS, (192, 256, 512, 768, 1000, 1024)):
        assert can_be_spread(H100, cell, 64, hidden, 2)
        assert can_be_spread(H100, cell, 16, hidden, 4)
    for hidden in (256, 512, 768, 1024):
        assert can_be_spread(A100, "lstm", 16, hidden, 4) == (hidden <= 768)
        assert can_be_spread(RTX5090, "lstm", 16, hidden, 4) == (hidden <= 512)


def test_programs_exchange_states_only_where_that_is_forced() -> None:
    for cell, hidden, batch in product(CELLS, (192, 512, 1024), (1, 16, 32)):
        assert choose(cell, hidden, batch=batch).strategy == "stepwise"
    with forced(strategy="grid"):
        assert choose(hidden=512).split > 1


@pytest.mark.parametrize(
    "options",
    [{"hidden": 1025}, {"batch": 256, "hidden": 1024}, {"steps": 7}, {"dtype": torch.float64}, {"hidden": 128}],
    ids=str,
)
def test_layers_that_do_not_fit_a_grid_are_not(options: dict[str, object]) -> None:
    assert choose(**{"hidden": 512, "facts": KNOWN} | options).strategy in ("stepwise", "resident")


def test_the_model_is_one_of_cost() -> None:
    """More work takes no less time, a barrier less than two launches, and no synchronisation less than one."""
    endless = replace(H100, constants=replace(model.UNMEASURED, memory=1e18))  # else it is a limit of large batches

    def seconds(strategy: str, batch: int, hidden: int, facts: DeviceFacts = endless) -> float:
        work = Work("lstm", 100, batch, 64, hidden, torch.bfloat16)
        return min(step_seconds(p, work, facts) for p in candidates(work, facts) if p.strategy == strategy)

    for hidden, batch in product((128, 256, 512, 1024), (16, 32)):
        least = seconds("grid", batch, hidden)
        assert seconds("grid", 16, hidden) <= least <= seconds("grid", 32, hidden)
        assert seconds("grid", batch, 128) <= least < seconds("stepwise", batch, hidden)
    assert seconds("resident", 16, 128) == seconds("resident", 132 * 16, 128) < seconds("grid", 16, 128)
    assert seconds("resident", 132 * 16 + 1, 128) == 2 * seconds("resident", 16, 128)
    assert seconds("resident", 16, 128, H100) == seconds("resident", 16, 128) < seconds("resident", 2112, 128, H100)


COUNTS_IN = {  # where 16-bit numbers are multiplied, 4 a gate; of "ordinary", float32
    "barrier": {"registers", "shared"},
    "launch": {"stepwise", "products"},
    "standard": {"torch"},
    "rest": {"shared", "resident", "stepwise", "products"},
    "rest_in_registers": {"registers"},
    "read": {"registers", "shared", "stepwise"},
    "memory": {"registers", "shared", "resident", "stepwise", "products", "torch"},
    "read_by_all": {"registers", "shared", "stepwise", "products", "torch"},
    "shared": {"shared", "resident"},
    "matrix": {"registers", "shared", "resident", "stepwise", "products", "torch"},
    "ordinary": {"shared", "resident", "stepwise", "products", "torch"},
}


@pytest.mark.parametrize("name", [field.name for field in fields(model.Constants)])
def test_every_constant_of_the_model_counts(name: str) -> None:
    """A GPU that does one thing a hundred times slower takes longer with the strategies that do it, and no others."""
    hidden, dtype = (256, torch.float32) if name == "ordinary" else (1024, torch.bfloat16)
    work, small = (Work("lstm", 100, 16, 64, h, dtype) for h in (hidden, 64))

    def seconds(constants: model.Constants) -> dict[str, float]:
        facts = replace(H100, constants=constants)
        found = {
            p.held if p.strategy == "grid" else "products" if p.product == "torch" else p.strategy: step_seconds(
                p, work, facts
            )
            for p in candidates(work, facts)
        }
        found["resident"] = step_seconds(resident_plan(small, facts), small, facts)
        return found | {"torch": step_seconds(Plan("torch", ""), work, facts)}

    factor = 100 if name in ("barrier", "launch", "standard", "rest", "rest_in_registers") else 0.01
    slower = replace(model.UNMEASURED, **{name: getattr(model.UNMEASURED, name) * factor})
    before, after = seconds(model.UNMEASURED), seconds(slower)
    assert {strategy for strategy in before if after[strategy] > before[strategy]} == COUNTS_IN[name]
    assert all(after[strategy] >= before[strategy] for strategy in before)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan, "1"])
def test_constants_of_the_model_are_positive(wrong: object) -> None:
    with pytest.raises(ValueError, match="shared: expected a positive number, got"):
        model.Constants(shared=wrong)


def test_tf32_only_where_it_is_allowed() -> None:
    assert choose(hidden=64, dtype=torch.float32).precision == "ieee"
    assert choose(hidden=64, dtype=torch.float32, tf32=True).precision == "tf32"
    assert choose(hidden=512, dtype=torch.float32, tf32=True, beyond_torch="reset").precision == "tf32"
    for dtype in (torch.float64, torch.bfloat16):
        assert choose(hidden=16, dtype=dtype, tf32=True, beyond_torch="reset").precision == "ieee"


@pytest.mark.parametrize(
    ("batch", "hidden", "options", "product"),
    [
        (256, 2048, {}, "torch"),
        (16, 512, {}, "fused"),
        (64, 512, {}, "fused"),
        (256, 256, {}, "fused"),
        (4096, 256, {}, "torch"),
        (4096, 256, {"dtype": torch.float32}, "torch"),
        # A kernel of ours rounds to TF32 where torch's layers do; torch's products have a setting of their own for it.
        (4096, 256, {"dtype": torch.float32, "tf32": True}, "fused"),
        (4096, 256, {"dtype": torch.float32, "tf32": True, "tf32_products": True}, "torch"),
    ],
)
def test_large_products_are_torchs(batch: int, hidden: int, options: dict[str, object], product: str) -> None:
    chosen = choose(batch=batch, hidden=hidden, steps=1, **options)
    assert (chosen.strategy, chosen.product) == ("stepwise", product)


HALF = torch.bfloat16
# As bench.gpu.cases has them: work, what torch lacks of it, and the plan without measured constants, and with them.
APPLICATIONS = {
    "brain-to-text": (
        Work("gru", 100, 64, 7168, 768, HALF, layers=5, trains=True),
        None,
        ("torch", "no GPU has shown yet"),
        ("grid, 32 rows a program, 16 units, weights in registers, 8 warps, ieee", "times as fast as torch by a model"),
    ),
    "genomics 128": (
        Work("gru", 10_000, 100, 128, 128, torch.float16, 2, 2),
        None,
        ("torch", "W_hh could stay on chip for all steps, but no GPU has shown yet"),
        ("torch", "the model of the hardware knows nothing of how torch computes this"),  # cuDNN keeps it on chip
    ),
    "genomics 256": (
        Work("gru", 10_000, 100, 256, 256, torch.float16, 2, 2),
        None,
        ("torch", "no GPU has shown yet"),
        ("grid, 16 rows a program, 32 units, weights in registers, 8 warps, ieee", "times as fast as torch by a model"),
    ),
    "robots": (
        Work("lstm", 24, 4096, 64, 256, HALF, trains=True),
        "reset",
        ("stepwise, 64 rows a program, 32 units, torch product, 8 warps, ieee", "unmeasured"),
        (
            "grid, 32 rows a program, 32 units, weights in registers, batch tiles in turns by 16 groups, 8 warps, ieee",
            "torch's layers have no reset=",
        ),
    ),
    "robots, float32": (
        Work("lstm", 24, 4096, 64, 256, torch.float32, trains=True, tf32=True, tf32_products=True),
        "reset",
        ("stepwise, 32 rows a program, 32 units, torch product, 4 warps, tf32", "unmeasured"),
        ("stepwise, 32 rows a program, 32 units, torch product, 4 warps, tf32", "torch's layers have no reset="),
    ),
    "sampling": (
        Work("lstm", 1, 64, 512, 512, torch.float32, layers=3, tf32=True),
        None,
        ("torch", "a single step keeps nothing on chip: torch takes less to call"),
        ("torch", "a single step keeps nothing on chip: torch takes less to call"),
    ),
    "decoding": (
        Work("lstm", 1, 32, 640, 640, HALF),
        None,
        ("torch", "a single step keeps nothing on chip: torch takes less to call"),
        ("torch", "a single step keeps nothing on chip: torch takes less to call"),
    ),
}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_what_is_planned_for_applications(name: str) -> None:
    work, beyond_torch, *expected = APPLICATIONS[name]
    for facts, (how, reason) in zip((H100, KNOWN), expected, strict=True):
        chosen = plan(work, facts, beyond_torch)
        assert str(chosen) == how
        assert reason in chosen.reason


def test_a_single_step_is_ours_where_that_was_measured_to_be_faster() -> None:
    """As where torch would pack weights anew at every call; a record holds for steps as few as it has."""
    work, *_ = APPLICATIONS["decoding"]
    best = tuple({"strategy": "stepwise", "tile": 32, "units": 16}.items())
    facts = replace(H100, records=(Record(work, (("torch", 2.0), ("stepwise", 1.0)), best),))
    assert plan(work, facts).strategy == "stepwise"
    assert plan(replace(work, steps=2), facts).strategy == "stepwise"
    assert plan(work, replace(facts, records=())).strategy == "torch"


def turns(plan: Plan, batch: int) -> int:
    """How many batch tiles a group of programs computes, one after the other."""
    tiles = cdiv(batch, plan.tile)
    return cdiv(tiles, plan.groups or tiles)


def test_groups_of_programs_take_batch_tiles_in_turns() -> None:
    """Where more tiles than there is room for at once are to be computed; as few groups as need no more turns."""
    for cell, batch, hidden, directions in product(CELLS, (1, 64, 100, 513, 4096), (64, 256, 640, 1024), (1, 2)):
        work = Work(cell, 24, batch, 64, hidden, torch.bfloat16, directions)
        for facts in (H100, A100):
            spreads = [p for p in candidates(work, facts) if p.strategy == "grid"]
            assert bool(spreads) == (directions * cdiv(hidden, 16) <= facts.sm_count)
            for found in spreads:
                group = cdiv(hidden, found.units) * directions
                tiles, most = cdiv(batch, found.tile), facts.sm_count // group
                assert 1 <= (found.groups or tiles) <= most
                assert turns(found, batch) == cdiv(tiles, most)
                assert (found.groups == 0) == (tiles <= most)
                if found.groups > 1:
                    assert turns(replace(found, groups=found.groups - 1), batch) > turns(found, batch)
                assert programs(found, work) == (found.groups or tiles) * group


def test_a_batch_of_several_turns_takes_as_many_times_as_long() -> None:
    work = Work("lstm", 24, 512, 64, 256, torch.bfloat16)
    grids = [p for p in candidates(work, KNOWN) if p.strategy == "grid" and p.groups]
    assert grids
    for found in grids:
        one = step_seconds(replace(found, groups=0), replace(work, batch=found.groups * found.tile), KNOWN)
        assert step_seconds(found, work, KNOWN) == pytest.approx(turns(found, 512) * one)
    chosen = choose(hidden=256, batch=1024, facts=KNOWN)
    assert chosen.groups == 16
    how = "grid, 32 rows a program, 32 units, weights in registers, batch tiles in turns by 16 groups, 8 warps, ieee"
    assert str(chosen) == how


def test_a_record_of_a_batch_in_turns_holds_for_fewer_rows() -> None:
    """What was tuned for 1024 rows is right for 600, which are fewer tiles than its groups, and fits the device."""
    work = Work("lstm", 24, 1024, 64, 256, torch.bfloat16)
    tuned = replace(choose(hidden=256, batch=1024, facts=KNOWN), reason="")
    of_plan = tuple((f.name, getattr(tuned, f.name)) for f in fields(Plan) if f.name != "reason")
    facts = replace(H100, records=(Record(work, (("torch", 2.0), ("grid", 1.0)), of_plan),))
    fewer = replace(work, batch=513)
    chosen = plan(fewer, facts)
    assert (chosen.strategy, chosen.groups) == ("grid", 16)
    assert programs(chosen, fewer) == 16 * 8
    assert programs(chosen, replace(work, batch=3 * 32)) == 3 * 8


def test_plans_are_values() -> None:
    assert choose() == choose()
    assert str(choose()) == "resident, 16 rows a program, 8 warps, ieee"
    assert (
        str(choose(hidden=512, facts=KNOWN)) == "grid, 16 rows a program, 8 units, weights in registers, 8 warps, ieee"
    )
    stepwise = choose(hidden=512, steps=1)
    assert str(stepwise) == "stepwise, 16 rows a program, 16 units, fused product, 4 warps, ieee"
    assert not stepwise.graphs  # no GPU has shown yet
    assert str(replace(stepwise, graphs=True)) == f"{stepwise}, replayed as a graph"
    assert "graph" not in str(replace(stepwise, graphs=True, product="torch"))
    assert str(replace(choose(), graphs=True)) == str(choose())
    with pytest.raises(AttributeError):
        choose().tile = 32


def test_a_plan_can_be_forced() -> None:
    usual = choose()
    with forced(strategy="stepwise", units=64):
        assert choose() == replace(usual, strategy="stepwise", units=64, reason="forced")
        assert choose(facts=T4).strategy == "stepwise"
        with forced(tile=32):
            assert (choose().strategy, choose().tile) == ("stepwise", 32)
        assert choose().tile == 16
    with forced(strategy="grid"):
        small = choose(hidden=64, steps=1)
        assert (small.strategy, small.units, small.split, small.reason) == ("grid", 8, 4, "forced")
        assert choose(hidden=5000).strategy == "grid"  # which its launch will refuse
        assert small.exchange == "barrier"
    with forced(strategy="grid", exchange="data"):
        how = "grid, 16 rows a program, 8 units, weights in registers, data polled, 8 warps, ieee"
        assert str(choose(hidden=512)) == how
    assert choose() == usual
    with pytest.raises(TypeError, match="tiles"), forced(tiles=3):
        pass


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows whenever plans walk over all that there are; none is remembered yet."""
    found, spreads = [], model.spreads
    monkeypatch.setattr(model, "spreads", lambda *args: [*spreads(*args), found.append(args)][:-1])
    monkeypatch.setattr(planning, "_plans", {})
    return found


def test_plans_are_remembered(walks: list[object]) -> None:
    work = Work("lstm", 100, 16, 64, 512, torch.bfloat16)
    for function in (plan, plan_kernels):
        once = function(work, KNOWN)
        assert len(walks) == 1
        assert function(replace(work), KNOWN) is once
        assert len(walks) == 1
        assert function(replace(work, batch=17), KNOWN) != once
        walks.clear()


def test_other_facts_are_planned_anew(walks: list[object]) -> None:
    """As after tuning, which has the facts of a device read again; and equal ones can be others by then."""
    work = Work("lstm", 100, 16, 64, 512, torch.bfloat16)
    assert plan(work, KNOWN).strategy == "grid"
    record = Record(replace(work, layers=1), (("torch", 1.0), ("stepwise", 0.1)), (("strategy", "stepwise"),))
    tuned = replace(KNOWN, records=(record,))
    assert plan(work, tuned).strategy == "stepwise"
    assert plan(work, KNOWN).strategy == "grid"
    assert plan(work, replace(KNOWN)) == plan(work, KNOWN)
    with forced(units=16):
        assert plan(work, KNOWN).units == 16
        with forced(units=32):
            assert plan(work, KNOWN).units == 32
    assert plan(work, KNOWN).units == 8


def test_memory_of_plans_has_an_end(monkeypatch: pytest.MonkeyPatch, walks: list[object]) -> None:
    monkeypatch.setattr(planning, "MOST_PLANS", 3)
    plans = [choose(steps=steps) for steps in range(8, 18)]
    assert plans == [choose(steps=steps) for steps in range(8, 18)]
    assert len(planning._plans) <= 3


def test_where_all_is_forced_nothing_is_walked_over(walks: list[object]) -> None:
    (spread,) = {type(s) for s in model.spreads("nvidia", (9, 0), 4, 4, 16, 512, 2, 1, 132, 227 * 1024)}
    walks.clear()
    usual = choose(hidden=512, facts=KNOWN)
    assert len(walks) == 1
    shape = {field.name: getattr(usual, field.name) for field in fields(spread) if field.name != "programs"}
    with forced(strategy="grid", **shape):
        assert choose(hidden=512, facts=KNOWN) == replace(usual, reason="forced")
        assert len(walks) == 1
    del shape["warps"]
    with forced(strategy="grid", **shape):
        assert choose(hidden=512, facts=KNOWN) == replace(usual, reason="forced")
        assert len(walks) == 2


def test_a_compiler_can_look_into_it() -> None:
    """Without breaking its graph: layers are planned while they are compiled."""

    def planned(x: torch.Tensor) -> torch.Tensor:
        return x + len(choose(hidden=x.shape[0]).reason) + len(choose(hidden=512, beyond_torch="reset").strategy)

    x = torch.zeros(20)
    assert torch.equal(torch.compile(planned, fullgraph=True, backend="eager")(x), planned(x))
