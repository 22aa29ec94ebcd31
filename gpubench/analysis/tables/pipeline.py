"""Tables of the whole pipeline: what it adds to a compute-only number, its stages, its decoders."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, Literal

from gpubench.analysis import stats
from gpubench.analysis.pipeline import DATA, Breakdown, breakdown, facts
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary, but, flags_of, gain, speedup
from gpubench.analysis.tables.table import Body, Column, Part, Table, with_axes
from gpubench.records.record import COPIED_IN, Record
from gpubench.units import count

STAGES = "Stages of the whole pipeline"
ADDS = {
    "latency": "What the pipeline adds to latency",
    "throughput": "What the pipeline takes from throughput",
}
GIVEN = "What the host gives"
NAMES = {"read": "read", "decode": "decode", "transform": "resize + normalise",
         "copy_in": "copy in (H2D)", "run": "compute", "copy_out": "copy out (D2H)",
         "postprocess": "post-process"}  # fmt: skip
"""Stages as people call them, in their order."""
BOUNDARIES = {
    "compute": "inputs and outputs stay on the device",
    "transfer": "with copies to and from the device",
    "pipeline": "from encoded pictures to labels and scores",
}
"""From the narrowest to the widest."""
_PATH = ("boundary", "decoder", "loader", "loader_cores")


def build(summaries: Sequence[Summary]) -> list[Table]:
    """All of them; those without rows too."""
    return [
        _adds("latency", [s for s in summaries if s.cell.scenario == "latency" and s.medians]),
        _adds("throughput", [s for s in summaries if s.cell.scenario == "throughput" and s.rates]),
        _stages(staged(summaries)),
        _given(summaries),
        _decoders(summaries),
    ]


# --------------------------------------------------------------------------- what the pipeline adds


def beside(rows: Sequence[Summary]) -> list[dict[str, Summary]]:
    """Boundary -> its cell, of one configuration that was measured with several boundaries.

    One for each whole pipeline (decoder, loader), or one where there is none.
    """
    groups: dict[object, dict[str, list[Summary]]] = {}
    for s in rows:
        groups.setdefault(but(s, *_PATH), {}).setdefault(s.cell.boundary, []).append(s)
    found = []
    for group in groups.values():
        alone = {b: cells[0] for b, cells in group.items() if b != "pipeline"}
        for path in group.get("pipeline", [None]):
            made = alone | ({"pipeline": path} if path else {})
            found += [made] if len(made) > 1 else []
    return found


def hidden(sides: dict[str, Summary]) -> Estimate:
    """Share of the widest boundary's time that a number of the narrowest leaves out.

    1 - speed of the wide / speed of the narrow one, so it means the same for latency and images/s.
    """
    narrow, *_, wide = (sides[b] for b in BOUNDARIES if b in sides)
    if not (narrow.ranked and wide.ranked):
        return Estimate(why="not ranked")
    e = (speedup if narrow.cell.scenario == "latency" else gain)(narrow, wide)
    low, high = (None if v is None else 1 - v for v in (e.high, e.low))
    value = None if e.value is None else 1 - e.value
    return Estimate(value=value, low=low, high=high, n=e.n, why=e.why)


def _adds(measure: Literal["latency", "throughput"], rows: Sequence[Summary]) -> Table:
    found = beside(rows)
    shown = [b for b in BOUNDARIES if any(b in sides for sides in found)]
    unit, better = ("ns", "lower") if measure == "latency" else ("images/s", "higher")
    columns = (
        *(Column(b, unit, better, BOUNDARIES[b]) for b in shown),  # type: ignore[arg-type]
        Column("hidden", "share", "lower", "what the first number of the row, alone, leaves "
               "out: 1 - speed of the last / speed of the first"),
    )  # fmt: skip
    body: Body = []
    for sides in found:
        values = [sides[b].value if b in sides else Estimate(why="not measured") for b in shown]
        last = next(sides[b] for b in reversed(BOUNDARIES) if b in sides)
        body.append((last, [*values, hidden(sides), flags_of(*sides.values())]))
    notes = ["The same configuration beside itself, on the same clock: how much of the work is "
             "inside the timed boundary."]  # fmt: skip
    return with_axes(ADDS[measure], columns, body, notes, hidden=("boundary",))


# ------------------------------------------------------------------------------ stages


def staged(summaries: Sequence[Summary]) -> list[tuple[Summary, Breakdown]]:
    """Pipeline cells whose stages were measured."""
    return [
        (s, found)
        for s in summaries
        if s.cell.boundary == "pipeline" and s.timed and (found := breakdown(s.timed))
    ]


def named(stage: str) -> str:
    """'resize + normalise' for 'transform'."""
    return NAMES.get(stage, stage)


def parts(b: Breakdown) -> dict[str, Part]:
    """The stages in their order, ns per batch, with their shares of the sum."""
    total = b.serial_ns or 1.0
    return {k: Part(b.stages[k], b.stages[k] / total) for k in NAMES if k in b.stages}


def _stages(found: Sequence[tuple[Summary, Breakdown]]) -> Table:
    columns = (
        Column("scenario"),
        *(Column(name, "ns", "lower", "of one batch, and its share of the sum")
          for name in NAMES.values()),
        Column("one after another", "ns", "lower", "sum of the stages"),
        Column("overlapped", "ns", "lower",
               "time of a batch at the measured rate, all stages at work at once"),
        Column("bottleneck", help="the slowest stage of the slower side"),
        Column("slower side", help="loader: read to normalise; session: copy in to "
               "post-process, and a decoder that works on the device"),
        Column("of the slower side", "fraction", "higher",
               "measured rate / rate of the slower side alone: 100 % is ideal overlap"),
        Column("images/s", "images/s", "higher", "measured"),
        Column("if it were free", "images/s", "higher", "images/s if the bottleneck cost nothing"),
        Column("shared out", help="how the replica's cores were divided"),
    )  # fmt: skip
    body: Body = []
    for s, b in found:
        of = parts(b)
        body.append((s, [s.cell.scenario, *(of.get(k) for k in NAMES), b.serial_ns, b.overlapped_ns,
                         named(b.bottleneck), b.group, b.share_of_slowest, s.throughput,
                         b.images_per_s_if_free, divided(s), flags_of(s)]))  # fmt: skip
    notes = ["Stages were timed alone, with the first of the batches that were sampled: means. Of "
             "latency they share out the time of a batch, of throughput they overlap."]  # fmt: skip
    return with_axes(STAGES, columns, body, notes + skipped([s for s, _ in found]), ("boundary",))


def _given(summaries: Sequence[Summary]) -> Table:
    """Of a run with several values of ``input``: what each costs the host, and the bus."""
    rows = [s for s in summaries if s.timed and s.cell.boundary != "compute"]
    several = len({s.cell.input for s in rows}) > 1
    columns = (
        Column("copied in", "bytes", "lower", "of one batch"),
        Column("on the host", "ns", "lower",
               "of one batch: resize + normalise of a pipeline, and the conversion to fp16"),
        Column(NAMES["copy_in"], "ns", "lower", "of one batch"),
        Column("compute", "ns", "lower", "of one batch, with the cast and normalisation that the "
               "host does not do"),
    )  # fmt: skip
    body: Body = []
    for s in rows if several else ():
        taken = next((n for r in s.timed if isinstance(n := r.facts.get(COPIED_IN), int)), None)
        each = [x.stages_ns for r in s.timed for x in r.replicas if x.stages_ns]
        of = {k: median(e.get(k, 0) for e in each) for e in each for k in e}
        host = sum(of.get(k, 0) for k in ("transform", "convert")) or None
        body.append((s, [taken, host, of.get("copy_in"), of.get("run"), flags_of(s)]))
    notes = ["Medians of stages timed alone. Where a loader fills the session's own input "
             "(zero-copy) nothing is left to copy."]  # fmt: skip
    return with_axes(GIVEN, columns, body, notes)


def told(s: Summary) -> dict[str, Any]:
    """`facts` of the first record that has any, the loader's own words among the others."""
    said = next((found for r in s.timed if (found := facts(r))), {})
    loader = said.get("loader")
    return {**loader, **said} if isinstance(loader, dict) else said


