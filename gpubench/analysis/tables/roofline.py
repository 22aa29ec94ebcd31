"""The table of how near each cell came to its roofline, and which side of it binds."""

from __future__ import annotations

from collections.abc import Sequence

from gpubench.analysis.roofline import shares
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary, flags_of
from gpubench.analysis.tables.table import Body, Column, Table, with_axes
from gpubench.records.record import NO_CEILING, Ceiling

TITLE = "Share of the roofline"
ABOVE = (
    "Above 100 %: fewer operations were needed than counted (Winograd), caches spared the memory, "
    "or the peak was measured in a bad moment: measure it again on a quiet machine."
)
COLUMNS = (
    Column("share", "fraction", "higher", "achieved / what the roofline allows: the peak, or "
           "arithmetic intensity x bandwidth, whichever is less; geometric mean over repeats"),
    Column("bound by", help="which side of the roofline the cell is under"),
    Column("GFLOP/s", "GFLOP/s", "higher", "achieved by all replicas: images/s, or batch size / "
           "median latency, x counted FLOPs of an image, done or not"),
    Column("peak", "GFLOP/s", "higher", "of matrix products, on the same cores or GPU; measured"),
    Column("in", help="what the products of that peak were computed in"),
    Column("intensity", "FLOP/byte", "higher", "FLOPs per byte of weights, and of what layers "
           "with products and pooling read and write when all else is fused into them"),
    Column("GB/s", "GB/s", "higher", "of memory, to the same cores or GPU; measured"),
)  # fmt: skip


def table(summaries: Sequence[Summary]) -> Table:
    """A row for each cell whose records have a ceiling."""
    held = [(s, c) for s in summaries if (c := ceiling_of(s)) and shares(s)]
    several = len({s.cell.scenario for s, _ in held}) > 1
    body: Body = []
    for s, ceiling in held:
        found = shares(s)
        achieved = s.level("GFLOP/s", _achieved)
        row = [estimate(s), binding(s), achieved, ceiling.flops_per_s / 1e9, ceiling.precision,
               next(iter(found.values())).intensity, ceiling.bytes_per_s / 1e9]  # fmt: skip
        body.append((s, [*([s.cell.scenario] if several else []), *row, flags_of(s)]))
    notes = ["Peak and memory are those of all replicas together, measured in the same run."]
    notes += [ABOVE] if any((estimate(s).value or 0) > 1 for s, _ in held) else []
    reasons = dict.fromkeys(str(r.facts[NO_CEILING]) for s in summaries for r in s.timed
                            if NO_CEILING in r.facts)  # fmt: skip
    notes += [f"Left out: {words}." for words in reasons]
    return with_axes(TITLE, ((Column("scenario"),) if several else ()) + COLUMNS, body, notes)


def estimate(s: Summary) -> Estimate:
    """The share over repeats."""
    return s.level("share of the roofline", _shares)


def _shares(s: Summary) -> dict[int, float]:
    return {n: found.share for n, found in shares(s).items()}


def _achieved(s: Summary) -> dict[int, float]:
    """GFLOP/s."""
    return {n: found.flops_per_s / 1e9 for n, found in shares(s).items()}


def binding(s: Summary) -> str:
    """'compute' or 'memory'; '' without a roofline."""
    return next((found.binds for found in shares(s).values()), "")


def ceiling_of(s: Summary) -> Ceiling | None:
    """That of the first repeat that has one; a resumed run measures anew."""
    return next((r.ceiling for r in s.timed if r.ceiling), None)
