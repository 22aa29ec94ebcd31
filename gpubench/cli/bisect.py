"""`gpubench bisect`: which commit, or which release of a library, brought a change."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpubench import escape, units
from gpubench.cli import options
from gpubench.cli import terminal as cli_terminal
from gpubench.errors import InputError
from gpubench.suite import goal

if TYPE_CHECKING:
    from gpubench.analysis.compare.bisection import Stretch
    from gpubench.analysis.compare.sequential_test import Shift
    from gpubench.run.bisect.driver import BisectJob, Outcome

BUDGET = "1h"
FOUND, ALIKE, UNDECIDED, MISSING = 0, 1, 3, 4


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
    default=BUDGET,
    show_default=True,
    help="No pair starts after this, environments included.",
)
@partial(options.selection, without=("--repeats",))
@options.output_option("Directory of its A/Bs.", stdout=False)
@click.option("--resume", is_flag=True, help="Go on with the bisection in the output directory.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable; implies --quiet.")
@options.quiet_option
@options.cache_option
def bisect(
    suite: str,
    good: str,
    bad: str,
    package: str | None,
    metric: str,
    delta: str | None,
    budget: str,
    output: Path | None,
    resume: bool,
    as_json: bool,
    quiet: bool,
    cache_dir: Path | None,
    **chosen: Any,
) -> None:
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
    Example: gpubench bisect ci --package onnxruntime --good 1.20.1 --bad 1.23.0
    """
    from gpubench.cache import Cache
    from gpubench.run.bisect import driver, setup
    from gpubench.suite import gate
    from gpubench.suite.types import Rule

    ((name, margin), *more) = gate.parse([metric]).items()
    if more or name == "preparation":
        raise InputError(f"--metric {metric!r}: one that can be measured again, such as memory")
    if delta is not None:
        margin = goal.percentage("--delta", delta)
    elif margin is None:
        margin = gate.METRICS[name].margin
    limit = goal.seconds("--budget", budget)
    job = setup.bisection(
        suite, chosen, (good, bad), package, Rule(delta=max(margin, sys.float_info.epsilon)),
        limit, Cache(cache_dir).root, output, resume, name,
    )  # fmt: skip
    quiet = quiet or as_json
    screen = cli_terminal.console(quiet)
    try:
        with cli_terminal.show_run(screen, quiet) as watcher:
            outcome = driver.run(job, watcher)
    except KeyboardInterrupt:
        again = _again(sys.argv[1:], job.out)
        kept = f"what was measured is kept. Go on with {again}"
        some = (job.out / driver.STATE).exists()
        screen.print(f"interrupted; {kept if some else 'nothing was measured'}", soft_wrap=True)
        sys.exit(130)
    code = _code(job, outcome)
    if as_json:
        document = escape.document(_facts(job, outcome, code))
        cli_terminal.write(document, document=True)
    for line in _lines(job, outcome, code):
        screen.print(line, soft_wrap=True)
    sys.exit(code)


def _code(job: BisectJob, outcome: Outcome) -> int:
    verdicts = {row.verdict for row in outcome.ends}
    whats = {stretch.what for stretch in outcome.outlook.stretches}
    if not verdicts or verdicts == {"MISSING"}:
        return MISSING
    if whats == {"alike"} if job.metric != "speed" else verdicts <= {"EQUIVALENT"}:
        return ALIKE
    return FOUND if "step" in whats and not whats & {"undecided", "unproven"} else UNDECIDED


def _lines(job: BisectJob, outcome: Outcome, code: int) -> Iterator[str]:
    """What a person is told in the end."""
    row, found = job.row, outcome.outlook.stretches
    if code in (ALIKE, MISSING) or (job.metric == "speed" and not outcome.differ):
        for end in outcome.ends:
            yield f"{end.label}: {end.verdict}: {end.reason}"
        words = {ALIKE: "good and bad do not differ", MISSING: "good and bad were not measured"}
        yield f"{words.get(code, 'good and bad were not shown to differ')}: nothing to bisect"
    else:
        yield f"{outcome.cell}:"
        for stretch in found:
            yield from _told(job, outcome, stretch)
        others = [end.label for end in outcome.differ if end.label != outcome.cell]
        if others:
            yield f"good and bad also differ in: {'; '.join(others)} (--cell takes one)"
    for place, why in outcome.skipped.items():
        yield f"not measured: {row.versions[place].line}: {why.splitlines()[0]}"
    yield (
        f"{units.count(outcome.pairs, 'pair')} of {outcome.built} of "
        f"{units.count(len(row.versions), row.kind)}; records: {job.out}"
    )
    if outcome.outlook.wanted and code == UNDECIDED:
        yield f"Not finished: {_again(sys.argv[1:], job.out)}"


