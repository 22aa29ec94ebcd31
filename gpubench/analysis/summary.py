"""One summary per run and cell: what its records say, before any table is laid out.

Tables, the terminal summary, the CSV export and comparisons all read these, so that a number is
computed in one place. Only numpy is imported here: the summary at the end of a run stays light.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from operator import attrgetter
from pathlib import PurePath
from statistics import fmean, median, variance
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from gpubench.analysis import stats
from gpubench.analysis.stats import Estimate
from gpubench.records import samples
from gpubench.records.parity import Parity, PipelineCheck, over_repeats, worst_pipeline
from gpubench.records.record import FAILURES, WIDE_INTERVAL, WRONG, Record, RecordFile
from gpubench.suite.types import MIN_SAMPLES, Cell, Policy
from gpubench.units import count

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

QUANTILES = {"p90": 0.90, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}

UNTRIED = ("ruled-out", "not reached")
"""Statuses of what a search did not measure: no problem, only counted."""

UNSETTLED = ("DRIFT", "NO-STEADY-STATE")

WIDE = "budget ended before the target width"
"""Shown with the flags: the second stage stopped short of ``policy.target_half_width``."""


Values = Callable[["Summary"], dict[int, float]]
"""Repeat -> a value above 0."""


class Session:
    """The cells of one run: what is fitted to all of them is fitted once."""

    def __init__(self) -> None:
        self.cells: list[Summary] = []
        self._fits: dict[tuple[str, str], stats.TwoWay] = {}

    def fit(self, metric: str, values: Values, s: Summary) -> stats.TwoWay:
        """``metric`` of the cells that are measured like ``s``, which is one of them."""
        named = metric, s.cell.scenario
        if named not in self._fits:
            alike = [c for c in self.cells if c.cell.scenario == s.cell.scenario]
            self._fits[named] = stats.two_way({c.key: values(c) for c in alike}, s.pilot)
        return self._fits[named]


LOAD = ("CPU-BUSY", "CPU-WITHHELD", "CPU-STEAL")
"""Flags that say that something else had the cores."""
FOLLOWS = ("DRIFT", "NO-STEADY-STATE", "WIDE-INTERVAL")
"""Flags that a busy machine brings with it."""


def most(flags: Sequence[Sequence[str]]) -> dict[str, int]:
    """Flags that more than half of the repeats have, each with how many have it.

    The one rule by which flags of repeats become one of the row, for reports and verdicts alike.
    """
    found = Counter(flag for each in flags for flag in dict.fromkeys(each))
    return {flag: n for flag, n in found.items() if 2 * n > len(flags)}


class Summary(Struct, frozen=True, kw_only=True, dict=True):
    """One cell of one run."""

    run: str
    """Unique among the files read together."""
    baseline: str
    """The backend that the run's suite names as its baseline."""
    policy: Policy
    """That of the run: its ``repeats`` were the pilot of the two-stage rule; see `pilot`."""
    arm: bool = False
    """Of an interleaved A/B."""
    search: bool = False
    """Of a search, which need not measure all that it planned."""
    cell: Cell
    records: list[Record]
    """One for each repeat; where a task was run again (resume), its last record."""
    busy: bool = False
    """Something else had the cores (`LOAD`) in most cells of the run: that, and what follows from
    it, is said once, by `analysis.resolution.sentence`, and not by `flags_of` at each row."""
    environment: dict[str, Any] = {}
    nodes: list[dict[str, Any]] = []
    """As in the run's `gpubench.records.record.Header`."""
    session: Session | None = None
    """The cells that its intervals are computed with; None: it stands alone, as an arm does, and a
    configuration of a search, which has no rounds in which all are measured."""

    @cached_property
    def key(self) -> str:
        """`Cell.key`, computed once."""
        return self.cell.key

    @cached_property
    def timed(self) -> list[Record]:
        """Records with timings that may be shown: ok, or failed only for their answers."""
        return [r for r in self.records if r.replicas and (r.status == "ok" or r.kind in WRONG)]

    @cached_property
    def broken(self) -> list[Record]:
        """Records that are not ok."""
        return [r for r in self.records if r.status != "ok"]

    @property
    def status(self) -> str:
        """'ok' (at least one good repeat, none wrong), 'failed: <kind>', a skip, or 'missing'.

        Of a search that ended or was interrupted before the cell's turn: 'not reached'.
        """
        if not self.records:
            return "not reached" if self.search else "missing"
        wrong = [r for r in self.broken if r.kind in WRONG]
        if len(self.broken) < len(self.records) and not wrong:
            return "ok"
        worst = (wrong or self.broken)[0]
        return f"failed: {worst.kind or 'error'}" if worst.status == "failed" else worst.status

    @property
    def ranked(self) -> bool:
        """May be compared, ranked and be on the Pareto front."""
        return self.status == "ok" and bool(self.timed)

    @cached_property
    def flags(self) -> dict[str, int]:
        """Flags that stand against the row, and in how many repeats: those of `most` of them that
        change what may be concluded.

        FEW-SAMPLES: see `_starved`. A level that moves within repeats by less than the interval
        reaches is covered by it (where it hardly moves, the flag is for something else). Of two
        flags with one cause the nearer one counts.
        """
        found = most([r.flags for r in self.timed or self.records])
        half = self.value.relative_half_width or 0.0
        if "CPU-WITHHELD" in found:
            found.pop("CPU-BUSY", None)
        if "FEW-SAMPLES" in found and not self._starved:
            del found["FEW-SAMPLES"]
        if not found.keys().isdisjoint(UNSETTLED):
            moved = median(_moved(r) for r in self.timed or self.records)
            if self.policy.target_half_width < moved <= half:
                found = {f: n for f, n in found.items() if f not in UNSETTLED}
        if half > WIDE_INTERVAL:
            found["WIDE-INTERVAL"] = len(self.values)
        return found

    @property
    def _starved(self) -> bool:
        """Whether more samples would help: most repeats have fewer than `MIN_SAMPLES`, or the
        interval is wider than wanted and noise within repeats is more than half of its variance.

        The variance of a median is taken as pi / 2 that of a mean, as of normal noise.
        """
        fewest = [min(len(s.durations_ns) for s in r.replicas) for r in self.timed]
        if median(fewest or [0]) < MIN_SAMPLES or len(self.values) < 2:
            return True
        half = self.value.relative_half_width or 0.0
        if half <= self.policy.target_half_width:
            return False
        each = [[math.log(x) for s in r.replicas for x in s.batch_ns] for r in self.timed]
        within = fmean(math.pi / 2 * variance(logs) / len(logs) for logs in each if logs[1:])
        return within / len(each) > (half / 2) ** 2 / 2

    @cached_property
    def medians(self) -> dict[int, float]:
        """Repeat -> median latency per batch, ns (the repeat value of the latency scenario)."""
        return {r.repeat: m for r in self.timed if (m := r.median_ns())}

    @cached_property
    def rates(self) -> dict[int, float]:
        """Repeat -> images/s in the common window (the repeat value of throughput)."""
        return {n: total for n, each in self.replica_rates.items() if (total := sum(each))}

    @cached_property
    def replica_rates(self) -> dict[int, list[float]]:
        """Repeat -> images/s of each replica in the common window."""
        return {r.repeat: r.replica_rates() for r in self.timed}

    @property
    def pilot(self) -> int:
        """Of how many repeats the spread fixed the number of repeats; 0: of none.

        An arm of an A/B has as many as the differences of its pairs asked for, a search as many as
        the race.
        """
        return 0 if self.arm or self.search else self.policy.repeats

    def fit(self, metric: str, values: Values) -> stats.TwoWay:
        """``values``, called ``metric``, of the cells that its intervals are computed with."""
        if self.session is None:
            return stats.two_way({self.key: values(self)}, self.pilot)
        return self.session.fit(metric, values, self)

    def level(self, metric: str, values: Values) -> Estimate:
        """Mean of logs over repeats, with its interval: how every value of a cell is computed."""
        return self.fit(metric, values).level(self.key)

    @cached_property
    def p50(self) -> Estimate:
        """Headline latency, ns: mean of logs of the repeats' medians."""
        return self.level("p50", _medians)

    @cached_property
    def throughput(self) -> Estimate:
        """Images/s: mean of logs over repeats."""
        return self.level("images/s", _rates)

    def percentile(self, q: float) -> Estimate:
        """Latency, ns: mean of logs of the repeats' percentiles ``q``, if they have the samples."""
        if why := stats.too_few(list(self.series_ns.values()), q):
            return Estimate(n=len(self.samples_ns), why=why)
        return self.level(f"p{100 * q:g}", partial(_percentiles, q=q))

    @property
    def value(self) -> Estimate:
        """Of the scenario's own metric: `p50` or `throughput`."""
        return self.p50 if self.cell.scenario == "latency" else self.throughput

    @cached_property
    def values(self) -> dict[int, float]:
        """Repeat values of the scenario's own metric: latency in ns, or images/s."""
        return self.medians if self.cell.scenario == "latency" else self.rates

    @property
    def wide(self) -> bool:
        """The second stage, where there is one, ended before the interval was as narrow as the
        policy wants."""
        half, done = self.value.relative_half_width, len(self.records)
        second = 0 < self.pilot <= done < self.policy.max_repeats and not self.broken
        return second and half is not None and half > self.policy.target_half_width

    @cached_property
    def series_ns(self) -> dict[int, NDArray[np.float64]]:
        """Repeat -> latencies in its common windows, in the order in which the batches ended."""
        import numpy as np

        found: dict[int, NDArray[np.float64]] = {}
        for record in self.timed:
            series = []
            for visit in record.visits:
                each, ends = [], []
                for x, inside in zip(visit, samples.window_slices(visit), strict=True):
                    each.append(np.asarray(x.batch_ns, np.float64)[inside])
                    ends.append(np.asarray(samples.ends(x)[inside]))
                joined = np.concatenate(each)
                series.append(joined[np.concatenate(ends).argsort()] if len(each) > 1 else joined)
            found[record.repeat] = np.concatenate(series) if series else np.empty(0)
        return found

    @cached_property
    def samples_ns(self) -> NDArray[np.float64]:
        """`series_ns` of all repeats, one after the other."""
        import numpy as np

        return np.concatenate([np.empty(0), *self.series_ns.values()])

    @cached_property
    def parity(self) -> Parity | None:
        """The answer checks of all repeats as one: see `over_repeats`."""
        return over_repeats([r.parity for r in self.records if r.parity is not None])

    @cached_property
    def pipeline(self) -> PipelineCheck | None:
        """Boundary ``pipeline``: the checks of the whole pipeline as one: see `worst_pipeline`."""
        return worst_pipeline(r.pipeline for r in self.records)


