"""CSV in long (tidy) form: one line per cell and metric, raw numbers, SI-free units in a column."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Any

import msgspec
from msgspec.structs import replace

from gpubench import escape
from gpubench.analysis import stats, summary
from gpubench.analysis.scaling.diagnosis import Diagnosis, diagnose
from gpubench.analysis.scaling.efficiency import job_of
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Problem, Summary, flags_of
from gpubench.analysis.tables import accuracy, roofline
from gpubench.analysis.tables.pipeline import data_rates, staged
from gpubench.analysis.telemetry import GAUGES, energy, peak
from gpubench.records.record import RecordFile

CELL = ("backend", "device", "model", "weights", "images", "precision", "batch_size", "replicas",
        "cores", "scenario", "boundary", "replicas_per_device", "sharing", "dispatch", "decoder",
        "loader", "loader_cores", "input", "cache")  # fmt: skip
HEAD = ("run", "cell", *CELL, "options", "preprocessing", "status", "reason", "remedy", "flags",
        "metric", "unit", "value", "low", "high", "n", "note")  # fmt: skip


def render(files: Sequence[RecordFile]) -> str:
    """A cell without any metric still has one line, whose metric is empty.

    Several flags (reasons, remedies) of a cell are separated by '; '.
    """
    summaries = summary.summarise(files)
    bases = summary.baseline_of(summaries)
    scaled: dict[int, list[tuple[str, str, Estimate]]] = {}
    for d in diagnose(summaries):
        scaled.setdefault(id(d.summary), []).extend(_scaling(d))
    broken = summary.problems_of(summaries)
    lines: list[list[Any]] = []
    for s in summaries:
        lead = _lead(s, broken[id(s)])
        metrics = [*_metrics(s, bases.get(id(s))), *scaled.get(id(s), [])]
        for name, unit, e in metrics or [("", "", Estimate())]:
            lines.append([*lead, name, unit, e.value, e.low, e.high, e.n or "", e.why])
    return delimited(HEAD, lines)


def delimited(head: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    """As CSV; text that a spreadsheet would run as a formula gets a leading quote."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(map(harmless, line) for line in lines)
    return out.getvalue()


def cell_values(s: Summary) -> dict[str, Any]:
    """Run and cell as columns: its key, `CELL`, options as JSON, how pictures became inputs."""
    said = s.parity.preprocessing if s.parity else None
    options = msgspec.json.encode(s.cell.options, order="sorted").decode()
    axes = {name: getattr(s.cell, name) for name in CELL}
    return {"run": s.run, "cell": s.key, **axes, "options": options, "preprocessing": said}


def _lead(s: Summary, found: Sequence[Problem]) -> list[Any]:
    texts = ([p.reason for p in found], [p.remedy for p in found if p.remedy], flags_of(s))
    return [*cell_values(s).values(), s.status, *("; ".join(dict.fromkeys(t)) for t in texts)]


def harmless(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets a leading quote; numbers stay numbers.

    Spreadsheets forgive spaces before a formula, and those of East Asia its wide characters.
    """
    if not isinstance(value, str):
        return value
    text = escape.visible(value)
    return f"'{text}" if value[:1].isspace() or text.lstrip()[:1] in tuple(_FORMULA) else text


_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"


def _scaling(d: Diagnosis) -> Iterator[tuple[str, str, Estimate]]:
    """The efficiency, then how much of its shortfall each cause explains, with the evidence."""
    yield f"{d.kind} efficiency", "ratio", d.efficiency
    for c in d.causes:
        yield f"{d.kind} limited by {c.key}", "ratio", Estimate(value=c.share, why=c.words)


def _metrics(s: Summary, base: Summary | None) -> Iterator[tuple[str, str, Estimate]]:
    if s.timed and s.cell.scenario == "latency":
        yield "latency p50", "ns", s.p50
        for name, q in summary.QUANTILES.items():
            yield f"latency {name}", "ns", s.percentile(q)
    if s.rates:
        yield "throughput", "images/s", s.throughput
    if base is not None and base is not s:
        yield "speed-up", "ratio", summary.speedup(base, s)
    if binds := roofline.binding(s):
        yield "share of the roofline", "ratio", replace(roofline.estimate(s), why=binds)
    if job := job_of(s):
        yield "share of ideal", "ratio", job.share
        yield "dispatch overhead per batch", "ns", Estimate(value=job.claim_ns)
    for step in dict.fromkeys(k for r in s.timed for k in r.prepare_ns):
        cost = max(r.prepare_ns.get(step, 0) for r in s.timed)
        yield f"prepare {step}", "ns", Estimate(value=cost)
    if s.timed:
        for name in ("open_ns", "first_inference_ns"):
            each = [max(getattr(x, name) for x in r.replicas) for r in s.timed]
            middle = Estimate(value=median(each), n=len(each))
            yield name.removesuffix("_ns").replace("_", " "), "ns", middle
    for gauge in GAUGES:
        if (value := peak(s, gauge)) is not None:
            yield gauge.name, gauge.unit, Estimate(value=value)
    for name, above in (("energy per image", False), ("energy per image above idle", True)):
        if (joules := energy(s, above_idle=above)) is not None:
            yield name, "J", joules
    if s.parity:
        error = s.parity.relative_error
        why = "not finite" if error is None else ""
        yield "relative error", "ratio", Estimate(value=error, n=s.parity.images, why=why)
        yield "top-1 agreement", "ratio", Estimate(value=s.parity.top1_agreement, n=s.parity.images)
        if s.parity.labelled:
            yield "accuracy", "ratio", accuracy.computed(s)
            yield "accuracy of the reference", "ratio", accuracy.reference(s)
            yield "accuracy drop", "points", Estimate(value=accuracy.drop(s))
        if s.parity.reference_correct5:
            yield "top-5 accuracy", "ratio", accuracy.accuracy5(s)
    yield from _path(s)


def _path(s: Summary) -> Iterator[tuple[str, str, Estimate]]:
    """Boundary ``pipeline``: its stages and what it changes of the answers."""
    for _, b in staged([s]):
        for name, ns in b.stages.items():
            alone = " alone" if name in ("loader", "session") else ""
            yield f"stage {name}{alone}", "ns", Estimate(value=ns)
        yield "stages one after another", "ns", Estimate(value=b.serial_ns)
        yield "stages overlapped", "ns", Estimate(value=b.overlapped_ns)
        yield "rate of the slower side", "ratio", Estimate(value=b.share_of_slowest, why=b.group)
        free = Estimate(value=b.images_per_s_if_free, why=b.bottleneck)
        yield "images/s if the bottleneck were free", "images/s", free
        one = stats.geometric_mean(list(data_rates([s]).values()))
        yield "data stages of one core", "images/s", one
    if s.pipeline:
        n = s.pipeline.images
        yield "largest input difference", "steps", Estimate(value=s.pipeline.max_difference, n=n)
        yield "mean input difference", "steps", Estimate(value=s.pipeline.mean_difference, n=n)
        yield "pipeline top-1 agreement", "ratio", Estimate(value=s.pipeline.top1_agreement, n=n)
        if s.pipeline.labelled:
            yield "pipeline accuracy", "ratio", accuracy.of_pipeline(s)
