from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest

from gpubench.analysis import gate
from gpubench.analysis.gate import CODES, Pair, Pairs, judge, wanted
from gpubench.suite import Rule

RULE = Rule()
SLOWER = math.log1p(0.05)


def around(centre: float, sd: float, n: int, seed: int = 0) -> list[Pair]:
    """``n`` pairs whose mean and sd are exactly these."""
    d = np.random.default_rng([seed, n]).normal(0, 1, n)
    d = (d - d.mean()) / d.std(ddof=1) if n > 1 else d
    return [Pair(d=float(centre + sd * x)) for x in d]


def whole(fresh: Callable[[str, int], Sequence[Pair]], keys: Sequence[str], rule: Rule = RULE):
    """Measure as the driver does, one pair of every wanted cell a round."""
    cells = {key: Pairs() for key in keys}
    asked = []
    while want := wanted(cells, rule):
        asked.append(want)
        for key, (stage, _) in want.items():
            had = cells[key]
            if stage == "screen":
                cells[key] = Pairs(screen=[*had.screen, *fresh(key, 1)])
            else:
                cells[key] = Pairs(screen=had.screen, confirm=[*had.confirm, *fresh(key, 1)])
    return cells, asked


def normal(seed: int, sd: float, effects: dict[str, float]) -> Callable[[str, int], list[Pair]]:
    rng = np.random.default_rng(seed)
    return lambda key, n: [Pair(d=float(x)) for x in rng.normal(effects[key], sd, n)]


# ------------------------------------------------------------------------------ what to measure


def test_every_cell_gets_its_pilot_first() -> None:
    assert wanted({"a": Pairs(), "b": Pairs(screen=around(0, 0.01, 3))}, RULE) == {
        "a": ("screen", 8),
        "b": ("screen", 8),
    }


def test_a_quiet_identical_cell_is_done_after_the_pilot() -> None:
    cells = {"a": Pairs(screen=around(0, 0.01, 8))}
    assert wanted(cells, RULE) == {}
    assert judge(cells, RULE)["a"].verdict == "EQUIVALENT"


def test_a_noisy_cell_gets_what_its_pilot_asks_for_and_no_later_pair_changes_that() -> None:
    pilot = around(0, 0.02, 8)
    # t(7, .975) = 2.3646; half-width log(1.02)/2: ceil((2.3646 * 0.02 / 0.0099013)^2)
    assert gate.screen_size(Pairs(screen=pilot), RULE) == 23
    assert gate.screen_size(Pairs(screen=[*pilot, *around(0, 0.3, 10)]), RULE) == 23
    assert gate.screen_size(Pairs(screen=around(0, 0.1, 8)), RULE) == RULE.most


def test_confirming_waits_until_all_cells_are_screened() -> None:
    slow, noisy = Pairs(screen=around(0.1, 0.01, 8)), Pairs(screen=around(0, 0.02, 8))
    assert wanted({"slow": slow, "noisy": noisy}, RULE) == {"noisy": ("screen", 23)}
    noisy = Pairs(screen=[*noisy.screen, *around(0, 0.02, 15)])
    assert wanted({"slow": slow, "noisy": noisy}, RULE) == {"slow": ("confirm", 8)}


def test_a_huge_effect_costs_eight_fresh_pairs_and_more_in_a_family() -> None:
    cells = {str(i): Pairs(screen=around(0.2, 0.01, 8, i)) for i in range(12)}
    assert wanted({"0": cells["0"]}, RULE) == {"0": ("confirm", 8)}
    # 1/2^n must reach 1 % / 12, with one sign pattern to spare
    assert set(wanted(cells, RULE).values()) == {("confirm", 12)}


def test_the_number_of_fresh_pairs_does_not_depend_on_the_fresh_pairs() -> None:
    screen = around(SLOWER, 0.02, 8)
    sizes = {
        gate.confirm_size(Pairs(screen=screen, confirm=around(c, 0.05, 5)), 1, RULE)
        for c in (-0.5, 0, 0.5)
    }
    assert len(sizes) == 1
    assert 8 < sizes.pop() <= RULE.most


