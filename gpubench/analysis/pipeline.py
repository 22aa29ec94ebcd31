"""Where the time of a whole pipeline goes: its stages, what overlaps, and what holds it up."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean, median
from typing import Any, Literal

from msgspec import Struct

from gpubench.records.record import Record

DATA = ("read", "decode", "transform")
"""Stages of the loader's group, where the decoder works on the host."""
COMPUTE = ("copy_in", "run", "copy_out", "postprocess")
"""Stages of the session's group."""
Group = Literal["loader", "session"]
Groups = dict[Group, tuple[str, ...]]


class Breakdown(Struct, frozen=True):
    """Of one cell with boundary ``pipeline``; ns per batch of one replica, medians of repeats.

    Parts and whole agree: with latency the stages, timed alone, share out the time that a batch
    takes at the measured rate; with throughput the rate rises by what the groups' time shrinks by.
    """

    stages: dict[str, float]
    """In the order of the pipeline; with throughput each alone, and the two groups, `Group`."""
    serial_ns: float
    """All stages one after the other: their sum."""
    overlapped_ns: float | None
    """Scenario throughput: a batch at the measured rate; None with latency."""
    bottleneck: str
    """The largest stage, of the slower group where two overlap."""
    group: Group
    """The one that the bottleneck is in."""
    share_of_slowest: float | None
    """Measured rate / that of the slower group alone; None with latency."""
    images_per_s_if_free: float
    """What all replicas would reach if the bottleneck cost nothing, and the rest overlapped as well
    as it does, or, with latency, came one after the other."""


def breakdown(records: Sequence[Record]) -> Breakdown | None:
    """Of the repeats of one cell; None where no stages were measured."""
    timed = [r for r in records if r.cell.boundary == "pipeline" and r.replicas]
    found = [s.stages_ns for r in timed for s in r.replicas if {*DATA, *COMPUTE} <= {*s.stages_ns}]
    if not found:
        return None
    cell, names, groups = timed[0].cell, [*found[0]], _groups(timed[0])
    stages = {name: float(median(each.get(name, 0) for each in found)) for name in names}
    serial = sum(stages[name] for name in (*DATA, *COMPUTE))
    rates = [rate for r in timed if (rate := r.images_per_s())]
    images = cell.batch_size * cell.replicas * 1e9
    whole = images / geometric_mean(rates) if rates else None
    if "loader" not in stages or "session" not in stages:
        group, bottleneck = _slowest(stages, groups)
        scale = whole / serial if whole and serial else 1.0
        stages = {name: scale * ns for name, ns in stages.items()}
        serial = sum(stages[name] for name in (*DATA, *COMPUTE))
        free = images / max(1.0, serial - stages[bottleneck])
        return Breakdown(stages, serial, None, bottleneck, group, None, free)
    slower: Group = "loader" if stages["loader"] > stages["session"] else "session"
    group, bottleneck = _slowest(stages, {slower: groups[slower]})
    both = {name: stages[name] for name in ("loader", "session")}
    without = dict(both)
    # the group's stages may overlap, which its own time shows; what it takes beyond them stays
    shrunk = min(1.0, stages[group] / max(1.0, sum(stages[k] for k in groups[group])))
    without[group] -= shrunk * stages[bottleneck]
    together = sum if _same_cores(timed[0]) else max
    now, left = (max(1.0, together(side.values())) for side in (both, without))
    free = images / (whole or now) * now / left
    share = stages[slower] / whole if whole else None
    return Breakdown(stages, serial, whole, bottleneck, group, share, free)


def facts(record: Record) -> dict[str, Any]:
    """What a record says of its pipeline; {}: nothing."""
    said = record.facts.get("pipeline")
    return said if isinstance(said, dict) else {}


def _groups(record: Record) -> Groups:
    """A decoder on the device works on the session's stream: only reading is the loader's then."""
    if facts(record).get("on_device") is True:
        return {"loader": DATA[:1], "session": (*DATA[1:], *COMPUTE)}
    return {"loader": DATA, "session": COMPUTE}


def _slowest(stages: dict[str, float], groups: Groups) -> tuple[Group, str]:
    """The largest stage of these groups, and which it is in."""
    among: list[tuple[Group, str]] = [(g, name) for g, names in groups.items() for name in names]
    return max(among, key=lambda one: stages[one[1]])


def _same_cores(record: Record) -> bool:
    """Whether both groups run on the same cores, so that what one uses the other lacks."""
    said, cell = facts(record), record.cell
    each = [said.get(name) for name in ("loader_cores", "session_cores")]
    used = sum(n for n in each if isinstance(n, int))
    return cell.device == "cpu" and (cell.cores == 1 or used > cell.cores)
