"""Trains a workload with torch.nn and with fastrnn, compares, times: everything that is not the workload's own.

Both models start from the same weights and see the same batches in the same order, in turns, update by update, in one
process. That they compute the same is checked in three ways, and what fails one of them is reported as not the same:

1. before training and after it, losses and gradients of updates are as close to float64 as torch.nn's own;
2. torch.nn's trained weights, loaded into fastrnn, give the held-out items the losses that torch.nn gives them, as
   measured against float64;
3. the two trained models give held-out items the same losses, within what rounding does to torch.nn
   (:mod:`bench.rounding`): a third model, torch.nn's, begins one rounding unit away and is trained alike, untimed.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial

import torch
from torch import nn

from bench import results
from bench.check import MismatchError
from bench.rounding import Deviation, deviation, moved_by_rounding
from bench.timing import Times, in_turns, no_collection
from bench.workloads import memory, processes
from bench.workloads.equality import check_losses, check_updates
from bench.workloads.learner import Learner, Rates, require_finite, train
from bench.workloads.workload import Evaluation, Workload

TORCH, OURS, MOVED = results.BASELINE, "fastrnn", "torch.nn, one rounding unit away"
REMEMBERED = 2  # updates whose memory is measured: the second has the optimiser's averages
PEAKS = 3  # times that it is measured: the median counts
EVALUATIONS = 3  # of which the fastest is kept
Report = Callable[[float, str], None]  # takes how much is done, from 0 to 1, and what there is to say


def run(workload: type[Workload], options: argparse.Namespace, report: Report) -> results.Row:
    """Check, train, evaluate; the row that says what was found, with ``detail["mismatches"]`` empty if all is the same.

    Args:
        workload: which.
        options: what its parser made of the command line (:func:`bench.workloads.command.parser`).
        report: hears of the progress.

    Raises:
        DataError: the data cannot be used.
        DivergedError: torch.nn itself learns nothing.
        MismatchError: the first updates are not the same, or fastrnn alone diverges.
    """
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    report(0, "reading")
    work = workload(options)
    torch.manual_seed(options.seed)
    model = work.model()
    ours = work.fast(model)
    initial = copy.deepcopy(model)
    report(0, "checking")
    first = check_updates(work, model, ours)
    peaks = _peaks(work, {TORCH: model, OURS: ours})
    rates = Rates(options.learning_rate, options.clip)
    learners = {
        name: Learner(name, made, work, rates)
        for name, made in ((TORCH, model), (OURS, ours), (MOVED, moved_by_rounding(model, seed=1)))
    }
    _train(learners, options, report)
    report(1, "evaluating")
    evaluations, seconds = _evaluate(work, {name: learners[name].model for name in (TORCH, OURS)})
    mismatches, apart, same = _compare(work, learners, initial, evaluations, report)
    with torch.no_grad():
        findings = work.findings({name: learners[name].model.eval() for name in (TORCH, OURS)})
    times = {name: Times.of(learners[name].seconds) for name in (TORCH, OURS)}
    theirs = learners[TORCH].losses
    return results.Row(
        benchmark=work.name,
        case=work.case,
        threads=options.threads,
        times=times,
        provenance=results.Provenance.here_and_now(),
        detail={
            "data": work.describe(),
            "items": work.items,
            "processes": processes.count(),
            "weights": sum(weight.numel() for weight in model.parameters()),
            "updates": len(theirs),
            "first_error_ratio": first,
            "largest_loss_difference": {
                name: max(abs(a - b) for a, b in zip(learners[name].losses, theirs, strict=True))
                for name in (OURS, MOVED)
            },
            "items_per_second": {name: learners[name].items / taken.median for name, taken in times.items()},
            "seconds": {name: sum(learners[name].seconds) for name in times},
            "evaluation_seconds": seconds,
            "peak_bytes": peaks,
            "quality": {name: evaluations[name].qualities for name in times},
            "quality_same_weights": same.qualities,
            "deviation": asdict(apart),
            "findings": findings,
            "mismatches": mismatches,
            "curves": {name: learners[name].curve() for name in times},
        },
    )


def _peaks(work: Workload, models: Mapping[str, nn.Module]) -> dict[str, int | None]:
    """The memory that updates take beside a model: gradients, the optimiser's averages, all that is kept between."""

    def updates(model: nn.Module) -> None:
        learner = Learner("", copy.deepcopy(model), work, Rates(0.0, 1.0))
        for _ in range(REMEMBERED):
            learner.update(0.0)

    found: dict[str, list[int]] = {name: [] for name in models}
    for turn in range(1 + PEAKS):
        for name in in_turns(list(models), turn):
            peak = memory.peak(partial(updates, models[name]))
            if turn > 0 and peak is not None:  # the first time, libraries are loaded
                found[name].append(peak)
    return {name: statistics.median_low(peaks) if peaks else None for name, peaks in found.items()}


