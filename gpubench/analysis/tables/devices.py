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
    names = [f"{g.get('name')} ({(g.get('total_bytes') or 0) / 1e9:.2g} GB)" for g in gpus]
    if len(set(names)) > 1:
        return ", ".join(names)
    return names[0] if each or len(names) == 1 else f"{len(names)} x {names[0]}"


def beside(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """'differs in more than the device: libraries.torch 2.9.0 -> 2.10.0'; '': in nothing."""
    found = {k: v for k, v in environment.changes(dict(one), dict(other)).items()
             if k.split(".")[0] not in ("cpu", "gpus")}  # fmt: skip
    drivers = [{str(g.get("driver")) for g in e.get("gpus") or []} for e in (one, other)]
    if all(drivers) and drivers[0] != drivers[1]:
        found["driver"] = " -> ".join(", ".join(sorted(names)) for names in drivers)
    said = "; ".join(f"{key} {change}" for key, change in found.items())
    return said and f"differs from the first in more than the device: {said}"


def bests(
    summaries: Sequence[Summary],
) -> tuple[dict[str, str], Limit | None, dict[str, Summary]]:
    """(run -> kind of machine, the limit, run -> its best configuration where one keeps it)."""
    runs: dict[str, list[Summary]] = {}
    for s in summaries:
        runs.setdefault(s.run, []).append(s)
    words = {s.policy.max_latency for s in summaries}
    limit = goal.max_latency("policy.max_latency", words.pop()) if words and all(words) else None
    won = {run: best(_keeping(rows, limit), latency=False) for run, rows in runs.items()}
    found = {run: each.summary for run, each in won.items() if each}
    return {run: kind(rows[0].environment) for run, rows in runs.items()}, limit, found


def build(summaries: Sequence[Summary]) -> Table:
    """A row for each run's best configuration; none where all runs are of one machine.

    With ``policy.max_latency`` the best is the one with the most images/s that keeps it, by its
    interval. Speed-ups are against the first run's.
    """
    named, limit, found = bests(summaries)
    columns = (
        Column("device"),
        Column("configuration", help="with the most images/s"),
        Column("images/s", "images/s", "higher", "images of all replicas / wall time"),
        Column("speed-up", "x", "higher", "images/s against the first device's"),
        *((Column(limit.metric.name, "ns", "lower", limit.text),) if limit else ()),
        Column("cost per million", "cost", "lower", "images, in the currency of the price"),
        Column("energy per million", "kWh", "lower", "images: of the devices that were used"),
        FLAGS,
        KEY,
    )
    notes = [
        "The configuration with the most images/s on each device"
        + (f" of those that keep {limit.text}" if limit else "")
        + ", and what it is against the first. Each device was measured in a session of its own."
    ]
    if len(set(named.values())) < 2:
        return Table("Devices", columns, [], notes)
    first, *others = (next(s for s in summaries if s.run == run) for run in named)
    notes += [f"{named[s.run]}: {text}" for s in others
              if (text := beside(first.environment, s.environment))]  # fmt: skip
    labels = dict(zip(found, table.labels(list(found.values()), ("run",)), strict=True))
    base = next(iter(found.values()), None)
    if base is not None and base.run != (lead := next(iter(named))):
        said = f"does not keep {limit.text}" if limit else "measured nothing"
        notes.append(f"{named[lead]}, the first, {said}: speed-ups are against {named[base.run]}.")
    rows = []
    for run, name in named.items():
        if run not in found or base is None:
            why = Estimate(why="nothing keeps the limit" if limit else "nothing measured")
            rows.append([name, "", why, "", *([""] if limit else []), "", "", [], ""])
            continue
        s = found[run]
        times = gain(base, s) if s is not base else Estimate(value=1.0)
        rows.append([
            name, labels[run], s.throughput, times, *([_latency(s, limit)] if limit else []),
            _cost(s), _energy(s), flags_of(s), s.key,
        ])  # fmt: skip
    blank = [c for c in ("cost per million", "energy per million")
             if not any(row[_at(columns, c)] for row in rows)]  # fmt: skip
    kept = [n for n, c in enumerate(columns) if c.name not in blank]
    counted = {named[run]: {r.telemetry["energy"]["source"] for r in s.timed
                            if r.telemetry.get("energy")} for run, s in found.items()}  # fmt: skip
    if len(set().union(*counted.values())) > 1:
        by = "; ".join(f"{name}: {', '.join(sorted(of)) or 'none'}" for name, of in counted.items())
        notes.append(f"Energy is of different parts of these machines, by what counts it: {by}.")
    return Table("Devices", tuple(columns[n] for n in kept),
                 [[row[n] for n in kept] for row in rows], notes)  # fmt: skip


def _at(columns: Sequence[Column], name: str) -> int:
    return [c.name for c in columns].index(name)


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
