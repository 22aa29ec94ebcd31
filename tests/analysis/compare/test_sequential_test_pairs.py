"""Which pairs the gate asks for; what it says of them is in test_gate.py."""

from __future__ import annotations

import pytest

from gpubench.analysis.compare import sequential_test
from gpubench.analysis.compare.sequential_test import AGAIN, Pair, Pairs, judge, wanted
from gpubench.suite.types import Rule
from tests.analysis.pairs import MARGIN, RULE, SLOWER, around, normal, whole

# ------------------------------------------------------------------------------ the screen


def test_every_cell_gets_its_pilot_first() -> None:
    assert wanted({"a": Pairs(), "b": Pairs(screen=around(0, 0.01, 3))}, RULE) == {
        "a": ("screen", 8),
        "b": ("screen", 8),
    }


def test_a_quiet_identical_cell_is_done_after_the_pilot() -> None:
    cells = {"a": Pairs(screen=around(0, 0.01, 8))}
    assert wanted(cells, RULE) == {}
    assert judge(cells, RULE)["a"].verdict == "EQUIVALENT"


def test_a_noisy_cell_is_looked_at_again_and_again() -> None:
    pairs, sizes = around(0, 0.1, 8), []
    while (n := sequential_test.screen_size(Pairs(screen=pairs), RULE)) > len(pairs):
        sizes.append(n)
        pairs += around(0, 0.1, n - len(pairs))
    assert sizes == [12, 18, 27, 40, 60]
    assert wanted({"a": Pairs(screen=pairs)}, RULE) == {}


@pytest.mark.parametrize(("sd", "pairs"), [(0.01, 8), (0.015, 12), (0.018, 18), (0.024, 27)])
def test_screening_ends_at_the_first_look_with_a_narrow_interval(sd: float, pairs: int) -> None:
    drawn = around(0, sd, pairs)
    while len(drawn) < 60 and (n := sequential_test.screen_size(Pairs(screen=drawn), RULE)) > len(
        drawn
    ):
        drawn = around(0, sd, n)
    half = {
        n: sequential_test._shift([p.d for p in around(0, sd, n)]).half for n in (8, 12, 18, 27)
    }
    assert (
        len(drawn) == next(n for n in half if half[n] <= sequential_test.NARROW * MARGIN) == pairs
    )


def test_a_later_pair_takes_no_look_back() -> None:
    """What a look has ended stays ended: later pairs cannot ask for more, nor clear the cell."""
    flagged = around(0.1, 0.01, 8)
    more = Pairs(screen=[*flagged, *around(-0.1, 0.3, 30)])
    assert sequential_test.screen_size(more, RULE) == 8
    assert sequential_test.direction(more, RULE) == 1
    assert (
        sequential_test.screen_size(Pairs(screen=[*around(0, 0.01, 8), *around(0, 1, 30)]), RULE)
        == 8
    )


def test_a_cell_that_leans_late_is_flagged_at_that_look() -> None:
    early, late = around(0.02, 0.1, 12), around(-0.1, 0.01, 15)
    assert sequential_test.screen_size(Pairs(screen=early), RULE) == 18
    cell = Pairs(screen=[*early, *late])
    assert sequential_test.screen_size(cell, RULE) == 27
    assert [
        sequential_test.direction(Pairs(screen=cell.screen[:n]), RULE) for n in (8, 12, 27)
    ] == [0, 0, -1]


def test_confirming_waits_until_all_cells_are_screened() -> None:
    slow, noisy = Pairs(screen=around(0.1, 0.01, 8)), Pairs(screen=around(0, 0.015, 8))
    assert wanted({"slow": slow, "noisy": noisy}, RULE) == {"noisy": ("screen", 12)}
    noisy = Pairs(screen=around(0, 0.015, 12))
    assert wanted({"slow": slow, "noisy": noisy}, RULE) == {"slow": ("confirm", 9)}


# ------------------------------------------------------------------------------ fresh pairs


def test_a_huge_effect_costs_nine_fresh_pairs_and_more_in_a_family() -> None:
    cells = {str(i): Pairs(screen=around(0.2, 0.01, 8, i)) for i in range(12)}
    # 1/2^n must reach half of 1 % (two looks), with one sign pattern to spare
    assert wanted({"0": cells["0"]}, RULE) == {"0": ("confirm", 9)}
    assert set(wanted(cells, RULE).values()) == {("confirm", 13)}


