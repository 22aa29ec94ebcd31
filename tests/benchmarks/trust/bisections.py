"""Bisections: the right version is named, or none; what that costs, and what other rules do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from msgspec import Struct
from scipy.special import ndtri

from gpubench.analysis.compare import bisection
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


def _plain(rng: np.random.Generator, count: int) -> Floats:
    """Normal noise."""
    return rng.normal(0, SD, (count, MOST))


def _everywhere(rng: np.random.Generator, count: int) -> Floats:
    """The virtual machines in turn."""
    start = rng.uniform(0, 60, (1, 1)) + PAIR_S * np.arange(MOST)
    each = [*MACHINES.values()]
    drawn = [virtual_ab.draw(rng, each[n % len(each)], start).d for n in range(count)]
    return np.concatenate(drawn)


Draw = Callable[[np.random.Generator, int], Floats]
"""(rng, how many histories) -> what identical arms show: (histories, pairs)."""


def histories(kind: str, draw: Draw, builds: float = 0.0) -> Callable[..., Counts]:
    """``builds``: sd of what the environment of each commit is off by, for good."""

    def once(rng: np.random.Generator, count: int) -> Counts:
        found: Counter[str] = Counter()
        for noise in draw(rng, count).tolist():
            true = history(rng, kind)
            off = builds * rng.normal(size=COMMITS + 1)
            got = bisect((np.array(true.levels) + off).tolist(), noise)
            claims = got.claims
            right = [b for a, b in claims if b - a == 1 and b in true.steps]
            found.update(_cost(got.pairs, got.built))
            found.update(histories=1, steps=len(true.steps), hits=len(right), claimed=bool(claims))
            found["wrong"] += len(right) < len(claims)
            found["all"] += len(right) == len(claims) == len(true.steps)
            # that the change did not come at once
            found["told"] += len(got.found.stretches) > 1 or got.found.stretches[0].what == "spread"
        return found

    return once


def _cost(pairs: int, built: int) -> dict[str, float]:
    return {"pairs": pairs, "built": built, "minutes": (pairs * PAIR_S + built * BUILD_S) / 60}


def _row(case: str, n: Counts) -> list[Row]:
    each = n["histories"]
    values = {
        "every step named, and nothing else": share(n["all"], each),
        "a wrong commit named": few(n["wrong"], each),
        "several steps told": f"{n['told'] / each:.0%}",
        **_means(n),
    }
    reach, ok = "", None
    if case == ONE:
        reach, ok = "right in at least 99 of 100", n["all"] >= 0.99 * each
    elif case in PROMISED:
        reach = "a wrong one in at most 1 of 100, at 95 % confidence"
        ok = at_most(n["wrong"], each) <= 0.01
    return [Row(case=case, values=values, reach=reach, ok=ok)]


def _means(n: Counts) -> dict[str, str]:
    found = {"pairs": "pairs", "built": "commits built", "minutes": "minutes"}
    return {words: f"{n[key] / n['histories']:.1f}" for key, words in found.items()}


ONE = f"one step of {STEP:.0%}, sd {SD:.0%}"
PROMISED = {f"{kind}; the machines of the gate": kind for kind in KINDS}
BISECT = Experiment(
    name="bisect",
    title="A bisection names the commit that did it, or says that it cannot",
    about=(
        f"Histories of {COMMITS} commits; one step is of {STEP:.0%}, two are of 5 and 4 %, a drift "
        f"is of {DRIFT:.0%} over all commits. Normal noise of a pair, or the virtual machines of "
        f"the false alarms in turn, {MOST} pairs at most. A pair takes {PAIR_S} s, an environment "
        f"{BUILD_S:.0f} s. Builds: each commit's environment is off by so much for good (sd), "
        "which no number of pairs can tell from a change of its own; nothing is promised there."
    ),
    cases={ONE: Case(histories("one step", _plain), 1000, 50, 4)}
    | {name: Case(histories(kind, _everywhere), 504, 28, 4) for name, kind in PROMISED.items()}
    | {
        f"{kind}; builds differ by {sd:.1%}": Case(histories(kind, _plain, sd), 100, 20, 2)
        for kind in ("one step", "none")
        for sd in (0.005, 0.01)
    },
    rows=_row,
)


# ------------------------------------------------------------------------------ other rules


Slower = Callable[[Callable[[], float]], bool]
"""Whether a commit is, by what its pairs against the good one show."""


def halfway(pairs: int) -> Slower:
    """By the mean of so many pairs, held against half of the step, which somebody knows."""
    return lambda pair: sum(pair() for _ in range(pairs)) / pairs > math.log1p(STEP) / 2


def gate(pair: Callable[[], float]) -> bool:
    """By the verdict of an A/B with its share of the error."""
    rule = Rule(alpha=RULE.alpha / (1 + math.log2(COMMITS)))
    _, said = virtual_ab.suite(["x"], lambda _, n: [Pair(d=pair()) for _ in range(n)], rule)
    return said["x"].verdict == "REGRESSED"


def plain(slower: Slower, kind: str) -> Callable[..., Counts]:
    """Binary searches that ask each midpoint once."""

    def once(rng: np.random.Generator, count: int) -> Counts:
        found: Counter[str] = Counter()
        for _ in range(count):
            true, spent = history(rng, kind), [0.0]

            def pair(level: float, spent: list[float]) -> float:
                spent.append(float(rng.normal(level, SD)))
                return spent[-1]

            low, high, built = 0, COMMITS, 2
            while high - low > 1:
                middle, built = (low + high) // 2, built + 1
                if slower(partial(pair, true.levels[middle], spent)):
                    high = middle
                else:
                    low = middle
            right = (high,) == true.steps
            found.update(_cost(len(spent) - 1, built))
            found.update(histories=1, all=right, wrong=not right)
        return found

    return once


def _plain_row(case: str, n: Counts) -> list[Row]:
    each = n["histories"]
    values = {"the right commit": share(n["all"], each), "a wrong one": few(n["wrong"], each)}
    return [Row(case=case, values=values | _means(n))]


SURE = math.ceil((2 * SD / math.log1p(STEP) * -ndtri(RULE.alpha / math.log2(COMMITS))) ** 2)
"""Pairs at a midpoint for which a search that knows the step and the noise is as certain."""
RULES: dict[str, Slower] = {
    f"plain binary search that knows the step and the noise, {SURE} pairs a commit": halfway(SURE),
    "plain binary search by the gate's verdicts": gate,
    "git bisect, a threshold half-way, 1 run a commit": halfway(1),
    "git bisect, a threshold half-way, 3 runs a commit": halfway(3),
}
BISECT_RULES = Experiment(
    name="bisect-rules",
    title="What other ways to bisect would say",
    about=(
        f"{COMMITS} commits, normal noise of sd {SD:.0%}; that of a run against a threshold is "
        "taken to be no worse than that of a pair, as if the machine were the same from one commit "
        "to the next. They compare no ends, prove nothing, and where nothing changed they still "
        "name a commit."
    ),
    cases={
        f"{name}; {kind}": Case(plain(rule, kind), 1000, 100, 4)
        for kind in ("one step", "none")
        for name, rule in RULES.items()
    },
    rows=_plain_row,
)
