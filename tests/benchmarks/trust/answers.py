"""The gate of answers, and what metrics beside speed do to the family's error rate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np

from gpubench.analysis.compare import metrics, sequential_test
from gpubench.analysis.compare.answers import Changes
from gpubench.analysis.compare.sequential_test import Pair
from gpubench.analysis.compare.verdicts import Comparison
from gpubench.suite import gate
from gpubench.suite.types import Rule
from tests.benchmarks.trust.evidence import Case, Counts, Experiment, Row, at_most, few, share

CELLS = 10
RIGHT = 0.75
"""Accuracy of the baseline."""
ALARMS = ("REGRESSED", "IMPROVED")
MARGIN = gate.METRICS["accuracy"].margin
RULE = gate.rule({}, ["accuracy"])
ALL = gate.rule({}, ["p99", "memory", "cold_start", "accuracy", "agreement"])
PAIRS = 28
"""Of a cell: as many as a budget leaves for each of ten."""


def network(
    rng: np.random.Generator, pictures: int, churn: float, planted: float, cells: int = CELLS
) -> list[Changes]:
    """A candidate whose answers change on ``churn`` of the pictures, as often for the better as for
    the worse, and which has an error planted into ``planted`` of those that were right."""
    lost = RIGHT * planted + (1 - planted * RIGHT) * churn / 2
    gained = (1 - planted * RIGHT) * churn / 2
    drawn = rng.multinomial(pictures, [lost, gained, 1 - lost - gained], cells).tolist()
    right = round(RIGHT * pictures)
    return [Changes(asked=pictures, changed=worse + better, labelled=pictures,
                    correct=(right, right - worse + better), lost=worse, gained=better)
            for worse, better, _ in drawn]  # fmt: skip


def judged(name: str, found: list[Changes], rule: Rule) -> list[str]:
    """The verdicts of one metric on these cells, by the product's own rule."""
    blank = Comparison(key="", label="", metric=name, judged=name, verdict="")
    tests = [metrics.Pictured(blank, each) for each in found]
    return [row.verdict for row in metrics.of_pictures(tests, metrics.rules(rule)[name])]


def suites(
    pictures: int, churn: float, planted: float
) -> Callable[[np.random.Generator, int], Counts]:
    """Suites of `CELLS` cells, judged by their accuracy alone."""

    def once(rng: np.random.Generator, count: int) -> Counts:
        found: Counter[str] = Counter()
        for _ in range(count):
            said = judged("accuracy", network(rng, pictures, churn, planted), RULE)
            found.update(said)
            found.update(suites=1, cells=len(said), alarms=any(v in ALARMS for v in said))
        return found

    return once


def _alarm_row(case: str, n: Counts) -> list[Row]:
    equal = n.get("EQUIVALENT", 0)
    return [
        Row(
            case=case,
            values={"suites with an alarm": few(n["alarms"], n["suites"]),
                    "cells EQUIVALENT": f"{equal / n['cells']:.1%}"},
            reach="at most 1 % of suites, at 95 % confidence",
            ok=at_most(n["alarms"], n["suites"]) <= 0.01,
        )
    ]  # fmt: skip


NETWORKS = [(n, churn) for n in (100, 1000, 10_000) for churn in (0.002, 0.02, 0.1)]
EQUAL = Experiment(
    name="answers-alarms",
    title="Networks that are equally accurate, or worse by just the margin, raise no alarm",
    about=(
        f"Suites of {CELLS} cells, each a network of its own, right on {RIGHT:.0%} of the "
        "pictures; answers of some change, as often for the better as for the worse, and errors "
        f"are planted until the true loss is nothing, or exactly the margin of {100 * MARGIN:g} "
        "points. Accuracy beside speed, by the default shares of alpha: REGRESSED or IMPROVED is "
        "an alarm."
    ),
    cases={
        f"{n:,} pictures, {churn:.1%} change, {what}": Case(suites(n, churn, loss), 2000, 500, 20)
        for n, churn in NETWORKS
        for what, loss in (("equal", 0.0), ("at the margin", MARGIN / RIGHT))
    },
    rows=_alarm_row,
)  # fmt: skip