def _told(job: BisectJob, outcome: Outcome, stretch: Stretch) -> Iterator[str]:
    from gpubench.analysis.compare.bisection import WHAT

    first, second = stretch.first, stretch.second
    versions, effect = job.row.versions, stretch.effect
    size = f": {_size(effect, job.metric)}" if effect else ""
    if stretch.what == "step":
        few = versions[first + 1 : second + 1]
        head = (
            ""
            if len(few) == 1
            else f"one of these {len(few)}, of which but the last could not be measured: "
        )
        yield f"{head}{'; '.join(v.line for v in few)}{size}"
        if not job.exact:
            yield f"  the chance that this is wrong is at most {units.percentage(job.rule.alpha)}"
        yield f"  see it again: {_shown(job, outcome, first, second)}"
        return
    where = f"after {versions[first].line}, up to {versions[second].line}"
    yield f"{where}{size}; {WHAT[stretch.what]}"
    low, high = outcome.outlook.suspects
    if stretch.what == "undecided" and outcome.outlook.chance and first <= low < high <= second:
        many = units.count(high - low, job.row.kind)
        yield (
            f"  probably ({100 * outcome.outlook.chance:.0f} %) after {versions[low].name}, by "
            f"{versions[high].line}: {many}"
        )


def _size(effect: Shift, metric: str) -> str:
    """'5.1 % slower [4.2, 6.0], 13 pairs'."""
    from gpubench.suite.gate import METRICS

    words = METRICS[metric].words
    if METRICS[metric].points:
        return f"{100 * abs(effect.value):.3g} points {words[effect.value < 0]}"
    percent = [100 * math.expm1(x) for x in (effect.value, *(effect.interval() or ()))]
    way = words[percent[0] < 0]
    sizes = sorted(percent[1:]) if percent[0] > 0 else sorted(-x for x in percent[1:])
    interval = f" [{sizes[0]:.1f}, {sizes[1]:.1f}]" if sizes else ""
    return f"{abs(percent[0]):.1f} % {way}{interval}, {units.count(effect.n, 'pair')}"


def _shown(job: BisectJob, outcome: Outcome, first: int, second: int) -> str:
    words = ["gpubench", "ab", job.suite, *job.row.words(first, second), *_selected(job, outcome)]
    if job.metric != "speed":
        return shlex.join([*words, "--metric", job.metric])
    return shlex.join([*words, "--delta", units.percentage(job.rule.delta).replace(" ", "")])


def _selected(job: BisectJob, outcome: Outcome) -> Iterator[str]:
    """The options that select the cell, as far as there are any."""
    words = dict(job.chosen)
    (cell,) = (cell for cell in outcome.cells if cell.label == outcome.cell)
    for name, _ in options.SELECTION:
        key = name.removeprefix("--").replace("-", "_")
        values = [getattr(one, key, None) for one in outcome.cells]
        if any(value != values[0] for value in values):
            words[key] = getattr(cell, key)
    for key, value in words.items():
        option = f"--{key.replace('_', '-')}"
        if isinstance(value, dict):
            for inner, one in value.items():
                yield from (option, f"{inner}={one}")
        else:
            yield option
            yield ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _again(words: list[str], out: Path) -> str:
    """The command again, to go on with what is in ``out``."""
    kept = [word for word in words if word != "--resume"]
    for option in ("-o", "--output"):
        if option in kept:
            at = kept.index(option)
            del kept[at : at + 2]
    kept = [word for word in kept if not word.startswith(("-o", "--output="))]
    return shlex.join(["gpubench", *kept, "--resume", "-o", str(out)])


def _facts(job: BisectJob, outcome: Outcome, code: int) -> dict[str, Any]:
    """The same for programs."""
    from gpubench.suite.gate import METRICS

    versions, points = job.row.versions, METRICS[job.metric].points

    def of(stretch: Stretch) -> dict[str, Any]:
        effect = stretch.effect
        return {
            "what": stretch.what,
            "after": versions[stretch.first].name,
            "candidates": [v.name for v in versions[stretch.first + 1 : stretch.second + 1]],
            "effect": effect and (effect.value if points else math.expm1(effect.value)),
            "interval": effect and [math.expm1(x) for x in effect.interval() or ()],
            "pairs": effect.n if effect else 0,
        }

    return {
        "exit_code": code, "kind": job.row.kind, "metric": job.metric, "cell": outcome.cell,
        "good": versions[0].name, "bad": versions[-1].name,
        "found": [of(stretch) for stretch in outcome.outlook.stretches],
        "alpha": job.rule.alpha, "pairs": outcome.pairs, "measured": outcome.built,
        "skipped": {versions[n].name: why for n, why in outcome.skipped.items()},
        "directory": str(job.out), "finished": outcome.outlook.wanted is None,
    }  # fmt: skip


COMMANDS: tuple[click.Command, ...] = (bisect,)