_medians: Values = attrgetter("medians")
_rates: Values = attrgetter("rates")


def _percentiles(s: Summary, q: float) -> dict[int, float]:
    """Of the repeats that have samples enough for one without bias."""
    return {n: stats.percentile(x, q) for n, x in s.series_ns.items()
            if len(x) * (1 - q) >= 1 - 1e-9}  # fmt: skip


class Problem(Struct, frozen=True, kw_only=True):
    """Why some or all repeats of a cell have no good result."""

    summary: Summary
    status: str
    repeats: str
    """'all', or their numbers."""
    reason: str
    remedy: str


def problems(summaries: Sequence[Summary], *, alone: bool = False) -> list[Problem]:
    """Every skip, failure and missing cell; repeats that ended the same way are one problem.

    The remedy of an out-of-memory cell names the largest batch size that worked; not when
    ``summaries`` are ``alone``, without the run's other cells.
    """
    others = {} if alone else _same_but_batch(summaries)
    found = []
    for s in summaries:
        if not s.records:
            reason = "planned, but the file holds no record of it"
            reason = "the search ended before its turn" if s.search else reason
            found.append(Problem(summary=s, status=s.status, repeats="all", reason=reason,
                                 remedy="run with --resume"))  # fmt: skip
        same: dict[tuple[str, str, str], list[int]] = {}
        for r in s.broken:
            status = f"failed: {r.kind or 'error'}" if r.status == "failed" else r.status
            reason = r.reason or FAILURES.get(r.kind, "no reason recorded")
            same.setdefault((status, reason, r.remedy), []).append(r.repeat)
        for (status, reason, remedy), at in same.items():
            if status == "failed: out-of-memory" and not alone:
                remedy = "; ".join(filter(None, [remedy, _worked(s, others[but(s, "batch_size")])]))
            which = "all" if len(at) == len(s.records) else ", ".join(map(str, at))
            found.append(
                Problem(summary=s, status=status, repeats=which, reason=reason, remedy=remedy)
            )
    return found


