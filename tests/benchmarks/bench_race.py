"""Time of judging a search, which follows every measurement: 500 cells, 80 of them measured.

Run with ``pytest tests/benchmarks/bench_race.py --benchmark-enable``.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from gpubench.analysis.tune import racing
from gpubench.suite.goal import Limit, Metric
from tests.analysis.searches import MS, P99, THROUGHPUT, cell, record, search

Figure = Callable[[str, float, float], None]
SECONDS = 0.02
CELLS = [cell(i, batch_size=2 ** (i % 7)) for i in range(500)]


@pytest.mark.slow
@pytest.mark.parametrize("samples", [10, 200])
def test_judging_a_search(samples: int, figure: Figure) -> None:
    """Twenty of the 80 were in three rounds of the race: 160 records."""
    rng, goal = random.Random(0), search(THROUGHPUT, Limit(P99, 20 * MS))
    records = [
        record(CELLS[i], n, [(1 + i / 10) * rng.gauss(1, 0.02) for _ in range(samples)])
        for i in range(80)
        for n in range(5 if i < 20 else 1)
    ]

    def best(_: object, metric: Metric) -> float:
        return 1e9 if metric == THROUGHPUT else 1.0

    took = []
    for _ in range(10):
        start = time.process_time()
        assert len(racing.judge(CELLS, records, goal, best)) == len(CELLS)
        took.append(time.process_time() - start)
    figure(f"judge 500 cells, 160 records of {samples} samples, s", min(took), SECONDS)
