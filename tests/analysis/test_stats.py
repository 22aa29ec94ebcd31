import math
import statistics

import numpy as np
import pytest

from gpubench.analysis import stats

Z95 = 1.959963984540054


def test_geometric_mean_matches_the_closed_form():
    e = stats.geometric_mean([1.0, 10.0, 100.0])
    half = 4.302652729911275 * math.log(10) / math.sqrt(3)  # t(0.975, 2 dof) x s / sqrt(n)
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
    e = stats.percentile(series, q)
    assert e.value is None
    assert e.why == f"n too small: {need - 1} of {need}"


def test_percentile_is_the_nearest_rank_with_binomial_ranks():
    series = np.arange(1.0, 101.0).reshape(10, 10).T.ravel()  # one above the p90 in every ten
    assert stats.inefficiency((series <= 90).astype(float)) == 1.0
    e = stats.percentile(series, 0.9)
    at_most = np.cumsum([math.comb(100, k) * 0.9**k * 0.1 ** (100 - k) for k in range(101)])
    low = next(k for k in range(101) if at_most[k] > 0.025)
    high = next(k for k in range(101) if at_most[k] >= 0.975) + 1
    assert (e.value, e.low, e.high, e.n) == (90.0, float(low), float(high), 100)


def test_dependence_that_eats_the_sample_leaves_no_number():
    series = np.repeat(np.arange(1.0, 11.0), 40)  # ten plateaus
    e = stats.percentile(series, 0.9)
    assert (e.value, e.low) == (None, None)
    assert e.n < 36
    assert e.why == f"n too small: 400 dependent samples weigh as {e.n} of 36"


def ar1(phi: float, n: int, repetitions: int, rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal((repetitions, n))
    x[:, 1:] *= math.sqrt(1 - phi * phi)
    for i in range(1, n):
        x[:, i] += phi * x[:, i - 1]
    return x


@pytest.mark.parametrize(
    ("phi", "q", "z"),
    [(0.0, 0.5, 0.0), (0.0, 0.9, 1.2815515655446004), (0.0, 0.99, 2.3263478740408408),
     (0.5, 0.9, 1.2815515655446004), (0.9, 0.5, 0.0)],
)  # fmt: skip
def test_percentile_intervals_cover_lognormal_and_ar1(phi, q, z):
    series = np.exp(0.1 * ar1(phi, 1500, 1000, np.random.default_rng(7)))
    truth = math.exp(0.1 * z)
    found = [e for x in series if (e := stats.percentile(x, q)).low is not None]
    covered = sum(e.low <= truth <= e.high for e in found) / len(found)
    assert len(found) >= 950  # few refusals
    # order statistics are conservative on small effective counts: one side may exceed
    assert 0.935 <= covered <= 0.975


def test_ignoring_dependence_would_fail_the_same_check(monkeypatch):
    monkeypatch.setattr(stats, "inefficiency", lambda series: 1.0)
    series = np.exp(0.1 * ar1(0.9, 1500, 200, np.random.default_rng(7)))
    covered = sum((e := stats.percentile(x, 0.5)).low <= 1 <= e.high for x in series) / 200
    assert covered < 0.6


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
    assert unpaired.low < 1 < unpaired.high  # one round in common: Welch
    assert stats.ratio({}, other) == stats.Estimate(why="not measured")


def test_the_spread_after_a_second_stage_is_that_of_the_pilot():
    pilot, more = [1.0, 10.0, 100.0], [1.0, 1.0, 1.0, 1.0]
    e = stats.geometric_mean(pilot + more, 3)
    half = 4.302652729911275 * math.log(10) / math.sqrt(7)  # t of 2 dof, sd of 3, n of 7
    assert e.value == pytest.approx(10 ** (3 / 7))
    assert math.log(e.high / e.value) == pytest.approx(half)
    assert math.log(e.value / e.low) == pytest.approx(half)
    assert e.n == 7
    pairs = stats.ratio(dict(enumerate([1.0] * 7)), dict(enumerate(pilot + more)), (3, 3))
    assert pairs == e


def test_two_stage_welch_keeps_its_level_and_that_of_all_repeats_would_not():
    from gpubench.measure.protocol import repeats_needed

    rng = np.random.default_rng(4)

    def side() -> list[float]:
        values = np.exp(rng.normal(0, 0.02, 8)).tolist()
        return values[: min(8, repeats_needed(values[:3], 0.02))]

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


def test_repeats_that_differ_beyond_any_float_have_an_interval_all_the_same() -> None:
    e = stats.geometric_mean([1e-40, 1e60])
    assert e.value == pytest.approx(1e10)
    assert e.low is not None
    assert e.high is not None
    assert 0 <= e.low < 1e-40
    assert 1e60 < e.high < math.inf