def test_an_effect_near_the_margin_does_not_eat_the_budget() -> None:
    assert gate.confirm_size(Pairs(screen=around(0.026, 0.005, 8)), 1, RULE) == 2 * RULE.pilot


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


# ------------------------------------------------------------------------------ what it says


def confirmed(screen: list[Pair], confirm: list[Pair]) -> gate.Verdict:
    return judge({"a": Pairs(screen=screen, confirm=confirm)}, RULE)["a"]


def test_confirmed_in_both_directions() -> None:
    up = confirmed(around(0.1, 0.01, 8), around(0.1, 0.01, 8, 1))
    assert (up.verdict, up.code, up.pairs, up.p) == ("REGRESSED", "confirmed", 8, 1 / 256)
    assert up.effect is not None
    assert up.effect.mean == pytest.approx(0.1)
    down = confirmed(around(-0.1, 0.01, 8), around(-0.1, 0.01, 8, 1))
    assert (down.verdict, down.code) == ("IMPROVED", "confirmed")
    assert down.reason == "faster than 2.0%: p = 0.0039 on fresh pairs, after Holm"


def test_only_fresh_pairs_decide() -> None:
    said = confirmed(around(0.5, 0.01, 8), around(0.02, 0.01, 20))
    assert (said.verdict, said.code) == ("INCONCLUSIVE", "not-confirmed")
    assert said.effect is not None
    assert said.effect.mean == pytest.approx(0.02)
    back = confirmed(around(0.5, 0.01, 8), around(0.0, 0.005, 20))
    assert (back.verdict, back.code) == ("EQUIVALENT", "inside-margin")


def test_one_fresh_pair_too_few_decides_nothing() -> None:
    screen = around(0.2, 0.01, 8)
    said = confirmed(screen, around(0.2, 0.01, 7))
    assert (said.verdict, said.code, said.p) == ("INCONCLUSIVE", "unconfirmed", None)
    assert confirmed(screen, []).code == "unconfirmed"
    assert confirmed(screen, around(0.0, 0.001, 7)).code == "unconfirmed", "not EQUIVALENT either"


def test_a_cell_that_waits_for_its_fresh_pairs_counts_in_holms_correction() -> None:
    a = Pairs(screen=around(0.2, 0.01, 8), confirm=around(0.2, 0.01, 12))
    alone = judge({"a": a}, RULE)["a"]
    waiting = judge({"a": a, "b": Pairs(screen=around(0.2, 0.01, 8, 1))}, RULE)
    assert waiting["a"].p == 2 * (alone.p or 0)
    assert waiting["b"].p is None


def test_wide_interval() -> None:
    said = judge({"a": Pairs(screen=around(0.015, 0.02, 23))}, RULE)["a"]
    assert (said.verdict, said.code) == ("INCONCLUSIVE", "wide-interval")


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_few_pairs(n: int) -> None:
    said = judge({"a": Pairs(screen=around(0, 0.0001, n))}, RULE)["a"]
    assert (said.verdict, said.code, said.pairs) == ("INCONCLUSIVE", "few-pairs", n)
    assert said.reason == f"{n} of the 8 pairs that any verdict needs"
    assert (said.effect is None) == (n < 2)


def pairs(n: int, unsteady: int = 0, trend: float = 0.0, spread: float = 0.0) -> list[Pair]:
    rng = np.random.default_rng(5)
    return [
        Pair(d=p.d, unsteady=i < unsteady, trends=(0.0, trend + spread * float(rng.normal())))
        for i, p in enumerate(around(0, 0.002, n))
    ]


@pytest.mark.parametrize(
    ("used", "words"),
    [
        (pairs(10, unsteady=6), "60% of the pairs are not steady"),
        (pairs(10, trend=0.03, spread=0.005), "the candidate's cost moves by"),
        (pairs(10, trend=-0.03, spread=0.005), "the candidate's cost moves by"),
    ],
)
def test_what_is_not_steady_is_not_equivalent(used: list[Pair], words: str) -> None:
    said = judge({"a": Pairs(screen=used)}, RULE)["a"]
    assert (said.verdict, said.code) == ("INCONCLUSIVE", "not-steady")
    assert said.reason.startswith(words)


