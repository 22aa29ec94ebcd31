from __future__ import annotations

import pytest

from gpubench.analysis.tune.constraints import MOST, judged
from gpubench.analysis.tune.noise import Noise, prior
from gpubench.suite.goal import Limit, Metric
from tests.analysis.searches import MEMORY, MS, P90, P99, THROUGHPUT

SPREAD = Noise(0.02, 30)
MOST_20 = Limit(P90, 20.0 * MS)


@pytest.mark.parametrize(
    ("ms", "state"),
    [([18.0, 18.2], "met"), ([19.7, 19.8], "open"), ([18.0, 20.1], "open"), ([18.0], "open"),
     ([20.5, 20.6], "open"), ([25.0], "open"), ([31.0], "violated"), ([22.0, 22.0], "violated")],
)  # fmt: skip
def test_met_only_where_another_repeat_would_keep_it(ms, state):
    assert judged(MOST_20, [x * MS for x in ms], SPREAD, 1000).state == state


def test_of_throughput_less_is_worse():
    limit = Limit(THROUGHPUT, 100.0)
    assert judged(limit, [110.0, 111.0], SPREAD, 0).state == "met"
    assert judged(limit, [90.0, 91.0], SPREAD, 0).state == "violated"
    assert judged(limit, [101.0, 102.0], SPREAD, 0).worst < 100


def test_a_percentile_needs_its_samples():
    limit = Limit(P99, 20.0 * MS)
    few = judged(limit, [5.0 * MS] * 3, SPREAD, 300)
    assert (few.state, few.missing, few.hopeless) == ("open", 68, False)
    assert few.text == "p99 latency 5.00 ms, 68 samples too few to tell: limit 20.0 ms"
    assert judged(limit, [5.0 * MS] * 3, SPREAD, 368).state == "met"


def test_samples_that_can_never_be_had_are_not_waited_for():
    rare = Limit(Metric("latency", 0.999), 20.0 * MS)
    assert judged(rare, [5.0 * MS], SPREAD, 10).hopeless
    assert not judged(rare, [5.0 * MS], SPREAD, 3688 // MOST + 1).hopeless


def test_too_close_to_be_promised_is_told_after_three_repeats():
    near = [19.5 * MS] * 3
    assert not judged(MOST_20, near[:2], SPREAD, 1000).hopeless
    kept = judged(MOST_20, near, SPREAD, 1000)
    assert kept.hopeless
    assert kept.text == ("p90 latency 19.5 ms, one repeat in 100 would show 20.6 ms: limit 20.0 ms")
    once = judged(MOST_20, [15.0 * MS] * 5 + [20.5 * MS], Noise(0.1, 30), 1000)
    assert once.hopeless  # one of six did break it


def test_a_single_repeat_is_not_condemned_while_nothing_tells_the_noise():
    assert judged(MOST_20, [24.0 * MS], prior(), 1000).state == "open"
    assert judged(MOST_20, [31.0 * MS], prior(), 1000).state == "violated"


def test_what_was_not_measured_is_neither_met_nor_waited_for():
    kept = judged(Limit(Metric("energy"), 0.5), [], SPREAD, 0)
    assert (kept.value, kept.state, kept.hopeless) == (None, "open", True)
    assert kept.text == "energy could not be measured: limit 0.500 J/image"


def test_memory_hardly_varies():
    assert judged(Limit(MEMORY, 1e9), [9.2e8, 9.2e8], prior(0.2), 0).state == "met"
