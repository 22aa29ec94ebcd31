"""The two arms of one interleaved A/B -> one verdict per pair of cells.

Records are joined into pairs of processes here; what they say `sequential_test.judge` decides.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean, median
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from gpubench import units
from gpubench.analysis.compare import metrics, sequential_test
from gpubench.analysis.compare.verdicts import MACHINE, Comparison, apart, failures, lost
from gpubench.analysis.summary import Summary
from gpubench.errors import InputError
from gpubench.records import samples
from gpubench.records.record import Record, RecordFile
from gpubench.records.samples import Samples
from gpubench.suite import gate
from gpubench.suite.types import Cell, Rule

Cells = Mapping[str, Summary]
"""By key."""
ONE_BUILD = "one build of each arm: two builds of the same code may differ, too"
"""Fresh processes average out what differs from launch to launch, not what a build is stuck with:
an offset of sd 1 % would alarm in one suite in ten (`tests.benchmarks.trust.gates.BUILDS`)."""
REBUILT = ("tensorrt",)
"""Backends whose artefact comes out differently each time that it is made."""
SPOILT_SHARE = 0.25
"""More pairs than this with a flag of `MACHINE` forbid a verdict."""


def of_one_session(base: RecordFile, candidate: RecordFile) -> bool:
    """Whether these are two arms of the same interleaved A/B."""
    a, b = base.header.pairing, candidate.header.pairing
    return a is not None and b is not None and a.session == b.session


def join(
    base: RecordFile,
    candidate: RecordFile,
    first: Cells,
    second: Cells,
    delta: float | None,
    alpha: float | None,
    judged: Sequence[str] = (),
) -> Arms:
    """Both arms pair by pair, from the summaries of their cells.

    ``delta``, ``alpha`` and ``judged`` may only repeat the rule that the pairs were measured for:
    it said which cells were measured how often. Planned pairs of cells that both arms skipped are
    left out. Raises InputError for arms that do not fit together.
    """
    rule = _rule(base, candidate, delta, alpha, judged)
    pairings = [p for p in (base.header.pairing, candidate.header.pairing) if p]
    rates = any(p.rates for p in pairings)
    told = {word.partition("=")[0] for p in pairings for word in p.differs.split(",")}
    separate = not told.isdisjoint(("python", "ref"))
    trees = tuple(p.tree for p in pairings)
    kept = []
    for b, c in zip(base.header.planned, candidate.header.planned, strict=True):
        one, other, by = first[b.key], second[c.key], rates or by_rate(b, c)
        if any(s.status not in ("unavailable", "unsupported") for s in (one, other)):
            pairs = None if lost(one, other) else _join(one, other, by)
            built = separate or any(cell.backend in REBUILT for cell in (b, c))
            kept.append(Match(one, other, by, pairs, built, trees))
    return Arms(rule, kept)


class Arms(Struct, frozen=True):
    """The two arms of one A/B, pair by pair."""

    rule: Rule
    matches: list[Match]

    def rows(self) -> list[Comparison]:
        """Every pair of planned cells, judged by the rule that the pairs were measured for."""
        speed = metrics.rules(self.rule)["speed"]
        said, left = sequential_test.judge(self._pairs(), speed), self._left({})
        rows = [
            _row(match, said.get(str(n)), left.get(str(n))) for n, match in enumerate(self.matches)
        ]
        return rows + self._others()

    def _others(self) -> list[Comparison]:
        """Of what is judged beside speed."""
        whole = {n: m for n, m in enumerate(self.matches)
                 if m.pairs and not failures(m.baseline, m.candidate)}  # fmt: skip
        cells = [metrics.Cell(_blank(m), (m.baseline, m.candidate), m.told)
                 for m in whole.values()]  # fmt: skip
        of = {(m.baseline.key, m.candidate.key): m for m in whole.values()}
        rows = []
        for row in metrics.rows(cells, self.rule):
            match = of[row.baseline_key or row.key, row.key]
            timed = row.judged in ("p99", "cold_start")
            rows.append(_doubted(row, match, (match.pairs or [])[: row.pairs]) if timed else row)
        return rows

    def unfinished(self) -> Left:
        """What would probably decide all that is open, as far as more pairs can."""
        others = {name: {str(n): metrics.pairs(name, m.told) for n, m in enumerate(self.matches)}
                  for name in metrics.paired(self.rule)}  # fmt: skip
        left = self._left(metrics.more(others, self.rule)).values()
        return Left(sum(x.pairs for x in left), math.fsum(x.seconds for x in left))

    def _left(self, more: Mapping[str, int]) -> dict[str, Left]:
        """By their place, for speed and ``more``; a cell with a failure is not measured again."""
        speed, found = metrics.rules(self.rule)["speed"], {}
        for key, pairs in sequential_test.needs(self._pairs(), speed, more=more).items():
            match = self.matches[int(key)]
            if not failures(match.baseline, match.candidate):
                found[key] = Left(pairs, pairs * fmean(r.wall_s for r in match.candidate.records))
        return found

    def _pairs(self) -> dict[str, list[sequential_test.Pair]]:
        """By their place: of cells with a result on both sides."""
        return {
            str(n): [x.pair for x in m.pairs if x.pair]
            for n, m in enumerate(self.matches)
            if m.pairs is not None
        }


class Left(NamedTuple):
    """Pairs, and the seconds that they take here."""

    pairs: int = 0
    seconds: float = 0.0


class Match(Struct, frozen=True):
    """A planned pair of cells."""

    baseline: Summary
    candidate: Summary
    rates: bool
    """Compared by images/s."""
    pairs: list[Both] | None
    """In the order measured; None where a side has no result that may be compared."""
    built: bool = False
    """Each arm is a build of its own: two environments, or two engines."""
    trees: Sequence[str] = ("", "")
    """Where either arm's files of the repository lie."""

    @property
    def told(self) -> list[tuple[Record, Record, sequential_test.Pair]]:
        """Its pairs, with what they say of speed."""
        return [(*x.records, x.pair) for x in self.pairs or () if x.pair]


