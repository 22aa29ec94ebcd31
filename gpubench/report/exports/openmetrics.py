"""OpenMetrics text: GitLab's metrics report, and whatever else reads Prometheus' format.

A gauge for each measure, a sample for each cell: seconds per batch, and images/s. The format has no
place for flags, so cells of which a repeat is invalid are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpubench import escape
from gpubench.records.record import RecordFile
from gpubench.report.exports.naming import measures, named
from gpubench.units import significant

GAUGES = {
    "latency": ("gpubench_batch_seconds", "median time of a batch", 1e-9),
    "throughput": ("gpubench_images_per_second", "images in a second", 1.0),
}
"""Measure -> metric, what it is, factor from gpubench's unit."""


def render(files: Sequence[RecordFile]) -> bytes:
    """Four digits: readers compare the text, and more of them are noise."""
    found = {name: measures(summary) for name, summary in named(files, sound=True).items()}
    lines = []
    for kind, (metric, words, factor) in GAUGES.items():
        values = {n: m[kind].value for n, m in found.items() if kind in m}
        samples = [
            f'{metric}{{cell="{_escaped(name)}"}} {significant(value * factor, 4).replace(",", "")}'
            for name, value in values.items()
            if value is not None
        ]
        if samples:
            unit = [f"# UNIT {metric} seconds"] if metric.endswith("_seconds") else []
            lines += [f"# TYPE {metric} gauge", *unit, f"# HELP {metric} {words}", *samples]
    return "\n".join([*lines, "# EOF", ""]).encode()


def _escaped(value: str) -> str:
    return escape.line(value).replace("\\", "\\\\").replace('"', '\\"')
