"""A language model of characters, trained by torch.nn and by fastrnn side by side (``make demo``).

Both models start from the same weights and see the same batches in the same order, in turns, update by update, in one
process. That they compute the same is checked in three ways, and the program fails if one of them does not hold:

1. before training and after it, logits and gradients of updates are as close to float64 as torch.nn's own;
2. torch.nn's trained weights, loaded into fastrnn, give the held-out characters the losses that torch.nn gives them, as
   measured against float64;
3. the two trained models give the same held-out perplexity, within what rounding does to torch.nn
   (:mod:`bench.rounding`).
"""

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import fastrnn
from bench import corpus, plot, results
from bench.arguments import positive_float, positive_int
from bench.check import MismatchError
from bench.rounding import Deviation, deviation, moved_by_rounding
from bench.timing import Times, no_collection
from bench.workloads import training
from bench.workloads.character_model import LAYERS, CharacterModel, heldout_losses, perplexity, sample
from bench.workloads.equality import check_losses, check_updates

TORCH, OURS, MOVED = results.BASELINE, "fastrnn", "torch.nn, one rounding unit away"
REFRESH = 0.25  # seconds between two looks at the progress
SAMPLED = 400  # characters


@dataclass(frozen=True)
class Outcome:
    """What the comparison found: everything that the table and the results row say."""

    perplexities: dict[str, float]  # held-out, of the models as each trained its own
    same_weights: float  # held-out perplexity of torch.nn's trained weights in fastrnn
    deviation: Deviation
    sampled_per_second: dict[str, float]
    mismatches: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; 0 is success, 1 a difference between fastrnn and torch.nn, 2 a mistake in the arguments."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False)
    try:
        return run(options, console)
    except corpus.CorpusError as error:
        print(f"language_model: {error}", file=sys.stderr)
        return 2
    except training.DivergedError as error:
        console.print(f"[red]{error}: lower the --learning-rate or the --clip[/red]", soft_wrap=True)
        return 1
    except MismatchError as error:
        console.print(f"[red]Not the same, stopped: {error}[/red]", soft_wrap=True)
        return 1


def run(options: argparse.Namespace, console: Console) -> int:
    """Check, train, evaluate, report.

    Raises:
        CorpusError: the text cannot be used.
        DivergedError: torch.nn itself learns nothing.
        MismatchError: the first updates are not the same, or fastrnn alone diverges.
    """
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    text = corpus.load(options.text)
    streams = corpus.Streams(text.train, options.batch, options.steps)
    heldout = corpus.Streams(text.heldout, options.batch, options.steps)
    windows = min(heldout.windows, -(-options.heldout // (options.batch * options.steps)))
    model = CharacterModel(options.cell, len(text.symbols), options.embedding, options.hidden, options.layers)
    trainers = {
        name: training.Trainer(name, made, training.Rates(options.learning_rate, options.clip))
        for name, made in (
            (TORCH, model),
            (OURS, fastrnn.convert(copy.deepcopy(model))),
            (MOVED, moved_by_rounding(model, seed=1)),
        )
    }
    ours = trainers[OURS].model
    initial = copy.deepcopy(model)
    _describe(console, options, text, model)
    ratio = check_updates(model, ours, streams, 0, None)
    first = f"first updates: as close to float64 as torch.nn's (largest error {ratio:.1f} times torch.nn's own)"
    console.print(first, soft_wrap=True)

    _train(console, trainers, streams, options)

    outcome = _evaluate(console, trainers, initial, text, streams, heldout, windows, options)
    row = _row(options, text, trainers, outcome, windows)
    stem = options.out / "language_model"
    results.write(stem.with_suffix(".jsonl"), [row])
    (picture,) = plot.draw([row], options.out, stem.name)
    written, _ = sample(ours, text, SAMPLED, options.temperature, options.seed)
    console.print(Panel(Text(written), title=f"written by the fastrnn model (temperature {options.temperature:g})"))
    console.print(_table(row, outcome))
    console.print(f"picture: {picture}\nresults: {stem.with_suffix('.jsonl')}", soft_wrap=True)
    if not outcome.mismatches:
        same = "The same: updates and held-out losses as close to float64 as torch.nn's, perplexities within rounding."
        console.print(f"[green]{same}[/green]", soft_wrap=True)
    for mismatch in outcome.mismatches:
        console.print(f"[red]Not the same: {mismatch}[/red]", soft_wrap=True)
    return 1 if outcome.mismatches else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.workloads.language_model",
        description="Train a language model of characters with torch.nn and with fastrnn side by side.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--text", type=Path, help="a text file or a folder of text files; else Python's own library")
    parser.add_argument("--cell", choices=list(LAYERS), default="lstm", help="recurrent layers")
    parser.add_argument("--layers", type=positive_int, default=1, help="on top of each other")
    parser.add_argument("--embedding", type=positive_int, default=64, help="features of a character")
    parser.add_argument("--hidden", type=positive_int, default=256, help="units of each layer")
    parser.add_argument("--batch", type=positive_int, default=32, help="streams of text side by side")
    parser.add_argument("--steps", type=positive_int, default=64, help="characters that an update goes back in time")
    parser.add_argument(
        "--learning-rate", type=positive_float, default=6e-3, help="of Adam, at first; it falls to zero"
    )
    parser.add_argument("--clip", type=positive_float, default=1.0, help="largest norm of the gradients")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=positive_float, default=90.0, help="of training, all models together")
    length.add_argument("--updates", type=positive_int, help="of each model, instead of seconds")
    parser.add_argument("--heldout", type=positive_int, default=200_000, help="characters to evaluate on")
    parser.add_argument("--threads", type=positive_int, default=torch.get_num_threads(), help="of torch and fastrnn")
    parser.add_argument("--seed", type=int, default=0, help="of weights and sampling")
    parser.add_argument("--temperature", type=positive_float, default=0.7, help="of sampling: lower is safer")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the picture and the results")
    return parser


