"""The words of the command line for objectives and limits."""

from __future__ import annotations

import pytest

from gpubench.errors import InputError
from gpubench.suite import goal
from gpubench.suite.goal import Goal, Limit, Metric


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("throughput", Metric("throughput")),
        ("latency", Metric("latency", 0.5)),
        ("p99", Metric("latency", 0.99)),
        ("p99.9", Metric("latency", 0.999)),
        ("energy", Metric("energy")),
        ("memory", Metric("memory")),
    ],
)
def test_objectives(words: str, found: Metric) -> None:
    assert goal.metric("--objective", words) == found


@pytest.mark.parametrize("words", ["", "p0", "p100", "speed", "p-1", "99"])
def test_what_is_no_objective_is_named(words: str) -> None:
    with pytest.raises(InputError, match=f"--objective '{words}'.*throughput"):
        goal.metric("--objective", words)


def test_limits_carry_units() -> None:
    assert goal.max_latency("--max-latency", "p99=20ms") == Limit(Metric("latency", 0.99), 20e6)
    assert goal.max_latency("--max-latency", "0.5 S").bound == 0.5e9
    assert goal.limit("--min-throughput", "500").bound == 500
    assert goal.limit("--max-memory", "2GiB").bound == 2 * 2**30
    assert goal.limit("--max-memory", "800MB").bound == 8e8
    assert goal.limit("--max-energy", "80mJ").bound == pytest.approx(0.08)
    assert goal.max_latency("--max-latency", "p99=20ms").text == "p99 latency <= 20.0 ms"
    assert goal.limit("--min-throughput", "500").text == "throughput >= 500 images/s"


@pytest.mark.parametrize(
    "words", ["p99", "p99=", "p99=20", "p99=-1ms", "p99=0ms", "energy=1ms", ""]
)
def test_a_bad_latency_shows_the_value_and_an_example(words: str) -> None:
    with pytest.raises(InputError, match=r"--max-latency .*p99=20ms|not something"):
        goal.max_latency("--max-latency", words)


def test_a_latency_anywhere_makes_the_loop_one_batch_at_a_time() -> None:
    assert Goal(Metric("throughput")).scenario == "throughput"
    assert Goal(Metric("latency")).scenario == "latency"
    limited = Goal(Metric("throughput"), (goal.max_latency("--max-latency", "p99=1s"),))
    assert limited.scenario == "latency"
