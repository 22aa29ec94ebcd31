import math
import statistics

import numpy as np
import pytest

from gpubench.analysis import stats

Z95 = 1.959963984540054


def test_geometric_mean_matches_the_closed_form():
    e = stats.geometric_mean([10 / 1.1, 10.0, 11.0])
    half = 4.302652729911275 * math.log(1.1) / math.sqrt(3)  # t(0.975, 2 dof) x s / sqrt(n)
    assert e.value == pytest.approx(10)
    assert e.low == pytest.approx(10 * math.exp(-half))
    assert e.high == pytest.approx(10 * math.exp(half))
    assert (e.n, e.why) == (3, "")


def test_one_repeat_has_no_interval_and_says_so():
    e = stats.geometric_mean([5.0])
    assert (e.value, e.low, e.high, e.why) == (5.0, None, None, "1 repeat")
    assert stats.geometric_mean([]).value is None


def test_equal_repeats_give_an_interval_of_no_width():
    """Exactly: exp(log(200411)) is another number, and the interval would miss its values."""
    for value in (7.0, 200411.0, 1 / 3):
        e = stats.geometric_mean([value] * 4)
        assert (e.low, e.value, e.high, e.n) == (value, value, value, 4)


def test_minimum_n_is_that_of_the_specification():
    wanted = {0.5: 6, 0.9: 36, 0.95: 72, 0.99: 368, 0.999: 3688}
    assert {q: stats.minimum_n(q) for q in wanted} == wanted


@pytest.mark.parametrize(("q", "need"), [(0.9, 36), (0.99, 368)])
def test_a_percentile_below_its_minimum_n_has_no_number(q, need):
    series = np.random.default_rng(0).permutation(np.arange(1.0, need))
    assert stats.too_few([series], q) == f"n too small: {need - 1} of {need}"
    more = np.random.default_rng(0).permutation(np.arange(1.0, 2 * need))
    assert stats.too_few([more], q) == ""
    assert stats.too_few([more, more + 1e6], q) == ""  # levels are the interval's business
    assert stats.too_few([more, more[:9]], q).startswith("n too small: a repeat with 9 of 10")


def test_dependence_that_eats_the_sample_leaves_no_number():
    series = np.repeat(np.arange(1.0, 11.0), 40)  # ten plateaus
    why = stats.too_few([series], 0.9)
    assert why.startswith("n too small: 400 dependent samples weigh as ")
    assert why.endswith(" of 36")


