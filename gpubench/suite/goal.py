"""What a search is for: an objective, the limits that must be kept, and today's default.

The words of the command line are read here: 'p99', 'p99=20ms', '2GiB', '0.5J', '10m', '2%'.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta, Struct

from gpubench import units
from gpubench.errors import InputError
from gpubench.suite.types import MOST_S, Natural, Scenario, Seconds

Kind = Literal["throughput", "latency", "energy", "memory"]
KINDS: dict[str, str] = {
    "throughput": "images/s of all replicas",
    "latency": "time per batch, p50 or p50 to p99.9",
    "energy": "joules per image, where the machine can count them",
    "memory": "peak memory of all replicas: the host's, and the device's on a GPU",
}
_QUANTILE = re.compile(r"p(\d{1,2}(?:\.\d{1,2})?)")
_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z/%]*)")
_SPANS = {"s": 1, "m": 60, "h": 3600}
_TIMES = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9}
_SIZES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30}
_JOULES = {"J": 1.0, "MJ": 1e-3}  # upper case: 'mJ', never a megajoule
LIMITS: dict[str, tuple[Kind, dict[str, float], str]] = {
    "--min-throughput": ("throughput", {"": 1.0}, "500 (images/s)"),
    "--max-memory": ("memory", _SIZES, "2GiB or 800MB"),
    "--max-energy": ("energy", _JOULES, "0.5J or 80mJ (per image)"),
}
"""Option -> what it limits, its units, and an example."""


class Metric(Struct, frozen=True):
    """Something that a cell's records say, one number a repeat."""

    kind: Kind
    quantile: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    """Of latency: 0.99 is p99."""

    @property
    def name(self) -> str:
        """'throughput', 'p99 latency', 'energy', 'memory'."""
        return f"p{100 * self.quantile:g} latency" if self.kind == "latency" else self.kind

    @property
    def more_is_better(self) -> bool:
        return self.kind == "throughput"

    def text(self, value: float) -> str:
        """``value`` (images/s, ns, J per image or bytes) for people."""
        if self.kind == "throughput":
            return f"{units.significant(value)} images/s"
        if self.kind == "energy":
            return f"{units.significant(value)} J/image"
        return units.duration(value) if self.kind == "latency" else units.size(value)


class Limit(Struct, frozen=True):
    """A constraint: the metric must be at most (of throughput: at least) ``bound``."""

    metric: Metric
    bound: Annotated[float, Meta(gt=0, le=1e18)]
    """images/s, ns, joules per image or bytes."""

    @property
    def text(self) -> str:
        """'p99 latency <= 20 ms'."""
        sign = ">=" if self.metric.more_is_better else "<="
        return f"{self.metric.name} {sign} {self.metric.text(self.bound)}"


class Goal(Struct, frozen=True):
    """The objective and the limits. Floors of accuracy and agreement are the suite's policy."""

    objective: Metric
    limits: tuple[Limit, ...] = ()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The objective first, then those of the limits."""
        return self.objective, *(limit.metric for limit in self.limits)

    @property
    def scenario(self) -> Scenario:
        """Latency and rate must come from the same loop: where latency counts, one batch at a
        time, and images/s are those of that loop; else batches follow one another."""
        return "latency" if any(m.kind == "latency" for m in self.metrics) else "throughput"


class Search(Struct, frozen=True, kw_only=True):
    """What makes a run a search: `Header.search`."""

    goal: Goal
    baseline: tuple[str, ...]
    """Keys of the cells of today's default, at every batch size: the best of them is beaten, or
    not."""
    budget_s: Seconds = 600.0
    delta: Annotated[float, Meta(gt=0, lt=1)] = 0.02
    """Differences up to this much do not matter: the search ends when no other configuration can
    be better by more."""
    alpha: Annotated[float, Meta(gt=0, le=0.2)] = 0.01
    """Chance that a configuration is dropped although it is no worse."""
    seed: Natural = 0


def metric(option: str, words: str) -> Metric:
    """'throughput', 'latency' (p50), 'p99', 'energy', 'memory'. InputError names ``option``."""
    if found := _QUANTILE.fullmatch(words):
        quantile = round(float(found[1]) / 100, 6)
        if 0 < quantile < 1:
            return Metric("latency", quantile)
    elif words in KINDS:
        return Metric(words)  # type: ignore[arg-type]
    known = ", ".join([*KINDS, "p50 ... p99.9"])
    raise InputError(f"{option} {words!r}: not something to optimise; known: {known}")


def max_latency(option: str, words: str) -> Limit:
    """'p99=20ms' or '20ms' (p50) -> Limit in ns."""
    name, equals, amount = words.rpartition("=")
    which = metric(option, name.strip()) if equals else Metric("latency")
    if which.kind != "latency":
        raise InputError(f"{option} {words!r}: expected a percentile and a time, such as p99=20ms")
    return Limit(which, _amount(option, amount, _TIMES, "p99=20ms or p50=500us"))


def limit(option: str, words: str) -> Limit:
    """One of LIMITS: '500' -> images/s, '2GiB' -> bytes, '0.5J' -> joules per image."""
    kind, unit, example = LIMITS[option]
    return Limit(Metric(kind), _amount(option, words, unit, example))


def _amount(option: str, words: str, unit: Mapping[str, float], example: str) -> float:
    """A number above 0 with one of the units, whatever its case ('' : none may be there)."""
    scale = {name.upper(): factor for name, factor in unit.items()}
    if (found := _NUMBER.fullmatch(words.strip())) and found[2].upper() in scale:
        value = float(found[1]) * scale[found[2].upper()]
        if 0 < value < math.inf:
            return value
    raise InputError(f"{option} {words!r}: expected such as {example}")


def fraction(words: str) -> float:
    """'2%' or '0.02' -> 0.02; nan: no number."""
    try:
        return float(words.rstrip("% ")) / (100 if "%" in words else 1)
    except ValueError:
        return math.nan


def percentage(option: str, words: str, most: float = 1.0) -> float:
    """'2%' or '0.02' -> 0.02, above 0 and below ``most``. Raises InputError naming ``option``."""
    if not 0 < (value := fraction(words)) < most:
        raise InputError(
            f"{option} {words!r}: expected a share between 0 and {most:g}, such as 2% or 0.02"
        )
    return value


BUDGET, BISECTION = "10m", "1h"
"""Of an A/B and of a search, and of a bisection, where it is not said."""


def seconds(option: str, words: str) -> float:
    """'10m', '90s', '1h' or '600' -> seconds. InputError names ``option``; a week is the most."""
    number, unit = (words[:-1], words[-1]) if words[-1:] in _SPANS else (words, "s")
    try:
        value = float(number) * _SPANS[unit]
    except ValueError:
        value = 0.0
    if not 0 < value <= MOST_S:
        shown = words if len(words) <= 40 else words[:40] + "..."
        raise InputError(
            f"{option} {shown!r}: expected a time of at most a week, such as 10m, 90s or 1h"
        )
    return value