def _describe(console: Console, options: argparse.Namespace, text: corpus.Corpus, model: CharacterModel) -> None:
    files = f"{len(text.train_files)} files to train on, {len(text.heldout_files)} held out"
    size = f"{text.train.numel() / 1e6:.1f} + {text.heldout.numel() / 1e6:.1f} million characters"
    console.print(f"text: {text.name} ({files}; {size}, {len(text.symbols)} symbols)", soft_wrap=True)
    weights = sum(weight.numel() for weight in model.parameters())
    console.print(
        f"model: {options.layers} x {options.cell}, {options.hidden} units, {weights:,} weights; updates of "
        f"{options.batch} streams x {options.steps} characters; threads: {options.threads}",
        soft_wrap=True,
    )


def _train(
    console: Console, trainers: dict[str, training.Trainer], streams: corpus.Streams, options: argparse.Namespace
) -> None:
    """Train in turns under a progress bar; where there is no terminal, print a line at each tenth."""
    timed = [trainers[TORCH], trainers[OURS]]
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    # no refreshing thread: it would take the time of the updates that are being measured
    bar = Progress(*columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal)
    updates = training.train(timed, [trainers[MOVED]], streams, options.updates, options.seconds)
    with bar, no_collection():
        task = bar.add_task("", total=1.0)
        shown, tenths = 0.0, 0
        for done in updates:
            training.require_finite(*timed)
            if console.is_terminal and (done >= 1 or time.perf_counter() - shown > REFRESH):
                bar.update(task, completed=done, description=_progress(timed, options, "\n"), refresh=True)
                shown = time.perf_counter()
            elif not console.is_terminal and int(10 * done) > tenths:
                tenths = int(10 * done)
                console.print(f"{done:4.0%} {_progress(timed, options, '  ')}", soft_wrap=True)


def _progress(trainers: Sequence[training.Trainer], options: argparse.Namespace, separator: str) -> str:
    medians = [statistics.median(trainer.seconds) for trainer in trainers]
    parts = [
        f"{trainer.name}: loss {trainer.losses[-1]:.4f}, {options.batch * options.steps / median:,.0f} tokens/s"
        for trainer, median in zip(trainers, medians, strict=True)
    ]
    ratio = f" ({medians[0] / medians[1]:.2f} times as fast)"
    return separator.join([f"update {len(trainers[0].losses):,}", *parts]) + ratio