def ar1(phi: float, n: int, repetitions: int, rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal((repetitions, n))
    x[:, 1:] *= math.sqrt(1 - phi * phi)
    for i in range(1, n):
        x[:, i] += phi * x[:, i - 1]
    return x


@pytest.mark.parametrize(("n", "q", "z"), [(20, 0.9, 1.28155), (100, 0.99, 2.32635)])
def test_the_percentile_of_a_repeat_is_unbiased_with_few_samples(n, q, z):
    """A nearest rank of 100 samples has p99 at the largest but one: half a sd too low."""
    samples = np.random.default_rng(2).standard_normal((4000, n))
    found = np.array([stats.percentile(x, q) for x in samples])
    assert abs(found.mean() - z) < 0.1 * found.std()


def cells(rng, n, repeats, sd=0.01, rounds=0.0):
    """Cell -> round -> value; all are 1 but for noise."""
    logs = rng.normal(0, sd, (n, repeats)) + rng.normal(0, rounds, repeats)
    return {str(c): dict(enumerate(np.exp(row).tolist())) for c, row in enumerate(logs)}


def test_two_cells_are_paired_and_stand_alone_for_their_levels():
    found = cells(np.random.default_rng(1), 2, 4, rounds=0.1)
    fit = stats.two_way(found)
    alone = stats.paired(list(found["0"].values()), list(found["1"].values()))
    assert fit.ratio("0", "1").interval() == pytest.approx(alone.interval())
    assert fit.level("0") == stats.geometric_mean(list(found["0"].values()))


def test_two_ways_with_holes_are_the_least_squares():
    found = cells(np.random.default_rng(2), 6, 5, rounds=0.05)
    del found["1"][0], found["2"][3], found["2"][4]
    found["3"] = {0: 1.0}
    fit = stats.two_way(found)
    seen = [(int(c), r, math.log(v)) for c, row in found.items() for r, v in row.items()]
    design = np.array([[c == i for i in range(6)] + [r == j for j in range(5)]
                       for c, r, _ in seen], float)  # fmt: skip
    y = np.array([log for *_, log in seen])
    rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    dof = len(y) - np.linalg.matrix_rank(design)
    assert fit.dof == dof
    assert not any(s.own for s in fit.spreads.values())
    assert fit.spreads["0"].variance == pytest.approx(rest @ rest / dof)
    d = fit.ratio("1", "2")  # rounds 1 and 2 are common
    assert d.mean == pytest.approx(
        np.mean([math.log(found["2"][r] / found["1"][r]) for r in (1, 2)])
    )
    assert d.error == pytest.approx(math.sqrt(2 * fit.spreads["0"].variance / 2))
    assert fit.level("3").low < 1 < fit.level("3").high  # one repeat: the others tell


def test_a_noisier_cell_keeps_its_own_spread() -> None:
    found = cells(np.random.default_rng(3), 4, 3)
    quiet = stats.two_way(found)
    for n, factor in enumerate((1.2, 0.9, 1.0)):
        found["0"][n] *= factor
    fit = stats.two_way(found)
    assert [c for c, s in fit.spreads.items() if s.own] == ["0"]
    logs = {c: np.log(list(found[c].values())) for c in found}
    about = logs["0"] - np.mean([logs[c] for c in "123"], axis=0)
    assert fit.spreads["0"].variance == pytest.approx(np.var(about, ddof=1))
    assert fit.spreads["1"].variance > quiet.spreads["1"].variance  # it may be hit as well


def test_a_wild_cell_leaves_the_others_theirs() -> None:
    found = cells(np.random.default_rng(3), 4, 3)
    three = stats.two_way({c: found[c] for c in "123"})
    for n, factor in enumerate((20.0, 0.1, 1.0)):
        found["0"][n] *= factor
    fit = stats.two_way(found)
    assert fit.level("1") == three.level("1")
    assert fit.ratio("1", "2") == three.ratio("1", "2")
    assert fit.level("0").span
    assert fit.ratio("0", "1").estimate().span


@pytest.mark.parametrize("rounds", [0.0, 0.03])
@pytest.mark.parametrize(("n", "repeats"), [(12, 3), (3, 5)])
def test_pooled_intervals_hold_the_truth(n, repeats, rounds):
    rng, inside, level, wide = np.random.default_rng(4), 0, 0, []
    for _ in range(600):
        fit = stats.two_way(cells(rng, n, repeats, rounds=rounds))
        for a, b in (("0", "1"), ("2", "0")):
            low, high = fit.ratio(a, b).interval()
            inside += low <= 0 <= high
            wide.append(high - low)
        level += (e := fit.level("1")).low <= 1 <= e.high
    assert inside / 1200 == pytest.approx(0.95, abs=0.02)
    assert level / 600 == pytest.approx(0.955, abs=0.03)
    if n > 3:  # a t interval over three repeats spreads by a factor of ten
        assert np.quantile(wide, 0.9) < 1.6 * np.quantile(wide, 0.1)


def test_an_interval_that_says_nothing_is_not_shown():
    e = stats.geometric_mean([620.0, 130.0, 2900.0])
    assert (e.low, e.high, e.usable) == (None, None, False)
    assert e.span == pytest.approx((130, 2900))
    assert e.why == "no usable interval"
    assert stats.geometric_mean([100.0, 101.0, 102.0]).usable
    assert stats.geometric_mean([5.0]).usable  # a value, and no interval is claimed
    r = stats.ratio({0: 1.0, 1: 1.0}, {0: 2.0, 1: 8.0})
    assert r.span == pytest.approx((2, 8))


def needed(values, target=0.02):
    cell = {"cell": dict(enumerate(values))}
    return stats.two_way(cell, len(values)).needed("cell", target)


def test_stein_needs_more_repeats_when_the_pilot_scatters_more() -> None:
    assert needed([100, 100.5, 101]) == 3
    # t(2, .975) = 4.3027, sd of logs 0.04767: ceil((4.3027 * 0.04767 / log(1.02))^2)
    assert needed([100, 105, 110]) == 108
    assert needed([100.0]) == 1
    # of a pilot of five that lost two the spread is that of three, with their freedom
    cell = {"cell": dict(enumerate([100.0, 105.0, 110.0]))}
    assert stats.two_way(cell, 5).needed("cell", 0.02) == 108


def test_stein_keeps_the_level_of_its_interval() -> None:
    """Half-width of the final interval, from the pilot's sd, holds the truth 95 % of the time."""
    rng = np.random.default_rng(8)
    inside = 0
    for _ in range(2000):
        pilot = np.exp(rng.normal(0, 0.03, 4))
        n = needed(pilot.tolist())
        logs = np.concatenate([np.log(pilot), rng.normal(0, 0.03, n - 4)])
        inside += abs(logs.mean()) <= np.log1p(0.02)
    assert inside / 2000 >= 0.94


def test_the_pilots_of_all_cells_ask_for_a_quarter_of_the_repeats() -> None:
    """t(22) = 2.07 instead of t(2) = 4.30, and the intervals keep their level."""
    rng = np.random.default_rng(9)
    asked, inside = [], 0
    for _ in range(300):
        found = cells(rng, 12, 3, sd=0.03)
        n = stats.two_way(found, 3).needed("0", 0.02)
        asked.append(n)
        for r in range(3, n):
            found["0"][r] = math.exp(rng.normal(0, 0.03))
        e = stats.two_way(found, 3).level("0")
        assert e.n == n
        inside += e.low <= 1 <= e.high
    assert np.median(asked) < 16  # alone: (4.30 * 0.03 / 0.0198)^2 = 43
    assert inside / 300 >= 0.92


def test_geometric_mean_covers_iid_repeats():
    rng = np.random.default_rng(3)
    sets = np.exp(rng.normal(2, 0.05, (4000, 5)))
    covered = np.mean([e.low <= math.exp(2) <= e.high for e in map(stats.geometric_mean, sets)])
    assert covered == pytest.approx(0.95, abs=0.015)


def test_welch_matches_scipy():
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(5)
    a, b = np.exp(rng.normal(0, 0.1, 6)), np.exp(rng.normal(0.2, 0.3, 9))
    d = stats.welch(a, b)
    theirs = ttest_ind(np.log(b), np.log(a), equal_var=False)
    bounds = theirs.confidence_interval(0.95)
    assert d.interval() == pytest.approx((bounds.low, bounds.high))
    one_sided = ttest_ind(np.log(b), np.log(a), equal_var=False, alternative="greater")
    assert d.p_above(0.0) == pytest.approx(one_sided.pvalue)


def test_paired_cancels_what_both_sides_share():
    drift = [1.0, 3.0, 9.0]
    base, other = dict(enumerate(drift)), {i: 2 * v for i, v in enumerate(drift)}
    e = stats.ratio(base, other)
    assert (e.low, e.value, e.high) == pytest.approx((2, 2, 2))
    longer = stats.ratio(base, other | {3: 77.0, 4: 0.1})  # a second stage for one of them
    assert (longer.low, longer.value, longer.high) == pytest.approx((2, 2, 2))
    unpaired = stats.ratio(base, {i + 2: v for i, v in other.items()})
    assert unpaired.span == pytest.approx((2 / 9, 18))  # one round in common: Welch
    assert stats.ratio({}, other) == stats.Estimate(why="not measured")


def test_the_spread_after_a_second_stage_is_that_of_the_pilot():
    pilot, more = [1.0, 1.1, 1.21], [1.0, 1.0, 1.0, 1.0]
    e = stats.geometric_mean(pilot + more, 3)
    half = 4.302652729911275 * math.log(1.1) / math.sqrt(7)  # t of 2 dof, sd of 3, n of 7
    assert e.value == pytest.approx(1.1 ** (3 / 7))
    assert math.log(e.high / e.value) == pytest.approx(half)
    assert math.log(e.value / e.low) == pytest.approx(half)
    assert e.n == 7
    pairs = stats.ratio(dict(enumerate([1.0] * 7)), dict(enumerate(pilot + more)), (3, 3))
    assert pairs == e
    lost = dict(enumerate(pilot + more)) | {9: 1.0}
    lost.pop(2)  # a later repeat takes no place in the pilot
    found = stats.log_ratio(dict.fromkeys(lost, 1.0), lost, (3, 3))
    assert found.dof == 1
    assert found.error == pytest.approx(math.log(1.1) / math.sqrt(2) / math.sqrt(7))
    assert stats.two_way({"a": lost}, 3).level("a") == found.estimate()


def test_two_stage_welch_keeps_its_level_and_that_of_all_repeats_would_not():
    rng = np.random.default_rng(4)

    def side() -> list[float]:
        values = np.exp(rng.normal(0, 0.02, 8)).tolist()
        return values[: min(8, needed(values[:3]))]

    sides = [(side(), side()) for _ in range(4000)]
    alarms = np.mean([stats.welch(a, b, (3, 3)).p_above(0.0) < 0.01 for a, b in sides])
    naive = np.mean([stats.welch(a, b).p_above(0.0) < 0.01 for a, b in sides])
    assert alarms <= 0.014
    assert naive >= 0.02


def test_degenerate_p_values():
    flat = stats.paired([1.0, 1.0], [1.1, 1.1])
    assert flat.p_above(0.05) == 0.0
    assert flat.p_above(0.2) == 1.0
    assert stats.paired([1.0], [2.0]).p_above(0.0) == 1.0


def test_wilson_matches_the_textbook():
    e = stats.wilson(0, 10)
    assert (e.low, e.high) == pytest.approx((0.0, Z95**2 / (10 + Z95**2)))
    assert stats.wilson(8, 10).low == pytest.approx(0.49016, abs=1e-5)
    assert stats.wilson(0, 0).value is None
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 1 of 29.
    for hits, n, bounds in ((81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)),
                            (1, 29, (0.0061, 0.1718))):  # fmt: skip
        e = stats.wilson(hits, n)
        assert (e.low, e.high) == pytest.approx(bounds, abs=5e-5)
    assert stats.wilson(29, 29).high == 1.0