class Both(Struct, frozen=True):
    """One pair of processes, both of which ended well."""

    records: tuple[Record, Record]
    """The baseline's, the candidate's."""
    values: tuple[float | None, float | None]
    """ns per batch, or images/s."""
    pair: sequential_test.Pair | None
    """None where a value is missing."""

    @property
    def flags(self) -> list[str]:
        """Of both, the baseline's first."""
        return list(dict.fromkeys(flag for r in self.records for flag in r.flags))


def _rule(
    base: RecordFile,
    candidate: RecordFile,
    delta: float | None,
    alpha: float | None,
    judged: Sequence[str],
) -> Rule:
    a, b = base.header.pairing, candidate.header.pairing
    if a is None or b is None or (a.arm, b.arm) != ("baseline", "candidate"):
        raise InputError(
            f"{base.path} and {candidate.path} belong to one A/B: give its baseline first, then "
            "its candidate"
        )
    n, m = len(base.header.planned), len(candidate.header.planned)
    if n != m or a.rule != b.rule:
        raise InputError(
            f"{base.path} and {candidate.path} belong to one A/B, but plan {n} and {m} cells"
            f"{'' if a.rule == b.rule else ', by different rules'}: measure again"
        )
    for name, asked, used in (("delta", delta, a.rule.delta), ("alpha", alpha, a.rule.alpha)):
        if asked is not None and asked != used:
            raise InputError(
                f"{name} {asked:g}: this A/B was measured for {used:g}, which chose its numbers of "
                f"pairs; leave {name} out, or measure again with the other one"
            )
    wanted = gate.rule(dict(candidate.header.suite.gate), judged).metrics if judged else ()
    if wanted not in ((), a.rule.metrics):
        own = ", ".join(name for name, _ in a.rule.metrics) or "nothing"
        raise InputError(
            f"--metric {','.join(judged)}: this A/B was measured to judge {own} beside speed, "
            "which shared out its chance of a false alarm; leave --metric out, or measure again"
        )
    return a.rule


# ------------------------------------------------------------------------------ pairs


