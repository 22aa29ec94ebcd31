"""Pairs of an A/B as tests want them, and the driver that measures them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from gpubench.analysis.compare.sequential_test import Pair, Verdict, judge, needs
from gpubench.suite.types import Rule

RULE = Rule()
SLOWER = math.log1p(0.05)
MARGIN = math.log1p(RULE.delta)
Fresh = Callable[[str, int], Sequence[Pair]]


def around(centre: float, sd: float, n: int, seed: int = 0) -> list[Pair]:
    """``n`` pairs as evenly as normal noise can be, symmetric about ``centre``, shuffled."""
    d = [centre + sd * NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)]
    np.random.default_rng([seed, n]).shuffle(d)
    return [Pair(d=x) for x in d]


def exactly(*d: float) -> list[Pair]:
    """Pairs of these differences."""
    return [Pair(d=x) for x in d]


def whole(
    fresh: Fresh, keys: Sequence[str], rule: Rule = RULE, at_once: int = 1
) -> dict[str, list[Pair]]:
    """Measure as the driver does: up to ``at_once`` pairs of every open cell a round."""
    cells: dict[str, list[Pair]] = {key: [] for key in keys}
    while open_ := needs(cells, rule):
        for key, n in open_.items():
            cells[key] = [*cells[key], *fresh(key, min(at_once, n))]
    return cells


def normal(seed: int, sd: float, effects: dict[str, float]) -> Fresh:
    rng = np.random.default_rng(seed)
    return lambda key, n: [Pair(d=float(x)) for x in rng.normal(effects[key], sd, n)]


def dirty(seed: int, effects: dict[str, float]) -> Fresh:
    """Every seventh pair is off by 5 to 35 %, in either direction."""
    rng = np.random.default_rng(seed)

    def fresh(key: str, n: int) -> list[Pair]:
        off = rng.uniform(0.05, 0.35, n) * rng.choice([-1, 1], n) * (rng.random(n) < 0.15)
        return [Pair(d=float(x)) for x in rng.normal(effects[key], 0.007, n) + off]

    return fresh


def said(pairs: Sequence[Pair], rule: Rule = RULE) -> Verdict:
    """Of one cell alone."""
    return judge({"a": pairs}, rule)["a"]
