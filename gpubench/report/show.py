"""How a table's values look: one place for text, Markdown and HTML.

Digits follow the measured precision, and the bounds of an interval share the value's unit and
decimals: 11.06 ms [10.94, 11.19].
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from gpubench import units
from gpubench.analysis.stats import Estimate
from gpubench.analysis.tables import Column
from gpubench.record import FAILURES, FLAGS, Header, RecordFile

NOTHING = "–"

STATUSES = {
    "unavailable": "this machine lacks something; the remedy says what",
    "unsupported": "the backend cannot do this cell",
    "missing": "planned, but not in the file",
}

_SCALE = {"images/s": (1.0, ""), "x": (1.0, "×"), "fraction": (100.0, " %")}
_LONG = (("s", 1e-9), ("ms", 1e-6), ("us", 1e-3), ("ns", 1.0))


class Shown(Struct, frozen=True):
    """A value for people."""

    main: str
    aside: str = ""
    """The interval, or why there is none."""


def show(value: Any, column: Column) -> Shown:
    """Any value that `Table.rows` may hold."""
    if isinstance(value, Estimate):
        return _estimate(value, column.unit)
    if isinstance(value, list):
        return Shown(", ".join(show(v, column).main for v in value) or NOTHING)
    if value is None or value == "":
        return Shown(NOTHING)
    if isinstance(value, float) and not isinstance(value, bool):
        if not column.unit:
            return Shown(f"{value:.2g}")
        return _estimate(Estimate(value=value), column.unit)
    return Shown(str(value))


def _estimate(e: Estimate, unit: str) -> Shown:
    if e.value is None:
        short = e.why.partition(":")[0]
        return Shown(NOTHING, short)
    factor, suffix = _scale(e.value, unit)
    half = e.relative_half_width
    value = e.value * factor
    decimals = units.digits_for(half) - 1
    decimals -= math.floor(math.log10(abs(value))) if value else 0
    main = _fixed(value, decimals) + suffix
    if e.low is None or e.high is None:
        return Shown(main, e.why.partition(":")[0])
    return Shown(main, f"[{_fixed(e.low * factor, decimals)}, {_fixed(e.high * factor, decimals)}]")


def _fixed(value: float, decimals: int) -> str:
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"


def _scale(value: float, unit: str) -> tuple[float, str]:
    if unit != "ns":
        return _SCALE.get(unit, (1.0, ""))
    name, factor = next(((n, f) for n, f in _LONG if abs(value) * f >= 1), _LONG[-1])
    return factor, f" {name}"


def compact(value: Any, column: Column) -> str:
    """One short piece: '11.06 ms ±1.1%'; '±?' where there is no interval."""
    shown = show(value, column)
    half = value.relative_half_width if isinstance(value, Estimate) else None
    if half is None:
        if shown.main == NOTHING or shown.aside == "baseline":
            return shown.aside or NOTHING
        return f"{shown.main} ±?" if shown.aside else shown.main
    return f"{shown.main} ±{units.significant(100 * half, 2)}%"


def full(value: Any, column: Column) -> str:
    """With the whole interval: '11.06 ms [10.94, 11.19]'."""
    shown = show(value, column)
    if shown.main == NOTHING or shown.aside == "baseline":
        return shown.aside or NOTHING
    return f"{shown.main} {shown.aside}".strip()


def is_number(column: Column) -> bool:
    """Right-aligned and sorted as a number."""
    return column.unit not in ("", "key", "flags")


def meaning(flag: str) -> str:
    """What a flag, or a status shown as one, says."""
    if flag.startswith("failed: "):
        return FAILURES.get(flag.removeprefix("failed: "), "the cell broke")
    return {**STATUSES, **FLAGS}.get(flag, "some repeats broke: see skips and failures")


def command(header: Header, key: str = "KEY") -> str:
    """The command that runs one cell again: the run's own, less where its results went."""
    words = list(header.command)
    if "run" not in words:
        return shlex.join(["gpubench", "run", header.suite.name, "--cell", key])
    kept, skip = ["gpubench"], False
    for word in words[words.index("run") :]:
        takes = word in ("-o", "--output")
        drop = skip or takes or word == "--resume" or word.startswith("--output=")
        skip = takes and not skip
        kept += [] if drop else [word]
    return shlex.join([*kept, "--cell", key])


def machine(header: Header) -> str:
    """The machine in a few words, from whatever the environment says."""
    words = []
    for name in ("gpu", "gpus", "cpu"):
        item = header.environment.get(name)
        for part in item if isinstance(item, list) else [item]:
            if isinstance(part, dict):
                words.append(str(part.get("name") or part.get("model") or ""))
            elif part:
                words.append(str(part))
    return ", ".join(dict.fromkeys(w for w in words if w)) or header.fingerprint


def title(files: Sequence[RecordFile]) -> str:
    """'quick' or 'quick, latency'."""
    return ", ".join(dict.fromkeys(f.header.suite.name for f in files))
