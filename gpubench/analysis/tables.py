"""Records -> tables: latency, throughput, scaling, shared jobs, cost, parity, skips.

A table holds numbers (`Estimate`, int, float, text, lists of text), never formatted ones: each
report formats them, and sorts by what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from gpubench.analysis import stats
from gpubench.analysis.causes import MATTERS
from gpubench.analysis.cells import (
    QUANTILES,
    Summary,
    baseline_of,
    but,
    flags_of,
    gain,
    problems,
    rated,
    speedup,
    summarise,
)
from gpubench.analysis.diagnosis import Diagnosis, diagnose
from gpubench.analysis.gauges import GAUGES, peak
from gpubench.analysis.scaling import jobs, per_replica
from gpubench.analysis.stats import Estimate
from gpubench.record import RecordFile
from gpubench.units import percent

if TYPE_CHECKING:
    import pandas as pd

AXES = ("model", "weights", "images", "device", "backend", "precision", "options", "batch",
        "replicas", "per device", "cores", "boundary", "dispatch")  # fmt: skip
ALWAYS = ("backend", "precision", "batch", "replicas")
"""Axes shown even when all rows agree; the others then move into a note."""
SCALING = "Scaling over replicas"
_SILENT = {"options": "", "cores": 0, "per device": 1, "dispatch": "independent"}
"""Values that a note does not mention."""


class Column(Struct, frozen=True, kw_only=True):
    """``unit``: ns, bytes, images/s, x (ratio), fraction, MHz, °C, W, count, flags, key (of the
    cell) or '' (text)."""

    name: str
    unit: str = ""
    better: Literal["lower", "higher", ""] = ""
    help: str = ""


class Table(Struct, frozen=True):
    """Rows of values that match ``columns``."""

    title: str
    columns: tuple[Column, ...]
    rows: list[list[Any]]
    notes: list[str]

    def frame(self) -> pd.DataFrame:
        """The same as a DataFrame; an `Estimate` becomes its value, bounds get their own columns.

        Columns are named ``p50 [ns]``, ``p50 low [ns]``, ``p50 high [ns]``.
        """
        import pandas as pd

        out: dict[str, list[Any]] = {}
        for index, column in enumerate(self.columns):
            values = [row[index] for row in self.rows]
            unit = f" [{column.unit}]" if column.unit in ("ns", "images/s") else ""
            if any(isinstance(v, Estimate) for v in values):
                for part, suffix in (("value", ""), ("low", " low"), ("high", " high")):
                    out[column.name + suffix + unit] = [getattr(v, part, None) for v in values]
            else:
                out[column.name + unit] = values
        return pd.DataFrame(out)


Field = tuple[Column, Callable[[Summary], Any]]

_KEY = Column(name="cell", unit="key", help="key of the cell: `gpubench run SUITE --cell KEY`")
_FLAGS = Column(name="flags", unit="flags", help="what to know before believing the row")
_REPEATS = Column(name="repeats", unit="count", help="fresh-process executions measured")


def build(files: Sequence[RecordFile]) -> list[Table]:
    """All tables that have rows. Several files share tables; their rows say which run they are."""
    return of_cells(summarise(files))


def of_cells(summaries: list[Summary], found: Sequence[Diagnosis] | None = None) -> list[Table]:
    """The same from summaries, and their diagnoses, that are at hand."""
    bases = baseline_of(summaries)
    latency = [s for s in summaries if s.cell.scenario == "latency" and s.medians]
    throughput = rated(summaries)
    against = " and ".join(sorted({s.baseline for s in summaries}))
    made = [
        _latency(latency, bases, against),
        _throughput(throughput, bases, against),
        _scaling(diagnose(summaries) if found is None else found),
        _jobs(throughput),
        _cost(summaries),
        _machine(summaries),
        _parity([s for s in summaries if s.parity]),
        _failures(summaries),
    ]
    return [table for table in made if table.rows]


def _latency(rows: list[Summary], bases: dict[int, Summary], against: str) -> Table:
    text = "median of each repeat, mean of logs over repeats"
    fields: list[Field] = [(_metric("p50", "ns", "lower", text), lambda s: s.p50)]
    for name, q in QUANTILES.items():
        enough = any(len(s.samples_ns) >= stats.minimum_n(q) for s in rows)
        if enough or name != "p99.9":
            text = f"nearest rank over all samples; needs {stats.minimum_n(q)} effective samples"
            fields.append((_metric(name, "ns", "lower", text), partial(_percentile, q=q)))
    fields += [_speedup(bases, against), (_REPEATS, lambda s: len(s.medians))]
    notes = ["Time for one batch, closed loop; every batch is waited for. 95 % intervals."]
    return _of_cells("Latency per batch", rows, fields, notes)


def _percentile(s: Summary, q: float) -> Estimate:
    return stats.percentile(s.samples_ns, q)


def _throughput(rows: list[Summary], bases: dict[int, Summary], against: str) -> Table:
    text = "images of all replicas completed in the common window / its length"
    fields: list[Field] = [
        (_metric("images/s", "images/s", "higher", text), lambda s: s.throughput),
        _speedup(bases, against, gain),
        (_REPEATS, lambda s: len(s.rates)),
    ]
    notes = ["Images completed / wall time, never derived from a latency. 95 % intervals."]
    if any(s.cell.scenario == "latency" for s in rows):
        notes.append("This suite has no throughput scenario: each batch was waited for.")
    return _of_cells("Throughput", rows, fields, notes)


def _metric(name: str, unit: str, better: Literal["lower", "higher"], text: str) -> Column:
    return Column(name=name, unit=unit, better=better, help=text)


def _speedup(
    bases: dict[int, Summary],
    against: str,
    compared: Callable[[Summary, Summary], Estimate] = speedup,
) -> Field:
    def value(s: Summary) -> Estimate:
        base = bases.get(id(s))
        if base is s:
            return Estimate(value=1.0, why="baseline")
        if base is None:
            return Estimate(why="not ranked" if not s.ranked else "no baseline")
        return compared(base, s)

    text = f"over {against} on the same other axes; paired by repeat round where both have it"
    return _metric("speed-up", "x", "higher", text), value


def _scaling(found: Sequence[Diagnosis]) -> Table:
    """Weak and strong efficiency: both are X_g / (d X_1), against another one-replica cell."""
    columns = (
        Column(name="scaling", help="weak: same batch per replica; strong: same total batch"),
        Column(name="one replica owns", help="what a lone replica has to itself: one device"),
        _metric("efficiency", "fraction", "higher", "X_g / (d X_1): what g replicas on d devices "
                "do, over d times what one replica does on one. 100 % is ideal; replicas that "
                "share a device can exceed it"),
        Column(name="limited by", help="causes of a shortfall that the interval shows, and how "
               "much of it each explains; the evidence is told apart"),
        _metric("images/s", "images/s", "higher", "all replicas together"),
        _metric("one replica", "images/s", "higher", "the one-replica cell it is compared with"),
        Column(name="per replica", unit="images/s", help="each replica's own rate, mean of logs"),
        Column(name="slowest / mean", unit="fraction", better="higher",
               help="well below 100 %: a straggler holds the others back"),
    )  # fmt: skip
    body = []
    for d in found:
        s, one = d.summary, d.one
        each = per_replica({n: v for n, v in s.replica_rates.items() if v and all(v)})
        straggler = min(each) / (sum(each) / len(each)) if each else None
        body.append((s, [d.kind, _resource(s), d.efficiency, d.short, s.throughput, one.throughput,
                         each, straggler, flags_of(s, one)]))  # fmt: skip
    notes = [
        "One run's cells only. Efficiency = X_g / (d X_1): images/s of g replicas on d devices.",
        "A shortfall is shown where the whole interval is below 100 %, and the efficiency by more "
        f"than {percent(MATTERS, 0)}.",
    ]
    return _with_axes(SCALING, columns, body, notes)


def _jobs(rows: list[Summary]) -> Table:
    """Jobs that replicas shared, static beside dynamic."""
    found = jobs(rows)
    others = {but(j.summary, "dispatch"): j.summary for j in found
              if j.summary.cell.dispatch == "static"}  # fmt: skip
    columns = (
        _metric("images/s", "images/s", "higher", "images of the job / time until all are done"),
        _metric("share of ideal", "fraction", "higher", "images/s of the job / what the replicas "
                "do together, each at the rate at which it worked"),
        _metric("over static", "x", "higher", "images/s over those of equal shares"),
        Column(name="overhead per batch", unit="ns", better="lower",
               help="scheduler: time to get the next batch"),
        Column(name="idle at the end", unit="fraction", better="lower",
               help="share of the job's time that each replica had no more work"),
        Column(name="batches", unit="count", help="that each replica did; mean over repeats"),
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
    return _with_axes("One job, shared by replicas", columns, body, notes)


def _resource(s: Summary) -> str:
    if s.cell.device == "cuda":
        return "1 GPU"
    return f"{s.cell.cores} core{'' if s.cell.cores == 1 else 's'}"


def _cost(summaries: list[Summary]) -> Table:
    """Both scenarios prepare and open the same thing, so their repeats are pooled."""
    groups: dict[tuple[Any, ...], list[Summary]] = {}
    for s in summaries:
        if s.timed:
            groups.setdefault((s.run, *_axis_values(s)), []).append(s)
    steps = list(dict.fromkeys(k for s in summaries for r in s.timed for k in r.prepare_ns))
    columns = tuple(
        Column(name=name, unit="ns", better="lower", help=text)
        for name, text in (
            *((step, "once for each artefact; what it cost when it was done") for step in steps),
            ("open", "load and make ready, slowest replica; median over repeats"),
            ("first inference", "the first run() and sync, slowest replica; median over repeats"),
            ("total", "from nothing to the first answer"),
        )
    )
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
    return _with_axes("Cost to first answer", columns, body, notes)


def _machine(summaries: list[Summary]) -> Table:
    """Only gauges that some cell has; a table without any has no rows."""
    values = {id(s): [peak(s, gauge) for gauge in GAUGES] for s in summaries}
    rows = [s for s in summaries if any(v is not None for v in values[id(s)])]
    fields: list[Field] = [(Column(name="scenario"), lambda s: s.cell.scenario)]
    for index, gauge in enumerate(GAUGES):
        if any(values[id(s)][index] is not None for s in rows):
            column = Column(name=gauge.name, unit=gauge.unit, help=gauge.help)
            fields.append((column, partial(_nth, values, index)))
    notes = ["Extremes over repeats, replicas and GPUs, from opening to the answer check."]
    return _of_cells("Machine while measuring", rows, fields, notes)


def _nth(values: dict[int, list[float | None]], index: int, s: Summary) -> float | None:
    return values[id(s)][index]


def _parity(rows: list[Summary]) -> Table:
    def of(name: str) -> Callable[[Summary], Any]:
        return lambda s: getattr(s.parity, name)

    higher, lower = partial(Column, better="higher"), partial(Column, better="lower")
    fields: list[Field] = [
        (Column(name="answers", help="within tolerance in every repeat"),
         lambda s: "agree" if s.parity and s.parity.passed else "WRONG"),
        (Column(name="images", unit="count", help="answers compared in one repeat"), of("images")),
        (lower(name="relative error", help="largest, over images and repeats"),
         lambda s: s.parity and ("not finite" if s.parity.relative_error is None
                                 else s.parity.relative_error)),
        (Column(name="tolerance", help="largest relative error allowed"), of("max_relative_error")),
        (higher(name="top-1 agreement", unit="fraction", help="with the reference; worst repeat"),
         of("top1_agreement")),
        (Column(name="at least", unit="fraction", help="agreement asked for"),
         of("min_top1_agreement")),
        (Column(name="worst slot", unit="count", help="batch slot of the largest error"),
         of("worst_slot")),
    ]  # fmt: skip
    if any(s.parity and s.parity.labelled for s in rows):
        fields += [
            (higher(name="accuracy", unit="fraction", help="different images right every time, "
                    "against their labels; worst repeat, Wilson interval"), accuracy),
            (higher(name="reference", unit="fraction", help="the reference on the same images"),
             lambda s: s.parity.reference_correct / s.parity.labelled
             if s.parity and s.parity.labelled else None),
        ]  # fmt: skip
    names = sorted({s.parity.reference for s in rows if s.parity})
    return _of_cells("Answers", rows, fields, [f"Reference: {', '.join(names)}, same images."])


def accuracy(s: Summary) -> Estimate:
    """Top-1 accuracy of the repeat with the worst answers."""
    return stats.wilson(s.parity.correct, s.parity.labelled) if s.parity else Estimate()


def _failures(summaries: list[Summary]) -> Table:
    several = len({s.run for s in summaries}) > 1
    columns = (
        *((Column(name="run"),) if several else ()),
        Column(name="what", help="the cell"),
        Column(name="status", unit="flags", help="how it ended"),
        Column(name="repeats", help="which repeats ended so"),
        *(Column(name=name) for name in ("reason", "remedy")),
        _KEY,
    )
    rows: list[list[Any]] = [
        [*([p.summary.run] if several else []), p.summary.cell.label, [p.status], p.repeats,
         p.reason, p.remedy, p.summary.key] for p in problems(summaries)
    ]  # fmt: skip
    return Table("Skips and failures", columns, rows, [])


def _axis_values(s: Summary) -> tuple[Any, ...]:
    c = s.cell
    options = " ".join(f"{k}={v}" for k, v in sorted(c.options.items()))
    return (c.model, c.weights, c.images, c.device, c.backend, c.precision, options, c.batch_size,
            c.replicas, c.replicas_per_device, c.cores, c.boundary, c.dispatch)  # fmt: skip


def _axes_frame(rows: Sequence[Summary]) -> pd.DataFrame:
    """One row per summary: its run and the values of `AXES`."""
    import pandas as pd

    return pd.DataFrame([(s.run, *_axis_values(s)) for s in rows], columns=["run", *AXES])


def _of_cells(title: str, rows: list[Summary], fields: list[Field], notes: list[str]) -> Table:
    body = [(s, [*(value(s) for _, value in fields), flags_of(s)]) for s in rows]
    return _with_axes(title, tuple(column for column, _ in fields), body, notes)


def _with_axes(
    title: str,
    columns: tuple[Column, ...],
    body: list[tuple[Summary, list[Any]]],
    notes: list[str],
) -> Table:
    """Put the axes that vary in front, flags and key behind; axes that agree become a note."""
    if not body:
        return Table(title, columns, [], notes)
    frame = _axes_frame([s for s, _ in body])
    varies = frame.nunique() > 1
    shown = [a for a in frame.columns if varies[a] or a in ALWAYS]
    agree = [f"{a} {frame[a].iloc[0]}" for a in frame.columns
             if a not in shown and a != "run" and frame[a].iloc[0] != _SILENT.get(a)]  # fmt: skip
    axes = frame[shown].to_numpy(dtype=object).tolist()
    rows = [[*a, *values, s.key] for a, (s, values) in zip(axes, body, strict=True)]
    numeric = ("batch", "replicas", "per device", "cores")
    head = tuple(Column(name=a, unit="count" if a in numeric else "") for a in shown)
    notes = notes + ([f"In every row: {', '.join(agree)}."] if agree else [])
    return Table(title, (*head, *columns, _FLAGS, _KEY), rows, notes)
