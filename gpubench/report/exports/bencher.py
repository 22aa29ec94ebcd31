"""Bencher Metric Format: benchmark -> measure -> value with its 95 % interval.

The measures are Bencher's built-in ones: ``latency`` in ns per batch, ``throughput`` in images/s,
of the latency scenario too, whatever else the suite has: a history must not depend on neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpubench import escape
from gpubench.analysis.stats import Estimate
from gpubench.records.record import RecordFile
from gpubench.report.exports.naming import named


def render(files: Sequence[RecordFile]) -> bytes:
    """JSON; a value without an interval has no bounds."""
    document: dict[str, dict[str, dict[str, float]]] = {}
    for name, s in named(files).items():
        measures = document[name] = {}
        if s.cell.scenario == "latency":
            measures["latency"] = _metric(s.p50)
        if s.rates:
            measures["throughput"] = _metric(s.throughput)
    return escape.document(document).encode()


def _metric(e: Estimate) -> dict[str, float]:
    parts = {"value": e.value, "lower_value": e.low, "upper_value": e.high}
    return {key: part for key, part in parts.items() if part is not None}
