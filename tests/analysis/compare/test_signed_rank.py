from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import rankdata, wilcoxon

from gpubench.analysis.compare.signed_rank import around, p_above


def brute_force(differences: list[float], shift: float = 0.0) -> float:
    """All 2^n patterns one by one."""
    d = np.round(np.asarray(differences) - shift, 9)
    ranks = rankdata(np.abs(d))
    seen = ranks[d > 0].sum()
    patterns = itertools.product((0, 1), repeat=len(d))
    return float(np.mean([np.dot(plus, ranks) >= seen for plus in patterns]))


def halves(d: list[float]) -> NDArray[np.float64]:
    """The averages of all twos, each with itself as well."""
    return np.sort([(a + b) / 2 for i, a in enumerate(d) for b in d[i:]])


def normal(seed: int, n: int, centre: float = 0.0) -> list[float]:
    return [float(x) for x in np.random.default_rng([seed, n]).normal(centre, 1, n)]


# ------------------------------------------------------------------------------ the test


@pytest.mark.parametrize("n", range(1, 11))
@pytest.mark.parametrize("shift", [0.0, 0.3, -1.0])
def test_equals_brute_force(n: int, shift: float) -> None:
    d = normal(0, n, 0.4)
    assert p_above(d, shift) == pytest.approx(brute_force(d, shift), abs=1e-12)
    coarse = [round(x, 1) for x in d]  # nearly always with ties
    assert p_above(coarse, shift) == pytest.approx(brute_force(coarse, shift), abs=1e-12)


@pytest.mark.parametrize(
    "d",
    [[1.0] * 8, [0.1, 0.2, 0.3, -0.1, -0.2], [0.1] * 3 + [-0.1] * 3, [0.0] * 6, [0.0, 1.0, 1.0],
     [0.3, -0.3, 0.3, 0.2, 0.2, -0.1, 0.1, 0.1, -0.1, 0.4]],
)  # fmt: skip
def test_ties_share_their_mean_rank_even_after_rounding(d: list[float]) -> None:
    assert p_above(d) == pytest.approx(brute_force(d), abs=1e-12)
    assert p_above([x + 0.02 for x in d], 0.02) == pytest.approx(brute_force(d), abs=1e-12)


@pytest.mark.parametrize("n", [5, 20, 33, 50, 60])
@pytest.mark.parametrize("centre", [-0.2, 0.0, 0.25, 1.0])
def test_agrees_with_scipy(n: int, centre: float) -> None:
    d = normal(1, n, centre)
    expected = wilcoxon(d, alternative="greater", method="exact").pvalue
    assert p_above(d) == pytest.approx(expected, rel=1e-9)


def test_all_on_one_side_is_the_smallest_p_there_is() -> None:
    assert p_above([1.0, 2.0, 3.0, 4.0]) == 1 / 16
    assert p_above([-1.0, -2.0, -3.0, -4.0]) == 1.0
    assert p_above([0.5 + i for i in range(60)]) == 2.0**-60
    assert p_above([0.05] * 60, 0.02) == 2.0**-60


def test_nothing_measured_proves_nothing() -> None:
    assert p_above([]) == 1.0
    assert p_above([0.02] * 50, 0.02) == 1.0


def test_a_difference_of_exactly_the_shift_counts_as_below_it() -> None:
    at, above, below = ([x, 0.5, 0.6, 0.7, -0.1] for x in (0.02, 0.021, 0.019))
    assert p_above(above, 0.02) < p_above(at, 0.02) == p_above(below, 0.02)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_difference_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"must be finite.*{bad}"):
        p_above([0.1, bad])


def test_the_order_and_the_unit_do_not_matter_and_the_direction_does() -> None:
    d = normal(2, 20, 0.2)
    assert p_above(d[::-1]) == p_above(d)
    assert p_above([1e-6 * x for x in d]) == p_above(d)
    one = p_above(sorted(d)[:1] + d)  # another size of the same signs is another p
    assert one != p_above(d)
    assert p_above([-x for x in d]) == pytest.approx(1 - p_above([x - 1e-9 for x in d]), abs=0.01)


