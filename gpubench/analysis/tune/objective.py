"""One repeat's number for whatever a search optimises or limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gpubench.records.record import Record
from gpubench.records.samples import window_slices
from gpubench.suite.goal import Metric
from gpubench.suite.types import Cell

Best = Callable[[Cell, Metric], float | None]
"""The best value that the metric could possibly have, by the roofline; None: unknown."""


def value(record: Record, metric: Metric) -> float | None:
    """images/s, ns per batch, joules per image or bytes; None where the record does not say.

    Never 0 or infinite: its logarithm is taken.
    """
    found = _found(record, metric)
    return found if found and 0 < found < math.inf else None


def cost(metric: Metric, number: float) -> float:
    """The logarithm of ``number``, turned so that less is better."""
    return -math.log(number) if metric.more_is_better else math.log(number)


def latencies(record: Record) -> list[float]:
    """ns per batch of all replicas while all of them ran."""
    found: list[float] = []
    for visit in record.visits:
        for s, inside in zip(visit, window_slices(visit), strict=True):
            found += s.batch_ns[inside]
    return found


def quantile(values: Sequence[float], q: float) -> float | None:
    """The order statistic of rank ceil(q (n + 1)), the largest where there is none so high.

    A new sample lies above it with a chance of at most 1 - q (n large enough), where the nearest
    rank would be a little low: what keeps a limit must not gain by having few samples.
    """
    ordered, n = sorted(values), len(values)
    return float(ordered[min(n, math.ceil(round(q * (n + 1), 9))) - 1]) if n else None


def _found(record: Record, metric: Metric) -> float | None:
    if metric.kind == "throughput":
        return record.images_per_s()
    if metric.kind == "latency":
        return quantile(latencies(record), metric.quantile)
    if metric.kind == "energy":
        return record.joules_per_image()
    peak = record.peak_bytes()
    return None if peak is None else float(peak)
