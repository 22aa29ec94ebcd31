"""Where the time of the whole path goes, and its throughput without the bottleneck."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from msgspec import Struct

from gpubench.record import Record

LOADER = ("read", "decode", "transform")
SESSION = ("copy_in", "run", "copy_out", "postprocess")
GROUPS = ("loader", "session")


class Breakdown(Struct, frozen=True, kw_only=True):
    """One pipeline cell. Times in ns per batch of one replica, medians over repeats."""

    stages: dict[str, float]
    """Each alone, one after the other."""
    serial_ns: float
    overlapped_ns: float | None
    """Throughput: time of a batch at the measured rate; latency: None."""
    bottleneck: str
    group: str
    """The slower one: 'loader' or 'session'."""
    share_of_slowest: float | None
    """Overlapped rate / rate of the slower group alone."""
    images_per_s_if_free: float
    """Of all replicas, if the bottleneck cost nothing."""


def breakdown(records: Sequence[Record]) -> Breakdown | None:
    """Of the timed records of one cell; None where no stages were measured."""
    measured = [s for r in records for s in r.replicas if s.stages_ns]
    names = dict.fromkeys(k for s in measured for k in s.stages_ns)
    every = {k: median(s.stages_ns.get(k, 0) for s in measured) for k in names}
    stages = {k: v for k, v in every.items() if k not in GROUPS}
    serial = sum(stages.values())
    if not records or serial <= 0:
        return None
    cell = records[0].cell
    images = cell.batch_size * cell.replicas * 1e9
    alone = {g: every.get(g) or sum(stages.get(k, 0) for k in names_of)
             for g, names_of in (("loader", LOADER), ("session", SESSION))}  # fmt: skip
    group = max(alone, key=lambda g: alone[g])
    rates = [rate for r in records if (rate := r.images_per_s())]
    if cell.scenario == "latency" or not rates:
        bottleneck = max(stages, key=lambda k: stages[k])
        left = serial - stages[bottleneck]
        return Breakdown(
            stages=stages, serial_ns=serial, overlapped_ns=None, bottleneck=bottleneck,
            group="loader" if bottleneck in LOADER else "session", share_of_slowest=None,
            images_per_s_if_free=images / max(left, 1.0),
        )  # fmt: skip
    mine = {k: stages[k] for k in (LOADER if group == "loader" else SESSION) if k in stages}
    bottleneck = max(mine or stages, key=lambda k: stages[k])
    overlapped = images / median(rates)
    kept = 1 - stages[bottleneck] / max(sum(mine.values()), 1.0)
    other = max(v for g, v in alone.items() if g != group)
    share = alone[group] / overlapped
    return Breakdown(
        stages=stages, serial_ns=serial, overlapped_ns=overlapped, bottleneck=bottleneck,
        group=group, share_of_slowest=share,
        images_per_s_if_free=share * images / max(alone[group] * kept, other, 1.0),
    )  # fmt: skip
