"""What a bisection wants next, and what it says, on pairs whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from gpubench.analysis.compare import bisection
from gpubench.analysis.compare.bisection import Comparison, Outlook
from gpubench.analysis.compare.sequential_test import Pair
from gpubench.suite.types import Rule
from tests.benchmarks.trust.bisections import bisect

SD = 0.01


def noise(seed: int = 0, sd: float = SD) -> list[float]:
    return np.random.default_rng(seed).normal(0, sd, 600).tolist()


def stairs(last: int, steps: dict[int, float]) -> list[float]:
    """Log costs; the version ``place`` costs more by so much than the one before it."""
    return [sum(math.log1p(s) for place, s in steps.items() if n >= place) for n in range(last + 1)]


def said(found: Outlook) -> list[tuple[int, int, str]]:
    return [(s.first, s.second, s.what) for s in found.stretches]


@pytest.mark.parametrize("place", [1, 2, 7, 15, 16])
def test_one_step_is_found_wherever_it_is(place: int) -> None:
    got = bisect(stairs(16, {place: 0.05}), noise(place))
    assert said(got.found) == [(place - 1, place, "step")]
    assert got.built <= 2 + 5
    effect = got.found.stretches[0].effect
    assert effect
    assert effect.low < math.log1p(0.05) < effect.high  # type: ignore[operator]


def test_a_change_for_the_better_is_found_too() -> None:
    got = bisect(stairs(16, {5: -0.1}), noise())
    assert said(got.found) == [(4, 5, "step")]
    assert got.found.stretches[0].effect.value < -0.05  # type: ignore[union-attr]


def test_ends_that_do_not_differ_end_it() -> None:
    got = bisect(stairs(16, {}), noise())
    assert said(got.found) == [(0, 16, "alike")]
    assert got.found.wanted is None
    assert got.built == 2


def test_two_neighbours_need_no_search() -> None:
    got = bisect(stairs(1, {1: 0.05}), noise())
    assert said(got.found) == [(0, 1, "step")]
    assert got.built == 2


def test_two_steps_are_told_as_two() -> None:
    got = bisect(stairs(32, {9: 0.06, 24: 0.05}), noise())
    assert [s for s in said(got.found) if s[2] == "step"] == [(8, 9, "step"), (23, 24, "step")]


def test_a_small_step_beside_a_large_one_is_told() -> None:
    got = bisect(stairs(32, {9: 0.12, 24: 0.05}), noise())
    assert [s for s in said(got.found) if s[2] == "step"] == [(8, 9, "step"), (23, 24, "step")]


def test_what_came_bit_by_bit_is_no_commits_doing() -> None:
    got = bisect(stairs(32, dict.fromkeys(range(1, 33), 0.002)), noise())
    assert all(what != "step" for _, _, what in said(got.found))
    assert "spread" in {what for _, _, what in said(got.found)}


def test_versions_that_cannot_be_measured_are_stepped_around() -> None:
    def look(evidence: bisection.Evidence) -> Outlook:
        return bisection.look(evidence, 8, {4, 5}, Rule())

    levels, evidence, draws = stairs(8, {5: 0.1}), dict[Comparison, list[Pair]](), iter(noise())
    while wanted := look(evidence).wanted:
        one = wanted.comparison
        assert not {*one[:2]} & {4, 5}
        own = evidence.setdefault(one, [])
        own.extend(
            Pair(d=levels[one.second] - levels[one.first] + next(draws))
            for _ in range(wanted.pairs - len(own))
        )
    assert said(look(evidence)) == [(3, 6, "step")]


def test_what_broke_in_the_middle_of_a_search_is_left_out() -> None:
    evidence = {Comparison(0, 8): pairs(0.1, 13), Comparison(0, 4): pairs(0.1, 2)}
    before = bisection.look(evidence, 8, (), Rule()).wanted
    after = bisection.look(evidence, 8, {4}, Rule()).wanted
    assert before
    assert before.comparison == (0, 2, False), "4 is like the bad one"
    assert after
    assert after.comparison == (0, 3, False), "nothing is known of what is left"


def pairs(d: float, n: int, sd: float = 0.002) -> list[Pair]:
    return [Pair(d=d + x) for x in np.random.default_rng(n).normal(0, sd, n)]


def test_good_bad_and_the_middle_take_turns() -> None:
    evidence = {Comparison(0, 8): [Pair(d=d) for d in (0.08, 0.03, 0.1, 0.05, 0.06, 0.07) * 3]}
    first = bisection.look(evidence, 8, (), Rule()).wanted
    assert first
    evidence[first.comparison] = [Pair(d=0.03)] * first.pairs
    second = bisection.look(evidence, 8, (), Rule()).wanted
    assert second
    assert [first.comparison, second.comparison] == [Comparison(0, 4), Comparison(4, 8)]


def test_a_pair_that_was_hit_by_other_work_does_not_decide() -> None:
    evidence = {Comparison(0, 8): pairs(0.05, 13, sd=0.01)}
    for seen in ([0.5], [0.0, 0.0, 0.5, 0.0]):
        evidence[Comparison(0, 4)] = [Pair(d=d) for d in seen]
        found = bisection.look(evidence, 8, (), Rule())
        assert found.wanted
        if len(seen) == 1:
            assert 4 in found.wanted.comparison[:2], "one pair that far out says nothing"
    assert found.suspects[0] == 4, "three say that it is like the good one"


def test_neighbours_that_the_proof_speaks_against_are_left() -> None:
    """What the search took for the bad side is measured again, and the step found elsewhere."""
    evidence = {Comparison(0, 4): pairs(0.1, 13), Comparison(0, 2): pairs(0.1, 1, sd=0.0)}
    evidence |= {Comparison(2, 4): pairs(0.06, 1), Comparison(0, 1): pairs(0.1, 2)}
    evidence |= {Comparison(1, 4): pairs(0.0, 2)}
    evidence[Comparison(0, 1, True)] = []
    levels, draws = stairs(4, {3: 0.1}), iter(noise())
    for _ in range(60):
        wanted = bisection.look(evidence, 4, (), Rule()).wanted
        if wanted is None:
            break
        one, own = wanted.comparison, evidence.setdefault(wanted.comparison, [])
        while len(own) < wanted.pairs:
            own.append(Pair(d=levels[one.second] - levels[one.first] + next(draws)))
    assert [s for s in said(bisection.look(evidence, 4, (), Rule())) if s[2] == "step"] == [
        (2, 3, "step")
    ]


def test_each_further_proof_has_half_of_the_error_that_is_left() -> None:
    """By which as many pairs that would do for the first neighbours do not for the second."""
    d = [0.06, 0.055, 0.052, 0.061, 0.058, 0.057, 0.063, 0.06, 0.059]
    proof = [Pair(d=x) for x in d]
    base: dict[Comparison, Sequence[Pair]] = {
        Comparison(0, 2): pairs(0.058, 13),
        Comparison(0, 1): pairs(0.058, 3),
        Comparison(1, 2): pairs(0.0, 3),
    }
    assert said(look2(base | {Comparison(0, 1, True): proof})) == [(0, 1, "step")]
    tried = base | {Comparison(1, 2, True): pairs(0.0, 1), Comparison(0, 1, True): proof}
    found = look2(tried)
    assert found.wanted == (Comparison(0, 1, True), 13)


def look2(evidence: bisection.Evidence) -> Outlook:
    return bisection.look(evidence, 2, (), Rule())


def test_what_is_wanted_follows_from_the_pairs_alone() -> None:
    """So that an interrupted bisection goes on as if nothing had been."""
    true, draws = stairs(16, {11: 0.05}), noise(3)
    whole = bisect(true, draws)
    for most in (5, 14, 20, 27):
        part = bisect(true, draws, most)
        assert part.pairs <= whole.pairs
    assert said(bisect(true, draws).found) == said(whole.found)


def test_identical_numbers_are_no_trouble() -> None:
    """Of a virtual clock, or a counter: no spread at all."""
    got = bisect(stairs(16, {6: 0.05}), [0.0] * 400)
    assert said(got.found) == [(5, 6, "step")]


def test_by_value_every_step_is_found_with_one_pair_a_version() -> None:
    levels, evidence = stairs(32, {3: 0.02, 20: -0.01, 21: 0.05}), dict[Comparison, list[Pair]]()

    def look() -> Outlook:
        return bisection.by_value(evidence, 32, {10}, 0.005)

    while wanted := look().wanted:
        assert wanted.pairs == 1
        assert 10 not in wanted.comparison
        evidence[wanted.comparison] = [Pair(d=levels[wanted.comparison.second])]
    assert said(look()) == [(2, 3, "step"), (19, 20, "step"), (20, 21, "step")]
    assert len(evidence) < 17


def test_by_value_what_came_bit_by_bit_has_no_step() -> None:
    evidence = {Comparison(0, n): [Pair(d=0.004 * n)] for n in range(1, 5)}
    assert said(bisection.by_value(evidence, 4, (), 0.005)) == [(0, 4, "spread")]
    assert said(bisection.by_value(evidence, 4, (), 0.02)) == [(0, 4, "alike")]
