"""Exact tests of two arms' answers to the same pictures."""

from __future__ import annotations

import itertools
import math

import pytest

from gpubench.analysis.compare import answers
from gpubench.analysis.compare.answers import Changes
from gpubench.records.parity import Answers


def given(*classes: int, labels: tuple[int, ...] = (), pictures: str = "p") -> Answers:
    return Answers(pictures=pictures, given=list(classes), labels=list(labels or classes))


def test_what_changed_is_counted_once_a_picture() -> None:
    labels = (0, 1, 2, 3, -1)
    base = given(0, 1, 2, 0, 7, labels=labels)
    candidate = given(1, 1, 2, 3, 8, labels=labels)
    assert answers.changes(base, candidate) == Changes(
        asked=5, changed=3, labelled=4, correct=(3, 3), lost=1, gained=1
    )
    assert answers.changes(base, given(0, pictures="q")) is None


def chance(lost: int, gained: int, n: int, p: float, q: float) -> float:
    """Of just so many pictures that are lost (each by p) and gained (q)."""
    rest = n - lost - gained
    ways = math.comb(n, lost) * math.comb(n - lost, gained)
    return ways * p**lost * q**gained * (1 - p - q) ** rest


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.1])
def test_the_level_holds_whatever_share_changes(margin: float) -> None:
    """By enumeration: all outcomes of 30 pictures, the true loss just the margin."""
    n, level = 30, 0.05
    outcomes = [(b, c) for b, c in itertools.product(range(n + 1), repeat=2) if b + c <= n]
    called = [x for x in outcomes if answers.p_lost(*x, n, margin, level) <= level]
    assert called
    for gained in (0.0, 0.02, 0.1, 0.2, 0.4):
        p = gained + margin
        assert sum(chance(b, c, n, p, gained) for b, c in called) <= level


@pytest.mark.parametrize(("p", "q"), [(0.0, 0.02), (0.05, 0.05), (0.2, 0.1), (0.3, 0.3)])
def test_the_interval_holds_the_truth(p: float, q: float) -> None:
    n = 30
    outcomes = [(b, c) for b, c in itertools.product(range(n + 1), repeat=2) if b + c <= n]
    held = 0.0
    for lost, gained in outcomes:
        low, high = answers.interval(lost, gained, n)
        held += chance(lost, gained, n, p, q) * (low <= q - p <= high)
    assert held >= 0.95


def test_both_sides_are_the_same_mirrored() -> None:
    low, high = answers.interval(12, 3, 500)
    assert answers.interval(3, 12, 500) == pytest.approx((-high, -low))
    assert low < -9 / 500 < high