def divided(s: Summary) -> str:
    """'1 core loads (threads), 1 computes, zero-copy'; '' if the record says nothing."""
    said, own = told(s), s.cell.cores
    loading, computing = _cores(said.get("loader_cores")), _cores(said.get("session_cores"))
    kind = said.get("kind") or said.get("loader")
    how = f" ({kind})" if isinstance(kind, str) else ""
    zero = ["zero-copy"] if said.get("zero_copy") is True else []
    if loading and loading + computing > own > 0:  # in turn, or one core for both
        return ", ".join([f"loading and computing on the same {count(own, 'core')}{how}", *zero])
    words = [f"{count(loading, 'core')} load{'s' * (loading == 1)}{how}"] if loading else []
    words += [f"{computing} compute{'s' * (computing == 1)}"] if computing else []
    return ", ".join(words + zero)


def _cores(said: object) -> int:
    if isinstance(said, list):
        return len(said)
    return said if type(said) is int else 0


def skipped(rows: Sequence[Summary]) -> list[str]:
    """'openvino .. pipeline pil: images skipped: 2 truncated', one for each loader that did."""
    lines: dict[str, list[str]] = {}
    for s in rows:
        found = told(s)
        unusable = found.get("unusable")
        said = found.get("skipped") or (f"{unusable} unusable" if unusable else "")
        if isinstance(said, dict):
            said = ", ".join(f"{n} {why}" for why, n in said.items())
        if said:
            lines.setdefault(str(said), []).append(s.cell.label)
    return [
        f"Images skipped ({labels[0]}"
        f"{f' and {len(labels) - 1} more' if labels[1:] else ''}): {said}."
        for said, labels in lines.items()
    ]


