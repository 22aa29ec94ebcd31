from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

from gpubench.analysis.tune import objective
from gpubench.suite.goal import Metric
from tests.analysis.searches import MEMORY, MS, P99, THROUGHPUT, cell, record


def test_throughput_counts_images_of_the_common_window():
    assert objective.value(record(cell(), 0, 10.0), THROUGHPUT) == pytest.approx(8 / 10e-3)


@pytest.mark.parametrize(
    ("q", "n", "rank"),
    [(0.5, 9, 5), (0.5, 10, 6), (0.9, 9, 9), (0.9, 19, 18), (0.99, 10, 10), (0.99, 99, 99)],
)  # fmt: skip
def test_a_quantile_is_an_order_statistic_that_few_samples_do_not_flatter(q, n, rank):
    times = [float(i) for i in range(1, n + 1)]
    assert objective.value(record(cell(), 0, times[::-1]), Metric("latency", q)) == rank * MS


def test_a_latency_is_that_of_one_batch():
    one = record(cell(), 0, [10.0, 20.0, 30.0])
    several = replace(one, replicas=[replace(one.replicas[0], iterations=10)])
    assert objective.value(several, P99) == 3 * MS


def test_memory_is_that_of_all_replicas():
    one = record(cell(), 0)
    two = replace(one, replicas=[*one.replicas, replace(one.replicas[0], replica=1)])
    assert objective.value(two, MEMORY) == 800 << 20


@pytest.mark.parametrize("metric", [THROUGHPUT, P99, MEMORY, Metric("energy")])
def test_what_a_record_does_not_say_is_none(metric):
    failed = record(cell(), 0, status="failed", replicas=[])
    assert objective.value(failed, metric) is None


def test_a_number_without_a_logarithm_is_none():
    nothing = record(cell(), 0)
    nothing = replace(nothing, replicas=[replace(nothing.replicas[0], peak_host_bytes=0)])
    assert objective.value(nothing, MEMORY) is None


def test_of_costs_less_is_better():
    assert objective.cost(THROUGHPUT, 200.0) < objective.cost(THROUGHPUT, 100.0)
    assert objective.cost(P99, 100.0) < objective.cost(P99, 200.0)
    assert objective.cost(P99, math.e) == pytest.approx(1)
