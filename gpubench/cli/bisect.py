"""`gpubench bisect`: which commit, or which release of a library, brought a change."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import click

from gpubench import escape
from gpubench.cli import options, terminal
from gpubench.suite import goal


@click.command()
@options.suite_argument
@click.option("--good", required=True, help="A commit, or a release, before the change.")
@click.option("--bad", required=True, help="One after it.")
@click.option("--package", help="Bisect the releases of this library, and not commits.")
@click.option(
    "--metric",
    metavar="NAME[=MARGIN]",
    default="speed",
    show_default=True,
    help="What has changed: as in `gpubench ab`.",
)
@click.option("--delta", help="A change up to this is none.  [default: the metric's; of speed 2%]")
@click.option(
    "--budget",
    default=goal.BISECTION,
    show_default=True,
    help="No pair starts after this, environments included.",
)
@partial(options.selection, without=("--repeats",))
@options.output_option("Directory of its A/Bs.", stdout=False)
@click.option("--resume", is_flag=True, help="Go on with the bisection in the output directory.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable; implies --quiet.")
@options.quiet_option
@options.cache_option
def bisect(as_json: bool, quiet: bool, **asked: Any) -> None:
    """Find the commit, or the release of a library, that made a suite slower or faster.

    First good and bad are compared; then versions between them, in pairs of fresh processes, until
    it is known which one brought the change; then that one is proved against the one before it.
    The chance of a wrong answer is at most 1 %. Your checkout stays as it is.

    \b
    Exit codes: 0 found; 1 good and bad do not differ; 3 undecided, with what is left; 4 good or
    bad was not measured.

    \b
    Example: gpubench bisect ci --good v1.0 --bad HEAD --backend onnxruntime

    \b
    Example: gpubench bisect ci --package onnxruntime --good 1.26.0 --bad 1.30.0
    """
    from gpubench.run import api
    from gpubench.run.bisect import result

    quiet = quiet or as_json
    screen = terminal.console(quiet)
    with terminal.interruptible(screen):
        made = api.bisect(progress=terminal.show_run(screen, quiet), **asked)
    if as_json:
        terminal.write(escape.document(made.facts()), document=True)
    lines = [*made.lines()]
    if not made.finished and made.code == result.UNDECIDED:
        lines.append(f"Not finished: {options.resumed(sys.argv[1:], made.directory)}")
    for line in lines:
        screen.print(line, soft_wrap=True)
    sys.exit(made.code)
