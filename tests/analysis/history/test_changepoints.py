import math

import numpy as np
import pytest

from gpubench.analysis.history import changepoints
from gpubench.analysis.history.changepoints import SHORTEST, calmed, changes


def test_series_without_any_noise_are_no_trouble():
    assert changes([0.0] * 20, 0.02, 0.01) == []
    found = changes([0.0] * 10 + [0.1] * 10, 0.02, 0.01)
    assert [(b.at, b.p) for b in found] == [(10, 0.0)]


@pytest.mark.parametrize("runs_", [8, 20, 60])
@pytest.mark.parametrize("kind", ["normal", "heavy", "two states", "odd runs"])
def test_noise_does_not_cry_wolf(kind, runs_):
    """300 series without a change, sd 3 %: more than the margin. Five alarms are 1.7 %."""
    rng = np.random.default_rng(sum(map(ord, kind)) + runs_)

    def noise() -> np.ndarray:
        if kind == "normal":
            return rng.standard_normal(runs_)
        if kind == "heavy":
            return rng.standard_t(3, runs_) / math.sqrt(3)
        if kind == "two states":
            return np.where(rng.random(runs_) < 0.3, 1.53, -0.65)
        return np.where(rng.random(runs_) < 0.1, 3.0, -1 / 3) + 0.1 * rng.standard_normal(runs_)

    alarms = sum(bool(changes(list(0.03 * noise()), 0.02, 0.01)) for _ in range(300))
    assert alarms <= 300 * 0.03


def test_runs_that_are_alike_in_time_count_as_fewer():
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        x = rng.standard_normal(150)
        for i in range(1, 150):
            x[i] = 0.5 * x[i - 1] + math.sqrt(0.75) * x[i]
        alarms += bool(changes(list(0.03 * x), 0.02, 0.01))
    assert alarms <= 20  # with the independence that nobody promised: 140


def test_a_change_of_three_sd_is_found_among_twenty_cells():
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(60):
        x = 0.015 * rng.standard_normal(25)
        x[20:] += math.log(1.06)
        found += any(abs(b.at - 20) <= 1 for b in changes(list(x), 0.02, 0.01 / 20))
    assert found >= 45


def test_the_segmentation_is_the_best_there_is():
    """Against every segmentation into levels of three runs or more, by hand."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        x = rng.standard_normal(14)
        x[rng.integers(3, 11) :] += 2
        ways = [(a,) for a in range(SHORTEST, 12)]
        ways += [(a, b) for a in range(SHORTEST, 12) for b in range(a + SHORTEST, 12)]
        for count in (1, 2):
            best = min(
                sum(((s - s.mean()) ** 2).sum() for s in np.split(x, way))
                for way in ways if len(way) == count
            )  # fmt: skip
            assert changepoints._left(x, count) == pytest.approx(best)


def test_odd_runs_are_set_aside_levels_are_not():
    quiet = [0.01, -0.01] * 10
    level = [0.5 + x for x in quiet[:3]]
    odd = [*quiet[:6], 0.5, 0.6, *quiet[8:]]
    assert max(calmed(odd)) <= 0.01
    assert calmed([*quiet, *level]) == [*quiet, *level]
    assert calmed([*quiet, *level, *quiet]) == [*quiet, *level, *quiet]
    assert calmed([]) == []
    assert calmed([0.3]) == [0.3]


def test_a_change_needs_room_on_either_side():
    for n in range(2 * SHORTEST):
        assert changes([0.0] * (n // 2) + [1.0] * (n - n // 2), 0.02, 0.01) == []
    assert [b.at for b in changes([0.0] * 3 + [1.0] * 3, 0.02, 0.01)] == [3]