def _join(baseline: Summary, candidate: Summary, rates: bool) -> list[Both]:
    """Repeats that ended well in both arms, in the order measured."""
    first, second = (s.rates if rates else s.medians for s in (baseline, candidate))
    before = {r.repeat: r for r in baseline.records if r.status == "ok"}
    return [
        _both(before[r.repeat], r, (first.get(r.repeat), second.get(r.repeat)), rates)
        for r in candidate.records
        if r.status == "ok" and r.repeat in before
    ]


def pair_of(
    baseline: Record, candidate: Record, rates: bool = False
) -> sequential_test.Pair | None:
    """What two processes of one pair say; None unless both have a good result.

    ``rates``: by images/s, also where latencies could be compared.
    """
    if baseline.status != "ok" or candidate.status != "ok":
        return None
    both = (baseline, candidate)
    rates = rates or by_rate(baseline.cell, candidate.cell)
    before, after = (r.images_per_s() if rates else r.median_ns() for r in both)
    return _both(baseline, candidate, (before, after), rates).pair


def _both(
    baseline: Record, candidate: Record, values: tuple[float | None, float | None], rates: bool
) -> Both:
    before, after = values
    flags = {*baseline.flags, *candidate.flags}
    pair = None
    if before and after:
        d = math.log(after / before)
        pair = sequential_test.Pair(
            d=-d if rates else d,
            trends=(_trend(baseline), _trend(candidate)),
            spreads=(_spread(baseline), _spread(candidate)),
            unsteady=not flags.isdisjoint(("DRIFT", "NO-STEADY-STATE")),
            coarse=len(baseline.order) <= len("ABBA"),
        )
    return Both((baseline, candidate), values, pair)


def by_rate(baseline: Cell, candidate: Cell) -> bool:
    """Whether two cells are compared by images/s.

    They are in the throughput scenario, and where one batch is not the same work in both: a
    latency of batch 1 against one of batch 8 says nothing, images/s completed does.
    """
    return "latency" not in (baseline.scenario, candidate.scenario) or _unlike(baseline, candidate)


def _unlike(baseline: Cell, candidate: Cell) -> bool:
    return (baseline.scenario, baseline.batch_size) != (candidate.scenario, candidate.batch_size)