def problems_of(summaries: Sequence[Summary]) -> dict[int, list[Problem]]:
    """id(summary) -> its `problems`; every summary is there."""
    found: dict[int, list[Problem]] = {id(s): [] for s in summaries}
    for p in problems(summaries):
        found[id(p.summary)].append(p)
    return found


def but(s: Summary, *axes: str) -> object:
    """What cells of one run must have in common that differ in ``axes`` (of `Cell`) at most."""
    c = s.cell
    kept = (getattr(c, name) for name in c.__struct_fields__ if name not in axes)
    return s.run, *(tuple(sorted(v.items())) if isinstance(v, dict) else v for v in kept)


def _same_but_batch(summaries: Sequence[Summary]) -> dict[object, list[Summary]]:
    found: dict[object, list[Summary]] = {}
    if any(r.kind == "out-of-memory" for s in summaries for r in s.broken):
        for s in summaries:
            found.setdefault(but(s, "batch_size"), []).append(s)
    return found


def _worked(s: Summary, same: Sequence[Summary]) -> str:
    """``same``: the cells that differ from ``s`` in the batch size at most."""
    fits = [o.cell.batch_size for o in same
            if o.timed and not any(r.kind == "out-of-memory" for r in o.broken)]  # fmt: skip
    if fits:
        return f"largest batch size that worked: {max(fits)}"
    tried = sorted(o.cell.batch_size for o in same if o is not s and o.records)
    if tried:
        return f"no other batch size worked (tried: {', '.join(map(str, tried))})"
    return "no other batch size was tried"


