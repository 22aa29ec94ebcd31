"""Which of a row of versions brought a change: what is compared next, and what is known by now.

A version is known by its place: 0 is the good one, ``last`` the bad one. Everything here follows
from the pairs so far, so a bisection that was interrupted goes on by reading them.

Three questions, in this order, of the whole row and then of every stretch that is left over:

1. Do its ends differ? By the rule of an A/B (`sequential_test`).
2. Where? A noisy binary search (Burnashev & Zigangirov, "An interval estimation problem for
   controlled observations", 1974; Karp & Kleinberg, "Noisy binary search and its applications",
   2007): a version in the middle is compared with both ends in turn, until the likelihood of all
   pairs says which end it is like, or that it lies between: then there is more than one step. No
   answer is final: what later pairs make doubtful is measured again. The likelihood is Student's t
   about the levels, averaged over what the size of the step and the noise may be (Lange, Little &
   Taylor, "Robust statistical modeling using the t distribution", 1989): a pair that somebody
   else's work has hit weighs little.
3. Is it so? The two neighbours that remain are compared by fresh pairs, and by the rule of an A/B
   again: do they differ by more than the margin, or half of the change where that is less? Nothing
   is claimed without that, so the chance of a wrong claim is that of the test, whatever the search
   assumed: the n-th neighbours that are tried have alpha / 2^n, all of them together alpha.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from gpubench.analysis import stats
from gpubench.analysis.compare import sequential_test
from gpubench.analysis.compare.sequential_test import Pair, Shift
from gpubench.suite.types import Rule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SURE = 0.95
"""So likely must it be what a version is like before another one is looked at."""
SEVERAL = 0.1
"""How likely two steps are, before anything is measured."""
HALF = 0.5
"""Where a version between two steps is taken to lie."""
PATIENCE = 12
"""Pairs of one version after which the likeliest is taken, or twice what should have been enough:
it may lie where no two tell apart."""
FREEDOM = 4
"""Degrees of freedom of the noise: outliers weigh little, and normal noise hardly less."""
SPREADS = (0.4, 0.57, 0.8, 1.13, 1.6, 2.26, 3.2)
"""Of the noise: what it may be, in those that the first pairs seem to have."""
SIZES = tuple(n / 4 for n in range(-6, 7))
"""Likewise of the step: so many of them away from what the first pairs say."""


class Comparison(NamedTuple):
    """Two versions, the earlier one first."""

    first: int
    second: int
    proof: bool = False
    """Fresh pairs, by which a claim is tested."""


Evidence = Mapping[Comparison, Sequence[Pair]]
"""In the order in which the comparisons were begun; d = log(second / first)."""


class Wanted(NamedTuple):
    """What is measured next: so many pairs in all."""

    comparison: Comparison
    pairs: int


class Stretch(Struct, frozen=True):
    """A change between two versions."""

    first: int
    second: int
    what: str
    """A key of `WHAT`."""
    effect: Shift | None
    """log(second / first)."""


WHAT = {
    "step": "came with the second version, or with one of those before it that cannot be measured",
    "spread": "not all at once: there are versions between that are like neither end",
    "undecided": "measuring ended before it was known",
    "alike": "the ends do not differ by more than the margin",
    "near-margin": "the ends differ by so little, for their noise, that pairs do not decide it",
    "unproven": "the likeliest two neighbours were not shown to differ",
}


class Outlook(Struct, frozen=True):
    """What the pairs say."""

    stretches: list[Stretch]
    """In the order of the versions; the whole row alone where its ends were not shown to differ."""
    wanted: Wanted | None
    """None: nothing is left to be measured."""
    chance: float = 0.0
    """That the change which is looked for came within ``suspects``."""
    suspects: tuple[int, int] = (0, 0)
    """(last version that is like the good one, first one that is not), as it seems."""


def look(evidence: Evidence, last: int, skipped: Collection[int], rule: Rule) -> Outlook:
    """What is known, and what is wanted next. ``skipped``: versions that cannot be measured."""
    return _Search(evidence, last, frozenset(skipped), rule).outlook()


def by_value(evidence: Evidence, last: int, skipped: Collection[int], margin: float) -> Outlook:
    """The same of what has no noise: one pair with the good version tells a value.

    Versions between others that differ by more than ``margin`` are looked at until none is left, so
    every such step is found.
    """
    levels = {0: 0.0} | {one.second: pairs[0].d for one, pairs in evidence.items()
                         if one.first == 0 and pairs and one.second not in skipped}  # fmt: skip
    if last not in levels:
        return Outlook([], Wanted(Comparison(0, last), 1))
    found, wanted, inside = [], None, [n for n in range(1, last) if n not in skipped]
    for low, high in pairwise(sorted(levels)):
        if abs(size := levels[high] - levels[low]) > margin:
            middle = _middle(inside, low, high)
            if middle and wanted is None:
                wanted = Wanted(Comparison(0, middle), 1)
            what = "undecided" if middle else "step"
            found.append(Stretch(low, high, what, Shift(size, None, None, 1)))
    if not found:
        what = "spread" if abs(levels[last]) > margin else "alike"
        found = [Stretch(0, last, what, Shift(levels[last], None, None, 1))]
    return Outlook(found, wanted)


class _Search:
    def __init__(self, evidence: Evidence, last: int, skipped: frozenset[int], rule: Rule) -> None:
        self._evidence = {one: pairs for one, pairs in evidence.items() if not {*one[:2]} & skipped}
        self._last, self._skipped, self._rule = last, skipped, rule
        self._found: list[Stretch] = []
        self._wanted: Wanted | None = None
        self._seen = (0.0, (0, last))
        self._close = replace(rule, delta=rule.delta / 2)
        """Of what is left over: the change as a whole was shown to matter."""

    def outlook(self) -> Outlook:
        self._stretch(0, self._last, 0)
        found = sorted(self._found, key=lambda stretch: stretch.first)
        return Outlook(found, self._wanted, *self._seen)

    def _pairs(self, first: int, second: int, *, proof: bool = False) -> Sequence[Pair]:
        return self._evidence.get(Comparison(first, second, proof), ())

    def _say(self, first: int, second: int, what: str, *, proof: bool = False) -> None:
        pairs = self._pairs(first, second, proof=proof)
        self._found.append(Stretch(first, second, what, shift(pairs) if pairs else None))

    def _want(self, comparison: Comparison, more: int) -> None:
        if self._wanted is None:
            have = len(self._evidence.get(comparison, ()))
            self._wanted = Wanted(comparison, have + more)

    def _stretch(self, first: int, last: int, depth: int) -> None:
        """Everything that is known of it; ``depth``: how often the row was cut to come to it."""
        pairs = self._pairs(first, last)
        known, more = _ends(pairs, self._close if depth else self._rule, self._rule)
        if known != "differ":
            self._say(first, last, known)
            if more:
                self._want(Comparison(first, last), more)
            return
        inside = [n for n in range(first + 1, last) if n not in self._skipped]
        if not inside and not depth:
            self._say(first, last, "step")  # the first pairs are the proof
            return
        nodes = _Nodes(self._evidence, first, last, pairs, self._rule)
        if doubtful := nodes.doubtful():
            self._measure(nodes, doubtful)
        elif between := nodes.between():
            self._cut(first, between[len(between) // 2], last, depth)
        elif middle := _middle(inside, *nodes.suspects()):
            self._measure(nodes, middle)
        else:
            self._prove(nodes, depth)

    def _measure(self, nodes: _Nodes, node: int) -> None:
        both = (Comparison(nodes.first, node), Comparison(node, nodes.last))
        few = min(both, key=lambda one: len(self._evidence.get(one, ())))
        self._say(nodes.first, nodes.last, "undecided")
        if self._wanted is None:
            self._seen = nodes.chance(), nodes.suspects()
        self._want(few, nodes.batch())

    def _cut(self, first: int, node: int, last: int, depth: int) -> None:
        if depth:
            self._say(first, last, "spread")
        else:
            self._stretch(first, node, depth + 1)
            self._stretch(node, last, depth + 1)

    def _prove(self, nodes: _Nodes, depth: int) -> None:
        low, high = nodes.suspects()
        half = math.expm1(abs(nodes.ends) / 2)
        rule = Rule(
            delta=min(self._rule.delta, max(self._close.delta, half)),
            alpha=self._rule.alpha / 2 ** self._attempt(low, high), looks=self._rule.looks,
        )  # fmt: skip
        pairs = self._pairs(low, high, proof=True)
        known, more = _ends(pairs, rule, rule)
        if known != "differ" or (shift(pairs).value > 0) != (nodes.size > 0):
            self._say(nodes.first, nodes.last, "undecided" if more else "unproven")
            if self._wanted is None:
                self._seen = nodes.chance(), (low, high)
            if more:
                self._want(Comparison(low, high, True), more)
            return
        self._say(low, high, "step", proof=True)
        if abs(nodes.size - shift(pairs).value) > math.log1p(self._rule.delta) / 2:
            for first, last in ((nodes.first, low), (high, nodes.last)):
                if first < last:
                    self._stretch(first, last, depth + 1)

    def _attempt(self, low: int, high: int) -> int:
        """How many neighbours were tried before these."""
        tried = [one for one in self._evidence if one.proof]
        this = Comparison(low, high, True)
        return tried.index(this) if this in tried else len(tried)


def shift(pairs: Sequence[Pair]) -> Shift:
    """Where the differences lie."""
    return sequential_test.shift(tuple(pair.d for pair in pairs))


def _ends(pairs: Sequence[Pair], differ: Rule, alike: Rule) -> tuple[str, int]:
    """('differ', 'alike', 'undecided' or 'near-margin', how many more pairs are wanted)."""
    cells = {"": pairs}
    if sequential_test.judge(cells, differ)[""].verdict in ("REGRESSED", "IMPROVED"):
        return "differ", 0
    if sequential_test.judge(cells, alike)[""].verdict == "EQUIVALENT":
        return "alike", 0
    if not sequential_test.needs(cells, differ):
        return "near-margin", 0
    return "undecided", next(n for n in sequential_test.levels(differ) if n > len(pairs)) - len(
        pairs
    )


def _middle(inside: Sequence[int], low: int, high: int) -> int | None:
    """The version nearest to the middle of two, of those that can be measured."""
    found = [n for n in inside if low < n < high]
    return min(found, key=lambda n: (abs(2 * n - low - high), n)) if found else None


# ------------------------------------------------------------------------------ the likelihood


class _Nodes:
    """The versions of a stretch that were compared with its ends, and what they are like."""

    def __init__(
        self, evidence: Evidence, first: int, last: int, ends: Sequence[Pair], rule: Rule
    ) -> None:
        self.first, self.last = first, last
        d = tuple(pair.d for pair in ends)
        self.ends = shift(ends).value
        """log(last / first), by the pairs of the ends alone."""
        self._spread = _spread(d, self.ends)
        within = {
            one: tuple(pair.d for pair in pairs)
            for one, pairs in evidence.items()
            if first <= one.first and one.second <= last and pairs
        }
        places = sorted({first, last, *(n for one in within for n in one[:2])})
        self._count = dict.fromkeys(places[1:-1], 0)
        for one, own in within.items():
            for n in {one.first, one.second} & {*self._count}:
                self._count[n] += len(own) if not one.proof else 0
        self._like, self.size = _likeness(
            tuple(places), tuple((one.first, one.second, own) for one, own in within.items()),
            self.ends, self._spread, math.log1p(rule.delta) / 2,
        )  # fmt: skip
        """`self.size`: the same by all pairs."""
        self._enough = -math.log(1 - SURE) * 2 * (self._spread / (HALF * self.ends)) ** 2
        """Pairs that probably tell what a version is like."""

    def doubtful(self) -> int | None:
        """The version of which it is least known what it is like."""
        most = max(PATIENCE, 2 * self._enough)
        doubts = {n: max(like) for n, like in self._like.items()
                  if max(like) < SURE and self._count[n] < most}  # fmt: skip
        return min(doubts, key=lambda n: (doubts[n], n)) if doubts else None

    def between(self) -> list[int]:
        """Versions that are like neither end."""
        return [n for n, like in self._like.items() if max(like) == like[1]]

    def suspects(self) -> tuple[int, int]:
        """The last version like the first one, and the first one that is not."""
        low = self.first
        for n, like in self._like.items():
            if max(like) != like[0]:
                return low, n
            low = n
        return low, self.last

    def chance(self) -> float:
        """That the step is between the `suspects`, and there is but one."""
        low, high = self.suspects()
        return min(self._like[low][0] if low in self._like else 1.0,
                   self._like[high][2] if high in self._like else 1.0)  # fmt: skip

    def batch(self) -> int:
        """Pairs that are measured before anybody looks again: a third of what probably decides."""
        return max(1, min(4, math.ceil(self._enough / 3)))


def _spread(d: Sequence[float], centre: float) -> float:
    """Of the noise, by the median distance from ``centre``."""
    away = sorted(abs(x - centre) for x in d)
    return max(stats.MAD_SD * away[len(away) // 2], abs(centre) / 50, 1e-5)


def _steps(places: tuple[int, ...]) -> Iterator[tuple[float, list[float]]]:
    """(prior weight, level of each place) of every way in which the change may have come."""
    gaps = [(n, after - before) for n, (before, after) in enumerate(pairwise(places), 1)]
    total = sum(size for _, size in gaps)
    twos = sum(a * b for n, a in gaps for m, b in gaps if n < m)
    for n, size in gaps:
        yield (1 - SEVERAL) * size / total, [0.0] * n + [1.0] * (len(places) - n)
        for m, other in gaps:
            if n < m:
                levels = [0.0] * n + [HALF] * (m - n) + [1.0] * (len(places) - m)
                yield SEVERAL * size * other / twos, levels


@lru_cache(maxsize=1 << 10)
def _likeness(
    places: tuple[int, ...],
    pairs: tuple[tuple[int, int, tuple[float, ...]], ...],
    size: float,
    spread: float,
    least: float,
) -> tuple[dict[int, tuple[float, float, float]], float]:
    """(version -> chances that it is like the first, between, like the last; size of the change).

    ``least``: the smallest that the change may be.
    """
    import numpy as np

    at = {place: n for n, place in enumerate(places)}
    weights, rows = zip(*_steps(places), strict=True)
    levels = np.array(rows)
    logs = np.log(np.array(weights))[:, None, None]
    for first, second, d in pairs:
        table = _table(d, size, spread, least)
        differ = np.rint((levels[:, at[second]] - levels[:, at[first]]) / HALF).astype(int)
        logs = logs + table[differ]
    chance = np.exp(logs - logs.max())
    chance /= chance.sum()
    of_step, of_size = chance.sum((1, 2)), chance.sum((0, 2))
    like = {
        n: tuple(float(of_step[levels[:, at[n]] == level].sum()) for level in (0.0, HALF, 1.0))
        for n in places[1:-1]
    }
    return like, float(of_size @ _sizes(size, spread, least))  # type: ignore[return-value]


@lru_cache(maxsize=1 << 12)
def _table(d: tuple[float, ...], size: float, spread: float, least: float) -> Floats:
    """Log likelihood of differences: (0, half or all of the step; what it may be; the noise)."""
    import numpy as np

    spreads = spread * np.array(SPREADS)
    expected = np.multiply.outer(np.array([0.0, HALF, 1.0]), _sizes(size, spread, least))
    away = (np.array(d)[:, None, None, None] - expected[..., None]) / spreads
    logs = -(FREEDOM + 1) / 2 * np.log1p(away**2 / FREEDOM) - np.log(spreads)
    return np.asarray(logs.sum(0))


def _sizes(size: float, spread: float, least: float) -> Floats:
    import numpy as np

    sign = math.copysign(1.0, size)
    return sign * np.maximum(least, sign * (size + spread * np.array(SIZES)))
