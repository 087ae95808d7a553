"""Tuning on CPUs: what is measured there, kept, and followed on every route."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from accuracy import if_torch_can
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn import _C, _contest, _cpu
from fastrnn.__main__ import main
from fastrnn.kernels import measured
from fastrnn.kernels.measured import Record, Work

T, B, I, H = 12, 5, 24, 40  # noqa: E741
TUNE = sys.modules["fastrnn.tune"]
WORK = Work("lstm", T, B, I, H, torch.float32)
USUAL = (("strategy", "usual"), ("teams", 1), ("shares", 1))
LENGTHS = torch.tensor([12, 3, 7, 12, 1])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path))
    monkeypatch.setattr(_contest, "TURN", 1e-4)
    _cpu.forget()
    yield
    monkeypatch.undo()
    _cpu.forget()


def keep(work: Work, torchs: float = 1.0, ours: float = 2.0, choices: tuple[Any, ...] = USUAL, **on: str) -> None:
    """Have it been measured."""
    facts = _cpu.facts()
    strategy = str(dict(choices)["strategy"])
    identity = _cpu.identity(facts.threads, facts.cores) | {name.replace("_", "'"): value for name, value in on.items()}
    measured.append(Record(work, (("torch", torchs), (strategy, ours)), choices), identity)
    _cpu.forget()


def plain(net: nn.Module, x: Tensor) -> Tensor:
    return net(x)[0]


def without_gradients(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x)[0]


def batch_first(net: nn.Module, x: Tensor) -> Tensor:
    net.batch_first = True
    with torch.no_grad():
        return net(x.transpose(0, 1))[0]


def with_state(net: nn.Module, x: Tensor) -> Tensor:
    h = torch.linspace(-1, 1, B * H).reshape(1, B, H)
    with torch.no_grad():
        return net(x, (h, h) if isinstance(net, nn.LSTM) else h)[1][0]


def packed(net: nn.Module, x: Tensor) -> Tensor:
    return pad_packed_sequence(net(pack_padded_sequence(x, LENGTHS, enforce_sorted=False))[0])[0]


def lengths(net: nn.Module, x: Tensor) -> Tensor:
    return net(x, lengths=LENGTHS)[0] if isinstance(net, fastrnn.nn.Fast) else packed(net, x)


def streamed(net: nn.Module, x: Tensor) -> Tensor:
    return fastrnn.stream(net)(x) if isinstance(net, fastrnn.nn.Fast) else without_gradients(net, x)


def autocast(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu"):
        return net(x)[0]


def gradient(net: nn.Module, x: Tensor) -> Tensor:
    return torch.autograd.grad(net(x)[0].square().sum(), net.weight_hh_l0)[0]


ROUTES: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], Work]] = {
    "plain": (plain, replace(WORK, trains=True)),
    "gradient": (gradient, replace(WORK, trains=True)),
    "without gradients": (without_gradients, WORK),
    "batch first": (batch_first, WORK),
    "with a state": (with_state, WORK),
    "packed": (packed, replace(WORK, trains=True, packed=True)),
    "lengths": (lengths, replace(WORK, trains=True, packed=True)),
    "stream": (streamed, WORK),
    "autocast": (autocast, replace(WORK, dtype=torch.bfloat16)),
}


def pair(name: str, *options: Any, **more: Any) -> tuple[nn.Module, nn.Module]:
    """A layer of ours and torch.nn's, with the same weights."""
    ours, stock = getattr(fastrnn, name)(I, H, *options, **more), getattr(nn, name)(I, H, *options, **more)
    stock.load_state_dict(ours.state_dict())
    return ours, stock


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("route", ROUTES)
def test_a_record_is_followed_on_every_route(route: str, cell: str) -> None:
    """Torch's bits, which are not ours, where torch was measured to be faster."""
    run, work = ROUTES[route]
    if cell == "GRU" and route == "autocast":
        pytest.skip("torch computes it in two dtypes, which no record is of")
    (ours, stock), x = pair(cell), torch.randn(T, B, I)
    before, theirs = run(ours, x), if_torch_can(lambda: run(stock, x))
    if theirs is None:
        pytest.skip("torch has no kernel for it on this CPU")
    assert not torch.equal(before, theirs)
    keep(replace(work, cell=cell.lower()))
    assert torch.equal(run(ours, x), theirs)
    with fastrnn.own_numbers(True):
        assert torch.equal(run(ours, x), before)
    assert torch.equal(run(ours, x), theirs)


