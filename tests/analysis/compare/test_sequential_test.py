"""What the gate says, and how often; which pairs it asks for is in test_gate_pairs.py."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from gpubench.analysis.compare import sequential_test, signed_rank
from gpubench.analysis.compare.sequential_test import CODES, Pair, Pairs, judge, wanted
from gpubench.suite.types import Rule
from tests.analysis.pairs import MARGIN, RULE, SLOWER, around, confirmed, dirty, normal, whole

# ------------------------------------------------------------------------------ what it says


def test_confirmed_in_both_directions() -> None:
    up = confirmed(around(0.1, 0.01, 8), around(0.1, 0.01, 9, 1))
    # two looks: twice the smallest p there is with nine pairs
    assert (up.verdict, up.code, up.pairs, up.p) == ("REGRESSED", "confirmed", 9, 2 / 512)
    assert up.effect is not None
    assert up.effect.value == pytest.approx(0.1)
    down = confirmed(around(-0.1, 0.01, 8), around(-0.1, 0.01, 9, 1))
    assert (down.verdict, down.code) == ("IMPROVED", "confirmed")
    assert down.reason == "faster than 2 %: p = 0.0039 on fresh pairs, after Holm"


@pytest.mark.parametrize("missing", [0, 1])
def test_each_look_pays_for_itself(missing: int) -> None:
    """p = twice the smaller of the two looks' p; the second one is there or it is no look."""
    screen = around(0.2, 0.01, 8)
    first, later = around(0.03, 0.05, 9), around(0.1, 0.02, 27)
    confirm = first + later[: 27 - missing]
    said = confirmed(screen, confirm)
    if missing:
        assert (said.code, said.p) == ("unconfirmed", None)
        return
    alone = [signed_rank.p_above([p.d for p in confirm[:n]], MARGIN) for n in (9, 36)]
    assert alone[1] < 0.005 < alone[0]
    assert said.p == 2 * alone[1]
    assert said.verdict == "REGRESSED"


def test_an_unclear_first_look_still_counts_at_the_second() -> None:
    """In a family it may suffice in the end: Holm asks less of the cells that are not first."""
    screen = around(0.2, 0.01, 8)
    nearly = [Pair(d=x + MARGIN) for x in (0.01, -0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09)]
    unclear = [*nearly, *around(0.0, 0.1, 27)]
    assert confirmed(screen, nearly).code == "unconfirmed", "2 * 3/512 > 1 %"
    said = confirmed(screen, unclear)
    assert (said.code, said.p) == ("not-confirmed", 2 * 3 / 512)


def test_pairs_after_the_deciding_look_change_nothing() -> None:
    screen = around(0.2, 0.01, 8)
    first = [*around(0.2, 0.01, 8), Pair(d=0.01)]
    decided = confirmed(screen, first)
    assert (decided.verdict, decided.p) == ("REGRESSED", 2 * 2 / 512)
    more = confirmed(screen, first + around(-0.1, 0.02, 27))
    assert (more.verdict, more.p) == ("REGRESSED", decided.p), "nobody had asked for them"


def test_only_fresh_pairs_decide() -> None:
    said = confirmed(around(0.5, 0.01, 8), around(0.02, 0.01, 36))
    assert (said.verdict, said.code) == ("INCONCLUSIVE", "not-confirmed")
    assert said.effect is not None
    assert said.effect.value == pytest.approx(0.02)
    back = confirmed(around(0.5, 0.01, 8), around(0.0, 0.005, 9))
    assert (back.verdict, back.code) == ("EQUIVALENT", "inside-margin")


def test_one_fresh_pair_too_few_decides_nothing() -> None:
    screen = around(0.2, 0.01, 8)
    said = confirmed(screen, around(0.2, 0.01, 8))
    assert (said.verdict, said.code, said.p) == ("INCONCLUSIVE", "unconfirmed", None)
    assert confirmed(screen, []).code == "unconfirmed"
    assert confirmed(screen, around(0.0, 0.001, 8)).code == "unconfirmed", "not EQUIVALENT either"


def test_a_cell_that_waits_for_its_fresh_pairs_counts_in_holms_correction() -> None:
    a = Pairs(screen=around(0.2, 0.01, 8), confirm=around(0.2, 0.01, 12))
    alone = judge({"a": a}, RULE)["a"]
    waiting = judge({"a": a, "b": Pairs(screen=around(0.2, 0.01, 8, 1))}, RULE)
    assert alone.p == 2 * 2.0**-9, "its first look"
    assert waiting["a"].p == 2 * 2 * 2.0**-10, "two cells: one pair more, and Holm"
    assert waiting["b"].p is None


