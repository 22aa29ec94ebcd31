"""Records -> tables: latency, throughput, scaling, shared jobs, cost, machine, skips.

Those of the whole pipeline are in `gpubench.analysis.tables.pipeline`, those of answers in
`gpubench.analysis.tables.accuracy`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

from gpubench.analysis import stats, summary
from gpubench.analysis.scaling.causes import MATTERS
from gpubench.analysis.scaling.diagnosis import Diagnosis, diagnose
from gpubench.analysis.scaling.efficiency import jobs, per_replica
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import UNTRIED, Summary, but, flags_of, gain
from gpubench.analysis.tables import accuracy, devices, pipeline, roofline, table
from gpubench.analysis.tables.table import KEY, Column, Field, Table, of_rows, with_axes
from gpubench.analysis.telemetry import GAUGES, energy, peak
from gpubench.records.record import ENERGY_S
from gpubench.units import count, percent

SCALING = "Scaling over replicas"
FAILED = "Skips and failures"
_REPEATS = Column("repeats", "count", help="fresh-process executions measured")


def of_cells(summaries: list[Summary], found: Sequence[Diagnosis] | None = None) -> list[Table]:
    """All tables that have rows. Several runs share tables; their rows say which run they are.

    ``found``: `diagnose` of the same, where it is at hand.
    """
    bases = summary.baseline_of(summaries)
    latency = [s for s in summaries if s.cell.scenario == "latency" and s.medians]
    throughput = summary.rated(summaries)
    against = " and ".join(sorted({s.baseline for s in summaries}))
    made = [
        devices.build(summaries),
        _latency(latency, bases, against),
        _throughput(throughput, bases, against),
        roofline.table(summaries),
        *pipeline.build(summaries),
        _scaling(diagnose(summaries) if found is None else found),
        _jobs(throughput),
        _cost(summaries),
        _machine(summaries),
        accuracy.answers(summaries),
        accuracy.accuracies(summaries),
        _failures(summaries),
    ]
    return [each for each in made if each.rows]


def _latency(rows: list[Summary], bases: dict[int, Summary], against: str) -> Table:
    text = "median of each repeat, geometric mean over repeats"
    fields: list[Field] = [(Column("p50", "ns", "lower", text), lambda s: s.p50)]
    for name, q in summary.QUANTILES.items():
        enough = any(len(s.samples_ns) >= stats.minimum_n(q) for s in rows)
        if enough or name != "p99.9":
            text = "of each repeat, geometric mean over repeats; needs "
            text += f"{stats.minimum_n(q)} independent samples"
            fields.append((Column(name, "ns", "lower", text), partial(Summary.percentile, q=q)))
    fields += [_speedup(bases, against), *accuracy.bound(rows),
               (_REPEATS, lambda s: len(s.medians))]  # fmt: skip
    notes = ["Time for one batch, closed loop; every batch is waited for. "
             + summary.pooling(rows)]  # fmt: skip
    return of_rows("Latency per batch", rows, fields, notes)


def _throughput(rows: list[Summary], bases: dict[int, Summary], against: str) -> Table:
    text = "images of all replicas completed in the common window / its length"
    fields: list[Field] = [
        (Column("images/s", "images/s", "higher", text), lambda s: s.throughput),
        _speedup(bases, against, gain),
        *accuracy.bound(rows),
        (_REPEATS, lambda s: len(s.rates)),
    ]
    notes = ["Images completed / wall time, never derived from a latency. "
             + summary.pooling(rows)]  # fmt: skip
    if any(s.cell.scenario == "latency" for s in rows):
        notes.append("This suite has no throughput scenario: each batch was waited for.")
    return of_rows("Throughput", rows, fields, notes)


def _speedup(
    bases: dict[int, Summary],
    against: str,
    compared: Callable[[Summary, Summary], Estimate] = summary.speedup,
) -> Field:
    def value(s: Summary) -> Estimate:
        base = bases.get(id(s))
        if base is s:
            return Estimate(value=1.0, why="baseline")
        if base is None:
            return Estimate(why="not ranked" if not s.ranked else "no baseline")
        return compared(base, s)

    text = f"over {against} on the same other axes; paired by repeat round where both have it"
    return Column("speed-up", "x", "higher", text), value


def _scaling(found: Sequence[Diagnosis]) -> Table:
    """Weak and strong efficiency: both are X_g / (d X_1), against another one-replica cell."""
    columns = (
        Column("scaling", help="weak: same batch per replica; strong: same total batch"),
        Column("one replica owns", help="what a lone replica has to itself: one device"),
        Column("efficiency", "fraction", "higher", "X_g / (d X_1): what g replicas on d devices "
                "do, over d times what one replica does on one. 100 % is ideal; replicas that "
                "share a device can exceed it"),
        Column("limited by", help="causes of a shortfall that the interval shows, and how "
               "much of it each explains; the evidence is told apart"),
        Column("images/s", "images/s", "higher", "all replicas together"),
        Column("one replica", "images/s", "higher", "the one-replica cell it is compared with"),
        Column("per replica", "images/s", help="each replica's own rate, geometric mean"),
        Column("slowest / mean", "fraction", "higher",
               "well below 100 %: a straggler holds the others back"),
    )  # fmt: skip
    body = []
    for d in found:
        s, one = d.summary, d.one
        owns = "1 GPU" if s.cell.device == "cuda" else count(s.cell.cores, "core")
        each = per_replica({n: v for n, v in s.replica_rates.items() if v and all(v)})
        straggler = min(each) / (sum(each) / len(each)) if each else None
        body.append((s, [d.kind, owns, d.efficiency, d.short, s.throughput, one.throughput,
                         each, straggler, flags_of(s, one)]))  # fmt: skip
    notes = [
        "One run's cells only. Efficiency = X_g / (d X_1): images/s of g replicas on d devices.",
        "A shortfall is shown where the whole interval is below 100 %, for all pairs together "
        f"(Holm), and the efficiency by more than {percent(MATTERS, 0)}.",
    ]
    return with_axes(SCALING, columns, body, notes)


def _jobs(rows: list[Summary]) -> Table:
    """Jobs that replicas shared, static beside dynamic."""
    found = jobs(rows)
    others = {but(j.summary, "dispatch"): j.summary for j in found
              if j.summary.cell.dispatch == "static"}  # fmt: skip
    columns = (
        Column("images/s", "images/s", "higher", "images of the job / time until all are done"),
        Column("share of ideal", "fraction", "higher", "images/s of the job / what the replicas "
                "do together, each at the rate at which it worked"),
        Column("over static", "x", "higher", "images/s over those of equal shares"),
        Column("overhead per batch", "ns", "lower", "scheduler: time to get the next batch"),
        Column("idle at the end", "fraction", "lower", "share of the job's time that each replica "
               "had no more work"),
        Column("batches", "count", help="that each replica did; mean over repeats"),
    )  # fmt: skip
    body = []
    for j in found:
        s = j.summary
        static = others.get(but(s, "dispatch"))
        over = gain(static, s) if static else Estimate(why="not measured")
        over = Estimate(why="static") if s is static else over
        batches = [round(n) for n in j.batches]
        body.append((s, [s.throughput, j.share, over, j.claim_ns, j.idle, batches,
                         flags_of(s)]))  # fmt: skip
    notes = ["Replicas share one job. static: equal shares beforehand; dynamic: whoever is free."]
    return with_axes("One job, shared by replicas", columns, body, notes)


def _cost(summaries: list[Summary]) -> Table:
    """Both scenarios prepare and open the same thing, so their repeats are pooled."""
    groups: dict[tuple[Any, ...], list[Summary]] = {}
    for s in summaries:
        if s.timed:
            groups.setdefault((s.run, *table.axis_values(s)), []).append(s)
    steps = list(dict.fromkeys(k for s in summaries for r in s.timed for k in r.prepare_ns))
    once = "once for each artefact; what it cost when it was done"
    columns = (
        *(Column(step, "ns", "lower", once) for step in steps),
        Column("open", "ns", "lower", "load and make ready, slowest replica; median over repeats"),
        Column("first inference", "ns", "lower", "the first run() and sync, slowest replica; "
               "median over repeats"),
        Column("total", "ns", "lower", "from nothing to the end of the first inference"),
    )  # fmt: skip
    body = []
    for group in groups.values():
        records = [r for s in group for r in s.timed]
        cost = [max((r.prepare_ns[k] for r in records if k in r.prepare_ns), default=None)
                for k in steps]  # fmt: skip
        opened = median(max(x.open_ns for x in r.replicas) for r in records)
        first = median(max(x.first_inference_ns for x in r.replicas) for r in records)
        total = sum(c or 0 for c in cost) + opened + first
        body.append((group[0], [*cost, opened, first, total, flags_of(*group)]))
    notes = ["Never part of a latency or a throughput. A cached step keeps its first cost."]
    return with_axes("Cold start", columns, body, notes)


def _machine(summaries: list[Summary]) -> Table:
    """Only gauges that some cell has; a table without any has no rows."""
    joules = {id(s): energy(s) for s in summaries}
    peaks = [(gauge, {id(s): peak(s, gauge) for s in summaries}) for gauge in GAUGES]
    peaks = [(gauge, of) for gauge, of in peaks if any(v is not None for v in of.values())]
    rows = [s for s in summaries if joules[id(s)] or any(of[id(s)] is not None for _, of in peaks)]
    fields: list[Field] = [(Column("scenario"), lambda s: s.cell.scenario)]
    for gauge, of in peaks:
        fields.append((Column(gauge.name, gauge.unit, help=gauge.help), partial(_known, of)))
    notes = ["Extremes over repeats, replicas and GPUs, from opening to the answer check."]
    if any(joules.values()):
        text = "joules while the replicas sampled / images: of GPUs, all CPU packages, or a board"
        fields += [
            (Column("energy per image", "J", "lower", text), lambda s: joules[id(s)]),
            (Column("above idle", "J", "lower", f"{text}, less what is drawn without a task"),
             partial(energy, above_idle=True)),
        ]  # fmt: skip
        notes.append(f"Energy: of windows of at least {ENERGY_S:g} s. 95 % intervals.")
    return of_rows("Machine while measuring", rows, fields, notes)


def _known(values: dict[int, float | None], s: Summary) -> float | None:
    return values[id(s)]


def _failures(summaries: list[Summary]) -> Table:
    several = len({s.run for s in summaries}) > 1
    columns = (
        *((Column("run"),) if several else ()),
        Column("what", help="the cell"),
        Column("status", "flags", help="how it ended"),
        Column("repeats", help="which repeats ended so"),
        *map(Column, ("reason", "remedy")),
        KEY,
    )
    rows: list[list[Any]] = [
        [*([p.summary.run] if several else []), p.summary.cell.label, [p.status], p.repeats,
         p.reason, p.remedy, p.summary.key] for p in summary.problems(summaries)
        if p.status not in UNTRIED
    ]  # fmt: skip
    untried = sum(s.status in UNTRIED for s in summaries)
    notes = [f"{untried} more cells of a search were not measured, which is no problem: its HTML "
             "report says why."]  # fmt: skip
    return Table(FAILED, columns, rows, notes if untried else [])