@pytest.mark.parametrize("n", [40, 320, 1297])
@pytest.mark.parametrize("p", [0.7, 0.9, 0.97])
def test_wilson_covers_about_what_it_says(n, p):
    """Exactly, over the binomial: about 95 % on average, where Wald's has 70 % near 1."""
    from scipy.stats import binom

    inside = [e.low <= p <= e.high for e in (stats.wilson(k, n) for k in range(n + 1))]
    assert 0.92 < binom.pmf(np.flatnonzero(inside), n, p).sum() < 0.98


def test_holm_matches_the_hand_calculation():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]) == []


def test_inefficiency_is_that_of_an_ar1_process():
    series = ar1(0.8, 20_000, 5, np.random.default_rng(9))
    found = statistics.mean(stats.inefficiency(x) for x in series)
    assert found == pytest.approx((1 + 0.8) / (1 - 0.8), rel=0.25)
    assert stats.inefficiency(np.ones(50)) == 1.0


def test_repeats_that_differ_beyond_any_float_show_their_range() -> None:
    e = stats.geometric_mean([1e-40, 1e60])
    assert e.value == pytest.approx(1e10)
    assert e.span == pytest.approx((1e-40, 1e60))


def test_a_higher_percentile_needs_the_lower_ones_number():
    """Slow stretches make a p90 dependent; ten samples beyond p99 hardly show it."""
    slow = np.repeat(np.random.default_rng(4).standard_normal(8), 60)
    series = slow + 1e-3 * np.random.default_rng(5).standard_normal(480) + 10
    assert "dependent" in stats.too_few([series], 0.9)
    assert stats.too_few([series], 0.99) == stats.too_few([series], 0.9)
