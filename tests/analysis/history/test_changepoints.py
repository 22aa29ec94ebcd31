import math
from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest

from gpubench.analysis.history import changepoints
from gpubench.analysis.history.changepoints import SHORTEST, Break, calmed, detectable, findings


def changes(costs: list[float], delta: float, alpha: float) -> list[Break]:
    return findings(costs, delta, alpha).breaks


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


@pytest.mark.parametrize("size", [0.1, math.log(23.34)])
def test_shortest_levels_are_found_however_noise_scatters(size):
    """A run of normal noise beyond 3 sd is no odd run that could look like a step of 25 sd."""
    rng = np.random.default_rng(3)
    for _ in range(60):
        x = 0.004 * rng.standard_normal(40)
        x[-SHORTEST:] += size
        assert [b.at for b in changes(list(x), 0.02, 0.01 / 3)] == [40 - SHORTEST]


def _step(n: int, at: int, by: float) -> np.ndarray:
    return np.where(np.arange(n) < at, 0.0, math.log1p(by))


def _odd(rng: np.random.Generator, x: np.ndarray) -> list[float]:
    """One run in twenty is 12 % off."""
    return list(x + math.log(1.12) * (rng.random(len(x)) < 0.05))


def test_odd_runs_make_no_change_also_beside_a_real_one() -> None:
    """Each is tested by itself: a real one carries no false one through."""
    rng = np.random.default_rng(11)
    for _ in range(30):
        noise = 0.01 * rng.standard_normal(200)
        assert findings(_odd(rng, noise), 0.02, 2e-4) == changepoints.Findings()
        at = int(rng.integers(20, 180))
        (found,) = changes(_odd(rng, noise + _step(200, at, 0.1)), 0.02, 2e-4)
        assert abs(found.at - at) <= 2


def test_a_change_came_between_two_runs() -> None:
    rng, held = np.random.default_rng(12), 0
    for _ in range(60):
        at = int(rng.integers(20, 80))
        (b,) = changes(list(0.01 * rng.standard_normal(100) + _step(100, at, 0.04)), 0.02, 2e-4)
        assert b.low <= b.at <= b.high
        held += b.low <= at <= b.high
    assert held >= 55


@pytest.mark.parametrize("length", [60, 100, 200])
def test_a_slow_drift_is_no_change(length: int) -> None:
    rng, drifts = np.random.default_rng(13), 0
    for _ in range(20):
        begin = int(rng.integers(0, 201 - length))
        rise = np.clip((np.arange(200) - begin) / (length - 1), 0, 1)
        found = findings(list(0.05 * rise + 0.01 * rng.standard_normal(200)), 0.02, 2e-4)
        drifts += len(found.ramps) == 1 and not found.breaks and found.states is None
        for ramp in found.ramps:
            assert ramp.effect.mean == pytest.approx(0.05, abs=0.02)
    assert drifts >= 18


def test_a_machine_of_two_states_is_one_finding() -> None:
    rng = np.random.default_rng(14)
    for _ in range(20):
        slow = rng.random(200) < 1 / 12
        slow = slow.cumsum() % 2 == 1
        found = findings(list(0.08 * slow + 0.01 * rng.standard_normal(200)), 0.02, 2e-4)
        assert (found.breaks, found.ramps) == ([], [])
        assert found.states
        assert found.states.high - found.states.low == pytest.approx(0.08, abs=0.01)
        assert len(set(found.states.upper) ^ set(np.flatnonzero(slow))) <= 4


def test_what_would_be_seen_is_seen() -> None:
    rng, found = np.random.default_rng(15), 0
    for _ in range(40):
        x = 0.01 * rng.standard_normal(60)
        least = detectable(list(x), 0.02, 2e-4)
        assert least
        found += bool(changes(list(x + _step(60, 30, least)), 0.02, 2e-4))
    assert found >= 35
    assert detectable([0.0] * 5, 0.02, 0.01) is None


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


@pytest.mark.parametrize("seed", range(5))
def test_segments_cost_least_of_all(seed: int) -> None:
    """Against every way to cut twelve numbers."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, 12) + np.repeat([0, 3, -1], 4) * (seed % 2)

    def cost(ends: Sequence[int]) -> float:
        parts = [x[a:b] for a, b in pairwise([0, *ends])]
        return sum(((p - p.mean()) ** 2).sum() + 1.5 for p in parts)

    every = [
        [*cut, len(x)]
        for count in range(4)
        for cut in combinations(range(1, len(x)), count)
        if min(b - a for a, b in pairwise([0, *cut, len(x)])) >= changepoints.SHORTEST
    ]
    assert changepoints.segments(x, 1.5) == min(every, key=cost)
