"""`gpubench run` and `gpubench plan`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import replace

from gpubench import escape, units
from gpubench.cli import options, terminal

if TYPE_CHECKING:
    import scipy.special  # noqa: F401  # its import in mid-run could hold up the beats

    from gpubench.records.record import RecordFile
    from gpubench.run.cluster.coordinator import Cluster
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
    nnodes: int | None,
    node_rank: int | None,
    rdzv_endpoint: str | None,
    secret_file: Path | None,
    node_timeout: str,
    join_timeout: str,
    **chosen: Any,
) -> None:
    """Run a suite: measure every cell, print the tables, write the report.

    \b
    Example: gpubench run quick --backend torch-eager,onnxruntime --batch-size 1,8
    """
    from gpubench.run import setup
    from gpubench.run.cluster import rendezvous
    from gpubench.run.record_builder import claimed

    member = rendezvous.membership(nnodes, node_rank, rdzv_endpoint, os.environ)
    if member is None:
        session = setup.session(suite, chosen, cache_dir, output, resume, require or ())
        session = replace(session, out=output or claimed(session.out))
        sys.exit(_run(session, quiet, github))
    limits = (
        options.seconds("--node-timeout", node_timeout),
        options.seconds("--join-timeout", join_timeout),
    )
    key = rendezvous.secret(member, secret_file, os.environ)
    screen = terminal.console(quiet)
    if member.rank > 0:
        from gpubench.run.cluster import node

        own = setup.load(suite, chosen)
        sys.exit(node.run(member, key, own, cache_dir, output, limits[1], screen))
    from gpubench.run.cluster.coordinator import Cluster
    from gpubench.run.cluster.transport import connector

    screen.print(f"{member.endpoint}: waiting for {member.nnodes - 1} more node(s)")
    connect, tell = connector(member, limits[1]), escape.tell
    with Cluster(connect, member.nnodes, key, *limits, tell) as cluster:
        session = setup.session(suite, chosen, cache_dir, output, resume, require or (), cluster)
        session = replace(session, out=output or claimed(session.out))
        sys.exit(_run(session, quiet, github, cluster))


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
        if cluster:
            cluster.finish()  # imports for the report may keep the beats from being sent
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
@click.option(
    "--extras", is_flag=True, help="Only which extras of gpubench bring what the suite lacks here."
)
@options.cache_option
def plan(suite: str, cache_dir: Path | None, keys: bool, extras: bool, **chosen: Any) -> None:
    """Show what a run would do: cells, skips, estimated time. Runs nothing.

    Example: gpubench plan gpu --device cuda
    """
    from gpubench.cli.listings import plan_tables
    from gpubench.run import availability, setup

    if extras:
        lacks = availability.lacks(*availability.named_by(setup.load(suite, chosen)))
        terminal.write(",".join(availability.extras(lacks)) + "\n")
        return
    session = setup.session(suite, chosen, cache_dir)
    terminal.console().print(plan_tables(session, keys))


COMMANDS = (run, plan)