def raised(s: Summary) -> list[str]:
    """Flags of its own: without those that the run shares because its machine was busy."""
    return sorted(s.flags.keys() - ((*LOAD, *FOLLOWS) if s.busy else ()))


def flags_of(*summaries: Summary) -> list[str]:
    """Flags of a row built from ``summaries``; a status other than ok comes first.

    Last come what was thrown away for outside evidence, and `WIDE`.
    """
    found: dict[str, None] = {}
    for s in summaries:
        if s.status != "ok":
            found[s.status] = None
        elif s.broken:
            found[f"{len(s.broken)} of {len(s.records)} repeats failed"] = None
        found |= dict.fromkeys(raised(s))
    thrown = sum(r.invalidated for s in summaries for r in s.records)
    if thrown:
        found[invalidated(thrown)] = None
    if any(s.wide for s in summaries):
        found[WIDE] = None
    return list(found)


def _moved(r: Record) -> float:
    """By how much the level moved within a repeat: medians of quarters of its samples, relative."""
    found = [0.0]
    for s in r.replicas:
        n, each = len(s.durations_ns), s.batch_ns
        parts = [median(each[n * i // 4 : n * (i + 1) // 4]) for i in range(4) if n >= 4]
        found += [(max(parts) - min(parts)) / median(each)] if parts else []
    return max(found)


def invalidated(attempts: int) -> str:
    """'2 attempts invalidated'."""
    return f"{count(attempts, 'attempt')} invalidated"


def summarise(files: Sequence[RecordFile]) -> list[Summary]:
    """Every planned or recorded cell of every run, in plan order. Runs are never pooled."""
    return [s for run, file in zip(run_names(files), files, strict=True) for s in _of(run, file)]


def _of(run: str, file: RecordFile) -> list[Summary]:
    suite = file.header.suite
    cells = {cell.key: cell for cell in file.header.planned}
    found: dict[str, dict[int, Record]] = {}
    for record in file.records:
        cells.setdefault(record.cell.key, record.cell)
        found.setdefault(record.cell.key, {})[record.repeat] = record
    session = Session()
    paired = file.header.pairing is not None
    seen = [most([r.flags for r in rs.values()]) for rs in found.values()]
    loaded = sum(not flags.keys().isdisjoint(LOAD) for flags in seen)
    session.cells += [
        Summary(
            run=run,
            busy=2 * loaded > len(seen) and not paired and file.header.search is None,
            baseline=suite.baseline,
            policy=suite.policy,
            arm=paired,
            search=file.header.search is not None,
            cell=cell,
            environment=file.header.environment,
            nodes=file.header.nodes,
            records=[record for _, record in sorted(found.get(key, {}).items())],
            session=None if paired or file.header.search else session,
        )
        for key, cell in cells.items()
    ]
    return session.cells


def run_names(files: Sequence[RecordFile]) -> list[str]:
    """A short, unique name for each file: its run id; where that repeats, with the folder.

    Of the two arms of one A/B: baseline, candidate.
    """
    arms = {f.header.pairing.arm: f.header.pairing.session for f in files if f.header.pairing}
    if len(arms) == len(files) == 2 and len(set(arms.values())) == 1:
        return [str(arm) for arm in arms]
    ids, names = [f.header.run_id for f in files], []
    for n, (name, file) in enumerate(zip(ids, files, strict=True), 1):
        where = PurePath(file.path).parent.name or file.path
        names.append(f"{name} #{n} ({where})" if ids.count(name) > 1 else name)
    return names


def baseline_of(summaries: Sequence[Summary]) -> dict[int, Summary]:
    """id(summary) -> the baseline backend's ranked cell on the same other axes, where there is one.

    Options belong to a backend, so they need not match: equal ones win, then the first planned.
    """
    bases: dict[object, list[Summary]] = {}
    ranked = [(s, but(s, "backend", "options", "calibration")) for s in summaries if s.ranked]
    for s, axes in ranked:
        if s.cell.backend == s.baseline:
            bases.setdefault(axes, []).append(s)
    found = {}
    for s, axes in ranked:
        if options := bases.get(axes, []):
            same = [b for b in options if b.cell.options == s.cell.options]
            found[id(s)] = (same or options)[0]
    return found


def rated(summaries: Sequence[Summary]) -> list[Summary]:
    """Cells whose images/s are shown as throughput: those of the throughput scenario.

    Of a run that has none, the latency scenario's: what a closed loop completed in the window.
    """
    saturated = {s.run for s in summaries if s.cell.scenario == "throughput"}
    return [
        s
        for s in summaries
        if (s.cell.scenario == "throughput" or s.run not in saturated) and s.rates
    ]


def speedup(base: Summary, other: Summary) -> Estimate:
    """How many times faster ``other`` is than ``base``, by the scenario's own metric."""
    return _estimate(log_speedup(base, other))


def gain(base: Summary, other: Summary) -> Estimate:
    """Images/s of ``other`` / images/s of ``base``."""
    return _estimate(log_gain(base, other))


def _estimate(found: stats.LogRatio | None) -> Estimate:
    return found.estimate() if found else Estimate(why="not measured")


def log_speedup(base: Summary, other: Summary) -> stats.LogRatio | None:
    """log of `speedup`; None where one of them has no value."""
    latency = other.cell.scenario == "latency"
    return _log_ratio(other, base, "p50", _medians) if latency else log_gain(base, other)


def log_gain(base: Summary, other: Summary) -> stats.LogRatio | None:
    """log of `gain`; None where one of them has no images/s."""
    return _log_ratio(base, other, "images/s", _rates)


def pooling(rows: Sequence[Summary]) -> str:
    """'95 % intervals of this session; they pool the residual noise of 12 cells over 5 rounds.'"""
    own = {"latency": ("p50", _medians), "throughput": ("images/s", _rates)}
    fits = {(s.run, s.cell.scenario): s.fit(*own[s.cell.scenario]) for s in rows}
    told = dict.fromkeys(
        f"{count(f.cells, 'cell')} over {count(f.rounds[1] + 1, 'round')}"
        for f in fits.values() if f.cells >= stats.FEWEST
    )  # fmt: skip
    of = "this session" if len({s.run for s in rows}) < 2 else "each session alone"
    more = f"; they pool the residual noise of {' and of '.join(told)}" if told else ""
    return f"95 % intervals of {of}{more}."


def _log_ratio(base: Summary, other: Summary, metric: str, values: Values) -> stats.LogRatio | None:
    """log(other / base). Of two runs, or two scenarios: without pooling."""
    if not values(base) or not values(other):
        return None
    same = base.session is not None and base.session is other.session
    if same and base.cell.scenario == other.cell.scenario:
        return base.fit(metric, values).ratio(base.key, other.key)
    return stats.log_ratio(values(base), values(other), (base.pilot, other.pilot))
