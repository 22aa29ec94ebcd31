"""Two files for github-action-benchmark, named like the ``tool`` that reads each.

Its custom tools know one direction a file: time per batch goes where smaller is better, images/s
where bigger is (of the latency scenario too: what its closed loop completed). ``range`` is half the
95 % interval as a share, so it survives any change of unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpubench import escape
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary, flags_of
from gpubench.records.record import RecordFile
from gpubench.report.exports.naming import interval, measures, named
from gpubench.units import significant

SMALLER, BIGGER = "customSmallerIsBetter.json", "customBiggerIsBetter.json"
DIRECTIONS = {"latency": (SMALLER, "ms", 1e-6), "throughput": (BIGGER, "images/s", 1.0)}


def render(files: Sequence[RecordFile]) -> dict[str, bytes]:
    """File name -> JSON. A direction without cells has no file: the action rejects an empty one."""
    entries: dict[str, list[dict[str, Any]]] = {SMALLER: [], BIGGER: []}
    for name, summary in named(files).items():
        for kind, e in measures(summary).items():
            file, unit, factor = DIRECTIONS[kind]
            entries[file].append(_entry(name, unit, e, factor, summary))
    return {name: escape.document(found).encode() for name, found in entries.items() if found}


def _entry(name: str, unit: str, e: Estimate, factor: float, s: Summary) -> dict[str, Any]:
    half, bounds = e.relative_half_width, interval(e, factor)
    lines = [f"cell: {s.key}", f"repeats: {len(s.values)}"]
    if bounds:
        low, high = (significant(bound, 4) for bound in bounds)
        lines.append(f"95 % interval: {low} to {high} {unit}")
    lines += [f"flags: {', '.join(found)}"] if (found := flags_of(s)) else []
    entry = {"name": name, "unit": unit, "value": (e.value or 0.0) * factor}
    if half is not None and bounds:
        entry["range"] = f"± {significant(100 * half, 2)} %"
    return {**entry, "extra": "\n".join(lines)}