def test_a_slower_pair_never_makes_a_regression_less_sure() -> None:
    screen = around(0.06, 0.003, 8)
    rng = np.random.default_rng(11)
    confirm = [Pair(d=float(x)) for x in rng.normal(0.05, 0.02, 60)]
    before = confirmed(screen, confirm).p
    assert before is not None
    for i in range(0, 36, 5):
        more = [*confirm[:i], Pair(d=confirm[i].d + 0.05), *confirm[i + 1 :]]
        after = confirmed(screen, more).p
        assert after is not None
        assert after <= before


def test_wide_interval() -> None:
    said = judge({"a": Pairs(screen=around(0.015, 0.02, 27))}, RULE)["a"]
    assert (said.verdict, said.code) == ("INCONCLUSIVE", "wide-interval")


@pytest.mark.parametrize("n", [0, 1, 2, 5, 7])
def test_few_pairs(n: int) -> None:
    said = judge({"a": Pairs(screen=around(0, 0.0001, n))}, RULE)["a"]
    assert (said.verdict, said.code, said.pairs) == ("INCONCLUSIVE", "few-pairs", n)
    assert said.reason == f"{n} of the 8 pairs that any verdict needs"
    assert (said.effect is None) == (n < 2)
    assert (said.pair_sd is None) == (n < 6), "no interval, no sd"
    assert (said.smallest_detectable is None) == (n < 6)
    msgspec.json.encode(said)  # no infinity, which JSON has not


def test_a_pilot_too_short_for_an_interval() -> None:
    """Four pairs can flag (1/16) but have no sd: the fresh pairs are then as many as allowed."""
    rule = Rule(pilot=4)
    flagged = Pairs(screen=around(0.3, 0.01, 4))
    assert wanted({"a": flagged}, rule) == {"a": ("confirm", rule.most)}
    assert judge({"a": flagged}, rule)["a"].code == "unconfirmed"
    assert wanted({"a": Pairs(screen=around(0, 0.01, 4))}, rule) == {"a": ("screen", 6)}


def pairs(
    n: int, unsteady: int = 0, trend: float = 0.0, spread: float = 0.0, wider: float = 0.0
) -> list[Pair]:
    rng = np.random.default_rng(5)
    off = [spread * float(x) for x in rng.normal(0, 1, n)]
    return [
        Pair(d=p.d, unsteady=i < unsteady, trends=(0, trend + off[i]), spreads=(wider + off[i], 0))
        for i, p in enumerate(around(0, 0.002, n))
    ]


@pytest.mark.parametrize(
    ("used", "words"),
    [
        (pairs(10, unsteady=8), "80% of the pairs are not steady"),
        (pairs(10, trend=0.03, spread=0.005), "the candidate's cost moves by"),
        (pairs(10, trend=-0.03, spread=0.005), "the candidate's cost moves by"),
        (pairs(10, wider=0.03, spread=0.005), "the baseline's spread moves by +3."),
    ],
)
def test_what_is_not_steady_is_not_equivalent(used: list[Pair], words: str) -> None:
    said = judge({"a": Pairs(screen=used)}, RULE)["a"]
    assert (said.verdict, said.code) == ("INCONCLUSIVE", "not-steady")
    assert said.reason.startswith(words)


@pytest.mark.parametrize(
    "used",
    [
        pairs(10, unsteady=7),
        pairs(10, trend=0.009),  # within half the margin
        pairs(10, trend=0.012, spread=0.05),  # within its noise
        pairs(10, wider=0.009),  # likewise
        pairs(10, wider=0.012, trend=0.005, spread=0.05),
    ],
)
def test_a_little_unrest_is_allowed(used: list[Pair]) -> None:
    assert judge({"a": Pairs(screen=used)}, RULE)["a"].verdict == "EQUIVALENT"


def test_a_regression_on_unsteady_processes_is_still_one() -> None:
    slow = [Pair(d=p.d, unsteady=True) for p in around(0.1, 0.01, 9)]
    assert confirmed(slow, slow).verdict == "REGRESSED"


def test_no_noise_at_all() -> None:
    same = judge({"a": Pairs(screen=[Pair(d=0.0)] * 8)}, RULE)["a"]
    assert same.verdict == "EQUIVALENT"
    assert same.smallest_detectable == pytest.approx(RULE.delta)
    slow = [Pair(d=0.05)] * 9
    assert confirmed(slow, slow).verdict == "REGRESSED"


