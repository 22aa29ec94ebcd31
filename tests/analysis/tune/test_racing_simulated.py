"""The search's promises on machines whose truth is known: quiet, noisy, hit by bursts, drifting."""

from __future__ import annotations

import random

import pytest

from gpubench.analysis.tune import objective, racing
from gpubench.suite.goal import Limit
from tests.analysis.searches import MS, P90, THROUGHPUT, Machine, index, run, search

RUNS = 40
NOISE = [{"sd": 0.005}, {"sd": 0.03}, {"sd": 0.015, "bursts": 0.1, "drift": 0.1}]
SPREAD = [10 * 1.06**i for i in range(24)]
CLOSE = [10 * 1.01**i for i in range(10)] + [13.0 + i for i in range(10)]


@pytest.mark.parametrize("ms", [SPREAD, CLOSE], ids=["spread", "close"])
@pytest.mark.parametrize("noise", NOISE, ids=str)
def test_the_best_or_one_within_three_percent_wins(noise, ms):
    won = trials = 0
    for seed in range(RUNS):
        order = random.Random(seed).sample(ms, len(ms))
        standings, measured, _ = run(Machine(order, **noise), search(), seed)
        found = racing.recommended(standings)
        won += found is not None and order[index(found.cell)] <= 1.03 * min(ms)
        trials += measured
    assert won >= 0.95 * RUNS
    # every configuration once, and a share of what all rounds of all would be
    assert trials / RUNS < 0.4 * racing.ROUNDS * len(ms)


@pytest.mark.parametrize("noise", NOISE, ids=str)
def test_what_is_as_good_as_the_leader_is_called_worse_no_more_often_than_alpha(noise):
    goal = search(alpha=0.05)
    dropped = sum(len(run(Machine([10.0] * 8, **noise), goal, seed)[2]) for seed in range(RUNS))
    assert dropped <= goal.alpha * 8 * RUNS


@pytest.mark.parametrize("noise", NOISE, ids=str)
def test_limits_are_kept_when_measured_again(noise):
    kept = found = 0
    for seed in range(RUNS):
        rng = random.Random(seed)
        batches = [2**k for k in range(6) for _ in range(2)]
        ms = [2 * size**0.92 * rng.uniform(0.85, 1.3) for size in batches]
        machine = Machine(ms, batches=batches, within=0.02, samples=20, **noise)
        limit = Limit(P90, rng.uniform(5, 50) * MS)
        standings, _, _ = run(machine, search(THROUGHPUT, limit), seed)
        if choice := racing.recommended(standings):
            again = machine.bench(seed + 1000)
            found += 1
            kept += sum(
                objective.value(again(choice.cell, 0), P90) <= limit.bound for _ in range(5)
            )
    assert found >= 0.9 * RUNS
    assert kept >= 0.97 * 5 * found