def _power_row(case: str, n: Counts) -> list[Row]:
    found = n.get("REGRESSED", 0)
    promised = case in SURE
    return [
        Row(
            case=case,
            values={"found": share(found, n["cells"]),
                    "said to be EQUIVALENT": few(n.get("EQUIVALENT", 0), n["cells"])},
            reach="at least 95 % found, at 95 % confidence" if promised else "",
            ok=at_most(n["cells"] - found, n["cells"]) <= 0.05 if promised else None,
        )
    ]  # fmt: skip


def _planted(pictures: int, lost: float, churn: float) -> str:
    return f"{pictures:,} pictures: {100 * lost:g} points lost, {churn:.0%} change besides"


SURE = {_planted(1000, 0.1, 0.01), _planted(10_000, 0.02, 0.01), _planted(10_000, 0.05, 0.05)}
POWER = Experiment(
    name="answers-power",
    title="Planted errors are found: what so many pictures can tell",
    about=(
        f"As above, {CELLS} cells that share the level; errors are planted into so many points of "
        "all pictures. A cell that is called EQUIVALENT although it lost more than the margin is "
        "counted beside."
    ),
    cases={
        _planted(n, lost, churn): Case(suites(n, churn, lost / RIGHT), 100, 50, 5)
        for n in (1000, 10_000)
        for lost in (0.01, 0.015, 0.02, 0.03, 0.05, 0.1)
        for churn in (0.01, 0.05)
    },
    rows=_power_row,
)


def family(at: float, sd: float) -> Callable[[np.random.Generator, int], Counts]:
    """Suites that judge everything; every metric of every cell is worse by ``at`` margins."""
    own = metrics.rules(ALL)

    def once(rng: np.random.Generator, count: int) -> Counts:
        found: Counter[str] = Counter()
        for _ in range(count):
            said = {}
            for name in ("speed", *metrics.paired(ALL)):
                drawn = at * math.log1p(own[name].delta) + sd * rng.normal(size=(CELLS, PAIRS))
                cells = {str(k): [Pair(d=d, coarse=name != "speed") for d in row]
                         for k, row in enumerate(drawn.tolist())}  # fmt: skip
                verdicts = sequential_test.judge(cells, own[name])
                said[name] = [v.verdict for v in verdicts.values()]
            lost = at * MARGIN / RIGHT
            said["accuracy"] = judged("accuracy", network(rng, 1000, 0.02, lost), ALL)
            same = network(rng, 1000, at * gate.METRICS["agreement"].margin, 0.0)
            said["agreement"] = judged("agreement", same, ALL)
            bad = {name for name, each in said.items() if any(v in ALARMS for v in each)}
            found.update(suites=1, alarms=bool(bad), speed="speed" in bad,
                         others=bool(bad - {"speed"}))  # fmt: skip
        return found

    return once


def _family_row(case: str, n: Counts) -> list[Row]:
    return [
        Row(
            case=case,
            values={"suites with an alarm": few(n["alarms"], n["suites"]),
                    "of speed": f"{n['speed']:.0f}", "of the others": f"{n['others']:.0f}"},
            reach="at most 1 % of suites, at 95 % confidence",
            ok=at_most(n["alarms"], n["suites"]) <= 0.01,
        )
    ]  # fmt: skip


FAMILY = Experiment(
    name="gate-family",
    title="All metrics of all cells share one error rate",
    about=(
        f"Suites of {CELLS} cells that judge {', '.join(['speed', *dict(ALL.metrics)])}, each "
        f"with {PAIRS} pairs and 1,000 pictures: identical, or worse by exactly every margin, "
        f"which is the hardest case. Speed has {metrics.SPEED_SHARE:.0%} of alpha."
    ),
    cases={
        f"{what}, pair sd {sd:.0%}": Case(family(at, sd), count, 50, 3)
        for what, at, sd, count in (
            ("identical", 0.0, 0.01, 300),
            ("identical", 0.0, 0.05, 300),
            ("at every margin", 1.0, 0.05, 600),
            ("at every margin", 1.0, 0.01, 2000),
        )
    },
    rows=_family_row,
)
