"""Bencher Metric Format: benchmark -> measure -> value with its 95 % interval.

The measures are Bencher's built-in ones: ``latency`` in ns per batch, ``throughput`` in images/s,
of the latency scenario too, whatever else the suite has: a history must not depend on neighbours.
The format has no place for flags, so cells of which a repeat is invalid are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpubench import escape
from gpubench.analysis.stats import Estimate
from gpubench.records.record import RecordFile
from gpubench.report.exports.naming import measures, named


def render(files: Sequence[RecordFile]) -> bytes:
    """JSON; a value without an interval has no bounds."""
    document = {
        name: {kind: _metric(e) for kind, e in measures(summary).items()}
        for name, summary in named(files, sound=True).items()
    }
    return escape.document(document).encode()


def _metric(e: Estimate) -> dict[str, float]:
    parts = {"value": e.value, "lower_value": e.low, "upper_value": e.high}
    return {key: part for key, part in parts.items() if part is not None}
