"""What a reader should take away first: the winners, what went wrong, and which flags occurred."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from gpubench import units
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary, invalidated, rated
from gpubench.report import formatting
from gpubench.report.sections import pipeline
from gpubench.units import count

Measure = Literal["throughput", "latency"]


class Winner(Struct, frozen=True, kw_only=True):
    """The best ranked cell of one workload by one measure."""

    measure: Measure
    workload: str
    """Empty when the report holds a single one."""
    summary: Summary
    value: formatting.Shown
    rivals: list[str]
    """Backends whose best interval overlaps: they cannot be told apart."""


def winners(summaries: Sequence[Summary]) -> list[Winner]:
    """Fastest throughput and lowest latency of each workload (model, images, device, boundary)."""
    groups: dict[str, list[Summary]] = {}
    for s in summaries:
        c = s.cell
        name = f"{c.model} ({c.weights}), {c.images}, {c.device}, {c.boundary}"
        groups.setdefault(name, []).append(s)
    measures: tuple[Measure, ...] = ("throughput", "latency")
    named = len(groups) > 1
    found = [
        _best(measure, name if named else "", group)
        for name, group in groups.items()
        for measure in measures
    ]
    return [winner for winner in found if winner]


def workload(s: Summary) -> tuple[str, ...]:
    """What cells must share to be ranked against each other."""
    c = s.cell
    return c.model, c.weights, c.images, c.device, c.boundary


def differing(won: Sequence[Winner]) -> list[str]:
    """Of each workload what tells it from the others: 'resnet18, pipeline'; '' of one alone."""
    columns = zip(*(workload(w.summary) for w in won), strict=True)
    vary = [len(set(values)) > 1 for values in columns]
    return [", ".join(v for v, varies in zip(workload(w.summary), vary, strict=True) if varies)
            for w in won]  # fmt: skip


def _best(measure: Measure, workload: str, group: list[Summary]) -> Winner | None:
    latency = measure == "latency"
    sign, unit = (1, "ns") if latency else (-1, "images/s")
    rows = [s for s in group if s.cell.scenario == "latency"] if latency else rated(group)
    ranked = sorted(
        (sign * e.value, n, e, s) for n, s in enumerate(rows)
        if s.ranked and (e := s.p50 if latency else s.throughput).value
    )  # fmt: skip
    if not ranked:
        return None
    _, _, e, best = ranked[0]
    champions = {s.cell.backend: other for _, _, other, s in reversed(ranked)}
    rivals = [
        name
        for name, other in champions.items()
        if name != best.cell.backend and _overlap(e, other)
    ]
    shown = formatting.show(e, unit)
    return Winner(measure=measure, workload=workload, summary=best, value=shown, rivals=rivals)


def _overlap(a: Estimate, b: Estimate) -> bool:
    """Without both intervals nothing tells two values apart."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return True
    return a.low <= b.high and b.low <= a.high


def where(s: Summary) -> str:
    """'openvino bf16, batch 64, 4 replicas, 2 per device, dynamic'."""
    c, many = s.cell, "" if s.cell.replicas == 1 else "s"
    many += f", {c.replicas_per_device} per device" if c.replicas_per_device > 1 else ""
    many += f", {c.dispatch}" if c.dispatch != "independent" else ""
    many += f", {c.decoder} decoding" if c.boundary == "pipeline" else ""
    many += f", {c.loader}" if c.boundary == "pipeline" and c.loader != "auto" else ""
    many += f", {c.loader_cores} loading" if c.loader_cores else ""
    options = "".join(f", {k}={v}" for k, v in sorted(c.options.items()))
    return f"{c.backend} {c.precision}, batch {c.batch_size}, {c.replicas} replica{many}{options}"


def counts(summaries: Sequence[Summary]) -> dict[str, int]:
    """Cells by outcome, in a fixed order; only outcomes that occur, and always ``ok``."""
    of = Counter(_outcome(s.status) for s in summaries)
    names = ("ok", "failed", "skipped", "ruled out", "not reached", "missing")
    return {k: of[k] for k in names if of[k] or k == "ok"}


def _outcome(status: str) -> str:
    if status.startswith("failed"):
        return "failed"
    return "skipped" if status in ("unavailable", "unsupported") else status.replace("-", " ")


def bad(status: str) -> bool:
    """A failure, and not a skip."""
    return _outcome(status) in ("failed", "missing")


def flags(summaries: Sequence[Summary]) -> list[tuple[str, int]]:
    """Flags that occur, with the number of cells, the most frequent first.

    Then the attempts that were thrown away for outside evidence.
    """
    found = Counter(f for s in summaries for f in s.flags).most_common()
    thrown = [n for s in summaries if (n := sum(r.invalidated for r in s.records))]
    return found + ([(invalidated(sum(thrown)), len(thrown))] if thrown else [])


def marks(summaries: Sequence[Summary]) -> list[str]:
    """'DRIFT (2 cells): what it means', one for each flag."""
    return [f"{f} ({count(n, 'cell')}): {formatting.meaning(f)}" for f, n in flags(summaries)]


def told(summaries: Sequence[Summary]) -> list[str]:
    """`lines`, and what a compute-only number leaves out of pipelines."""
    return lines(summaries) + pipeline.headline(summaries)


def lines(summaries: Sequence[Summary]) -> list[str]:
    """The headline in sentences."""
    out = []
    for w in winners(summaries):
        what = "Fastest" if w.measure == "throughput" else "Lowest latency"
        unit = " images/s" if w.measure == "throughput" else " p50 per batch"
        text = f"{what}{f' for {w.workload}' if w.workload else ''}: {where(w.summary)}: "
        aside = w.value.aside
        text += w.value.main + unit + (f" {aside}" if aside.startswith("[") else f" ({aside})")
        if w.rivals:
            text += f"; not told apart from {', '.join(w.rivals)}"
        out.append(f"{text}{formatting.flagged(w.summary)}.")
    if not out:
        out.append("No cell gave a result that can be ranked.")
    made = counts(summaries)
    cells = ", ".join(f"{n} {name}" for name, n in made.items())
    return [*out, f"{units.count(sum(made.values()), 'cell')}: {cells}."]