def test_the_first_look_depends_on_the_screen_alone() -> None:
    screen = around(SLOWER, 0.02, 8)
    size = sequential_test.first_look(Pairs(screen=screen), 1, RULE)
    assert 9 < size < RULE.most
    for centre, n in [(-0.5, 5), (0, size - 1), (0, size), (0.5, size + 3), (0.5, 60)]:
        pairs = Pairs(screen=screen, confirm=around(centre, 0.05, n))
        assert sequential_test.first_look(pairs, 1, RULE) == size
        if n < size:
            assert sequential_test.confirm_size(pairs, 1, RULE) == size


def test_whether_there_is_a_second_look_depends_on_the_first_pairs_alone() -> None:
    screen = around(0.2, 0.01, 8)
    for first, size in [(around(0.2, 0.01, 9), 9), (around(0.02, 0.1, 9), 36),
                        (around(0, 0.002, 9), 9)]:  # fmt: skip
        for later in ([], around(0.9, 0.1, 5), around(-0.9, 0.1, 27)):
            assert (
                sequential_test.confirm_size(Pairs(screen=screen, confirm=first + later), 1, RULE)
                == size
            )


def test_a_first_look_is_clear_when_both_looks_and_all_flagged_cells_are_paid_for() -> None:
    """One pair below the margin, the nearest or the next: p = 2 or 3 of 2^n."""
    screen = around(0.2, 0.01, 8)
    for n, flagged, below, size in [(9, 1, 1, 9), (9, 1, 2, 36), (10, 2, 1, 10), (10, 2, 2, 40)]:
        signs = [-1 if i == below else 1 for i in range(1, n + 1)]
        confirm = [Pair(d=MARGIN + 0.01 * s * i) for i, s in enumerate(signs, 1)]
        cell = Pairs(screen=screen, confirm=confirm)
        assert sequential_test.confirm_size(cell, flagged, RULE) == size, (n, flagged, below)


def test_the_second_look_has_four_times_as_many_but_not_more_than_allowed() -> None:
    unclear = {n: around(0.03, 0.3, n) for n in (9, 13)}
    screen = around(0.2, 0.01, 8)
    one = Pairs(screen=screen, confirm=unclear[9])
    assert wanted({"a": one}, RULE) == {"a": ("confirm", 4 * 9)}
    few = Rule(most=20)
    assert wanted({"a": one}, few) == {"a": ("confirm", 20)}
    # where the least that can reach the level is more than allowed, it is not made less again
    least = Rule(most=8)
    dozen = Pairs(screen=screen, confirm=unclear[13])
    assert (
        sequential_test.confirm_size(dozen, 12, least)
        == sequential_test.first_look(dozen, 12, least)
        == 13
    )


def test_an_effect_near_the_margin_does_not_eat_the_budget() -> None:
    assert (
        sequential_test.confirm_size(Pairs(screen=around(0.026, 0.005, 8)), 1, RULE)
        == 2 * RULE.pilot
    )


def test_a_lucky_quiet_screen_with_dirty_fresh_pairs_gets_its_second_look() -> None:
    """The fresh pairs' noise was not in the screen: nine of them cannot tell, 36 can."""
    screen = around(0.06, 0.003, 8)
    dirty = [Pair(d=p.d + (i % 5 == 0) * 0.3 * (-1) ** i) for i, p in
             enumerate(around(0.05, 0.004, 36))]  # fmt: skip
    first = Pairs(screen=screen, confirm=dirty[:9])
    assert (first_size := sequential_test.first_look(first, 1, RULE)) == 9
    assert wanted({"a": first}, RULE) == {"a": ("confirm", AGAIN * first_size)}
    said = judge({"a": first}, RULE)["a"]
    assert (said.verdict, said.code, said.p) == ("INCONCLUSIVE", "unconfirmed", None)
    both = Pairs(screen=screen, confirm=dirty)
    assert wanted({"a": both}, RULE) == {}
    said = judge({"a": both}, RULE)["a"]
    assert (said.verdict, said.code, said.pairs) == ("REGRESSED", "confirmed", 36)


@pytest.mark.parametrize("effect", [0.0, SLOWER, -0.1])
def test_measuring_ends_with_what_was_promised(effect: float) -> None:
    cells, asked = whole(normal(3, 0.01, {"a": effect, "b": 0.0}), ["a", "b"])
    stages = [stage for want in asked for stage, _ in want.values()]
    assert stages == sorted(stages, key=["screen", "confirm"].index)
    assert bool(cells["a"].confirm) == bool(effect)
    assert not cells["b"].confirm
    said = judge(cells, RULE)
    expected = {0.0: "EQUIVALENT", SLOWER: "REGRESSED", -0.1: "IMPROVED"}[effect]
    assert (said["a"].verdict, said["b"].verdict) == (expected, "EQUIVALENT")
