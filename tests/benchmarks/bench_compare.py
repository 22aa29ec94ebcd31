"""Time of judging 1,000 cells x 20 pairs from records in memory, and of 1,000 stored cells.

Run with ``pytest tests/benchmarks/bench_compare.py --benchmark-enable``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from gpubench.analysis.compare import aa_history
from gpubench.analysis.compare.compare import compare
from gpubench.analysis.compare.verdicts import Comparison
from tests.report import make
from tests.report.make_pairs import arms, sessions

Figure = Callable[[str, float, float], None]
CELLS = 1_000
SECONDS = 5.0
GRID = make.grid(batches=tuple(range(1, CELLS // 8 + 1)), replicas=(1,))


def seconds(work: Callable[[], list[Comparison]]) -> float:
    """CPU time: judging has one thread and waits for nothing, and neighbours do not count."""
    start = time.process_time()
    found = work()
    took = time.process_time() - start
    assert len(found) == CELLS
    return took


@pytest.mark.slow
def test_a_thousand_cells_of_twenty_pairs(figure: Figure) -> None:
    """Ten cells are really slower, so that there is something to confirm."""
    slower = dict.fromkeys(range(0, CELLS, 100), 0.1)
    base, candidate = arms(GRID, 20, effect=slower, samples=40)
    compare(*arms(GRID[:1], 8))  # imports, once for a process
    figure("seconds", min(seconds(lambda: compare(base, candidate)) for _ in range(2)), SECONDS)


@pytest.mark.slow
def test_a_thousand_stored_cells_with_a_history(figure: Figure) -> None:
    history = sessions(GRID, aa_history.ENOUGH)
    base, candidate = sessions(GRID, 2, seed=1, repeats=20)
    compare(base, candidate)
    figure("seconds", seconds(lambda: compare(base, candidate, history=history)), SECONDS)
