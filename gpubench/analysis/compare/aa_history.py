"""A/A history: how much sessions of unchanged code differ on one machine.

A session is an ordinary run. Its repeats share whatever that hour had in store (clocks, memory
layout, neighbours), which no number of repeats averages out; only other sessions show it. They are
kept as record files in one directory for each fingerprint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, quantiles, variance

from msgspec import Struct
from msgspec.structs import replace

from gpubench import files
from gpubench.analysis import stats
from gpubench.analysis.compare.verdicts import UNSTEADY
from gpubench.analysis.summary import summarise
from gpubench.errors import CacheError, RecordError
from gpubench.records.reader import locate, read
from gpubench.records.record import RecordFile

ENOUGH = 8
"""Sessions of a cell below which they say too little about what is normal.

Of a machine that spends 30 sessions in 100 in a slower state, five see one state only one time in
six, eight one time in seventeen.
"""
TAILS = 5
"""Degrees of freedom of the session effect, at most: its tails are heavier than the normal ones."""


class Limit(Struct, frozen=True, kw_only=True):
    """What sessions of unchanged code differ by, for one cell. All on logs of the session value."""

    sessions: int
    sd: float
    """At least what the repeats explain: a few sessions can be alike by luck."""
    largest: float
    """The largest difference of two sessions of this cell, or what three in four cells stay below
    if that is more: what one cell's few sessions did not show, those of others may have."""
    within: float
    """Mean variance of a session value that its own repeats explain; a part of sd^2."""

    def widened(self, cost: stats.LogRatio) -> stats.LogRatio:
        """``cost`` of two fresh sessions, with the error that their being two sessions adds.

        Two sessions differ with variance 2 sd^2, their repeats included; what the repeats of these
        two vary more than those of the history comes on top. Degrees of freedom: Satterthwaite
        (1946), who combines variance estimates.
        """
        if cost.dof <= 0:
            return cost
        between = 2 * self.sd**2
        extra = max(0.0, cost.error**2 - 2 * self.within)
        own = min(TAILS, self.sessions - 1)
        parts = between**2 / own + extra**2 / cost.dof
        dof = (between + extra) ** 2 / parts if parts else own
        return replace(cost, error=math.sqrt(between + extra), dof=dof)


def directory(cache_root: Path, fingerprint: str) -> Path:
    """Where the sessions of machines with this fingerprint are kept."""
    name = re.sub(r"[^\w-]", "_", fingerprint[:16])  # a stranger's file may name any folder
    return cache_root / "aa" / (name or "_")


def load(folder: Path, note: Callable[[str], object]) -> list[RecordFile]:
    """Every session in ``folder``, oldest first; [] where there is none.

    A file that cannot be read is left out, and ``note`` is told which and why; and what else
    is wrong with a file, such as a last line that was cut off.
    """
    found: dict[str, RecordFile] = {}
    for path in sorted(folder.glob("*.jsonl")):
        try:
            file = read(path)
        except RecordError as error:
            note(f"left out of the A/A history: {error}")
        else:
            for said in file.damage:
                note(f"in the A/A history: {path}: {said}")
            found.setdefault(file.header.run_id, file)
    return sorted(found.values(), key=lambda f: (f.header.started, f.header.run_id))


def add(run: Path, folder: Path) -> Path:
    """Copy the record file of a run's directory into ``folder``, named by its run id, whole or not
    at all.

    Raises RecordError where it cannot be read, CacheError where it cannot be written.
    """
    name = re.sub(r"[^\w.-]", "_", read(run).header.run_id).lstrip(".")
    target, body = folder / f"{name or '_'}.jsonl", locate(run).read_bytes()
    try:
        for place in (folder.parent, folder):  # parents=True alone would leave its mode to umask
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.put(target, body)
    except OSError as error:
        raise CacheError(f"{folder}: cannot be written: {error.strerror}") from error
    return target


def limits(history: Mapping[str, Sequence[stats.LogRatio]]) -> dict[str, Limit]:
    """Cell key -> its limit, for every cell of `by_cell` with `ENOUGH` sessions."""
    found = {key: limit(of) for key, of in history.items() if len(of) >= ENOUGH}
    seen = [x.largest for x in found.values()]
    typical = quantiles(seen, n=4, method="inclusive")[2] if len(seen) > 1 else 0.0
    return {key: replace(x, largest=max(x.largest, typical)) for key, x in found.items()}


def limit(of: Sequence[stats.LogRatio]) -> Limit:
    """From two sessions or more of one cell."""
    logs = [s.mean for s in of]
    within = fmean(s.error**2 for s in of)
    return Limit(
        sessions=len(of),
        sd=math.sqrt(max(variance(logs), within)),
        largest=max(logs) - min(logs),
        within=within,
    )


def by_cell(history: Iterable[RecordFile]) -> dict[str, list[stats.LogRatio]]:
    """Cell key -> its mean of logs in each session that a comparison would use as well, in the
    order of ``history``."""
    found: dict[str, list[stats.LogRatio]] = {}
    for s in (s for file in history for s in summarise([file])):
        if s.ranked and s.values and s.flags.keys().isdisjoint(UNSTEADY):
            first = stats.of_pilot(s.values, s.pilot)
            found.setdefault(s.key, []).append(stats.log_mean([*s.values.values()], first))
    return found
