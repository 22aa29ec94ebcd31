"""The decision rule of an A/B: what it says, which pairs it asks for, and how often it is wrong."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubench.analysis.compare import sequential_test as sequential
from gpubench.analysis.compare.sequential_test import CODES, EARLY, FAR, Pair, judge, needs, turn
from gpubench.suite.types import Rule
from tests.analysis.pairs import MARGIN, RULE, SLOWER, around, dirty, exactly, normal, said, whole

CHANGED = ("REGRESSED", "IMPROVED")
FARTHER = MARGIN + FAR + 0.01

# ------------------------------------------------------------------------------ levels


def test_all_looks_together_spend_alpha_and_no_more() -> None:
    for alpha in (0.001, 0.01, 0.05, 0.2):
        levels = sequential.levels(Rule(alpha=alpha))
        assert sum(levels.values()) == pytest.approx(alpha / 2)
        assert list(levels) == sorted({EARLY, *RULE.looks})
    able = [n for n, level in sequential.levels(RULE).items() if level]
    assert able == [EARLY, 9, 13, 19, 28, 41, 60, 90, 120], "seven pairs reach no level"


def test_a_look_is_shared_by_as_many_cells_as_can_reach_its_level() -> None:
    assert [sequential.sharing(n, 10, RULE) for n in (EARLY, 7, 9, 13, 19)] == [10, 0, 1, 3, 10]
    assert sequential.sharing(EARLY, 1000, RULE) == 81
    assert sequential.sharing(13, 2, RULE) == 2


@pytest.mark.parametrize("looks", [[], [3, 9], [9, 7], [9, 9]])
def test_looks_that_are_none(looks: list[int]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"looks": looks}, Rule)


# ------------------------------------------------------------------------------ what it says


@pytest.mark.parametrize("sign", [1, -1])
def test_nine_pairs_beyond_the_margin_decide(sign: int) -> None:
    verdict = "REGRESSED" if sign > 0 else "IMPROVED"
    pairs = around(sign * 0.1, 0.01, 9)
    found = said(pairs)
    assert (found.verdict, found.code, found.pairs) == (verdict, "confirmed", 9)
    assert found.p == pytest.approx(0.01 * 2**-9 / 0.002)
    way = "slower" if sign > 0 else "faster"
    assert found.reason == f"about 1.11x {way} in 9 of 9 pairs, beyond 2 %: p = 0.0098 " \
        "after correction"  # fmt: skip
    assert found.effect is not None
    assert found.effect.value == pytest.approx(sign * 0.1)
    assert said(pairs[:8]).code == "unconfirmed"
    assert said([*pairs[:8], Pair(d=0.0)]).verdict == "INCONCLUSIVE"


@pytest.mark.parametrize("sign", [1, -1])
def test_four_pairs_far_beyond_the_margin_decide(sign: int) -> None:
    pairs = exactly(*[sign * FARTHER] * 4)
    found = said(pairs)
    assert (found.verdict, found.pairs, found.p) == (
        "REGRESSED" if sign > 0 else "IMPROVED", 4, pytest.approx(0.01 * 30**-4 / 1e-4),
    )  # fmt: skip
    assert found.reason.endswith("in 4 of 4 pairs, beyond 2 %: by more than 1.5x")
    assert found.effect is not None
    assert found.effect.interval() is None
    assert needs({"a": pairs}, RULE) == {}
    assert needs({"a": pairs[:3]}, RULE) == {"a": 1}
    nearer = [*pairs[:3], Pair(d=sign * (FARTHER - 0.02))]
    assert (said(nearer).code, needs({"a": nearer}, RULE)) == ("unconfirmed", {"a": 3})


def test_pairs_of_few_turns_wait_for_a_rank_test() -> None:
    """What comes and goes in step with two turns hits one arm in four pairs 1 time in 8."""
    pairs = [Pair(d=FARTHER, coarse=True) for _ in range(9)]
    assert said(pairs[:4]).code == "unconfirmed"
    assert needs({"a": pairs[:3]}, RULE) == {"a": 4}
    assert (said(pairs).verdict, said(pairs).pairs) == ("REGRESSED", 9)


def test_four_far_pairs_are_not_enough_where_too_many_cells_share_them() -> None:
    far = {str(n): exactly(*[FARTHER] * 4) for n in range(20)}
    waiting: dict[str, list[Pair]] = {f"w{n}": [] for n in range(80)}
    assert {v.verdict for v in judge(far, RULE).values()} == {"REGRESSED"}
    # nobody knows how far out those are that have no pair yet
    assert {v.verdict for v in judge(far | waiting, RULE).values()} == {"INCONCLUSIVE"}


def test_a_rank_test_forgives_a_pair_that_was_hit() -> None:
    found = said([Pair(d=-0.3), *around(0.06, 0.01, 27)])
    assert (found.verdict, found.pairs) == ("REGRESSED", 28)


def test_pairs_after_the_deciding_look_change_nothing() -> None:
    for first in (around(0.1, 0.01, 9), around(0.0, 0.005, 7), exactly(*[-FARTHER] * 7)):
        decided = said(first)
        assert decided.verdict != "INCONCLUSIVE"
        assert said([*first, *around(0.3, 0.5, 60)]) == decided
        assert needs({"a": first}, RULE) == {}


def test_equivalent_at_the_first_look_and_at_later_ones() -> None:
    for sd, n in ((0.004, 7), (0.019, 13)):
        pairs = around(0, sd, n)
        assert (said(pairs).verdict, said(pairs).pairs) == ("EQUIVALENT", n)
        assert said(pairs[:-1]).code == ("few-pairs" if n == 7 else "wide-interval")


def test_what_would_be_different_alone_is_never_equivalent() -> None:
    """Else a verdict could be taken back when another cell leaves the family."""
    nine, later = around(0.03, 0.003, 9), around(0.0, 0.001, 111)
    other = around(0.2, 0.1, 9, 1)  # further out, but mixed: it takes the look's level
    other[0] = Pair(d=-0.2)
    both = judge({"a": [*nine, *later], "b": other}, RULE)
    assert (both["a"].verdict, both["a"].code) == ("INCONCLUSIVE", "unconfirmed")
    assert said([*nine, *later]).verdict == "REGRESSED"


def test_the_furthest_out_share_an_early_look_and_step_down() -> None:
    far, near = around(0.2, 0.01, 9), around(0.1, 0.01, 9)
    both = judge({"near": near, "far": far}, RULE)
    assert [both[k].verdict for k in ("near", "far")] == ["REGRESSED"] * 2
    mixed = [*far[:8], Pair(d=-0.2)]  # further out, not different, and so in the way
    assert judge({"near": near, "far": mixed}, RULE)["near"].code == "unconfirmed"
    # an improvement is no rival in the other direction once it is one
    gain = [Pair(d=-p.d) for p in far]
    assert judge({"near": near, "far": gain}, RULE)["near"].verdict == "REGRESSED"


def test_cells_that_are_not_measured_count() -> None:
    slow = around(0.06, 0.01, 13)
    waiting: dict[str, list[Pair]] = {str(n): [] for n in range(9)}
    assert said(slow).verdict == "REGRESSED"
    assert judge({"a": slow} | waiting, RULE)["a"].verdict == "INCONCLUSIVE"
    more = judge({"a": around(0.06, 0.01, 19)} | waiting, RULE)["a"]
    assert (more.verdict, more.p) == ("REGRESSED", pytest.approx(10 * 2**-19 * 0.01 * 7 / 0.0029))


@pytest.mark.parametrize("n", range(7))
def test_few_pairs(n: int) -> None:
    found = said(around(0, 0.0001, n))
    assert (found.verdict, found.code, found.pairs) == ("INCONCLUSIVE", "few-pairs", n)
    assert found.reason == f"{n} of the 7 pairs of the first look"
    assert (found.effect is None) == (n < 2)
    assert found.pair_sd is found.smallest_detectable is None, "no interval, no sd"
    msgspec.json.encode(found)  # no infinity, which JSON has not


def test_wide_interval_and_near_the_margin() -> None:
    assert said(around(0.015, 0.02, 13)).code == "wide-interval"
    assert said(around(MARGIN, 0.02, 13)).code == "wide-interval", "too early to give it up"
    assert needs({"a": around(MARGIN, 0.02, 13)}, RULE)
    for n in (28, 120):
        given_up = around(MARGIN, 0.02, n)
        assert said(given_up).code == "near-margin"
        assert needs({"a": given_up}, RULE) == {}
    assert needs({"a": around(MARGIN, 0.001, 19)}, RULE) == {}


def unsteady(
    n: int, flagged: int = 0, trend: float = 0.0, spread: float = 0.0, wider: float = 0.0
) -> list[Pair]:
    rng = np.random.default_rng(5)
    off = [spread * float(x) for x in rng.normal(0, 1, n)]
    return [
        Pair(d=p.d, unsteady=i < flagged, trends=(0, trend + off[i]), spreads=(wider + off[i], 0))
        for i, p in enumerate(around(0, 0.002, n))
    ]


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (unsteady(7, flagged=6), "86% of the pairs are not steady"),
        (unsteady(7, trend=0.03, spread=0.005), "the candidate's cost moves by"),
        (unsteady(7, trend=-0.03, spread=0.005), "the candidate's cost moves by"),
        (unsteady(7, wider=0.03, spread=0.005), "the baseline's spread moves by +"),
    ],
)
def test_what_is_not_steady_is_not_equivalent(pairs: list[Pair], words: str) -> None:
    found = said(pairs)
    assert (found.verdict, found.code) == ("INCONCLUSIVE", "not-steady")
    assert found.reason.startswith(words)
    assert needs({"a": pairs}, RULE) == {}, "more pairs would move likewise"


@pytest.mark.parametrize(
    "pairs",
    [
        unsteady(7, flagged=5),
        unsteady(7, trend=0.009),  # within half the margin
        unsteady(7, trend=0.012, spread=0.05),  # within its noise
        unsteady(7, wider=0.009),  # likewise
        unsteady(7, wider=0.012, trend=0.005, spread=0.05),
    ],
)
def test_a_little_unrest_is_allowed(pairs: list[Pair]) -> None:
    assert said(pairs).verdict == "EQUIVALENT"


def test_a_regression_on_unsteady_processes_is_still_one() -> None:
    assert said([Pair(d=p.d, unsteady=True) for p in around(0.1, 0.01, 9)]).verdict == "REGRESSED"


def test_no_noise_at_all() -> None:
    same = said(exactly(*[0.0] * 7))
    assert same.verdict == "EQUIVALENT"
    assert same.smallest_detectable == pytest.approx(RULE.delta)
    assert said(exactly(*[0.05] * 9)).verdict == "REGRESSED"


def test_every_code_is_described_and_every_description_is_used() -> None:
    seen = [
        said(around(0.1, 0.01, 9)),
        said(around(0, 0.004, 7)),
        said(unsteady(7, flagged=7)),
        said(around(0.1, 0.01, 8)),
        said(around(MARGIN, 0.02, 28)),
        said(around(0.015, 0.02, 13)),
        said([]),
    ]
    assert {v.code for v in seen} == set(CODES)


def test_size_and_count_are_said_of_what_is_not_confirmed() -> None:
    assert said(around(-math.log(7), 0.3, 3)).reason == "about 7.0x faster in 3 of 3 pairs; " \
        "unconfirmed"  # fmt: skip
    assert said(around(math.log(1.3), 0.01, 8)).reason.startswith("about 1.30x slower in 8 of 8")


def test_no_cells() -> None:
    assert (needs({}, RULE), judge({}, RULE), turn({}, RULE, {}, 9.0)) == ({}, {}, [])


# ------------------------------------------------------------------------------ it is pure

DIFFERENCES = st.lists(
    st.one_of(st.floats(-0.05, 0.05), st.floats(-1, 1), st.sampled_from([0.0, 0.05, -0.05, 0.6])),
    max_size=45,
)
SUITES = st.dictionaries(st.sampled_from("abcde"), DIFFERENCES, min_size=1)


def encoded(cells: dict[str, list[float]]) -> dict[str, bytes]:
    found = judge({key: exactly(*d) for key, d in cells.items()}, RULE)
    return {key: msgspec.json.encode(found[key]) for key in sorted(found)}


@settings(max_examples=60, deadline=None)
@given(SUITES, st.randoms())
def test_judging_again_with_the_cells_in_another_order_gives_the_same_bytes(cells, random) -> None:
    keys = list(cells)
    random.shuffle(keys)
    assert encoded(cells) == encoded({key: cells[key] for key in keys})


@settings(max_examples=150, deadline=None)
@given(SUITES, st.randoms())
def test_more_pairs_of_any_cell_never_change_a_decision(cells, random) -> None:
    """Whoever stops early, or looks at the verdicts in between, sees nothing that is taken back."""
    part = {key: d[: random.randint(0, len(d))] for key, d in cells.items()}
    before, after = (judge({k: exactly(*d) for k, d in x.items()}, RULE) for x in (part, cells))
    for key, verdict in before.items():
        if verdict.verdict != "INCONCLUSIVE" or verdict.code == "not-steady":
            assert after[key].verdict == verdict.verdict
            assert after[key].pairs <= max(7, verdict.pairs), "seven, for an interval"
            assert key not in needs({k: exactly(*d) for k, d in cells.items()}, RULE)


@settings(max_examples=60, deadline=None)
@given(SUITES)
def test_the_mirror_image_has_the_mirrored_verdict(cells) -> None:
    turned = {"REGRESSED": "IMPROVED", "IMPROVED": "REGRESSED"}
    first = judge({k: exactly(*d) for k, d in cells.items()}, RULE)
    second = judge({k: exactly(*(-x for x in d)) for k, d in cells.items()}, RULE)
    for key, verdict in first.items():
        assert second[key].verdict == turned.get(verdict.verdict, verdict.verdict)


def test_how_many_pairs_a_round_brings_does_not_matter() -> None:
    effects = {"slow": SLOWER, "near": 0.025, "fast": -0.06, "same": 0.0}
    rng = np.random.default_rng(13)
    drawn = {key: rng.normal(effect, 0.02, 200).tolist() for key, effect in effects.items()}

    def found(at_once: int) -> dict[str, str]:
        left = {key: iter(values) for key, values in drawn.items()}
        cells = whole(lambda k, n: [Pair(d=next(left[k])) for _ in range(n)], [*drawn],
                      at_once=at_once)  # fmt: skip
        return {key: v.verdict for key, v in judge(cells, RULE).items()}

    assert found(1) == found(2) == found(5)


# ------------------------------------------------------------------------------ whose turn it is


def test_every_cell_gets_a_pair_whatever_the_budget() -> None:
    cells: dict[str, list[Pair]] = {"a": [], "b": exactly(0.0), "c": []}
    assert turn(cells, RULE, dict.fromkeys(cells, 5.0), 0.0) == ["a", "c"]
    assert turn(cells, RULE, dict.fromkeys(cells, 5.0), -1.0, broken=["a"]) == ["c"]
    assert turn({"b": exactly(0.0)}, RULE, {"b": 5.0}, 0.0) == []


def test_all_take_turns_while_the_budget_will_do_for_all() -> None:
    cells = {"same": exactly(0.0), "slow": exactly(0.04), "far": exactly(1.0)}
    each = dict.fromkeys(cells, 2.0)
    assert needs(cells, RULE) == {"far": 3, "slow": 6, "same": 6}
    assert turn(cells, RULE, each, 2.0 * 15) == ["far", "slow", "same"]
    assert turn(cells, RULE, each, 2.0 * 15 - 1) == ["far", "slow"]
    assert turn(cells, RULE, each, 2.0 * 8) == ["far"]
    assert turn(cells, RULE, each, 0.1) == ["far"], "one goes on until the budget ends"
    assert turn(cells, RULE, each, 2.0 * 8, broken=["far"]) == ["slow"]
    assert turn(cells, RULE, each | {"far": 60.0}, 2.0 * 15) == ["far"]
    decided = cells | {"far": exactly(*[1.0] * 4)}
    assert needs(decided, RULE) == {"slow": 6, "same": 6}
    assert turn(decided, RULE, each, 2.0 * 15) == ["slow", "same", "far"], "for its interval"
    assert turn(decided, RULE, each, 2.0 * 14) == ["slow", "same"]
    assert turn({"far": exactly(*[1.0] * 7)}, RULE, each, 99.0) == []


def test_a_minute_is_enough_for_what_is_three_times_slower() -> None:
    """Ten cells, 4.6 s a pair: the first pairs take 46 s, three more decide one of them."""
    cells: dict[str, list[Pair]] = {str(n): [] for n in range(10)}
    left_s, rng = 60.0, np.random.default_rng(1)
    while keys := turn(cells, RULE, dict.fromkeys(cells, 4.6), left_s):
        for key in keys:
            if left_s > 0 or not cells[key]:
                cells[key] = [*cells[key], Pair(d=math.log(3) + rng.normal(0, 0.03))]
                left_s -= 4.6
    found = [v.verdict for v in judge(cells, RULE).values()]
    assert found.count("REGRESSED") == 1


# ------------------------------------------------------------------------------ how often


@pytest.mark.parametrize("noise", ["normal", "dirty"])
def test_identical_cells_hardly_ever_alarm_and_five_percent_is_mostly_found(noise: str) -> None:
    alarms = missed = 0
    effects = {"slow": SLOWER} | {str(i): 0.0 for i in range(5)}
    for seed in range(30):
        fresh = dirty(seed, effects) if noise == "dirty" else normal(seed, 0.02, effects)
        found = judge(whole(fresh, list(effects), at_once=99), RULE)
        missed += found["slow"].verdict != "REGRESSED"
        alarms += any(found[str(i)].verdict in CHANGED for i in range(5))
    assert alarms == 0
    assert missed <= 2


@pytest.mark.parametrize("sd", [0.005, 0.01, 0.03])
def test_the_smallest_detectable_slowdown_grows_with_noise_and_family(sd: float) -> None:
    one = sequential.smallest_detectable(sd, 8, 1, RULE)
    assert RULE.delta < one < sequential.smallest_detectable(2 * sd, 8, 1, RULE)
    assert one < sequential.smallest_detectable(sd, 8, 12, RULE)
    assert sequential.smallest_detectable(sd, 60, 1, RULE) < one


def test_what_a_budget_finds() -> None:
    found = [sequential.finds(0.02, n, 10, RULE) for n in (3, 4, 9, 19, 28, 120)]
    assert found == sorted(found, reverse=True)
    assert found[0] == math.inf
    assert found[1] == pytest.approx(1.5 * 1.02 * math.exp(0.04) - 1)
    assert found[4] < 0.05 < found[3]
    told = sequential.outlook([4.6] * 10, 600, RULE)
    assert told == "about 10 min 44 s where a pair varies by 2 %; --budget 10m finds a slowdown " \
        "of 6.3 %"  # fmt: skip
    assert "finds a slowdown of 59 %" in sequential.outlook([4.6] * 10, 60, RULE)
    assert "decides nothing" in sequential.outlook([4.6] * 10, 50, RULE)
