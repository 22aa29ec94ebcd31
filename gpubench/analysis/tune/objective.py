"""One repeat's number for whatever a search optimises or limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gpubench.records.record import Record
from gpubench.suite.goal import Metric
from gpubench.suite.types import Cell

Best = Callable[[Cell, Metric], float | None]
"""The best value that the metric could possibly have, by the roofline; None: unknown."""


def value(record: Record, metric: Metric) -> float | None:
    """images/s, ns per batch, joules per image or bytes; None where the record does not say.

    Never 0 or infinite: its logarithm is taken.
    """
    if metric.kind == "throughput":
        found = record.images_per_s()
    elif metric.kind == "latency":
        found = quantile(record.latencies_ns(), metric.quantile)
    elif metric.kind == "energy":
        found = record.joules_per_image()
    else:
        found = record.peak_bytes()
    return float(found) if found and 0 < found < math.inf else None


def cost(metric: Metric, number: float) -> float:
    """The logarithm of ``number``, turned so that less is better."""
    return -math.log(number) if metric.more_is_better else math.log(number)


def quantile(values: Sequence[float], q: float) -> float | None:
    """The order statistic of rank ceil(q (n + 1)), the largest where there is none so high.

    A new sample lies above it with a chance of at most 1 - q (n large enough), where the nearest
    rank would be a little low: what keeps a limit must not gain by having few samples.
    """
    ordered, n = sorted(values), len(values)
    return float(ordered[min(n, math.ceil(round(q * (n + 1), 9))) - 1]) if n else None
