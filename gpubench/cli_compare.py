"""The commands that compare: interleaved A/B, stored runs, history, self-test, exports."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpubench.cli_options import (
    cache_option,
    console,
    save,
    seconds,
    selection,
    share,
    show_run,
    words,
)
from gpubench.errors import InputError

if TYPE_CHECKING:
    from gpubench.run.ab import Job

delta_option = click.option(
    "--delta", default="2%", help="Differences up to this much do not matter.", show_default=True
)
path = click.Path(path_type=Path)


@click.command()
@click.argument("suite")
@click.option("--baseline", multiple=True, help="KEY=VALUE,...: what the baseline is to be.")
@click.option("--candidate", multiple=True, help="KEY=VALUE,...: what the candidate is to be.")
@click.option("--baseline-python", type=path, help="Interpreter (or venv) of the baseline.")
@click.option("--candidate-python", type=path, help="Interpreter (or venv) of the candidate.")
@click.option("--baseline-ref", help="Git commit: its environment is made with uv.")
@delta_option
@click.option(
    "--alpha", default="1%", help="Chance of a false alarm, whole suite.", show_default=True
)
@click.option("--budget", default="10m", help="No pair starts after this.", show_default=True)
@selection
@click.option("-o", "--output", type=path, help="Directory of the two runs.")
@click.option("--resume", is_flag=True, help="Go on with the A/B in the output directory.")
@click.option("--require", callback=words, help="Backends whose skip is a failure (for CI).")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable; implies --quiet.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@cache_option
def ab(
    suite: str,
    baseline: tuple[str, ...],
    candidate: tuple[str, ...],
    baseline_python: Path | None,
    candidate_python: Path | None,
    baseline_ref: str | None,
    delta: str,
    alpha: str,
    budget: str,
    output: Path | None,
    resume: bool,
    require: list[str] | None,
    as_json: bool,
    quiet: bool,
    cache_dir: Path | None,
    **chosen: Any,
) -> None:
    """Compare two arms of a suite, interleaved: the verdict is the exit code.

    The arms differ in an axis, an option, a model file, an interpreter, or a git commit. Pairs of
    fresh processes are measured in random order until no verdict can change.

    \b
    Examples:
      gpubench ab ci --baseline backend=torch-eager --candidate backend=onnxruntime
      gpubench ab ci --backend onnxruntime --baseline-ref main
    """
    from gpubench.run import arms, environments, setup
    from gpubench.suite import Rule
    from gpubench.workload.cache import Cache

    specs = (arms.parse("--baseline", baseline), arms.parse("--candidate", candidate))
    rule = Rule(delta=share("--delta", delta), alpha=share("--alpha", alpha))
    limit = seconds("--budget", budget)
    if baseline_ref and baseline_python:
        raise InputError("--baseline-ref and --baseline-python: give one of them")
    before, after = (
        environments.existing(option, given) if given else None
        for option, given in (
            ("--baseline-python", baseline_python),
            ("--candidate-python", candidate_python),
        )
    )
    if baseline_ref:
        before, _ = environments.of_reference(baseline_ref, Cache(cache_dir).root)
    if before or after:  # both by path, so that both start in the same way
        before, after = before or Path(sys.executable), after or Path(sys.executable)
    elif specs[0].values == specs[1].values and not specs[0].values:
        raise InputError(
            "nothing differs between the arms: name it with --baseline KEY=VALUE and --candidate "
            "KEY=VALUE, with --baseline-python, or with --baseline-ref"
        )
    job = setup.comparison(
        suite, chosen, specs, (before, after), rule, limit, cache_dir, output, resume, require or ()
    )
    sys.exit(_ab(job, quiet or as_json, as_json))


def _ab(job: Job, quiet: bool, as_json: bool) -> int:
    from gpubench.analysis import compare as comparing
    from gpubench.report import machine, render, text
    from gpubench.run import ab as pairs

    screen = console(quiet)
    first, second = (side.header.pairing for side in job.sides)
    screen.print(
        f"A/B of {len(job.sides[0].header.planned)} cells: baseline {first and first.differs}, "
        f"candidate {second and second.differs}; records go to {job.out}",
        markup=False,
    )
    try:
        with show_run(screen, quiet) as watcher:
            files = pairs.run(job, watcher)
    except KeyboardInterrupt:
        screen.print(
            f"interrupted; finished pairs are kept. Go on with the same command and "
            f"--resume -o {job.out}",
            markup=False,
        )
        return 130
    found = comparing.compare(*files)
    if as_json:
        click.echo(machine.comparisons(found))
    screen.print(text.comparison(found))
    save(job.out / "report.html", render(list(files), "html"))
    screen.print(f"report: {job.out / 'report.html'}", markup=False, soft_wrap=True)
    return comparing.exit_code(found)


@click.command()
@click.argument("base")
@click.argument("candidate")
@delta_option
@click.option("--allow-different", multiple=True, help="An environment field that may differ.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def compare(
    base: str, candidate: str, delta: str, allow_different: tuple[str, ...], as_json: bool
) -> None:
    """Compare two runs cell by cell; the verdict comes first and is the exit code.

    Example: gpubench compare reports/before reports/after --delta 3%
    """
    from gpubench.analysis import compare as comparing
    from gpubench.record import read
    from gpubench.report import machine, text

    verdicts = comparing.compare(
        read(base), read(candidate), delta=share("--delta", delta), allow_different=allow_different
    )
    if as_json:
        click.echo(machine.comparisons(verdicts))
    else:
        console().print(text.comparison(verdicts))
    sys.exit(comparing.exit_code(verdicts))


@click.command()
@click.argument("suite", default="selftest")
@click.option("--minutes", default=5.0, help="About how long.", show_default=True)
@delta_option
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@selection
@cache_option
def selftest(
    suite: str, minutes: float, delta: str, as_json: bool, cache_dir: Path | None, **chosen: Any
) -> None:
    """Measure what numbers of this machine are worth: clock, harness, noise, false alarms.

    Compares SUITE with itself, over and over: every alarm is a false one. Then runs it, for the
    A/A history that `gpubench compare` takes its alarm limits from.

    Example: gpubench selftest ci --minutes 20
    """
    import msgspec

    from gpubench.run import selftest as testing
    from gpubench.suite import Rule

    if not 0 < minutes < 24 * 60:
        raise InputError(f"--minutes {minutes:g}: expected more than 0 and less than a day")
    screen = console(quiet=as_json)
    rule = Rule(delta=share("--delta", delta))
    result = testing.run(suite, minutes, chosen, rule, cache_dir, lambda line: screen.print(line))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(result), indent=1).decode())
    screen.print(testing.render(result))


COMMANDS = (ab, compare, selftest)