def _trend(record: Record) -> float:
    """log(late cost / early cost) within one process; what is early and late: see `_parts`."""
    visits = record.visits
    if (half := len(visits) // 2) and record.cell.scenario == "throughput":
        first, second = (_rate(record, part) for part in (visits[:half], visits[half:]))
        if first and second:
            return math.log(first / second)
    early, late = (median(list(chain(*part)) or [0.0]) for part in _parts(record))
    return math.log(late / early) if early and late else 0.0


def _spread(record: Record) -> float:
    """Late spread - early spread: the median distance from the median, as a share of it."""
    early, late = (
        median([abs(d / level - 1) for t in part if t and (level := median(t)) for d in t] or [0.0])
        for part in _parts(record)
    )
    return late - early


def _parts(record: Record) -> list[list[list[float]]]:
    """The ns per batch of each replica: early and late.

    Of its turns the first half and the second; so of the samples of a single turn.
    """
    turns = [
        [
            [*s.batch_ns[inside]]
            for s, inside in zip(visit, samples.window_slices(visit), strict=True)
        ]
        for visit in record.visits
    ]
    if half := len(turns) // 2:
        return [
            [list(chain(*own)) for own in zip(*part, strict=True)]
            for part in (turns[:half], turns[half:])
        ]
    return [
        [spans[: len(spans) // 2] for spans in turns[0]],
        [spans[len(spans) - len(spans) // 2 :] for spans in turns[0]],
    ]


def _rate(record: Record, visits: list[list[Samples]]) -> float | None:
    """Images/s in some of its turns."""
    return replace(record, replicas=visits[0], again=[*chain(*visits[1:])]).images_per_s()


# ------------------------------------------------------------------------------ rows


def _row(match: Match, said: sequential_test.Verdict | None, left: Left | None) -> Comparison:
    """``said``: of the pairs; None where there are none. ``left``: what would decide it."""
    if said is None or match.pairs is None:
        return _blank(match)
    places = [n for n, both in enumerate(match.pairs) if both.pair]
    used = match.pairs[: places[said.pairs] if said.pairs < len(places) else None]
    values = [both.values for both in used if both.pair]
    row = metrics.of_pairs(_blank(match), said, values, -1 if match.rates else 1)
    if match.built and row.verdict in ("REGRESSED", "IMPROVED"):
        row = replace(row, reason=f"{row.reason}; {ONE_BUILD}")
    if left:
        pairs = units.count(left.pairs, "pair")
        row = replace(row, reason=f"{row.reason}; about {pairs}, {units.clock(left.seconds)} more")
    return _doubted(row, match, used)


def _blank(match: Match) -> Comparison:
    """What is known without a pair; MISSING where a side has no result."""
    b, c = match.baseline, match.candidate
    metric = "images/s" if match.rates else "p50 [ns]"
    if _unlike(b.cell, c.cell):
        what = "batch sizes" if b.cell.scenario == c.cell.scenario else "scenarios"
        metric += f" ({what} differ)"
    code, reason = lost(b, c) or ("", "")
    row = Comparison(
        key=c.key, label=label(b.cell, c.cell, match.trees), metric=metric, verdict="MISSING",
        code=code, reason=reason, baseline_key="" if b.key == c.key else b.key, interleaved=True,
    )  # fmt: skip
    if words := apart(b, c):
        return row.told("INCOMPARABLE", "different-question", words)
    return row


def _doubted(row: Comparison, match: Match, used: Sequence[Both]) -> Comparison:
    """With what stands against the verdict of the pairs."""
    broke = failures(match.baseline, match.candidate)
    if broke and row.verdict != "REGRESSED":
        return row.told("MISSING", "failed", broke)
    if broke:
        row = replace(row, reason=f"{row.reason}; {broke}")
    spoilt = {f: fmean(f in x.flags for x in used) for f in MACHINE if used}
    flags = [f"{flag} in {units.percent(s, 0)}" for flag, s in spoilt.items() if s > SPOILT_SHARE]
    if flags:
        reason = f"{', '.join(flags)} of the pairs; else {row.verdict}: {row.reason}"
        return row.told("INCONCLUSIVE", "invalid-machine", reason)
    return row


# ------------------------------------------------------------------------------ labels


def label(baseline: Cell, candidate: Cell, trees: Sequence[str] = ("", "")) -> str:
    """The candidate's label, with 'old -> new' wherever the baseline's cell differs.

    'torch-eager -> onnxruntime fp32 b1 x1 latency'. Options belong to a backend, so those of two
    backends stand with their names. Of paths what is in the arms' ``trees`` counts.
    """
    if baseline == candidate:
        return candidate.label
    same = baseline.backend == candidate.backend
    words = [
        old if old == new else f"{old} -> {new}"
        for (old, unsaid), (new, _) in zip(baseline.words, candidate.words, strict=True)
        if (old, new) != (unsaid, unsaid)
    ]
    if not same:
        words[0] = " -> ".join(map(_engine, (baseline, candidate)))
    for name in sorted({*baseline.options, *candidate.options}) if same else ():
        old, new = (str(c.options.get(name, "unset")) for c in (baseline, candidate))
        words.append(f"{name}={new}" if old == new else f"{name}={old} -> {new}")
    unseen = []
    for name in ("model", "weights", "images", "device", "cores"):
        old, new = (
            _within(str(getattr(c, name)), tree)
            for c, tree in zip((baseline, candidate), trees, strict=True)
        )
        unseen += [f"{name} {old} -> {new}"] if old != new else []
    return " ".join(words) + (f" ({', '.join(unseen)})" if unseen else "")


def _engine(c: Cell) -> str:
    options = ", ".join(f"{k}={v}" for k, v in sorted(c.options.items()))
    return f"{c.backend} ({options})" if options else c.backend


def _within(path: str, tree: str) -> str:
    """Without the folder ``tree`` that it begins with, and without '..'."""
    inside = tree and path.startswith(f"{tree}/")
    return os.path.normpath(path.removeprefix(f"{tree}/")) if inside else path
