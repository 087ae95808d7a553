"""Which layers are measured on a GPU, and in which order."""

from bench.gpu import cases
from bench.gpu.cases import Selection


def test_the_grid_has_every_size_with_every_other() -> None:
    grid = cases.tasks(Selection(parts=["forward", "training"], cells=["lstm"]))
    shapes = {task.shape for task in grid}
    assert len(shapes) == 4 * 6 * 2
    assert all(shape.input == shape.hidden for shape in shapes)
    kinds = {(task.dtype, task.tf32) for task in grid}
    assert kinds == {("float16", None), ("bfloat16", None), ("float32", False), ("float32", True)}
    assert len(grid) == len(set(grid)) == len(shapes) * len(kinds)
    assert all(task.modes == ("inference", "training") for task in grid)
    assert grid[0].shape.steps == 128 < grid[-1].shape.steps  # if time runs out, it does among the longest


def test_parts_are_modes_and_benchmarks() -> None:
    def kinds(*parts: str) -> set[tuple[str, tuple[str, ...], bool]]:
        made = cases.tasks(Selection(parts=parts, dtypes=["float16"]))
        return {(t.benchmark, t.modes, t.shape.layers * t.shape.directions > 1) for t in made}

    both = ("inference", "training")
    assert kinds("forward") == {("layer", ("inference",), False)}
    assert kinds("training") == {("layer", ("training",), False)}
    assert kinds("stacks") == {("layer", both, True)}
    assert kinds("reset", "packed") == {("reset", both, False), ("packed", both, False)}
    assert kinds("recorded") == {("recorded", both, False)}
    assert kinds("latency") == set()
    assert kinds("lean") == set()  # float16 is not among its kinds of numbers


def test_targets_come_first_and_nothing_twice() -> None:
    """In the first third, after which the time may be up, there is something of everything."""
    own = cases.tasks(Selection(parts=["targets"]))
    assert [(task.shape, task.dtype) for task in own[:2]] == [
        (cases.PUBLISHED, "bfloat16"),
        (cases.PUBLISHED, "float16"),
    ]
    layers = [task for task in own if task.benchmark == "layer" and task.dtype != "float16"]
    assert {(task.dtype, task.tf32) for task in layers} == {("bfloat16", None), ("float32", True)}
    for cell in ("lstm", "gru"):
        for kind in ("bfloat16", "float32"):
            shapes = {task.shape for task in layers if (task.cell, task.dtype) == (cell, kind)}
            assert {shape.hidden for shape in shapes} == {256, 512, 768, 1024}
            assert {shape.batch for shape in shapes} == {1, 16, 64}
            assert {shape.steps for shape in shapes} == {128, 1024}
            assert {(shape.layers, shape.directions) for shape in shapes} == {(1, 1), (2, 1), (1, 2)}
            assert len(shapes) == 4 * 6
    assert own[2].dtype == "bfloat16"
    assert {task.dtype for task in own if task.benchmark != "layer"} == {"bfloat16"}
    early = own[: len(own) // 3]
    assert {task.benchmark for task in early} == {"layer", "packed", "reset"}
    assert {task.dtype for task in early} == {"bfloat16", "float16", "float32"}
    everything = cases.tasks(Selection())
    assert everything[: len(own)] == own
    assert len(everything) == len(set(everything))
    assert not cases.tasks(Selection(parts=["targets"], cells=["rnn_tanh"]))
    only = cases.tasks(Selection(parts=["targets"], cells=["gru"], dtypes=["float32"], tf32=["on"]))
    assert {(task.cell, task.dtype, task.tf32) for task in only} == {("gru", "float32", True)}
    assert len(cases.tasks(Selection(parts=["reset"], tf32=["on"]))) == 2 * 2 * 3
    first = cases.tasks(Selection(parts=["first"], dtypes=["bfloat16"]))
    assert [(task.cell, task.shape) for task in first] == [(c, s) for c in ("lstm", "gru") for s in cases.FIRST]


def test_applications_are_what_people_use_layers_for() -> None:
    own = cases.tasks(Selection(parts=["applications"]))
    assert [str(task) for task in own] == [
        "state gru B64 T100 I7168 H768 L5 bfloat16",
        "layer gru B100 T10000 I128 H128 L2 D2 float16",
        "layer gru B100 T10000 I256 H256 L2 D2 float16",
        "reset lstm B4096 T24 I64 H256 bfloat16",
        "reset lstm B4096 T24 I64 H256 float32 TF32",
        "reset lstm B4096 T24 I64 H256 float32 no TF32",
        "state lstm B64 T1 I512 H512 L3 float32 TF32",
        "state lstm B32 T1 I640 H640 bfloat16 in a graph",
    ]
    assert {len(task.modes) for task in own} == {1}
    assert not cases.tasks(Selection(parts=["applications"], cells=["rnn_tanh"]))
    assert len(cases.tasks(Selection(parts=["applications"], dtypes=["float32"], tf32=["on"]))) == 2