def _train(learners: Mapping[str, Learner], options: argparse.Namespace, report: Report) -> None:
    timed = [learners[TORCH], learners[OURS]]
    with no_collection():
        for done in train(timed, [learners[MOVED]], options.updates, options.seconds):
            require_finite(*timed)
            report(done, _progress(timed))


def _progress(learners: Sequence[Learner]) -> str:
    medians = [statistics.median(learner.seconds[-100:]) for learner in learners]
    losses = ", ".join(f"{learner.name} {learner.losses[-1]:.4f}" for learner in learners)
    return f"update {len(learners[0].losses):,}, loss: {losses} ({medians[0] / medians[1]:.2f} times as fast)"


def _evaluate(work: Workload, models: Mapping[str, nn.Module]) -> tuple[dict[str, Evaluation], dict[str, float]]:
    """What each model does with held-out items, and in how many seconds, in turns."""
    found: dict[str, Evaluation] = {}
    fastest: dict[str, float] = {}
    for turn in range(EVALUATIONS):
        for name in in_turns(list(models), turn):
            begin = time.perf_counter()
            found[name] = _evaluation(work, models[name])
            seconds = time.perf_counter() - begin
            fastest[name] = min(seconds, fastest.get(name, seconds))
    return found, fastest


@torch.no_grad()
def _evaluation(work: Workload, model: nn.Module) -> Evaluation:
    torch.manual_seed(0)
    return work.evaluate(model.eval())


def _compare(
    work: Workload,
    learners: Mapping[str, Learner],
    initial: nn.Module,
    evaluations: Mapping[str, Evaluation],
    report: Report,
) -> tuple[list[str], Deviation, Evaluation]:
    """What is not the same of trained models, how far apart they are, and what torch.nn's weights do in fastrnn."""
    baseline, ours = learners[TORCH], learners[OURS]
    same = copy.deepcopy(ours.model)
    same.load_state_dict(baseline.model.state_dict())
    moved = [_evaluation(work, learners[MOVED].model).losses]
    of_same = _evaluation(work, same)
    exact = _evaluation(work, copy.deepcopy(baseline.model).double())
    mismatches = []
    try:
        check_updates(work, baseline.model, same)
    except MismatchError as error:
        mismatches.append(f"updates after training, {error}")
    try:
        check_losses(of_same.losses, evaluations[TORCH].losses, exact.losses)
    except MismatchError as error:
        mismatches.append(str(error))
    apart = deviation(evaluations[OURS].losses, evaluations[TORCH].losses, moved)
    if not apart.is_rounding:
        report(1, "the trained models differ by more than one run says of rounding: training two more, untimed")
        for seed in (2, 3):
            other = Learner(MOVED, moved_by_rounding(initial, seed), work, baseline.rates)
            for learning in baseline.learning:
                other.update(learning)
            moved.append(_evaluation(work, other.model).losses)
        apart = deviation(evaluations[OURS].losses, evaluations[TORCH].losses, moved)
    if not apart.is_rounding:
        mismatches.append(
            f"the trained models' held-out losses differ by {apart.measured:.1e}, where rounding makes torch.nn differ "
            f"by {apart.rounding:.1e} from itself; {apart.tolerance:.1e} is allowed"
        )
    return mismatches, apart, of_same