@pytest.mark.parametrize(
    "used",
    [
        pairs(10, unsteady=5),
        pairs(10, trend=0.009),  # within half the margin
        pairs(10, trend=0.012, spread=0.05),  # within its noise
    ],
)
def test_a_little_unrest_is_allowed(used: list[Pair]) -> None:
    assert judge({"a": Pairs(screen=used)}, RULE)["a"].verdict == "EQUIVALENT"


def test_a_regression_on_unsteady_processes_is_still_one() -> None:
    slow = [Pair(d=p.d, unsteady=True) for p in around(0.1, 0.01, 8)]
    assert confirmed(slow, slow).verdict == "REGRESSED"


def test_no_noise_at_all() -> None:
    same = judge({"a": Pairs(screen=[Pair(d=0.0)] * 8)}, RULE)["a"]
    assert same.verdict == "EQUIVALENT"
    assert same.smallest_detectable == pytest.approx(RULE.delta)
    slow = [Pair(d=0.05)] * 8
    assert confirmed(slow, slow).verdict == "REGRESSED"


def test_every_code_is_described_and_every_description_is_used() -> None:
    said = [
        confirmed(around(0.1, 0.01, 8), around(0.1, 0.01, 8)),
        confirmed(around(0, 0.01, 8), []),
        judge({"a": Pairs(screen=pairs(10, unsteady=9))}, RULE)["a"],
        confirmed(around(0.5, 0.01, 8), around(0.02, 0.01, 20)),
        confirmed(around(0.5, 0.01, 8), []),
        judge({"a": Pairs(screen=around(0.015, 0.02, 23))}, RULE)["a"],
        judge({"a": Pairs()}, RULE)["a"],
    ]
    assert {v.code for v in said} == set(CODES)


def test_judging_again_in_another_order_gives_the_same_bytes() -> None:
    effects = {str(i): [0.0, SLOWER, -0.04][i % 3] for i in range(9)}
    cells, _ = whole(normal(7, 0.02, effects), list(effects))
    first = judge(cells, RULE)
    second = judge({key: cells[key] for key in reversed(list(cells))}, RULE)
    for key in cells:
        assert msgspec.json.encode(first[key]) == msgspec.json.encode(second[key])


def test_no_cells() -> None:
    assert wanted({}, RULE) == {}
    assert judge({}, RULE) == {}


# ------------------------------------------------------------------------------ how often


def test_identical_cells_hardly_ever_alarm_and_five_percent_is_mostly_found() -> None:
    alarms = missed = 0
    effects = {"slow": SLOWER} | {str(i): 0.0 for i in range(5)}
    for seed in range(60):
        fresh = normal(seed, 0.02, effects)
        said = judge(whole(fresh, list(effects))[0], RULE)
        missed += said["slow"].verdict != "REGRESSED"
        alarms += any(said[str(i)].verdict in ("REGRESSED", "IMPROVED") for i in range(5))
    assert alarms == 0
    assert missed <= 4


@pytest.mark.parametrize("sd", [0.005, 0.01, 0.03])
def test_the_smallest_detectable_slowdown_grows_with_noise_and_family(sd: float) -> None:
    one = gate.smallest_detectable(sd, 8, 1, RULE)
    assert RULE.delta < one < gate.smallest_detectable(2 * sd, 8, 1, RULE)
    assert one <= gate.smallest_detectable(sd, 8, 12, RULE)
    assert gate.smallest_detectable(sd, 60, 1, RULE) <= one


def test_a_stricter_rule_is_followed() -> None:
    rule = Rule(delta=0.01, alpha=0.001, pilot=10, most=12)
    assert wanted({"a": Pairs()}, rule) == {"a": ("screen", 10)}
    assert gate.screen_size(Pairs(screen=around(0, 0.1, 10)), rule) == 12
    assert gate.confirm_size(Pairs(screen=around(0.3, 0.01, 10)), 1, rule) == 11
