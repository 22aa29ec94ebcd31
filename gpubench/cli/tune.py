"""The command that searches: `gpubench tune`."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from gpubench import escape
from gpubench.cli import options, terminal

if TYPE_CHECKING:
    from rich.console import Console

    from gpubench.run.results import Search

OWN = ("--backend", "--precision", "--input", "--batch-size", "--replicas", "--weights",
       "--images", "--labels", "--calibration", "--preprocess", "--arguments",
       "--output-name", "--device")  # fmt: skip
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
@partial(options.selection, only=OWN)
@click.option("--option", multiple=True, metavar="NAME=VALUE",
              help="Of a backend, to be tried as well; repeatable.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="Of what is drawn.")
@options.output_option("Directory of the search.", stdout=False)
@options.resume_option
@click.option("--json", "as_json", is_flag=True, help="Machine-readable; implies --quiet.")
@options.quiet_option
@options.cache_option
def tune(model: str, as_json: bool, quiet: bool, **asked: Any) -> None:
    """Find the fastest configuration of MODEL on this machine that is still accurate.

    Backends, precisions, batch sizes, replicas and runtime options are searched within the limits.
    What is found is compared with today's default in an interleaved A/B, and written to best.toml.

    Exit codes: 0 a configuration is recommended; 1 none is: nothing keeps the limits, whether it
    does is undecided, or fewer than two backends were measured; 2 bad input; 3 one is, but the A/B
    did not confirm its gain in time; 130 interrupted.

    Example: gpubench tune resnet50 --max-latency p99=20ms --max-accuracy-drop 1
    """
    from gpubench.analysis.tune import result
    from gpubench.records.reader import begun, read
    from gpubench.report.sections import recommendation
    from gpubench.run import api
    from gpubench.run.record_builder import command

    quiet = quiet or as_json
    screen = terminal.console(quiet)
    with terminal.interruptible(screen):
        try:
            shown = terminal.show_run(screen, quiet)
            found = api.tune(model, command=command(), progress=shown, **asked)
        except api.Interrupted as error:
            if begun(error.directory):
                tried = recommendation.tried(result.view(read(error.directory)))
                screen.print(tried, highlight=False)
            raise
    sys.exit(_tell(screen, found, as_json, quiet))


def _tell(screen: Console, found: Search, as_json: bool, quiet: bool) -> int:
    """The result for whoever asked, and the exit code."""
    from gpubench.report.sections import recommendation

    file, evidence = found.file, found.evidence
    if as_json:
        terminal.write(escape.document(recommendation.to_json(file, evidence)), document=True)
    lines = recommendation.lines(file, evidence)
    for line in lines:
        screen.print(line, highlight=False)
    unconfirmed = found.unconfirmed
    why = f"error: {lines[0]}" if not found.best else f"warning: {UNCONFIRMED}" * unconfirmed
    if quiet and why and (unconfirmed or not as_json):
        escape.tell(why)
    if unconfirmed:
        screen.print(UNCONFIRMED, soft_wrap=True)
    if found.best:
        screen.print(f"configuration: {found.suite}", soft_wrap=True)
    screen.print(f"report: {found.directory / 'report.html'}", soft_wrap=True)
    return 1 if not found.best else 3 if unconfirmed else 0
