"""The order of a pair's turns, how many there are, and what an idle arm may use."""

from __future__ import annotations

import random
from typing import Any

import pytest

from gpubench.records.record import Record
from gpubench.run.ab.pair_runner import ARMS, sequence, told_apart, turns
from gpubench.run.agent.measure_task import RIVALS_CPU
from gpubench.run.agent.messages import Done, Failure, Measure, Reply, Waiting
from gpubench.suite.types import Policy
from tests.measure.virtual import make_cell

MS = 1e6
SWAPPED = str.maketrans("AB", "BA")


def drawn(n: int, first: str, seed: int = 0) -> str:
    return sequence(n, first, random.Random(seed))


@pytest.mark.parametrize("n", [1, 2, 4, 6, 10, 12])
def test_the_other_draw_swaps_the_arms_exactly(n: int) -> None:
    for seed in range(20):
        order = drawn(n, "A", seed)
        assert drawn(n, "B", seed) == order.translate(SWAPPED)
        assert order.count("A") == order.count("B") == n


@pytest.mark.parametrize("n", [2, 4, 6, 12])
def test_a_linear_drift_cancels_over_every_four_turns(n: int) -> None:
    for seed in range(20):
        order = drawn(n, "B", seed)
        quads = [order[at : at + 4] for at in range(0, len(order), 4)]
        assert abs(quads.count("ABBA") - quads.count("BAAB")) == n // 2 % 2
        at = {arm: sum(t for t, one in enumerate(order) if one == arm) for arm in "AB"}
        assert at["A"] == at["B"]


def test_blocks_are_in_random_order() -> None:
    assert len({drawn(12, "A", seed) for seed in range(200)}) == 20  # 6 over 3


@pytest.mark.parametrize(
    ("batch_ms", "sample_ms", "policy", "cell", "expected"),
    [
        (1, 1, {}, {}, 12),
        (40, 40, {}, {}, 12),
        (100, 100, {"duration_s": 1.5}, {}, 6),  # a batch to wake up, at least two to be timed
        (3000, 3000, {}, {}, 4),
        (1, 1, {"duration_s": 0.1}, {}, 4),  # turns of 20 ms at least
        (1, 1, {"duration_s": 0.01}, {}, 2),
        (1, 1, {"max_samples": 7}, {}, 6),
        (1, 1, {"max_samples": 1}, {}, 2),
        (5, 250, {}, {"scenario": "throughput"}, 10),
        (10, 10, {}, {"replicas": 2}, 12),
        (100, 100, {}, {"replicas": 2}, 2),  # some of them must lie in the common window
        (1, 1, {}, {"boundary": "pipeline"}, 2),
        (1, 1, {}, {"scenario": "throughput", "replicas": 2, "dispatch": "dynamic"}, 2),
    ],
)
def test_as_many_turns_as_the_sampling_time_holds(
    batch_ms: float, sample_ms: float, policy: dict[str, Any], cell: dict[str, Any], expected: int
) -> None:
    asked = Measure(make_cell(**cell), Policy(**policy), "", "", [(0,)])
    assert turns(asked, Waiting("warm", [], batch_ms * MS, sample_ms * MS)) == expected


def test_a_turn_lasts_twice_as_long_as_the_rival_takes_to_fall_asleep() -> None:
    asked = Measure(make_cell(), Policy(duration_s=1), "", "", [(0,)])
    for rest_s, expected in ((0.0, 12), (0.035, 12), (0.1, 4), (0.3, 2)):
        assert turns(asked, Waiting("warm", [], MS, MS, rest_s)) == expected


def reply(**facts: float) -> Done:
    return Done(Record(cell=make_cell(), repeat=0, status="ok", facts=facts, flags=["GROUPED"]))


def test_the_arm_that_was_busy_while_the_other_sampled_is_flagged() -> None:
    """Which only the other has seen."""
    seen = {ARMS[0]: reply(**{RIVALS_CPU: 0.4}), ARMS[1]: reply(**{RIVALS_CPU: 0.009})}
    baseline, candidate = (told_apart(seen)[arm] for arm in ARMS)
    assert isinstance(baseline, Done)
    assert isinstance(candidate, Done)
    assert baseline.record.facts == {"idle_cpu_share": 0.009}
    assert baseline.record.flags == ["GROUPED"]
    assert candidate.record.facts == {"idle_cpu_share": 0.4}
    assert candidate.record.flags == ["GROUPED", "BUSY-WHILE-IDLE"]
    failed: dict[Any, Reply] = {ARMS[0]: Failure("crash", "signal 11")}
    assert told_apart(failed) == failed
