from __future__ import annotations

import itertools

import numpy as np
import pytest

from gpubench.analysis import signflip
from gpubench.analysis.signflip import EXACT, GRID, p_above


def brute_force(differences: list[float], shift: float) -> float:
    d = np.asarray(differences) - shift
    seen = d.sum()
    patterns = itertools.product((1, -1), repeat=len(d))
    return float(np.mean([np.dot(signs, d) >= seen - 1e-9 for signs in patterns]))


@pytest.mark.parametrize("n", range(1, 11))
@pytest.mark.parametrize("shift", [0.0, 0.3, -1.0])
def test_equals_brute_force(n: int, shift: float) -> None:
    d = np.random.default_rng(n).normal(0.4, 1, n).tolist()
    assert p_above(d, shift) == pytest.approx(brute_force(d, shift), abs=1e-12)


@pytest.mark.parametrize(
    "d",
    [[1.0] * 8, [0.1, 0.2, 0.3, -0.1, -0.2], [0.1] * 3 + [-0.1] * 3, [0.0] * 6, [0.0, 1.0, 1.0]],
)
def test_ties_count_as_the_pattern_seen(d: list[float]) -> None:
    assert p_above(d) == pytest.approx(brute_force(d, 0.0), abs=1e-12)
    assert p_above([x + 0.02 for x in d], 0.02) == pytest.approx(brute_force(d, 0.0), abs=1e-12)


def test_all_on_one_side_is_the_smallest_p_there_is() -> None:
    assert p_above([1.0, 2.0, 3.0, 4.0]) == 1 / 16
    assert p_above([-1.0, -2.0, -3.0, -4.0]) == 1.0
    assert p_above([0.5 + i for i in range(40)]) == 2.0**-40


def test_nothing_measured_proves_nothing() -> None:
    assert p_above([]) == 1.0
    assert p_above([0.02] * 50, 0.02) == 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_difference_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"must be finite.*{bad}"):
        p_above([0.1, bad])


@pytest.mark.parametrize("n", [4, 12, EXACT])
def test_the_grid_is_an_upper_bound_and_a_close_one(n: int) -> None:
    for seed in range(20):
        d = np.random.default_rng(seed).normal(0.3, 1, n)
        exact, counted = signflip._met(d), signflip._counted(d)
        nudged = signflip._met(d - float(np.abs(d).max()) / GRID)
        assert exact - 1e-12 <= counted <= nudged + 1e-12


@pytest.mark.parametrize("n", [33, 60])
def test_many_pairs_agree_with_patterns_drawn_at_random(n: int) -> None:
    rng = np.random.default_rng(n)
    d = rng.standard_t(3, n) + 0.25
    signs = rng.choice([-1.0, 1.0], (100_000, n))
    drawn = float((signs @ d >= d.sum() - 1e-9).mean())
    assert p_above(d.tolist()) == pytest.approx(drawn, abs=5 * (drawn / 100_000) ** 0.5 + 1e-4)


def test_the_order_of_pairs_hardly_matters_and_the_direction_does() -> None:
    d = np.random.default_rng(1).normal(0.2, 1, 20).tolist()
    assert p_above(d[::-1]) == pytest.approx(p_above(d), abs=1e-12)
    assert p_above([-x for x in d]) == pytest.approx(1 - p_above(d), abs=1e-5)


def test_any_larger_difference_makes_p_smaller() -> None:
    d = np.random.default_rng(2).normal(0, 1, 12)
    for i in range(12):
        more = d.copy()
        more[i] += 0.5
        assert p_above(more.tolist()) <= p_above(d.tolist())


@pytest.mark.parametrize("noise", ["normal", "cauchy", "two points"])
@pytest.mark.parametrize(("n", "times"), [(8, 1500), (30, 250)])
def test_keeps_its_level_under_any_symmetric_noise(noise: str, n: int, times: int) -> None:
    rng = np.random.default_rng([n, len(noise)])
    draw = {
        "normal": lambda: rng.normal(0, 1, n),
        "cauchy": lambda: rng.standard_cauchy(n),
        "two points": lambda: rng.choice([-1.0, 1.0], n) * (1 + 0.01 * rng.random(n)),
    }[noise]
    hits = sum(p_above((0.02 + draw()).tolist(), 0.02) <= 0.05 for _ in range(times))
    # p is discrete, so a little fewer than 5 % is right too; 4 standard deviations around it
    sd = (times * 0.05 * 0.95) ** 0.5
    assert 0.04 * times - 4 * sd <= hits <= 0.05 * times + 4 * sd