def _evaluate(
    console: Console,
    trainers: dict[str, training.Trainer],
    initial: CharacterModel,
    text: corpus.Corpus,
    streams: corpus.Streams,
    heldout: corpus.Streams,
    windows: int,
    options: argparse.Namespace,
) -> Outcome:
    """Held-out perplexities, and the checks on trained models."""
    model, ours = trainers[TORCH].model, trainers[OURS].model
    found = {name: heldout_losses(trainer.model, heldout, windows) for name, trainer in trainers.items()}
    same = copy.deepcopy(ours)
    same.load_state_dict(model.state_dict())
    same_losses = heldout_losses(same, heldout, windows)
    exact = heldout_losses(copy.deepcopy(model).double(), heldout, windows)

    mismatches = []
    try:
        k = len(trainers[TORCH].losses)
        check_updates(model, same, streams, k, trainers[TORCH].state)
    except MismatchError as error:
        mismatches.append(f"updates after training, {error}")
    try:
        check_losses(same_losses, found[TORCH], exact)
    except MismatchError as error:
        mismatches.append(str(error))
    apart = deviation(found[OURS], found[TORCH], [found[MOVED]])
    if apart.measured > apart.tolerance:
        console.print("The trained models differ by more than one run says of rounding: training two more, untimed ...")
        more = []
        for seed in (2, 3):
            moved = training.Trainer(MOVED, moved_by_rounding(initial, seed), trainers[TORCH].rates)
            for learning in trainers[TORCH].learning:
                moved.update(streams, learning)
            more.append(heldout_losses(moved.model, heldout, windows))
        apart = deviation(found[OURS], found[TORCH], [found[MOVED], *more])
    if not apart.is_rounding:
        mismatches.append(
            f"the trained models' held-out losses differ by {apart.measured:.1e}, where rounding makes torch.nn differ "
            f"by {apart.rounding:.1e} from itself; {apart.tolerance:.1e} is allowed"
        )
    sampled = {name: sample(trainers[name].model, text, SAMPLED, 1.0, options.seed)[1] for name in (TORCH, OURS)}
    return Outcome(
        perplexities={name: perplexity(found[name]) for name in (TORCH, OURS)},
        same_weights=perplexity(same_losses),
        deviation=apart,
        sampled_per_second={name: SAMPLED / seconds for name, seconds in sampled.items()},
        mismatches=mismatches,
    )


def _row(
    options: argparse.Namespace,
    text: corpus.Corpus,
    trainers: dict[str, training.Trainer],
    outcome: Outcome,
    windows: int,
) -> results.Row:
    times = {name: Times.of(trainers[name].seconds) for name in (TORCH, OURS)}
    torchs = trainers[TORCH].losses
    apart = {
        name: max(abs(a - b) for a, b in zip(trainers[name].losses, torchs, strict=True)) for name in (OURS, MOVED)
    }
    tokens = options.batch * options.steps
    shape = (options.batch, options.steps, options.embedding, options.hidden, options.layers, 1)
    return results.Row(
        benchmark="language_model",
        case=results.Case(options.cell, *shape, dtype="float32", mode="training"),
        threads=options.threads,
        times=times,
        provenance=results.Provenance.here_and_now(),
        detail={
            "text": text.name,
            "symbols": len(text.symbols),
            "train_characters": text.train.numel(),
            "heldout_characters": windows * tokens,
            "updates": len(torchs),
            "largest_loss_difference": apart,
            "tokens_per_second": {name: tokens / taken.median for name, taken in times.items()},
            "seconds": {name: sum(trainers[name].seconds) for name in times},
            "heldout_perplexity": outcome.perplexities,
            "heldout_perplexity_same_weights": outcome.same_weights,
            "deviation": asdict(outcome.deviation),
            "sampled_per_second": outcome.sampled_per_second,
            "mismatches": outcome.mismatches,
            "curves": {name: trainers[name].curve() for name in times},
        },
    )


def _table(row: results.Row, outcome: Outcome) -> Table:
    detail = row.detail
    table = Table(title=f"{detail['updates']:,} updates of each, in turns")
    for name in ("", TORCH, OURS):
        table.add_column(name, justify="right" if name else "left")
    table.add_column("comparison")

    def line(title: str, values: dict[str, float], form: str, comparison: str) -> None:
        table.add_row(title, *(format(values[name], form) for name in (TORCH, OURS)), comparison)

    def faster(values: dict[str, float]) -> str:
        return f"{values[OURS] / values[TORCH]:.2f} times as fast"

    last = {name: curve["loss"][-1] for name, curve in detail["curves"].items()}
    perplexities = outcome.perplexities
    allowed = perplexities[TORCH] * math.expm1(outcome.deviation.tolerance)
    line("tokens/s in training", detail["tokens_per_second"], ",.0f", faster(detail["tokens_per_second"]))
    line("seconds of updates", detail["seconds"], ",.1f", "")
    line("training loss at the end", last, ".5f", f"{abs(last[OURS] - last[TORCH]):.1e} apart")
    difference = abs(perplexities[OURS] - perplexities[TORCH])
    apart = detail["largest_loss_difference"]
    table.add_row("  furthest apart", "", "", f"{apart[OURS]:.1e}, by rounding {apart[MOVED]:.1e}")
    line("held-out perplexity", perplexities, ".5f", f"{difference:.1e} apart, {allowed:.1e} allowed")
    same = {TORCH: perplexities[TORCH], OURS: outcome.same_weights}
    line("  of torch.nn's weights", same, ".5f", f"{abs(same[OURS] - same[TORCH]):.1e} apart")
    sampled = outcome.sampled_per_second
    line("tokens/s in sampling", sampled, ",.0f", faster(sampled))
    return table


if __name__ == "__main__":
    sys.exit(main())
