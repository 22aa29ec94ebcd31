"""`gpubench run` and `gpubench plan`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpubench import escape, units
from gpubench.cli import options, terminal

if TYPE_CHECKING:
    from gpubench.run.results import Run


@click.command()
@options.suite_argument
@options.selection
@options.output_option("Directory of the run.", stdout=False)
@options.resume_option
@options.require_option
@options.quiet_option
@options.several
@options.ship_option
@options.github_option
@options.cache_option
def run(
    suite: str,
    require: list[str] | None,
    quiet: bool,
    github: bool,
    ray: str | None,
    insecure_cluster: bool,
    ship: bool,
    **asked: Any,
) -> None:
    """Run a suite: measure every cell, print the tables, write the report.

    \b
    Example: gpubench run quick --backend torch-eager,onnxruntime --batch-size 1,8
    """
    from gpubench.report import github_actions, save_report
    from gpubench.report import terminal as terminal_report
    from gpubench.run import api
    from gpubench.run.cluster.ray_cluster import Cluster
    from gpubench.run.record_builder import command

    screen = terminal.console(quiet)
    with nullcontext() if ray is None else Cluster(ray, insecure_cluster, ship) as cluster:
        with terminal.interruptible(screen):
            made = api.run(
                suite, require=require or (), progress=terminal.show_run(screen, quiet),
                command=command(), cluster=cluster, **asked,
            )  # fmt: skip
        screen.print(terminal_report.summary([made.file]))
        save_report(made.directory, made.document("html"))
        screen.print(f"report: {made.directory / 'report.html'}", soft_wrap=True)
        if github_actions.wanted(github):
            told = github_actions.run_commands([made.file])
            github_actions.publish(github_actions.run_summary([made.file]), told)
    sys.exit(_code(made, quiet))


def _code(made: Run, quiet: bool) -> int:
    """The exit code; why it is not 0 is told on stderr where the tables do not tell it."""
    for line in made.problems if quiet and not made.ok else ():
        escape.tell(line)
    if not any(record.status in ("ok", "failed") for record in made.file.records):
        cells = units.count(len(made.file.header.planned), "cell")
        escape.tell(f"error: nothing was measured: of {cells} all were skipped")
    return 0 if made.ok else 1


@click.command()
@options.suite_argument
@options.selection
@options.keys_option
@click.option(
    "--extras", is_flag=True, help="Only which extras of gpubench bring what the suite lacks here."
)
@options.cache_option
def plan(suite: str, cache_dir: Path | None, keys: bool, extras: bool, **chosen: Any) -> None:
    """Show what a run would do: cells, skips, estimated time. Runs nothing.

    Example: gpubench plan gpu --device cuda
    """
    from gpubench.run import api, availability, setup

    if extras:
        lacks = availability.lacks(*availability.of_use(setup.load(suite, chosen)))
        terminal.write(",".join(availability.extras(lacks)) + "\n")
        return
    terminal.console().print(api.plan(suite, keys=keys, cache_dir=cache_dir, **chosen))
