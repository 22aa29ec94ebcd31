"""The command line: parse, call, print, exit code. Everything heavy is imported by its command.

Exit codes: 0 all planned cells measured or legitimately skipped; 1 some failed (ab, compare: a
regression); 2 bad input; ab and compare also 3 inconclusive or incomparable, 4 missing cells;
130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from gpubench import __version__, cli_compare, cli_deploy, cli_tune
from gpubench import cli_options as options
from gpubench.errors import CacheError, GpubenchError, InputError

if TYPE_CHECKING:
    import scipy.special  # noqa: F401  # its import in mid-run could hold up the beats

    from gpubench.run.cluster import Cluster
    from gpubench.run.setup import Session

FORMATS = ("text", "html", "md", "csv", "json")
"""`gpubench.report.FORMATS`, without the import that would slow ``--help`` down."""


class _Commands(click.Group):
    """Lists commands with their whole first sentence, which click would cut off."""

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        named = sorted(self.commands.items())
        with formatter.section("Commands"):
            formatter.write_dl([(name, c.get_short_help_str(limit=200)) for name, c in named])


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
def cli() -> None:
    """Benchmarks of image classification that can be trusted.

    \b
    gpubench run quick            measure, print tables, write a report
    gpubench tune resnet50        find the fastest configuration that is still right
    gpubench doctor               what this machine can run, and what is missing
    gpubench ab ci ...            two configurations or versions, interleaved: is one slower?
    gpubench compare OLD NEW      two stored runs, cell by cell
    """


@cli.command()
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
    from gpubench.run import launch, setup

    member = launch.membership(nnodes, node_rank, rdzv_endpoint, os.environ)
    if member is None:
        session = setup.session(suite, chosen, cache_dir, output, resume, require or ())
        sys.exit(_run(session, quiet, github))
    limits = (
        options.seconds("--node-timeout", node_timeout),
        options.seconds("--join-timeout", join_timeout),
    )
    key = launch.secret(member, secret_file, os.environ)
    screen = options.console(quiet)
    if member.rank > 0:
        from gpubench.run import serve

        own = setup.load(suite, chosen)
        sys.exit(serve.run(member, key, own, cache_dir, output, limits[1], screen))
    from gpubench.run.cluster import Cluster
    from gpubench.run.store import connector

    screen.print(f"{member.endpoint}: waiting for {member.nnodes - 1} more node(s)")
    with Cluster(
        connector(member, limits[1]), member.nnodes, key, *limits, partial(click.echo, err=True)
    ) as cluster:
        session = setup.session(suite, chosen, cache_dir, output, resume, require or (), cluster)
        sys.exit(_run(session, quiet, github, cluster))


def _run(session: Session, quiet: bool, asked: bool, cluster: Cluster | None = None) -> int:
    from gpubench.report import github, render, show, text
    from gpubench.run import driver

    screen = options.console(quiet)
    watcher = options.show_run(screen, quiet)
    out = session.job.out
    screen.print(
        f"{session.plan.suite.name}: {len(session.plan.cells)} cells to measure, "
        f"{len(session.plan.skips)} skipped; records go to {out}",
    )
    try:
        with watcher:
            file = driver.run(session.plan, session.job, session.backends, watcher, cluster)
        if cluster:
            cluster.finish()  # imports for the report may keep the beats from being sent
    except KeyboardInterrupt:
        screen.print(
            f"interrupted; finished records are kept. Go on with: "
            f"{show.resume(session.job.header, out)}",
            soft_wrap=True,
        )
        return 130
    screen.print(text.summary([file]))
    options.save_report(out, render([file], "html"))
    screen.print(f"report: {out / 'report.html'}", soft_wrap=True)
    if github.wanted(asked):
        github.publish(github.run_summary([file]), github.run_commands([file]), write=click.echo)
    return 1 if any(record.status == "failed" for record in file.records) else 0


@cli.command()
@options.suite_argument
@options.selection
@options.cache_option
def plan(suite: str, cache_dir: Path | None, **chosen: Any) -> None:
    """Show what a run would do: cells, order, skips, estimated time. Runs nothing.

    Example: gpubench plan gpu --device cuda
    """
    from gpubench.run import setup
    from gpubench.run.show import plan_tables

    session = setup.session(suite, chosen, cache_dir, Path(), False, ())
    options.console().print(plan_tables(session))


@cli.command("list")
@click.argument("what", type=click.Choice(["backends", "decoders", "models", "suites"]))
def list_(what: str) -> None:
    """List the backends, decoders, models or suites that can be named.

    Example: gpubench list backends
    """
    from gpubench.run import show

    shown = {
        "backends": show.backends,
        "decoders": show.decoders,
        "models": show.models,
        "suites": show.suites,
    }
    options.console().print(shown[what]())


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def doctor(as_json: bool) -> None:
    """Say what this machine can run, what is missing, and the exact remedy.

    Exit code 1: something is installed but broken.

    Example: gpubench doctor --json
    """
    from gpubench.run import doctor as surgery

    with options.console().status("importing every runtime, each in a process of its own ..."):
        report = surgery.collect()
    if as_json:
        click.echo(surgery.to_json(report))
    else:
        options.console().print(surgery.render(report))
    sys.exit(1 if report.broken else 0)


@cli.command()
@click.argument("paths", nargs=-1, required=True)
@options.format_option(FORMATS, help="Default: by -o's ending, else text.")
@options.output_option("A file instead of stdout.")
def report(paths: tuple[str, ...], form: str | None, output: Path | None) -> None:
    """Tables and charts from one or more runs; of an A/B its verdicts too.

    Of the directory of a search also what it recommends, and why.

    \b
    Example: gpubench report reports/quick-20260101T120000Z --format md -o quick.md
    """
    from gpubench.recordreader import read_all, read_evidence
    from gpubench.report import render

    files = read_all(paths)
    searched = len(files) == 1 and files[0].header.search
    evidence = read_evidence(paths[0]) if searched else None
    body = render(files, options.by_ending(form, output, FORMATS), evidence)
    if output is None:
        click.echo(body)
    else:
        options.save(output, body)


@cli.command()
def schema() -> None:
    """Print the JSON schema of suite files, for editors.

    Example: gpubench schema > gpubench.schema.json
    """
    import json

    from gpubench import suitefile
    from gpubench.run import setup

    click.echo(json.dumps(suitefile.schema(setup.catalog()), indent=2))


@cli.group()
def cache() -> None:
    """Look at or empty the cache of weights, exports and engines.

    Example: gpubench cache info
    """


@cache.command()
@options.cache_option
def info(cache_dir: Path | None) -> None:
    """Show where the cache is and what it holds.

    Example: gpubench cache info
    """
    from gpubench.run import show

    options.console().print(show.cache(cache_dir))


@cache.command()
@options.cache_option
def clear(cache_dir: Path | None) -> None:
    """Remove everything from the cache.

    Example: gpubench cache clear
    """
    from gpubench import units
    from gpubench.workload.cache import Cache

    click.echo(f"freed {units.size(Cache(cache_dir).clear())}")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    Example: eval "$(gpubench completion bash)"
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise InputError(f"no completion for {shell!r}")
    script = found(cli, {}, "gpubench", "_GPUBENCH_COMPLETE").source()
    # else bash completes no path of a run
    click.echo(script.replace("complete -o nosort", "complete -o nosort -o default"))


for _command in (*cli_compare.COMMANDS, *cli_tune.COMMANDS, *cli_deploy.COMMANDS):
    cli.add_command(_command)


def _open_standard_streams() -> None:
    """Else the first files that are opened take the numbers of closed ones, and what is printed."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _check_words(words: list[str]) -> None:
    """Whatever is said on the command line may end up in a record, which is UTF-8."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            text = f"{os.fsencode(word)!r}: not UTF-8 text; rename that file or folder"
            raise InputError(text) from error


def main() -> NoReturn:
    """Entry point of the ``gpubench`` command."""
    stdout = sys.stdout
    _open_standard_streams()
    try:
        _check_words(sys.argv[1:])
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        options.tell(said.getvalue().rstrip("\n"))
        lacking = error.param if isinstance(error, click.MissingParameter) else None
        if lacking and lacking.name == "suite":
            words = "`gpubench list suites` shows those that come along; `quick` is a first look"
            options.tell(words)
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)
    except GpubenchError as error:
        options.tell(f"error: {error}")
        sys.exit(2 if isinstance(error, InputError | CacheError) else 1)
    except OSError as error:
        if error.filename is not None:  # a place that the user named
            options.tell(f"error: {error.filename}: {error.strerror}")
            sys.exit(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a full disk behind stdout: it would again
        options.tell(f"error: {error}")
        sys.exit(1)
    except SystemExit as error:
        # For a reader that went away (`| head`) click wraps stdout and exits with 1: a failure
        sys.exit(error.code if sys.stdout is stdout else 0)
