from __future__ import annotations

import math
import random

import pytest

from gpubench.analysis.tune import noise
from gpubench.analysis.tune.noise import FAR, Noise

QUIET = Noise(0.01, 1000)


def blocks(rng: random.Random, sd: float, bursts: float = 0.0) -> list[dict[int, float]]:
    """12 configurations of very different cost in four blocks, the machine slower in each."""

    def error() -> float:
        return rng.gauss(0, sd) + 0.26 * (rng.random() < bursts)

    return [{b: level + 0.2 * b + error() for b in (0, 2, 3, 4)} for level in range(12)]


@pytest.mark.parametrize("bursts", [0.0, 0.1])
def test_the_spread_of_a_difference_forgets_configurations_blocks_and_bursts(bursts):
    rng = random.Random(1)
    found = [noise.between(blocks(rng, 0.02, bursts), noise.prior()) for _ in range(50)]
    mean = sum(each.sd for each in found) / len(found)
    assert mean == pytest.approx(0.02 * math.sqrt(2), rel=0.4 if bursts else 0.05)
    assert found[0].dof == 3 * 11


def test_few_degrees_of_freedom_say_nothing():
    two = [{0: 0.0, 2: 0.0}, {0: 1.0, 2: 1.5}]
    assert noise.between(two, noise.prior()).sd == pytest.approx(0.1 * math.sqrt(2))
    assert noise.within([[0.0, 0.01], [1.0]], noise.prior()) == noise.prior()


@pytest.mark.parametrize("size", [3, 4, 5, 8])
def test_small_rounds_do_not_look_quieter(size):
    rng = random.Random(size)
    found = [noise.between(blocks(rng, 0.02)[:size], noise.prior()).sd for _ in range(200)]
    assert sum(found) / len(found) == pytest.approx(0.02 * math.sqrt(2), rel=0.1)


def test_a_block_of_one_configuration_is_no_block():
    rng = random.Random(3)
    race = blocks(rng, 0.02)
    before = noise.between(race, noise.prior())
    race[0][2.5] = 7.0
    assert noise.between(race, noise.prior()) == before


def test_the_spread_of_repeats_is_pooled_with_all_that_happened():
    found = noise.within([[0.0, 0.2], [5.0, 5.2], [1.0, 1.0, 1.0], [7.0]], noise.prior())
    assert (found.sd, found.dof) == (pytest.approx(math.sqrt(0.04 / 4)), 4)


def test_one_difference_says_something_only_where_it_is_far():
    assert noise.at_least([FAR - 0.01], QUIET, 0.01) < 0 < noise.at_least([FAR + 0.01], QUIET, 0.01)
    busy = Noise(0.3, 1000)
    assert noise.at_least([FAR + 0.01], busy, 0.01) < 0  # and beyond the noise


def test_two_differences_may_both_have_been_hit_once_in_a_hundred_times():
    assert noise.at_least([0.2, 0.2], QUIET, 0.01) < 0
    assert noise.at_least([0.2, 0.2], QUIET, 0.05) > 0.17


def test_of_three_one_or_two_may_be_hit():
    assert noise.at_least([0.1, 0.1, 0.1], QUIET, 0.01) > 0.08
    assert noise.at_least([0.3, 0.3, 0.0], QUIET, 0.01) < 0


def test_a_burst_does_not_hide_a_difference():
    clean = noise.at_least([0.1] * 8, QUIET, 0.01)
    assert noise.at_least([0.1] * 7 + [-0.2], QUIET, 0.01) == pytest.approx(clean, abs=0.01)


def test_no_difference_no_bound():
    assert noise.at_least([], QUIET, 0.01) == -math.inf


@pytest.mark.parametrize("n", [2, 3, 4, 6, 8])
@pytest.mark.parametrize(("sd", "bursts"), [(0.01, 0.0), (0.01, 0.1), (0.05, 0.1)])
def test_a_bound_is_too_high_no_more_often_than_it_says(n, sd, bursts):
    rng = random.Random(n)

    def hit() -> float:
        return 0.26 * (rng.random() < bursts)

    runs, alpha = 3000, 0.05
    known = Noise(sd, 1000)
    high = sum(
        noise.at_least([rng.gauss(0, sd) + hit() - hit() for _ in range(n)], known, alpha) > 0
        for _ in range(runs)
    )
    assert high / runs < alpha + 0.005
