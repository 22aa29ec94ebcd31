"""The winners of a run, outcomes by their number, and which flags occurred."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from gpubench.analysis.best import best
from gpubench.analysis.summary import Summary, invalidated, raised, rated
from gpubench.report import formatting
from gpubench.suite.types import title
from gpubench.units import count

Measure = Literal["throughput", "latency"]
SHOWN = 2
"""Configurations of the winner's own backend that are named as ties."""


class Winner(Struct, frozen=True, kw_only=True):
    """The best ranked cell of one workload by one measure."""

    measure: Measure
    summary: Summary
    ties: list[Summary]
    """What cannot be told from it, the better ones first."""
    rivals: list[str]
    """These in words: other backends, and other configurations of its own."""


def winners(summaries: Sequence[Summary]) -> list[Winner]:
    """Fastest throughput and lowest latency of each workload (model, images, device, boundary)."""
    groups: dict[tuple[str, ...], list[Summary]] = {}
    for s in summaries:
        groups.setdefault(workload(s), []).append(s)
    measures: tuple[Measure, ...] = ("throughput", "latency")
    found = [_best(measure, group) for group in groups.values() for measure in measures]
    return [winner for winner in found if winner]


def workload(s: Summary) -> tuple[str, ...]:
    """What cells must share to be ranked against each other."""
    c = s.cell
    return title(c.model), c.weights, c.images, c.device, c.boundary


def differing(won: Sequence[Winner]) -> list[str]:
    """Of each workload what tells it from the others: 'resnet18, pipeline'; '' of one alone."""
    columns = zip(*(workload(w.summary) for w in won), strict=True)
    vary = [len(set(values)) > 1 for values in columns]
    return [", ".join(v for v, varies in zip(workload(w.summary), vary, strict=True) if varies)
            for w in won]  # fmt: skip


def _best(measure: Measure, group: list[Summary]) -> Winner | None:
    latency = measure == "latency"
    rows = [s for s in group if s.cell.scenario == "latency"] if latency else rated(group)
    found = best(rows, latency=latency)
    if found is None:
        return None
    return Winner(measure=measure, summary=found.summary, ties=found.ties,
                  rivals=_named(found.ties, found.summary))  # fmt: skip


def _named(ties: Sequence[Summary], won: Summary) -> list[str]:
    """Other backends, then in what other configurations of the winner's backend differ from it."""
    backends = dict.fromkeys(s.cell.backend for s in ties if s.cell.backend != won.cell.backend)
    own = [_differs(s, won) for s in ties if s.cell.backend == won.cell.backend]
    more = [count(len(own) - SHOWN, "other configuration") + " of it"] if len(own) > SHOWN else []
    return [*backends, *own[:SHOWN], *more]


def _differs(s: Summary, won: Summary) -> str:
    """'openvino (bf16, 2 replicas)': what `where` says of ``s`` and does not say of ``won``; of one
    that has nothing more: 'openvino (without uint8 input)'."""
    own, plain = (where(x).removeprefix(f"{x.cell.backend} ").split(", ") for x in (s, won))
    more = [word for word in own if word not in plain]
    less = [word for word in plain if word not in own]  # it is plainer in all in which it differs
    return f"{s.cell.backend} ({', '.join(more or ['without ' + ', '.join(less)])})"


def where(s: Summary) -> str:
    """'openvino bf16, batch 64, 4 replicas, 2 per device, dynamic'."""
    c = s.cell
    words = [f"{c.backend} {c.precision}", f"batch {c.batch_size}", count(c.replicas, "replica")]
    return ", ".join([*words, *formatting.unusual(c).values(), *formatting.options(c)])


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
    found = Counter(f for s in summaries for f in raised(s)).most_common()
    thrown = [n for s in summaries if (n := sum(r.invalidated for r in s.records))]
    return found + ([(invalidated(sum(thrown)), len(thrown))] if thrown else [])


def marks(summaries: Sequence[Summary]) -> list[str]:
    """'DRIFT (2 cells): what it means', one for each flag."""
    return [f"{f} ({count(n, 'cell')}): {formatting.meaning(f)}" for f, n in flags(summaries)]
