"""The command that searches: `gpubench tune`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from gpubench import escape
from gpubench.cli.options import SELECTION, cache_option, fraction, seconds, selection
from gpubench.cli.terminal import console, save, save_report, show_run, write
from gpubench.errors import GpubenchError, InputError
from gpubench.suite import goal
from gpubench.suite.types import MOST_IMAGES

if TYPE_CHECKING:
    from rich.console import Console

    from gpubench.run.tune.driver import Outcome, TuneJob

path = click.Path(path_type=Path)
OWN = ("--backend", "--precision", "--input", "--batch-size", "--replicas", "--weights",
       "--images", "--labels", "--calibration", "--preprocess", "--arguments",
       "--device")  # fmt: skip
"""Those of `options.SELECTION` that mean the same here."""
UNCONFIRMED = "exit code 3: its gain is not confirmed; a longer --budget gives the A/B more pairs"


@click.command()
@click.argument("model")
@click.option(
    "--objective", default="throughput", show_default=True,
    help="throughput, latency (p50), p99 and other percentiles, energy, or memory.",
)  # fmt: skip
@click.option("--max-latency", multiple=True, help="Of a batch, such as p99=20ms; repeatable.")
@click.option("--min-throughput", help="Images/s of all replicas.")
@click.option("--max-memory", help="Peak of all replicas, such as 2GiB.")
@click.option("--max-energy", help="Per image, such as 0.5J.")
@click.option("--min-agreement", help="With the fp32 reference's answers, such as 0.98 or 98%.")
@click.option("--min-accuracy",
              help="Top-1, such as 0.75 or 75%, by its interval; needs labels.")  # fmt: skip
@click.option("--max-accuracy-drop", type=float, metavar="POINTS",
              help="Top-1 below the fp32 reference's on the same images.")  # fmt: skip
@click.option(
    "--accuracy-images", type=int, metavar="N",
    help="Images accuracy is measured on.  [default: 256 with a floor, else 0]",
)  # fmt: skip
@click.option("--budget", default="10m", show_default=True,
              help="Time for measuring and building; 30 % of it proves the result.")  # fmt: skip
@click.option(
    "--baseline", multiple=True,
    help="KEY=VALUE,...: what is to be beaten.  [default: torch-eager, fp32]",
)  # fmt: skip
@click.option("--boundary", default="transfer", show_default=True,
              help="What is timed: compute, transfer, or pipeline.")  # fmt: skip
@click.option("--decoder", help="Of boundary pipeline, such as turbo.")
@partial(selection, without=tuple(name for name, _ in SELECTION if name not in OWN))
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="Of what is drawn.")
@click.option("-o", "--output", type=path, help="Directory of the search.")
@click.option("--resume", is_flag=True, help="Go on with the search in the output directory.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable; implies --quiet.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@cache_option
def tune(
    model: str,
    objective: str,
    max_latency: tuple[str, ...],
    min_throughput: str | None,
    max_memory: str | None,
    max_energy: str | None,
    min_agreement: str | None,
    min_accuracy: str | None,
    max_accuracy_drop: float | None,
    accuracy_images: int | None,
    budget: str,
    baseline: tuple[str, ...],
    seed: int,
    output: Path | None,
    resume: bool,
    as_json: bool,
    quiet: bool,
    cache_dir: Path | None,
    **chosen: Any,
) -> None:
    """Find the fastest configuration of MODEL on this machine that is still accurate.

    Backends, precisions, batch sizes, replicas and runtime options are searched within the limits.
    What is found is compared with today's default in an interleaved A/B, and written to best.toml.

    Exit codes: 0 a configuration is recommended; 1 none is: nothing keeps the limits, whether it
    does is undecided, or fewer than two backends were measured; 2 bad input; 3 one is, but the A/B
    did not confirm its gain in time; 130 interrupted.

    Example: gpubench tune resnet50 --max-latency p99=20ms --max-accuracy-drop 1
    """
    from gpubench.run.record_builder import claimed
    from gpubench.run.tune import setup

    limits = [goal.max_latency("--max-latency", words) for words in max_latency]
    for option, words in zip(goal.LIMITS, (min_throughput, max_memory, max_energy), strict=True):
        limits += [goal.limit(option, words)] if words is not None else []
    floors = {
        "min_top1_agreement": _part("--min-agreement", min_agreement),
        "min_accuracy": _part("--min-accuracy", min_accuracy),
        "max_accuracy_drop": _points(max_accuracy_drop),
        "accuracy_images": _images(accuracy_images),
    }
    job = setup.job(
        chosen | {"model": model},
        goal.Goal(goal.metric("--objective", objective), tuple(limits)),
        floors, budget_s=seconds("--budget", budget), seed=seed, baseline=baseline,
        cache_dir=cache_dir, output=output, resume=resume,
    )  # fmt: skip
    job = msgspec.structs.replace(job, out=output or claimed(job.out))
    sys.exit(_tune(job, quiet or as_json, as_json))


def _tune(job: TuneJob, quiet: bool, as_json: bool) -> int:
    from gpubench.analysis.tune import result
    from gpubench.records.reader import begun, read
    from gpubench.report import formatting
    from gpubench.report.sections import recommendation
    from gpubench.run.tune import driver as searching

    screen = console(quiet)
    if searching.finished(job):
        outcome = searching.outcome(job)
        screen.print(f"{job.out}: this search is over; its result:")
        return _tell(screen, job, outcome, as_json, quiet)
    try:
        with show_run(screen, quiet) as watcher:
            outcome = searching.run(job, watcher)
    except KeyboardInterrupt:
        again = formatting.resume(job.header, job.out)
        if begun(job.out):
            screen.print(recommendation.tried(result.view(read(job.out))), highlight=False)
        words = f"interrupted; everything measured is kept. Go on with: {again}"
        screen.print(words, soft_wrap=True)
        return 130
    _write(job, outcome)
    return _tell(screen, job, outcome, as_json, quiet)


def _write(job: TuneJob, outcome: Outcome) -> None:
    """What a search leaves beside its records; `run.tune.driver.FINISHED` last."""
    from gpubench.report import render
    from gpubench.report.sections import recommendation
    from gpubench.run.tune import driver as searching

    file, evidence = outcome.file, outcome.evidence
    save_report(job.out, render([file], "html", evidence))
    try:
        if outcome.best:
            save(job.out / searching.BEST, searching.best_toml(job, outcome.best))
        result = escape.encoded(recommendation.to_json(file, evidence), indent=1)
        save(job.out / searching.FINISHED, result + "\n")
    except InputError as error:
        raise GpubenchError(f"{error}; every record is kept: make room, then --resume") from error


def _tell(screen: Console, job: TuneJob, outcome: Outcome, as_json: bool, quiet: bool) -> int:
    """The result for whoever asked, and the exit code."""
    from gpubench.analysis.tune import result
    from gpubench.report.sections import recommendation
    from gpubench.run.tune import driver as searching

    file, evidence = outcome.file, outcome.evidence
    if as_json:
        write(escape.document(recommendation.to_json(file, evidence)), document=True)
    lines = recommendation.lines(file, evidence)
    for line in lines:
        screen.print(line, highlight=False)
    unconfirmed = result.view(file, evidence).unconfirmed
    why = f"error: {lines[0]}" if not outcome.best else f"warning: {UNCONFIRMED}" * unconfirmed
    if quiet and why and (unconfirmed or not as_json):
        escape.tell(why)
    if unconfirmed:
        screen.print(UNCONFIRMED, soft_wrap=True)
    if outcome.best:
        screen.print(f"configuration: {job.out / searching.BEST}", soft_wrap=True)
    screen.print(f"report: {job.out / 'report.html'}", soft_wrap=True)
    return 1 if not outcome.best else 3 if unconfirmed else 0


def _part(option: str, words: str | None) -> float | None:
    """'0.98' or '98%' -> 0.98; 1 and 100% too."""
    value = None if words is None else fraction(words)
    if value is not None and not 0 < value <= 1:
        raise InputError(f"{option} {words!r}: expected a share, such as 0.98 or 98%")
    return value


def _points(drop: float | None) -> float | None:
    if drop is not None and not 0 <= drop <= 100:
        raise InputError(f"--max-accuracy-drop {drop:g}: expected 0 to 100 points, such as 1")
    return drop


def _images(count: int | None) -> int | None:
    if count is not None and not 0 <= count <= MOST_IMAGES:
        raise InputError(
            f"--accuracy-images {count}: expected a whole number up to {MOST_IMAGES}, such as 256"
        )
    return count


COMMANDS = (tune,)