@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_torch_is_called_by_a_short_route(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Without fastrnn's checks and plan in between, which C++ has made."""
    (ours, stock), x = pair(name), torch.randn(*((B, I) if name == "GRUCell" else (T, B, I)))
    steps = {"cell": "gru", "steps": 1, "layers": 0} if name == "GRUCell" else {}
    keep(replace(WORK, **steps))
    monkeypatch.setattr(fastrnn.nn, "lstm", None)
    monkeypatch.setattr(fastrnn.functional, "_step", None)
    with torch.no_grad():
        assert torch.equal(ours(x)[0], stock(x)[0])


def test_stacks_of_both_directions_and_bare_ones() -> None:
    for options in ({"num_layers": 2, "bidirectional": True}, {"bias": False}):
        (ours, stock), x = pair("LSTM", **options), torch.randn(T, B, I)
        keep(replace(WORK, layers=options.get("num_layers", 1), directions=2 if len(options) > 1 else 1))
        with torch.no_grad():
            (y, state), (expected, after) = ours(x), stock(x)
            alone, (h, _) = ours(x[:, 0])  # one sequence is work of its own
        assert all(torch.equal(*two) for two in zip((y, *state), (expected, *after), strict=True))
        assert alone.shape == (T, y.shape[-1])
        assert h.dim() == 2


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell"])
def test_cells(name: str, trains: bool) -> None:
    """By default, steps with gradients and those of many rows are torch's; records decide both ways."""
    work = Work(name.removesuffix("Cell").lower(), 1, B, I, H, torch.float32, layers=0, trains=trains)
    (ours, stock), x = pair(name), torch.randn(B, I)

    def run(net: nn.Module) -> Tensor:
        with torch.set_grad_enabled(trains):
            found = net(x)
        return found[0] if isinstance(found, tuple) else found

    assert torch.equal(run(ours), run(stock)) == trains
    keep(work, 1.0, 2.0)
    assert torch.equal(run(ours), run(stock))
    keep(work, 2.0, 1.0)
    assert not torch.equal(run(ours), run(stock))


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_a_single_step_of_a_layer_is_work_of_its_own(cell: str) -> None:
    (ours, stock), x = pair(cell), torch.randn(1, B, I)
    keep(replace(WORK, cell=cell.lower()))
    assert not torch.equal(without_gradients(ours, x), without_gradients(stock, x))
    keep(replace(WORK, cell=cell.lower(), steps=1))
    assert torch.equal(streamed(ours, x), without_gradients(stock, x))


def test_what_stays_ours() -> None:
    (ours, stock), x = pair("LSTM"), torch.randn(T, B, I)
    for trains in (False, True):
        keep(replace(WORK, trains=trains))
        keep(replace(WORK, trains=trains, packed=True))
    y, theirs = plain(ours, x), plain(stock, x)
    assert torch.equal(y, theirs)
    never = torch.zeros(T, B, dtype=torch.bool)
    assert not torch.equal(ours(x, reset=never)[0], theirs)
    mapped = torch.func.vmap(ours, in_dims=2, out_dims=2)(x.unsqueeze(2))[0]
    assert mapped.shape == (T, B, 1, H)
    ours.tape = "lean"
    assert not torch.equal(plain(ours, x), theirs)
    (layer,) = fastrnn.explain(ours, x).layers
    assert layer.reason.startswith("layer.tape = 'lean' keeps less for backward: torch is ")
    ours.tape = "full"
    exported = torch.export.export(ours, (x,)).module()
    assert not torch.equal(exported(x)[0], theirs)
    with torch.no_grad():
        halves = fastrnn.convert(nn.LSTM(I, H), weight_dtype=torch.bfloat16)
        assert fastrnn.explain(halves, x).layers[0].engine == "cpu"


def test_compiled_programs_stay_ours() -> None:
    (ours, stock), x = pair("GRU"), torch.randn(T, B, I)
    keep(replace(WORK, cell="gru"))
    with torch.no_grad():
        compiled = torch.compile(ours, backend="eager", fullgraph=True)
        assert not torch.equal(compiled(x)[0], stock(x)[0])


@pytest.mark.parametrize(
    ("seconds", "engine", "reason"),
    [
        ((1.0, 2.0), "torch", "2.00 times as fast as the C++ engine"),
        ((1.0, 1.02), "cpu", "0.98 times as fast as torch"),  # which noise may be
        ((3.0, 2.0), "cpu", "1.50 times as fast as torch"),
    ],
)
def test_what_explain_says(seconds: tuple[float, float], engine: str, reason: str) -> None:
    net, x = fastrnn.LSTM(I, H), torch.randn(T, B, I)
    keep(WORK, *seconds)
    with torch.no_grad():
        (layer,) = fastrnn.explain(net, x).layers
        assert layer.engine == engine
        assert layer.reason == f"{reason}, tuned on this CPU at (B, T, I, H) = (5, 12, 24, 40)"
        with fastrnn.own_numbers(True):
            (layer,) = fastrnn.explain(net, x).layers
    assert layer.engine == "cpu"
    assert layer.reason.startswith("fastrnn.own_numbers is on: torch is 2.00 times") == (engine == "torch")
    (layer,) = fastrnn.explain(net, x).layers  # in training
    assert layer.reason == "a CPU tensor of a dtype that the C++ engine takes"


def test_where_ours_was_wrong_torch_computes() -> None:
    facts = _cpu.facts()
    measured.append(Record(WORK, (("torch", 1.0),), ()), _cpu.identity(facts.threads, facts.cores))
    _cpu.forget()
    with torch.no_grad():
        (layer,) = fastrnn.explain(fastrnn.LSTM(I, H), torch.randn(T, B, I)).layers
    assert layer.engine == "torch"
    assert layer.reason.startswith("the C++ engine was not right, tuned on this CPU")


def test_another_machine_or_other_threads() -> None:
    net, x = fastrnn.LSTM(I, H), torch.randn(T, B, I)

    def engine() -> str:
        with torch.no_grad():
            return fastrnn.explain(net, x).layers[0].engine

    for on in ({"cpu": "another"}, {"isa": "another"}, {"torch_s": "another"}, {"fastrnn": "0"}, {"cores": "99"}):
        keep(WORK, **on)
        assert engine() == "cpu", on
    keep(WORK)
    assert engine() == "torch"
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert engine() == "cpu"
        assert not torch.equal(without_gradients(net, x), nn.LSTM.forward(net, x)[0])
    finally:
        torch.set_num_threads(before)
    assert engine() == "torch"


def test_what_caps_torch_is_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _cpu.CAPS:
        monkeypatch.delenv(name, raising=False)
    before = _cpu.identity(2, 2)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    after = _cpu.identity(2, 2)
    assert {name for name in before if before[name] != after[name]} == {"torch's"}
    assert after["torch's"].endswith(", ONEDNN_MAX_CPU_ISA=AVX2")
    monkeypatch.setattr(torch._C, "_get_mkldnn_enabled", lambda: False)
    assert "oneDNN off" in _cpu.identity(2, 2)["torch's"]


def test_a_processor_has_a_name_wherever_it_is(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nmodel name\t: no\n")
    assert _cpu._name(file) == "AMD EPYC (cpu family 25, model 17)"
    assert _cpu._name(tmp_path / "none")


def test_the_engine_finds_what_python_finds() -> None:
    """Random records and works: one rule, in two languages."""
    random, threads = Random(0), torch.get_num_threads()
    cores = min(threads, _C.cpu_cores())

    def work() -> Work:
        sizes = (random.choice((1, 2, 5, 15, 16, 17, 60)), random.randint(1, 12), random.choice((3, 6, 7, 12, 13)), 8)
        cell, directions, layers = random.choice(("lstm", "gru")), random.randint(1, 2), random.randint(0, 2)
        return Work(cell, *sizes, torch.float32, directions, layers, trains=random.random() < 0.5)

    records = [Record(work(), (("torch", 1.0), ("usual", random.choice((0.5, 2.0)))), USUAL) for _ in range(300)]
    records = [*measured.latest(records)]
    _cpu._tell({(threads, cores): tuple(records)})
    seen = set()
    for _ in range(2000):
        wanted = work()
        found = _cpu._find(records, wanted)
        expected = "as ever" if found is None else "torch" if _cpu._faster(found).strategy == "torch" else "ours"
        sizes = (wanted.steps, wanted.batch, wanted.inputs, wanted.hidden)
        kind = (wanted.cell, "float32", wanted.directions, wanted.layers, int(wanted.trains), 0)
        assert _C.cpu_whose(*kind, sizes, threads) == expected, wanted
        seen.add(expected)
    assert seen == {"as ever", "torch", "ours"}


def test_splits_are_followed_and_change_no_bit() -> None:
    net, x = fastrnn.LSTM(I, H), torch.randn(T, B, I)
    expected = without_gradients(net, x)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for strategy, shares in (("rows", 3), ("units", 2), ("rows", 1)):
            keep(WORK, 2.0, 1.0, (("strategy", strategy), ("teams", 1), ("shares", shares)))
            with torch.no_grad():
                kernel = fastrnn.explain(net, x).layers[0].kernel
            how = f"{strategy} split over {shares} threads" if shares > 1 else "one thread"
            assert kernel.startswith(f"{_C.cpu_isa()} on ")
            assert kernel.endswith(f", {how}")
            assert torch.equal(without_gradients(net, x), expected)
        keep(WORK, 2.0, 1.0, (("strategy", "rows"), ("teams", 2), ("shares", 2)))  # of one direction
        assert torch.equal(without_gradients(net, x), expected)
    finally:
        torch.set_num_threads(before)


def test_tuning() -> None:
    net, x = fastrnn.GRU(I, H, bidirectional=True), torch.randn(T, B, I)
    results = TUNE.tune_works(TUNE.works_of(net, (x,), {}, (False, True)), 0.01).results
    work = Work("gru", T, B, I, H, torch.float32, directions=2)
    assert [result.record.work for result in results] == [work, replace(work, trains=True)]
    for result in results:
        assert not result.left_out
        times = dict(result.record.seconds)
        assert {"torch", "usual"} <= set(times)
        assert times["usual"] > 0
        assert result.chosen is not None
    assert _cpu.facts().records == tuple(result.record for result in results)
    assert fastrnn.explain(net, x).layers[0].reason.endswith("tuned on this CPU at (B, T, I, H) = (5, 12, 24, 40)")


def test_ways_are_timed_on_the_threads_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not on one, as torch's timers have it."""
    seen, run = set(), _contest.Case.run

    def count(self: _contest.Case) -> _contest.Results:
        seen.add(torch.get_num_threads())
        return run(self)

    monkeypatch.setattr(_contest.Case, "run", count)
    _contest.Here(WORK, torch.device("cpu")).trial(None)
    assert seen == {torch.get_num_threads()}


def test_candidates_are_different_ways() -> None:
    facts = replace(_cpu.facts(), threads=4, cores=4)
    ways = [str(plan) for plan in _cpu.candidates(replace(WORK, batch=64), facts)]
    assert ways[0] == "usual"
    assert len({*ways}) == len(ways)
    assert len(ways) >= 4
    alone = _cpu.candidates(WORK, replace(facts, threads=1, cores=1))
    assert [str(plan) for plan in alone] == ["usual"]
    both = [str(plan) for plan in _cpu.candidates(replace(WORK, batch=64, directions=2), facts)]
    assert any(way.startswith("a team of threads a direction, ") for way in both)


def test_what_is_wrong_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run = _contest.Case.run
    plans = [_cpu.Plan("usual"), _cpu.Plan("rows", shares=1)]
    monkeypatch.setattr(_cpu, "candidates", lambda work, facts: iter(plans))

    def off(self: _contest.Case) -> _contest.Results:
        outputs, gradients = run(self)
        wrong = _cpu._forced is not None and _cpu._forced.strategy == "rows"
        return [y * 1.00001 for y in outputs] if wrong else outputs, gradients

    monkeypatch.setattr(_contest.Case, "run", off)
    (result,) = TUNE.tune_works([(WORK, torch.device("cpu"))], 0.01).results
    assert list(result.left_out) == [plans[1]]
    assert result.left_out[plans[1]].startswith("ArithmeticError: an output is off by ")
    (line,) = measured.cache_file().read_text().splitlines()
    assert json.loads(line)["left_out"][0]["strategy"] == "rows"
    assert str(dict(result.record.choices)["strategy"]) == "usual"


def test_noise_does_not_choose() -> None:
    took = {None: 1.0, "usual": 1.0, "rows": 0.98, "units": 0.9}

    class Ways:
        def __init__(self, units: float) -> None:
            took["units"] = units

        def trial(self, plan: _cpu.Plan | None) -> float:
            return took[plan.strategy if plan else None]

        def turn(self, plan: _cpu.Plan | None, once: float) -> float:
            return once

        def check(self, plan: _cpu.Plan) -> None:
            return None

    facts = replace(_cpu.facts(), threads=4, cores=4)
    work = replace(WORK, batch=64, hidden=512)
    for units, expected in ((0.9, "units"), (0.98, "usual")):
        result = _contest.contest(work, facts, Ways(units), 0.001, lambda what: None)
        assert dict(result.record.choices)["strategy"] == expected


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_what_is_tuned_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Work] = []
    monkeypatch.setattr(TUNE, "tune_works", lambda works: found.extend(work for work, _ in works))
    with torch.no_grad():
        fastrnn.tune(fastrnn.GRUCell(I, H), torch.zeros(B, I))
        fastrnn.tune(fastrnn.LSTM(I, H), torch.zeros(1, B, I))
        with torch.autocast("cpu"):
            fastrnn.tune(fastrnn.LSTM(I, H), torch.zeros(T, B, I))
    assert found == [
        Work("gru", 1, B, I, H, torch.float32, layers=0),
        Work("lstm", 1, B, I, H, torch.float32),
        replace(WORK, dtype=torch.bfloat16),
    ]
    halves = fastrnn.convert(nn.LSTM(I, H), weight_dtype=torch.bfloat16)
    for model in (halves, fastrnn.LSTM(I, H, proj_size=3), nn.LSTM(I, H)):
        with torch.no_grad(), pytest.raises(ValueError, match="given tensors that its engines compute"):
            fastrnn.tune(model, torch.zeros(T, B, I))


def test_cells_are_drawn() -> None:
    for name in ("lstm", "gru", "rnn_relu"):
        work = Work(name, 1, B, I, H, torch.float32, layers=0, trains=True)
        (result,) = TUNE.tune_works([(work, torch.device("cpu"))], 0.005).results
        assert not result.left_out
        assert str(work).startswith(f"{name} (B, T, I, H) = (5, 1, 24, 40) cell, float32")


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fastrnn", "tune", *arguments])
        return main()

    shape = ["--shape", "2,3,4,5", "--device", "cpu", "--seconds", "0.01", "--mode", "inference"]
    assert run(*shape) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("lstm (B, T, I, H) = (2, 3, 4, 5), float32, inference ")
    assert run("--device", "cpu", "--list") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("lstm (B, T, I, H) = (2, 3, 4, 5), float32, inference: torch ")
    assert line.endswith("(tuned on this CPU)")
    before = torch.get_num_threads()
    try:
        assert run("--device", "cpu", "--threads", "3", "--list") == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert capsys.readouterr().out == ""
    if not torch.cuda.is_available():
        assert run(*shape[:2], "--device", "0") == 2
        assert "there is no GPU that torch can use" in capsys.readouterr().err


def test_the_first_call_of_a_process_finds_records() -> None:
    """Nothing is read when fastrnn is imported, and by all routes when it first computes."""
    program = (
        "import torch, fastrnn\n"
        "from fastrnn import _C, _cpu\n"
        "assert _C.cpu_tuned() and _cpu._records.cache_info().currsize == 0\n"
        f"net, x = fastrnn.LSTM({I}, {H}), torch.randn({T}, {B}, {I})\n"
        "with torch.no_grad():\n"
        "    assert torch.equal(net(x)[0], torch.nn.LSTM.forward(net, x)[0]) is {expected}\n"
        "assert _C.cpu_tuned() is {expected}\n"
    )
    run = partial(subprocess.run, check=True)
    run([sys.executable, "-c", program.replace("{expected}", "False")])
    threads = torch.get_num_threads()
    cores = subprocess.run(
        [sys.executable, "-c", "from fastrnn import _C; print(_C.cpu_cores())"], capture_output=True, check=True
    )
    on = _cpu.identity(threads, min(threads, int(cores.stdout)))
    measured.append(Record(WORK, (("torch", 1.0), ("usual", 2.0)), USUAL), on)
    run([sys.executable, "-c", program.replace("{expected}", "True")])
