"""Numbers for people: times, rates and sizes, with digits that follow the precision measured."""

from __future__ import annotations

import math

_TIME = ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns"))
_SIZE = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))


def significant(value: float, digits: int = 3) -> str:
    """``value`` in plain notation with ``digits`` significant digits: 0.01234 -> '0.0123'."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"


def digits_for(relative_half_width: float | None) -> int:
    """Significant digits that an interval supports: 10 % -> 2, 1 % -> 3, 0.1 % -> 4 (2 to 5)."""
    if relative_half_width is None or relative_half_width <= 0:
        return 3
    if math.isinf(relative_half_width):
        return 2
    return max(2, min(5, 1 - math.floor(math.log10(relative_half_width))))


def duration(ns: float, digits: int = 3) -> str:
    """Nanoseconds -> '12.3 ms'."""
    factor, unit = next((each for each in _TIME if abs(ns) >= each[0]), _TIME[-1])
    return f"{significant(ns / factor, digits)} {unit}"


def clock(seconds: float) -> str:
    """Whole seconds as a person says them: 75 -> '1 min 15 s'."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {secs} s" if minutes else f"{secs} s"


def size(n_bytes: float) -> str:
    """Bytes -> '1.5 GiB'."""
    for factor, unit in _SIZE:
        if abs(n_bytes) >= factor:
            return f"{significant(n_bytes / factor)} {unit}"
    return f"{n_bytes:g} B"


def count(n: int, what: str) -> str:
    """'1 cell', '2 cells'."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def percentage(fraction: float) -> str:
    """A limit as it was given, every digit: 0.02 -> '2 %', 0.0025 -> '0.25 %'."""
    return f"{100 * fraction:.6g} %"


def percent(fraction: float, decimals: int = 1) -> str:
    """0.0123 -> '1.2 %'."""
    return f"{100 * fraction:.{decimals}f} %"
