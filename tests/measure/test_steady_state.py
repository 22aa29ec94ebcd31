"""What `measure.steady_state` takes for steady, on traces that are labelled."""

from __future__ import annotations

import numpy as np
import pytest

from gpubench.measure import steady_state
from tests.benchmarks.trust import processes

TIMES = 200


def flagged(draw: processes.Draw, samples: int) -> float:
    """Share of the traces that are flagged."""
    traces = 5e6 * np.exp(draw(np.random.default_rng(1), TIMES, samples))
    return float(np.mean([bool(steady_state.steady(t, 0.02)[1]) for t in np.rint(traces).tolist()]))


@pytest.mark.parametrize("kind", ["iid lognormal", "AR(1), 0.5", "bimodal", "Pareto spikes"])
@pytest.mark.parametrize("samples", [20, 100, 300])
def test_steady_traces_are_rarely_flagged(kind: str, samples: int) -> None:
    assert flagged(processes.STEADY[kind], samples) <= (0.06 if samples < 30 else 0.04)


@pytest.mark.parametrize("kind", processes.UNSTEADY)
def test_unsteady_traces_are_mostly_flagged(kind: str) -> None:
    assert flagged(processes.unsteady(kind), 200) >= (0.45 if kind == "random walk" else 0.9)


@pytest.mark.parametrize("samples", [73, 100, 200])
@pytest.mark.parametrize("size", [-0.15, -0.05, 0.05, 0.16])
def test_one_shift_in_the_first_half_is_flagged_and_never_cut(samples: int, size: float) -> None:
    """A faster start is no warm-up; nor is a slower one that stays where it is, and then ends."""
    rng = np.random.default_rng(5)
    for at in range(samples // 8, samples // 2, samples // 20):
        level = 5e6 * np.where(np.arange(samples) < at, 1.0, 1.0 + size)
        trace = np.rint(level * rng.lognormal(0, 0.005, samples)).tolist()
        cut, flags = steady_state.steady(trace, 0.02)
        assert (cut, bool(flags)) == (0, True), at


@pytest.mark.parametrize("height", [0.1, 0.5])
def test_what_a_warm_up_has_left_is_cut(height: float) -> None:
    rng = np.random.default_rng(7)
    decay = 5e6 * (1 + height * np.exp(-np.arange(100) / 5)) * rng.lognormal(0, 0.01, 100)
    cut, flags = steady_state.steady(np.rint(decay).tolist(), 0.02)
    assert 5 <= cut <= 30
    assert flags == []


@pytest.mark.parametrize("seed", range(5))
def test_a_smooth_warm_up_of_many_samples_is_cut(seed: int) -> None:
    rng = np.random.default_rng(seed)
    decay = 5e6 * (1 + 0.5 * np.exp(-np.arange(1000) / 50)) * rng.lognormal(0, 0.01, 1000)
    cut, flags = steady_state.steady(np.rint(decay).tolist(), 0.05)
    assert 100 <= cut <= 350
    assert flags == []


def test_a_slow_stretch_of_noise_at_the_start_is_not_cut() -> None:
    """Else every median would be a little too fast: noise would only be cut where it is slow."""
    rng = np.random.default_rng(8)
    traces = np.rint(5e6 * rng.lognormal(0, 0.03, (200, 100))).tolist()
    assert sum(steady_state.steady(t, 0.02)[0] > 0 for t in traces) <= 4


def test_a_rise_and_fall_that_leaves_both_halves_alike_is_flagged() -> None:
    rng = np.random.default_rng(2)
    hill = 5e6 * (1 + 0.1 * np.sin(np.linspace(0, 2 * np.pi, 200) - np.pi / 2))
    trace = np.rint(hill * rng.lognormal(0, 0.01, 200)).tolist()
    assert steady_state.steady(trace, 0.02)[1]


def test_a_spread_that_grows_around_one_level_is_flagged() -> None:
    rng = np.random.default_rng(3)
    trace = np.rint(5e6 * np.exp(rng.normal(0, 1, 200) * np.linspace(0.01, 0.2, 200))).tolist()
    assert steady_state.steady(trace, 0.02) == (0, ["DRIFT"])


def test_moves_within_the_tolerance_are_no_drift() -> None:
    rng = np.random.default_rng(4)
    trace = np.rint(5e6 * np.linspace(1, 1.015, 200) * rng.lognormal(0, 0.001, 200)).tolist()
    assert steady_state.steady(trace, 0.02)[1] == []
    assert steady_state.steady(trace, 0.005)[1] != []


@pytest.mark.parametrize("count", [10, 11, 13, 19, 21, 49])
def test_any_number_of_samples_will_do(count: int) -> None:
    assert steady_state.steady([5_000_000] * count, 0.02) == (0, [])
    if count > 15:
        assert steady_state.steady(list(range(1000, 1000 + 100 * count, 100)), 0.02)[1] != []


def test_a_bend_is_seen_where_quarters_hardly_differ() -> None:
    bent = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        hill = 5e6 * np.exp(0.06 * np.linspace(-1, 1, 100) ** 2 + rng.normal(0, 0.01, 100))
        bent += steady_state.steady(np.rint(hill).tolist(), 0.02)[1] != []
    assert bent >= 36


@pytest.mark.parametrize(("levels", "settled"), [((5, 6, 5), True), ((7, 6, 5), False)])
def test_what_turns_back_is_no_warm_up(levels: tuple[float, ...], settled: bool) -> None:
    noise = np.random.default_rng(6).lognormal(0, 0.01, 90)
    warmup = np.rint(np.repeat(levels, 30) * 1e6 * noise).tolist()
    assert steady_state.settled(warmup, 0.02) is settled
