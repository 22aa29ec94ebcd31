"""What a bisection came to, for people and for programs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gpubench import units
from gpubench.analysis.compare.bisection import WHAT
from gpubench.run.results import Shown
from gpubench.run.setup import options
from gpubench.suite.gate import METRICS
from gpubench.suite.types import Axes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gpubench.analysis.compare.bisection import Stretch
    from gpubench.analysis.compare.sequential_test import Shift
    from gpubench.run.bisect.driver import BisectJob, Outcome
    from gpubench.run.bisect.row import Version

FOUND, ALIKE, UNDECIDED, MISSING = 0, 1, 3, 4
UNSELECTED = ("options", "cores", "loader_cores")
"""Axes that no option of the command line takes."""


class Bisection(Shown):
    """Which version brought a change: of `gpubench.bisect`."""

    def __init__(self, job: BisectJob, outcome: Outcome) -> None:
        self.job, self.outcome = job, outcome
        """What was asked, and all that is known."""
        self.directory = job.out
        """Where its A/Bs are, each as `gpubench.open` takes it."""

    @property
    def code(self) -> int:
        """As `gpubench bisect` ends: 0 found, 1 good and bad do not differ, 3 undecided, 4 one of
        them was not measured."""
        verdicts = {row.verdict for row in self.outcome.ends}
        whats = {stretch.what for stretch in self.outcome.outlook.stretches}
        if not verdicts or verdicts == {"MISSING"}:
            return MISSING
        if whats == {"alike"} if self.job.metric != "speed" else verdicts <= {"EQUIVALENT"}:
            return ALIKE
        return FOUND if "step" in whats and not whats & {"undecided", "unproven"} else UNDECIDED

    @property
    def found(self) -> list[Version]:
        """The versions that brought a change, proved; several where versions between two could not
        be measured. ``name`` and ``line`` say which each is."""
        steps = [s for s in self.outcome.outlook.stretches if s.what == "step"]
        return [v for s in steps for v in self.job.row.versions[s.first + 1 : s.second + 1]]

    @property
    def finished(self) -> bool:
        """Whether more time would bring nothing."""
        return self.outcome.outlook.wanted is None

    def facts(self) -> dict[str, Any]:
        """All of it, as `gpubench bisect --json` prints it."""
        job, outcome, versions = self.job, self.outcome, self.job.row.versions

        def of(stretch: Stretch) -> dict[str, Any]:
            effect, points = stretch.effect, METRICS[job.metric].points
            return {
                "what": stretch.what,
                "after": versions[stretch.first].name,
                "candidates": [v.name for v in versions[stretch.first + 1 : stretch.second + 1]],
                "effect": effect and (effect.value if points else math.expm1(effect.value)),
                "interval": effect and [math.expm1(x) for x in effect.interval() or ()],
                "pairs": effect.n if effect else 0,
            }

        return {
            "exit_code": self.code, "kind": job.row.kind, "metric": job.metric,
            "cell": outcome.cell, "good": versions[0].name, "bad": versions[-1].name,
            "found": [of(stretch) for stretch in outcome.outlook.stretches],
            "alpha": job.rule.alpha, "pairs": outcome.pairs, "measured": outcome.built,
            "skipped": {versions[n].name: why for n, why in outcome.skipped.items()},
            "directory": str(job.out), "finished": self.finished,
        }  # fmt: skip

    def lines(self) -> Iterator[str]:
        """What a person is told."""
        job, outcome, row = self.job, self.outcome, self.job.row
        found = outcome.outlook.stretches
        if self.code in (ALIKE, MISSING) or (job.metric == "speed" and not outcome.differ):
            for end in outcome.ends:
                yield f"{end.label}: {end.verdict}: {end.reason}"
            words = {ALIKE: "good and bad do not differ", MISSING: "good and bad were not measured"}
            no = words.get(self.code, "good and bad were not shown to differ")
            yield f"{no}: nothing to bisect"
        else:
            yield f"{outcome.cell}:"
            for stretch in found:
                yield from told(job, outcome, stretch)
            others = [end.label for end in outcome.differ if end.label != outcome.cell]
            if others:
                yield f"good and bad also differ in: {'; '.join(others)} (--cell takes one)"
        for place, why in outcome.skipped.items():
            yield f"not measured: {row.versions[place].line}: {why.splitlines()[0]}"
        yield (
            f"{units.count(outcome.pairs, 'pair')} of {outcome.built} of "
            f"{units.count(len(row.versions), row.kind)}; records: {job.out}"
        )

    def _parts(self) -> Sequence[RenderableType]:
        from rich.text import Text

        return [Text(line) for line in self.lines()]


def told(job: BisectJob, outcome: Outcome, stretch: Stretch) -> Iterator[str]:
    """What is known of one stretch of versions."""
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
    margin = f"{round(100 * job.rule.delta, 9):g}%"  # rounded: next to nothing stands for 0
    judged = (
        ["--delta", margin] if job.metric == "speed" else ["--metric", f"{job.metric}={margin}"]
    )
    return shlex.join([*words, *judged])


def _selected(job: BisectJob, outcome: Outcome) -> Iterator[str]:
    """The options that select the cell, as far as there are any."""
    words = dict(job.chosen)
    (cell,) = (cell for cell in outcome.cells if cell.label == outcome.cell)
    for key in (key for key in Axes.__struct_fields__ if key not in UNSELECTED):
        values = [getattr(one, key) for one in outcome.cells]
        if any(value != values[0] for value in values):
            words[key] = getattr(cell, key)
    return options(words)
