"""The command line: parse, call, print, exit code. Everything heavy is imported by its command.

Exit codes: 0 all planned cells measured or legitimately skipped; 1 some failed, or all were skipped
(ab, compare: a regression); 2 bad input; ab and compare also 3 inconclusive or incomparable, 4
missing cells; 130 interrupted (143, 129: by SIGTERM, SIGHUP).
"""

from __future__ import annotations

import io
import os
import platform
import sys
from pathlib import Path
from typing import NoReturn

import click

from gpubench import __version__, escape
from gpubench.cli import bisect, compare, deploy, fleet, init, inspect, options, run, terminal, tune
from gpubench.errors import CacheError, GpubenchError, InputError, check_place, check_text
from gpubench.machine import processes
from gpubench.report import FORMATS

ANYWHERE = ("report", "compare", "history", "export")
"""Commands that only read."""


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
@click.pass_context
def cli(context: click.Context) -> None:
    """Benchmarks of image classification that can be trusted.

    \b
    gpubench run quick            measure, print tables, write a report
    gpubench tune resnet50        find the fastest configuration that is still accurate
    gpubench doctor               what this machine can run, and what is missing
    gpubench ab ci ...            two configurations or versions, interleaved: is one slower?
    gpubench compare OLD NEW      two stored runs, cell by cell
    """
    if sys.platform != "linux" and context.invoked_subcommand not in ANYWHERE:
        raise InputError(
            f"gpubench {context.invoked_subcommand} works on Linux (on Windows: in WSL 2); on "
            f"{platform.system()} gpubench only reads what was measured: {', '.join(ANYWHERE)}"
        )


@cli.command("list")
@click.argument(
    "what", type=click.Choice(["backends", "decoders", "models", "suites"]), required=False
)
def list_(what: str | None) -> None:
    """List what can be named: suites, backends, decoders and models, or one of these in full.

    Example: gpubench list backends
    """
    from gpubench.cli import listings

    terminal.console().print(getattr(listings, what or "everything")())


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@options.several
def doctor(as_json: bool, ray: str | None, insecure_cluster: bool) -> None:
    """Say what this machine can run, what is missing, and the exact remedy.

    With --ray, what the machines of a cluster are, and in what they differ.

    Exit code 1: something is installed but broken.

    Example: gpubench doctor --json
    """
    from gpubench.run import doctor as surgery

    if ray is not None:
        terminal.write("".join(f"{line}\n" for line in surgery.cluster(ray, insecure_cluster)))
        return
    with terminal.waiting("importing every runtime, each in a process of its own ..."):
        report = surgery.doctor()
    if as_json:
        terminal.write(escape.document(report), document=True)
    else:
        terminal.console().print(report)
    sys.exit(1 if report.broken else 0)


@cli.command()
@click.argument("paths", nargs=-1, required=True)
@options.format_option(FORMATS, help="Default: by -o's ending, else text.")
@options.output_option("A file instead of stdout.")
@options.keys_option
@click.option("--one-page", is_flag=True, help="Only the answers, on one sheet; HTML.")
def report(
    paths: tuple[str, ...], form: str | None, output: Path | None, keys: bool, one_page: bool
) -> None:
    """Tables and charts from one or more runs; of an A/B its verdicts too.

    Of the directory of a search also what it recommends, and why.

    \b
    Example: gpubench report reports/quick-20260101T120000Z --format md -o quick.md
    """
    from gpubench.records.reader import EVIDENCE, read_all, read_arms
    from gpubench.report import by_ending, html, render, save

    form = by_ending(form, output, FORMATS, "html" if one_page else "text")
    if one_page and form != "html":
        raise InputError(f"--one-page is a page of HTML, not of {form}")
    files = read_all(paths)
    searched = len(files) == 1 and files[0].header.search
    evidence = read_arms(Path(paths[0], EVIDENCE)) if searched else None
    body = html.render(files, one_page=True) if one_page else render(files, form, evidence, keys)
    if output is None:
        terminal.write(body, document=form != "text")
    else:
        save(output, body)


@cli.command()
def schema() -> None:
    """Print the JSON schema of suite files, for editors.

    Example: gpubench schema > gpubench.schema.json
    """
    import json

    from gpubench.run import availability
    from gpubench.suite import schema as rules

    click.echo(json.dumps(rules.schema(availability.catalog()), indent=2))


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
    from gpubench.cli import listings

    terminal.console().print(listings.cache(cache_dir))


@cache.command()
@click.argument("kinds", nargs=-1, metavar="[KIND]...")
@options.cache_option
def clear(kinds: tuple[str, ...], cache_dir: Path | None) -> None:
    """Remove what can be made again: everything, or only these kinds of `gpubench cache info`.

    The A/A history (aa) was measured, and stays.

    Example: gpubench cache clear refs
    """
    from gpubench import units
    from gpubench.cache import Cache

    click.echo(f"freed {units.size(Cache(cache_dir).clear(kinds, escape.tell))}")


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


for _command in (
    run.run, run.plan, compare.ab, compare.compare, compare.selftest, compare.history,
    compare.export, bisect.bisect, fleet.fleet, tune.tune, deploy.deploy, inspect.inspect,
    init.init,
):  # fmt: skip
    cli.add_command(_command)


def _open_standard_streams() -> None:
    """Else the first files that are opened take the numbers of closed ones, and what is printed."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8")  # noqa: SIM115


def main() -> NoReturn:
    """Entry point of the ``gpubench`` command; a signal that ends it is told in the exit code."""
    with processes.Ending() as ending:
        try:
            _main()
        finally:
            if ending.number:
                sys.exit(128 + ending.number)


def _main() -> NoReturn:
    _open_standard_streams()
    stdout = sys.stdout
    terminal.never_fail()
    try:
        check_place()
        for word in sys.argv[1:]:  # any of them may end up in a record
            check_text(word)
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        escape.tell(said.getvalue().rstrip("\n"))
        lacking = error.param if isinstance(error, click.MissingParameter) else None
        if lacking and lacking.name == "suite":
            words = "`gpubench list suites` shows those that come along; `quick` is a first look"
            escape.tell(words)
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)
    except GpubenchError as error:
        escape.tell(f"error: {error}")
        sys.exit(2 if isinstance(error, InputError | CacheError) else 1)
    except OSError as error:
        if error.filename is not None:  # a place that the user named
            escape.tell(f"error: {error.filename}: {error.strerror}")
            sys.exit(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a full disk behind stdout: it would again
        escape.tell(f"error: {error}")
        sys.exit(1)
    except SystemExit as error:
        # For a reader that went away (`| head`) click wraps stdout and exits with 1: a failure
        sys.exit(error.code if sys.stdout is stdout else 0)