def test_every_code_is_described_and_every_description_is_used() -> None:
    said = [
        confirmed(around(0.1, 0.01, 8), around(0.1, 0.01, 9)),
        confirmed(around(0, 0.01, 8), []),
        judge({"a": Pairs(screen=pairs(10, unsteady=9))}, RULE)["a"],
        confirmed(around(0.5, 0.01, 8), around(0.02, 0.01, 36)),
        confirmed(around(0.5, 0.01, 8), []),
        judge({"a": Pairs(screen=around(0.015, 0.02, 27))}, RULE)["a"],
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


@pytest.mark.parametrize("noise", ["normal", "dirty"])
def test_identical_cells_hardly_ever_alarm_and_five_percent_is_mostly_found(noise: str) -> None:
    alarms = missed = 0
    effects = {"slow": SLOWER} | {str(i): 0.0 for i in range(5)}
    for seed in range(60):
        fresh = dirty(seed, effects) if noise == "dirty" else normal(seed, 0.02, effects)
        said = judge(whole(fresh, list(effects), at_once=RULE.most)[0], RULE)
        missed += said["slow"].verdict != "REGRESSED"
        alarms += any(said[str(i)].verdict in ("REGRESSED", "IMPROVED") for i in range(5))
    assert alarms == 0
    assert missed <= 4


def test_how_many_pairs_a_round_brings_does_not_matter() -> None:
    effects = {"slow": SLOWER, "near": 0.025, "fast": -0.06, "same": 0.0}
    rng = np.random.default_rng(13)
    drawn = {key: rng.normal(effect, 0.02, 200).tolist() for key, effect in effects.items()}

    def found(at_once: int) -> dict[str, sequential_test.Verdict]:
        left = {key: iter(values) for key, values in drawn.items()}
        return judge(
            whole(lambda k, n: [Pair(d=next(left[k])) for _ in range(n)], [*drawn],
                  at_once=at_once)[0], RULE,
        )  # fmt: skip

    assert found(1) == found(5) == found(RULE.most)


@pytest.mark.parametrize("sd", [0.005, 0.01, 0.03])
def test_the_smallest_detectable_slowdown_grows_with_noise_and_family(sd: float) -> None:
    one = sequential_test.smallest_detectable(sd, 8, 1, RULE)
    # not 2 sd: what is a little noisier is screened with more pairs, and may even gain by it
    assert RULE.delta < one < sequential_test.smallest_detectable(5 * sd, 8, 1, RULE)
    assert one <= sequential_test.smallest_detectable(sd, 8, 12, RULE)
    assert sequential_test.smallest_detectable(sd, 60, 1, RULE) <= one


def test_a_stricter_rule_is_followed() -> None:
    rule = Rule(delta=0.01, alpha=0.001, pilot=10, most=12)
    assert wanted({"a": Pairs()}, rule) == {"a": ("screen", 10)}
    assert sequential_test.screen_size(Pairs(screen=around(0, 0.1, 10)), rule) == 12
    assert sequential_test.confirm_size(Pairs(screen=around(0.3, 0.01, 10)), 1, rule) == 12


@pytest.mark.parametrize("seed", range(12))
def test_what_is_still_to_come_is_never_more_than_was_told(seed: int) -> None:
    """Whoever follows the advice at the end of a budget is not told a longer way than before."""
    rng = np.random.default_rng(seed)
    means, sd = rng.uniform(-0.04, 0.04, 3), float(rng.uniform(0.001, 0.06))
    cells = {str(n): Pairs() for n in range(3)}
    told: list[tuple[int, dict[str, tuple[int, int]]]] = []
    measured = 0
    while now := wanted(cells, RULE):
        told.append((measured, sequential_test.ahead(cells, RULE)))
        for key, (stage, size) in now.items():
            have = getattr(cells[key], stage)
            new = [Pair(d=float(rng.normal(means[int(key)], sd))) for _ in range(size - len(have))]
            cells[key] = msgspec.structs.replace(cells[key], **{stage: [*have, *new]})
            measured += len(new)
    assert sequential_test.ahead(cells, RULE) == {}
    for before, found in told:
        least, most = (sum(each[i] for each in found.values()) for i in (0, 1))
        assert 0 < least <= measured - before <= most
