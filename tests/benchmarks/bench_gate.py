"""How long the A/B gate thinks: after a whole suite, and after each round of one.

Run with ``pytest tests/benchmarks/bench_gate.py -s -o python_files='bench_*.py'``. CPU time, so
neighbours do not count; the least of three.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from gpubench.analysis.compare import sequential_test
from gpubench.analysis.compare.sequential_test import Pair
from gpubench.suite.types import Rule


def _pairs(rng: np.random.Generator, effect: float, n: int) -> list[Pair]:
    return [Pair(d=float(d)) for d in rng.normal(effect, 0.02, n)]


def _cells(count: int, n: int) -> dict[str, list[Pair]]:
    """Every third cell is slower."""
    rng = np.random.default_rng(0)
    return {str(i): _pairs(rng, 0.0 if i % 3 else 0.1, n) for i in range(count)}


def _seconds(work: Callable[[], object]) -> float:
    found = []
    for _ in range(3):
        for remembers in (sequential_test._own, sequential_test.shift, sequential_test._forecast):
            remembers.cache_clear()
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def test_judging_a_thousand_cells_of_twenty_pairs(figure: Callable[[str, float, float], None]):
    cells = _cells(1000, 20)
    figure(
        "1,000 cells x 20 pairs judged, s",
        _seconds(lambda: sequential_test.judge(cells, Rule())),
        5.0,
    )


def test_what_to_measure_next(figure: Callable[[str, float, float], None]):
    cells = _cells(30, 60)
    figure(
        "30 cells x 60 pairs: what next, s",
        _seconds(lambda: sequential_test.needs(cells, Rule())),
        0.05,
    )


def test_judging_thirty_cells_of_sixty_pairs(figure: Callable[[str, float, float], None]):
    cells = _cells(30, 60)
    figure(
        "30 cells x 60 pairs judged, s", _seconds(lambda: sequential_test.judge(cells, Rule())), 1.0
    )
