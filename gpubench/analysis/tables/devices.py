"""Runs of several machines beside each other: the best configuration of each, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gpubench.analysis import telemetry
from gpubench.analysis.best import best
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary, flags_of, gain, rated
from gpubench.analysis.tables import table
from gpubench.analysis.tables.table import FLAGS, KEY, Column, Table
from gpubench.machine import environment
from gpubench.suite import goal
from gpubench.suite.goal import Limit
from gpubench.units import count

PRICE = "price_per_hour"
"""In an environment: of a GPU, or of a machine without, as whoever ran it said."""
MILLION = 1e6


def kind(environment: Mapping[str, Any], each: bool = False) -> str:
    """'2 x NVIDIA L4 (24 GB)', 'NVIDIA H100 MIG 1g.10gb (9.8 GB)', 'AMD EPYC 7B13 (8 cores)'.

    ``each``: of one of its GPUs, where all are alike.
    """
    gpus = environment.get("gpus") or []
    if not gpus:
        cpu = environment.get("cpu") or {}
        return f"{cpu.get('model', 'unknown CPU')} ({count(cpu.get('usable') or 0, 'core')})"
    sizes = [(telemetry.number(g, "total_bytes") or 0) / 1e9 for g in gpus]
    names = [f"{g.get('name')} ({size:.2g} GB)" for g, size in zip(gpus, sizes, strict=True)]
    if len(set(names)) > 1:
        return ", ".join(names)
    return names[0] if each or len(names) == 1 else f"{len(names)} x {names[0]}"


SETTINGS = {"cpu": ("governor", "turbo", "isolated"),
            "gpus": ("driver", "clocks", "persistence", "ecc", "mps", "power cap")}  # fmt: skip
"""What somebody chose for a device, which is not what it is."""


def beside(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """'differs in more than the device: libraries.torch 2.9.0 -> 2.10.0'; '': in nothing."""
    found = {k: v for k, v in environment.changes(dict(one), dict(other)).items()
             if k.split(".")[0] not in SETTINGS}  # fmt: skip
    mine, theirs = _settings(one), _settings(other)
    found |= {k: f"{mine[k]} -> {theirs[k]}" for k in mine
              if k in theirs and mine[k] != theirs[k]}  # fmt: skip
    said = "; ".join(f"{key} {change}" for key, change in found.items())
    return said and f"differs from the first in more than the device: {said}"


def _settings(environment: Mapping[str, Any]) -> dict[str, str]:
    """Where they are known, of all devices of a kind together."""
    found: dict[str, str] = {}
    for part, names in SETTINGS.items():
        of = environment.get(part) or []
        of = [of] if isinstance(of, Mapping) else [each | _capped(each) for each in of]
        for name in names:
            known = {str(each[name]) for each in of if each.get(name) is not None}
            found |= {f"{part}.{name}": ", ".join(sorted(known))} if known else {}
    return found


def _capped(gpu: Mapping[str, Any]) -> dict[str, str]:
    cap, default = (telemetry.number(gpu, f"power_{name}_w") for name in ("cap", "default"))
    if not cap or not default:
        return {}
    return {"power cap": f"{cap:g} of {default:g} W" if cap < default else "none"}


def bests(
    summaries: Sequence[Summary],
) -> tuple[dict[str, str], Limit | None, dict[str, Summary]]:
    """(run -> kind of machine, the limit, run -> its best configuration where one keeps it)."""
    runs: dict[str, list[Summary]] = {}
    for s in summaries:
        runs.setdefault(s.run, []).append(s)
    words = {s.policy.max_latency for s in summaries}
    (word,) = words if len(words) == 1 else ("",)  # of runs with several limits none holds for all
    limit = goal.max_latency("policy.max_latency", word) if word else None
    won = {run: best(_keeping(rows, limit), latency=False) for run, rows in runs.items()}
    found = {run: each.summary for run, each in won.items() if each}
    return {run: kind(rows[0].environment) for run, rows in runs.items()}, limit, found


def build(summaries: Sequence[Summary]) -> Table:
    """A row for each run's best configuration; none where all runs are of one machine.

    With ``policy.max_latency`` the best is the one with the most images/s that keeps it, by its
    interval. Speed-ups are against the first run's.
    """
    named, limit, found = bests(summaries)
    notes = [
        "The configuration with the most images/s on each device"
        + (f" of those that keep {limit.text}" if limit else "")
        + ", and what it is against the first. Each device was measured in a session of its own."
    ]
    if len({s.policy.max_latency for s in summaries}) > 1:
        notes.append("The runs do not ask for the same limit (policy.max_latency): none counts.")
    if len(set(named.values())) < 2:
        return Table("Devices", (), [], notes)
    first, *others = (next(s for s in summaries if s.run == run) for run in named)
    notes += [f"{named[s.run]}: {text}" for s in others
              if (text := beside(first.environment, s.environment))]  # fmt: skip
    labels = dict(zip(found, table.labels(list(found.values()), ("run",)), strict=True))
    base = next(iter(found.values()), None)
    if base is not None and base.run != (lead := next(iter(named))):
        said = f"does not keep {limit.text}" if limit else "measured nothing"
        notes.append(f"{named[lead]}, the first, {said}: speed-ups are against {named[base.run]}.")
    extra: list[tuple[Column, dict[str, Any]]] = []
    for column, read in (
        (limit and Column(limit.metric.name, "ns", "lower", limit.text),
         lambda s: limit and _latency(s, limit)),
        (Column("cost per million", "cost", "lower", "images, in the currency of the price"),
         _cost),
        (Column("energy per million", "kWh", "lower", "images: of the devices that were used"),
         _energy),
    ):  # fmt: skip
        values = {run: read(s) for run, s in found.items()}
        extra += [(column, values)] if column and any(values.values()) else []
    rows = []
    for run, name in named.items():
        if run not in found or base is None:
            why = Estimate(why="nothing keeps the limit" if limit else "nothing measured")
            rows.append([name, "", why, "", *("" for _ in extra), [], ""])
            continue
        s = found[run]
        times = gain(base, s) if s is not base else Estimate(value=1.0)
        rows.append([name, labels[run], s.throughput, times, *(of[run] for _, of in extra),
                     flags_of(s), s.key])  # fmt: skip
    counted = {named[run]: {r.telemetry["energy"]["source"] for r in s.timed
                            if r.telemetry.get("energy")} for run, s in found.items()}  # fmt: skip
    if len(set().union(*counted.values())) > 1:
        by = "; ".join(f"{name}: {', '.join(sorted(of)) or 'none'}" for name, of in counted.items())
        notes.append(f"Energy is of different parts of these machines, by what counts it: {by}.")
    columns = (
        Column("device"),
        Column("configuration", help="with the most images/s"),
        Column("images/s", "images/s", "higher", "images of all replicas / wall time"),
        Column("speed-up", "x", "higher", "images/s against the first device's"),
        *(column for column, _ in extra),
        FLAGS,
        KEY,
    )
    return Table("Devices", columns, rows, notes)


def _keeping(rows: Sequence[Summary], limit: Limit | None) -> list[Summary]:
    """Latency and rate must come from the same loop (`Goal.scenario`)."""
    if limit is None:
        return rated(rows)
    one_by_one = [s for s in rows if s.cell.scenario == "latency"]
    return [s for s in one_by_one if _most(_latency(s, limit)) <= limit.bound]


def _most(e: Estimate) -> float:
    """What the interval, or the slowest repeat, reaches."""
    reached = e.span[1] if e.span else e.high if e.high is not None else e.value
    return math.inf if reached is None else reached


def _latency(s: Summary, limit: Limit) -> Estimate:
    q = limit.metric.quantile
    return s.p50 if q == 0.5 else s.percentile(q)


def _cost(s: Summary) -> Estimate | None:
    """Of a million images, with the interval of images/s."""
    price, rate = s.environment.get(PRICE), s.throughput
    if not isinstance(price, int | float) or not rate.value:
        return None
    used = s.cell.devices if s.cell.device == "cuda" else 1
    each = used * price / 3600 * MILLION
    low, high = (None if v is None else each / v for v in (rate.high, rate.low))
    return Estimate(value=each / rate.value, low=low, high=high, n=rate.n, why=rate.why)


def _energy(s: Summary) -> Estimate | None:
    found = telemetry.energy(s)
    return found.scaled(MILLION / 3.6e6) if found and found.value else None
