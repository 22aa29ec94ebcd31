"""`gpubench run` and `gpubench plan`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import replace

from gpubench import escape, units
from gpubench.cli import options, terminal

if TYPE_CHECKING:
    from gpubench.records.record import RecordFile
    from gpubench.run.cluster.ray_cluster import Cluster
    from gpubench.run.driver import RunJob


@click.command()
@options.suite_argument
@options.selection
@options.output_option("Directory of the run.", stdout=False)
@click.option("--resume", is_flag=True, help="Go on with the run in the output directory.")
@options.require_option
@options.quiet_option
@options.several
@options.github_option
@options.cache_option
def run(
    suite: str,
    output: Path | None,
    resume: bool,
    require: list[str] | None,
    quiet: bool,
    github: bool,
    cache_dir: Path | None,
    ray: str | None,
    insecure_cluster: bool,
    **chosen: Any,
) -> None:
    """Run a suite: measure every cell, print the tables, write the report.

    \b
    Example: gpubench run quick --backend torch-eager,onnxruntime --batch-size 1,8
    """
    from gpubench.run import setup
    from gpubench.run.cluster.ray_cluster import Cluster
    from gpubench.run.record_builder import claimed

    with nullcontext() if ray is None else Cluster(ray, insecure_cluster) as cluster:
        session = setup.session(suite, chosen, cache_dir, output, resume, require or (), cluster)
        session = replace(session, out=output or claimed(session.out))
        code = _run(session, quiet, github, cluster)
    sys.exit(code)


def _run(session: RunJob, quiet: bool, asked: bool, cluster: Cluster | None = None) -> int:
    from gpubench.report import formatting, github_actions, render
    from gpubench.report import terminal as terminal_report
    from gpubench.run import driver

    screen = terminal.console(quiet)
    watcher = terminal.show_run(screen, quiet)
    out = session.out
    try:
        with watcher:
            file = driver.run(session, watcher, cluster)
    except KeyboardInterrupt:
        again = formatting.resume(session.header, out)
        words = f"interrupted; finished records are kept. Go on with: {again}"
        screen.print(words, soft_wrap=True)
        return 130
    screen.print(terminal_report.summary([file]))
    terminal.save_report(out, render([file], "html"))
    screen.print(f"report: {out / 'report.html'}", soft_wrap=True)
    if github_actions.wanted(asked):
        github_actions.publish(
            github_actions.run_summary([file]),
            github_actions.run_commands([file]),
            write=print,
        )
    return _code(file, quiet)


def _code(file: RecordFile, quiet: bool) -> int:
    """The exit code; why it is not 0 is told on stderr where the tables do not tell it."""
    from gpubench.analysis.summary import summarise
    from gpubench.report import terminal as terminal_report

    broken = [r for r in file.records if r.status == "failed"]
    nothing = not broken and not any(r.status == "ok" for r in file.records)
    if quiet and (broken or nothing):
        for line in terminal_report.problem_lines(summarise([file])):
            escape.tell(line)
    if nothing:
        cells = units.count(len(file.header.planned), "cell")
        escape.tell(f"error: nothing was measured: of {cells} all were skipped")
    return 1 if broken or nothing else 0


@click.command()
@options.suite_argument
@options.selection
@options.keys_option
@options.cache_option
def plan(suite: str, cache_dir: Path | None, keys: bool, **chosen: Any) -> None:
    """Show what a run would do: cells, skips, estimated time. Runs nothing.

    Example: gpubench plan gpu --device cuda
    """
    from gpubench.cli.listings import plan_tables
    from gpubench.run import setup

    session = setup.session(suite, chosen, cache_dir)
    terminal.console().print(plan_tables(session, keys))


COMMANDS = (run, plan)
