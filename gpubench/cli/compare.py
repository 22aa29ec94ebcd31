"""The commands that compare: interleaved A/B, stored runs, history, self-test, exports."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpubench import escape, units
from gpubench.cli import options
from gpubench.cli import terminal as cli_terminal
from gpubench.report import by_ending, save, save_report
from gpubench.suite import goal
from gpubench.suite.types import MOST_S

if TYPE_CHECKING:
    from rich.console import Console

    from gpubench.analysis.compare.compare import View
    from gpubench.run.results import Comparison

metric_option = click.option(
    "--metric",
    multiple=True,
    metavar="NAME[=MARGIN]",
    help="Judged beside speed, in place of the suite's [gate]: "
    "p99, accuracy, agreement, memory, device_memory, size, cold_start, preparation.",
)
fail_on_option = click.option(
    "--fail-on",
    default="regressed,missing,inconclusive,incomparable",
    help="Verdicts that make the exit code non-zero; 'none' for none.",
    show_default=True,
)
TREND_FORMATS = ("text", "html", "md", "json")
"""`gpubench.report.history.FORMATS`, without the import."""
COMPARE_FORMATS = ("html", "md", "json")
EXPORTS = (
    "pytest-benchmark", "github-action-benchmark", "bencher", "openmetrics", "junit", "csv",
    "parquet",
)  # fmt: skip
"""`gpubench.report.exports.FORMATS`, without the import."""
VERDICT = "verdict.json"
"""Of an A/B, beside its report: what --json prints."""


@click.command()
@options.suite_argument
@click.option("--baseline", multiple=True, help="KEY=VALUE,...: what the baseline is to be.")
@click.option("--candidate", multiple=True, help="KEY=VALUE,...: what the candidate is to be.")
@click.option("--baseline-python", type=options.path, help="Interpreter (or venv) of the baseline.")
@click.option(
    "--candidate-python", type=options.path, help="Interpreter (or venv) of the candidate."
)
@click.option(
    "--baseline-ref",
    help="Git commit: its files, in an environment made with uv, or in --baseline-python.",
)
@click.option("--candidate-ref", help="The same of the candidate; default: the working tree.")
@click.option(
    "--suite-from",
    type=click.Choice(["head", "base"]),
    default="head",
    show_default=True,
    help="Of two commits, whose suite says what is measured: the candidate's or the baseline's.",
)
@options.delta_option
@metric_option
@click.option(
    "--alpha", default="1%", help="Chance of a false alarm, whole suite.", show_default=True
)
@click.option(
    "--budget",
    default=goal.BUDGET,
    show_default=True,
    help="Of measuring: no pair starts after this. Environments and builds come before.",
)
@fail_on_option
@options.github_option
@partial(options.selection, without=("--repeats",))
@options.output_option("Directory of the two runs.", stdout=False)
@options.resume_option
@options.require_option
@click.option("--json", "as_json", is_flag=True, help="Machine-readable; implies --quiet.")
@options.quiet_option
@options.cache_option
def ab(
    suite: str,
    fail_on: str,
    github: bool,
    require: list[str] | None,
    as_json: bool,
    quiet: bool,
    **asked: Any,
) -> None:
    """Compare two arms of a suite, interleaved: the verdict is the exit code.

    The arms differ in an axis, an option, a model file, an interpreter, or a git commit. Pairs of
    fresh processes are measured in random order until no verdict can change.

    \b
    Example: gpubench ab ci --baseline backend=torch-eager --candidate backend=onnxruntime

    \b
    Example: gpubench ab ci --backend onnxruntime --baseline-ref main
    """
    from gpubench.analysis.compare.verdicts import parse_fail_on
    from gpubench.run import api
    from gpubench.run.record_builder import command

    failing = parse_fail_on(fail_on)
    screen = cli_terminal.console(quiet or as_json)
    with cli_terminal.interruptible(screen):
        made = api.ab(
            suite, require=require or (), command=command(),
            progress=cli_terminal.show_run(screen, quiet or as_json), **asked,
        )  # fmt: skip
    sys.exit(_ab(made, screen, quiet or as_json, as_json, failing, github))


def _ab(
    made: Comparison, screen: Console, quiet: bool, as_json: bool, failing: Collection[str],
    github: bool,
) -> int:  # fmt: skip
    from gpubench.analysis.compare.verdicts import exit_code
    from gpubench.report.sections import compare as told
    from gpubench.run.results import document

    view, out = made.view, made.directory
    code = exit_code(view.rows, failing)
    save_report(out, document("html", view, code))
    save(out / VERDICT, document("json", view, code))
    _tell(screen, view, code, as_json, github)
    _reasons(view)
    if quiet and not as_json and code:
        escape.tell(told.headline(view.rows, view.rule, code))
    if view.arms and (left := view.arms.unfinished()).pairs:
        half_more_s = min(MOST_S, max(60, math.ceil(1.5 * left.seconds)))
        screen.print(
            f"The budget ended first: about {units.count(left.pairs, 'pair')}, "
            f"{units.clock(left.seconds)}, more would decide what is open: "
            f"{options.resumed(sys.argv[1:], out, '--budget', f'{half_more_s}s')}",
            soft_wrap=True,
        )
    screen.print(f"report: {out / 'report.html'}", soft_wrap=True)
    return code


def _reasons(view: View) -> None:
    """Why there is nothing to compare, each cause once."""
    from gpubench.report import terminal

    if not view.rows:
        for line in dict.fromkeys(terminal.problem_lines(view.summaries)):
            escape.tell(line)


def _tell(
    screen: Console,
    view: View,
    code: int,
    as_json: bool,
    asked: bool,
    everything: bool = False,
) -> None:
    """Verdicts on the terminal or as JSON; on GitHub in the job's summary as well."""
    from gpubench.report import github_actions, json_report, terminal
    from gpubench.report.sections import compare as told

    found, rule = view.rows, view.rule
    if as_json:
        cli_terminal.write(json_report.comparisons(found, rule=rule, code=code), document=True)
    else:
        screen.print(terminal.comparison(found, rule=rule, code=code, everything=everything))
        if said := told.unjudged(view):
            screen.print(said)
    if github_actions.wanted(asked):
        github_actions.publish(
            github_actions.summary(found, rule=rule, code=code),
            github_actions.commands(found),
            write=partial(print, file=sys.stderr if as_json else sys.stdout),
        )