@pytest.mark.parametrize("n", [6, 12, 30])
def test_any_larger_difference_makes_p_smaller(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(10):
        d = rng.normal(0, 1, n)
        before = p_above(d.tolist())
        for i in range(n):
            more = d.copy()
            more[i] += rng.exponential(1)
            assert p_above(more.tolist()) <= before


def test_p_rises_with_the_shift() -> None:
    d = normal(3, 15)
    found = [p_above(d, shift) for shift in np.linspace(-3, 3, 200)]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (2.0**-15, 1.0)


@pytest.mark.parametrize("noise", ["normal", "cauchy", "two points", "coarse"])
@pytest.mark.parametrize(("n", "times"), [(8, 1500), (30, 1000)])
def test_keeps_its_level_under_any_symmetric_noise(noise: str, n: int, times: int) -> None:
    rng = np.random.default_rng([n, len(noise)])
    draw = {
        "normal": lambda: rng.normal(0, 1, n),
        "cauchy": lambda: rng.standard_cauchy(n),
        "two points": lambda: rng.choice([-1.0, 1.0], n) * (1 + 0.01 * rng.random(n)),
        "coarse": lambda: np.round(2 * rng.normal(0, 1, n)) / 2,
    }[noise]
    hits = sum(p_above((0.02 + draw()).tolist(), 0.02) <= 0.05 for _ in range(times))
    # p is discrete and zeros count as below, so fewer than 5 % is right too
    sd = (times * 0.05 * 0.95) ** 0.5
    assert (0.01 if noise == "coarse" else 0.04) * times - 4 * sd <= hits <= 0.05 * times + 4 * sd


# ------------------------------------------------------------------------------ the interval


@pytest.mark.parametrize("n", [1, 2, 5, 6, 9, 20])
def test_the_estimate_is_the_median_of_the_averages_of_all_twos(n: int) -> None:
    d = normal(4, n)
    assert around(d, 0.95)[0] == pytest.approx(float(np.median(halves(d))), abs=1e-12)


@pytest.mark.parametrize("n", range(1, 9))
def test_there_are_bounds_from_six_differences_on(n: int) -> None:
    _, low, high = around(normal(5, n), 0.95)
    assert (low is None, high is None) == (n < 6, n < 6)


@pytest.mark.parametrize("n", [6, 7, 8, 12, 25, 60])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_bounds_are_where_the_test_turns(n: int, level: float) -> None:
    """Between the last average that the test rejects and the first that it does not."""
    d = normal(6, n, 0.3)
    mirrored = [-x for x in d]
    between = np.convolve(halves(d), [0.5, 0.5], "valid")
    kept = [
        s
        for s in between
        if min(p_above(d, s), p_above(mirrored, -s)) > (1 - level) / 2
    ]  # fmt: skip
    _, low, high = around(d, level)
    assert low is not None
    assert high is not None
    averages = halves(d)
    first, last = np.searchsorted(averages, kept[0]), np.searchsorted(averages, kept[-1])
    assert averages[first - 1] - 1e-12 <= low <= averages[first] + 1e-12
    assert averages[last - 1] - 1e-12 <= high <= averages[last] + 1e-12


def test_the_interval_moves_and_turns_with_the_differences() -> None:
    d = normal(7, 11)
    centre, low, high = around(d, 0.95)
    assert around([3 - 2 * x for x in d], 0.95) == pytest.approx(
        (3 - 2 * centre, 3 - 2 * (high or 0), 3 - 2 * (low or 0))
    )
    assert around(d[::-1], 0.95) == (centre, low, high)
    assert around([0.03] * 9, 0.95) == (0.03, 0.03, 0.03)


@pytest.mark.parametrize("wild", [(-0.3, -0.25), (0.3, 0.25), (-1e6, -1e6), (0.3, -0.3, 0.35)])
def test_a_few_wild_differences_do_not_matter(wild: tuple[float, ...]) -> None:
    """As a mean they would hide, or make, 5 %; as ranks they widen the interval a little."""
    d = [0.05 + 0.002 * x for x in normal(8, 20 - len(wild))] + list(wild)
    centre, low, high = around(d, 0.95)
    assert centre == pytest.approx(0.05, abs=0.002)
    assert low is not None
    assert high is not None
    assert 0.045 < low < high < 0.055
    assert p_above(d, 0.02) < 0.01


@pytest.mark.parametrize("noise", ["normal", "t3"])
@pytest.mark.parametrize("n", [8, 20, 60])
def test_ninety_five_of_a_hundred_intervals_hold_the_truth(noise: str, n: int) -> None:
    rng = np.random.default_rng([n, len(noise)])
    times, inside = 1500, 0
    for _ in range(times):
        d = rng.standard_t(3, n) if noise == "t3" else rng.normal(0, 1, n)
        _, low, high = around(d.tolist(), 0.95)
        assert low is not None
        assert high is not None
        inside += low <= 0 <= high
    sd = (0.05 * 0.95 / times) ** 0.5
    assert inside / times == pytest.approx(0.95, abs=4 * sd)
