"""Bisections: the right version is named, or none; what that costs, and what other rules do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from msgspec import Struct
from scipy.special import ndtri

from gpubench.analysis.compare import bisection, sequential_test
from gpubench.analysis.compare.bisection import Comparison, Outlook
from gpubench.analysis.compare.sequential_test import Pair
from gpubench.suite.types import Rule
from tests.benchmarks.trust import virtual_ab
from tests.benchmarks.trust.evidence import Case, Counts, Experiment, Row, at_most, few, share
from tests.benchmarks.trust.gates import MACHINES
from tests.benchmarks.trust.processes import Floats
from tests.benchmarks.trust.virtual_ab import PAIR_S

RULE = Rule()
COMMITS, SD, STEP = 64, 0.02, 0.05
MOST = 400
"""Pairs that the budget is enough for."""
BUILD_S = 30.0
"""Until the environment of one commit is there."""
KINDS = {"one step": (5,), "two steps": (5, 4), "drift": (), "none": ()}
"""What happens over the commits, in percent."""
DRIFT = 0.06
"""From the first commit to the last, each as much as any other."""

Differences = Sequence[float]
"""What pairs of identical arms show, one after the other."""


class History(Struct, frozen=True):
    """The truth."""

    levels: tuple[float, ...]
    """Log cost of every commit, the good one's first."""
    steps: tuple[int, ...]
    """The commits that brought a change."""


def history(rng: np.random.Generator, kind: str) -> History:
    """Of `COMMITS` commits."""
    if kind == "drift":
        return History(tuple(math.log1p(DRIFT) * n / COMMITS for n in range(COMMITS + 1)), ())
    levels, places = np.zeros(COMMITS + 1), rng.choice(COMMITS, len(KINDS[kind]), replace=False) + 1
    for place, size in zip(places, KINDS[kind], strict=True):
        levels[place:] += math.log1p(size / 100)
    return History(tuple(levels.tolist()), tuple(sorted(places.tolist())))


class Bisected(Struct, frozen=True):
    """What one of them came to."""

    found: Outlook
    pairs: int
    built: int
    """Commits whose environment was made."""

    @property
    def claims(self) -> list[tuple[int, int]]:
        """(the last commit before it, the commit)."""
        return [(s.first, s.second) for s in self.found.stretches if s.what == "step"]


def bisect(levels: Sequence[float], noise: Differences, most: int = MOST) -> Bisected:
    """As `gpubench.run.bisect` has it, until nothing more is wanted or ``most`` pairs are spent."""
    evidence: dict[Comparison, list[Pair]] = {}
    spent = 0
    while True:
        found = bisection.look(evidence, len(levels) - 1, (), RULE)
        if found.wanted is None or spent >= most:
            return Bisected(found, spent, len({n for one in evidence for n in one[:2]}))
        one, pairs = found.wanted
        own = evidence.setdefault(one, [])
        while len(own) < pairs and spent < most:
            own.append(Pair(d=noise[spent] + levels[one.second] - levels[one.first]))
            spent += 1


def machine(name: str, kind: str) -> Callable[[np.random.Generator, int], Counts]:
    """Histories of a ``kind`` on one of the virtual machines."""

    def once(rng: np.random.Generator, count: int) -> Counts:
        start = rng.uniform(0, 60, (count, 1)) + PAIR_S * np.arange(MOST)
        drawn = virtual_ab.draw(rng, MACHINES[name], start).d
        return _counted(rng, kind, drawn)

    return once


def plain(rng: np.random.Generator, count: int) -> Counts:
    """One step, and normal noise."""
    return _counted(rng, "one step", rng.normal(0, SD, (count, MOST)))


def _counted(rng: np.random.Generator, kind: str, noise: Floats) -> Counts:
    found: Counter[str] = Counter()
    for own in noise.tolist():
        true = history(rng, kind)
        got = bisect(true.levels, own)
        claims = got.claims
        right = all(b - a == 1 and b in true.steps for a, b in claims)
        many = len(true.steps) != 1 and any(true.levels)
        found.update(histories=1, pairs=got.pairs, built=got.built, claimed=bool(claims))
        found["wrong"] += not right
        found["right"] += right and len(claims) == len(true.steps)
        # that the change did not come at once is said in so many words
        found["told"] += many and len(got.found.stretches) > len(claims[:1])
        found["minutes"] += (got.pairs * PAIR_S + got.built * BUILD_S) / 60
    return found