@click.command()
@click.argument("baseline", metavar="BASE")
@click.argument("candidate", required=False)
@options.delta_option
@metric_option
@click.option("--alpha", help="Chance of a false alarm in the suite.  [default: 1%]")
@fail_on_option
@click.option(
    "--allow-different", multiple=True, help="What may differ, such as libraries,cpu.governor."
)
@click.option("--history", type=options.path, help="A/A sessions; default: what selftest kept.")
@click.option("--all", "everything", is_flag=True, help="List unchanged cells too.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@options.output_option("A report as well: .html, .md or .json.", stdout=False)
@options.github_option
@options.cache_option
def compare(
    fail_on: str,
    allow_different: tuple[str, ...],
    everything: bool,
    as_json: bool,
    output: Path | None,
    github: bool,
    **asked: Any,
) -> None:
    """Compare two runs cell by cell; the verdict comes first and is the exit code.

    Of an A/B its directory alone. Two stored runs need the A/A history of the machine to say more
    than a warning: `gpubench selftest SUITE` makes it.

    Example: gpubench compare reports/before reports/after --delta 3%
    """
    from gpubench.analysis.compare.verdicts import exit_code, parse_fail_on
    from gpubench.run import results

    form = by_ending(None, output, COMPARE_FORMATS, "html")
    failing = parse_fail_on(fail_on)
    allowed = [key.strip() for keys in allow_different for key in keys.split(",")]
    made = results.compare(allow_different=allowed, **asked)
    view = made.view
    for file in made.files:
        for note in file.damage:
            escape.tell(f"{file.path}: {note}")
    code = exit_code(view.rows, failing)
    if output:
        save(output, results.document(form, view, code))
    _tell(cli_terminal.console(), view, code, as_json, github, everything)
    _reasons(view)
    sys.exit(code)


@click.command()
@click.argument("suite", default="selftest", shell_complete=options.suites)
@click.option("--minutes", default=5.0, help="About how long.", show_default=True)
@click.option(
    "--delta", default="2%", help="Differences up to this much do not matter.", show_default=True
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@options.selection
@options.cache_option
def selftest(as_json: bool, **asked: Any) -> None:
    """Measure what numbers of this machine are worth: clock, harness, noise, false alarms.

    Compares SUITE with itself, over and over: every alarm is a false one. Then runs it, for the
    A/A history that `gpubench compare` takes its alarm limits from.

    Example: gpubench selftest ci --minutes 20
    """
    from gpubench.run import api

    screen = cli_terminal.console(quiet=as_json)
    result = api.selftest(progress=screen.print, **asked)
    if as_json:
        cli_terminal.write(escape.document(result), document=True)
    screen.print(result)
    sys.exit(130 if result.interrupted else 0)


@click.command()
@click.argument("paths", nargs=-1, required=True)
@options.format_option(EXPORTS, required=True)
@options.output_option("A file; of github-action-benchmark a directory.")
def export(paths: tuple[str, ...], form: str, output: Path | None) -> None:
    """Write results for other tools. Of an A/B the candidate; csv and parquet both arms.

    Example: gpubench export out --format junit -o junit.xml
    """
    from gpubench.report import exports
    from gpubench.run import results

    documents = results.export(paths, form, output)
    if output is None:
        cli_terminal.write(exports.text(documents, form), document=True)


@click.command()
@click.argument("directory", type=options.path)
@click.option("--delta", help="Changes up to this much are not reported.  [default: 2%]")
@click.option("--alpha", help="Chance of a false change in the list.  [default: 1%]")
@options.format_option(TREND_FORMATS)
@options.output_option("A file instead of stdout.")
def history(
    directory: Path, delta: str | None, alpha: str | None, form: str | None, output: Path | None
) -> None:
    """The trend of every cell over all runs below DIRECTORY, and where it changed for good.

    Example: gpubench history reports -o trend.html
    """
    from gpubench.run import results

    form = by_ending(form, output, TREND_FORMATS)
    body = results.history(directory, delta=delta, alpha=alpha).document(form)
    if output:
        save(output, body)
    else:
        cli_terminal.write(body, document=form != "text")
