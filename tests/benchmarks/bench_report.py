"""Time of a whole HTML report over 10,000 records, and how it grows from 1,000.

Run with ``pytest tests/benchmarks/bench_report.py --benchmark-enable``.
"""

from __future__ import annotations

import time

import pytest

from gpubench import report
from gpubench.records.record import RecordFile
from tests.report import make

SECONDS = 15.0
GROWTH = 1.5
"""Time for 10,000 records / (10 x time for 1,000): 1 is linear; noise of a busy machine on top."""


def sized(records: int) -> RecordFile:
    """Two scenarios x 4 backends x 2 precisions x 3 replica counts x batches x 3 repeats."""
    batches = tuple(range(1, round(records / (2 * 4 * 2 * 3 * 3)) + 1))
    cells = make.grid(batches=batches, replicas=(1, 2, 4), precisions=("fp32", "bf16"))
    return make.run(cells, samples=86)  # for each replica: 200 for each record


def seconds(file: RecordFile) -> float:
    """CPU time: rendering has one thread and waits for nothing, and neighbours do not count."""
    start = time.process_time()
    report.render([file], "html")
    return time.process_time() - start


@pytest.mark.slow
def test_report_over_ten_thousand_records(benchmark):
    small, large = sized(1_000), sized(10_000)
    report.render([small], "html")  # imports and the chart bundle, once for a process
    spent = min(seconds(small) for _ in range(3))
    taken = benchmark.pedantic(seconds, args=(large,), rounds=1)
    ratio = taken / (spent * len(large.records) / len(small.records))
    benchmark.extra_info |= {"records": len(large.records), "seconds": taken, "ratio": ratio}
    assert taken <= SECONDS
    assert ratio <= GROWTH