# ------------------------------------------------------------------------------ decoders


def _decoders(summaries: Sequence[Summary]) -> Table:
    """One row for each decoder and workload, over the cells of all backends."""
    groups: dict[tuple[Any, ...], list[Summary]] = {}
    for s in summaries:
        c = s.cell
        if c.boundary == "pipeline" and s.timed:
            work = (s.run, c.model, c.weights, c.images, c.labels, c.device)
            groups.setdefault((*work, c.decoder), []).append(s)
    rates = {key: data_rates(group) for key, group in groups.items()}
    columns = (
        Column("images/s of one core", "images/s", "higher", "read, decode, resize and normalise, "
               "one after the other; of the device for a decoder that works there"),
        Column("over pil", "x", "higher", "images/s over those of the reference decoder"),
        Column("largest difference", "steps", "lower", "of a value of the network's input from "
               "the reference's, in steps of 8-bit pixels"),
        Column("mean difference", "steps", "lower", "the same, mean over all values"),
        Column("top-1 match", "fraction", "higher", "of the whole pipeline with the "
               "reference's; the worst of its cells"),
        Column("images", "count", help="that were compared"),
        Column("accuracy", "share of n", "higher", "top-1 of the whole pipeline against labels; "
               "the worst of its cells"),
    )  # fmt: skip
    body: Body = []
    for key, group in groups.items():
        base = rates.get((*key[:-1], "pil"), {})
        over = stats.ratio(base, rates[key]) if base else Estimate(why="pil not measured")
        over = Estimate(value=1.0, why="reference") if key[-1] == "pil" else over
        body.append((group[0], [stats.geometric_mean(list(rates[key].values())), over,
                                *_differences(group), flags_of(*group)]))  # fmt: skip
    notes = ["A faster decoder or resize that changes answers is a trade: read both sides."]
    pooled = ("backend", "precision", "options", "batch", "replicas", "per device", "sharing",
              "cores", "input", "dispatch", "boundary", "loader", "loading cores")  # fmt: skip
    return with_axes("Decoders", columns, body, notes, pooled, ("decoder",))


def data_rates(group: Sequence[Summary]) -> dict[int, float]:
    """Repeat -> images/s of the data stages, one after the other: median over cells, replicas.

    Of one core: where a batch was shared out over several, by the most that one of them had.
    """
    found: dict[int, list[float]] = {}
    for s in group:
        for r in s.timed:
            images = -(-s.cell.batch_size // _lanes(r))
            for x in r.replicas:
                if spent := sum(x.stages_ns.get(k, 0) for k in DATA):
                    found.setdefault(r.repeat, []).append(images * 1e9 / spent)
    return {repeat: median(values) for repeat, values in sorted(found.items())}


def _lanes(r: Record) -> int:
    """How many cores its data stages were timed on."""
    lanes = facts(r).get("lanes")
    return lanes if type(lanes) is int and lanes > 0 else 1


def _differences(group: Sequence[Summary]) -> list[Any]:
    """Worst over cells: differences, agreement, images, accuracy."""
    checks = [s.pipeline for s in group if s.pipeline]
    if not checks:
        return [None, None, None, None, Estimate(why="not checked")]
    worst = min(checks, key=lambda c: c.correct / c.labelled if c.labelled else 1.0)
    return [
        max(c.max_difference for c in checks), max(c.mean_difference for c in checks),
        min(c.top1_agreement for c in checks), max(c.images for c in checks),
        stats.wilson(worst.correct, worst.labelled),
    ]  # fmt: skip
