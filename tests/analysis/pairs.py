"""Pairs of an A/B as tests want them, and the driver that measures them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import msgspec
import numpy as np

from gpubench.analysis.compare.sequential_test import Pair, Pairs, Verdict, judge, wanted
from gpubench.suite.types import Rule

RULE = Rule()
SLOWER = math.log1p(0.05)
MARGIN = math.log1p(RULE.delta)


def around(centre: float, sd: float, n: int, seed: int = 0) -> list[Pair]:
    """``n`` pairs as evenly as normal noise can be, symmetric about ``centre``, shuffled."""
    d = [centre + sd * NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)]
    np.random.default_rng([seed, n]).shuffle(d)
    return [Pair(d=x) for x in d]


def whole(
    fresh: Callable[[str, int], Sequence[Pair]],
    keys: Sequence[str],
    rule: Rule = RULE,
    at_once: int = 1,
):
    """Measure as the driver does: up to ``at_once`` pairs of every wanted cell a round."""
    cells = {key: Pairs() for key in keys}
    asked = []
    while want := wanted(cells, rule):
        asked.append(want)
        for key, (stage, size) in want.items():
            had = cells[key]
            more = fresh(key, min(at_once, size - len(getattr(had, stage))))
            cells[key] = msgspec.structs.replace(had, **{stage: [*getattr(had, stage), *more]})
    return cells, asked


def normal(seed: int, sd: float, effects: dict[str, float]) -> Callable[[str, int], list[Pair]]:
    rng = np.random.default_rng(seed)
    return lambda key, n: [Pair(d=float(x)) for x in rng.normal(effects[key], sd, n)]


def dirty(seed: int, effects: dict[str, float]) -> Callable[[str, int], list[Pair]]:
    """Every seventh pair is off by 5 to 35 %, in either direction."""
    rng = np.random.default_rng(seed)

    def fresh(key: str, n: int) -> list[Pair]:
        off = rng.uniform(0.05, 0.35, n) * rng.choice([-1, 1], n) * (rng.random(n) < 0.15)
        return [Pair(d=float(x)) for x in rng.normal(effects[key], 0.007, n) + off]

    return fresh


def confirmed(screen: list[Pair], confirm: list[Pair]) -> Verdict:
    return judge({"a": Pairs(screen=screen, confirm=confirm)}, RULE)["a"]
