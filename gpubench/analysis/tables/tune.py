"""The tables of a search: its Pareto front, and everything not chosen."""

from __future__ import annotations

from functools import partial
from statistics import geometric_mean

from gpubench.analysis import stats, telemetry
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary, flags_of
from gpubench.analysis.tables import accuracy, roofline
from gpubench.analysis.tables.table import Column, Field, Table, of_rows, with_axes
from gpubench.analysis.tune import objective, result
from gpubench.analysis.tune.result import OUTCOMES, View, outcome
from gpubench.suite.goal import Kind, Metric

UNITS = {"throughput": "images/s", "latency": "ns", "energy": "J", "memory": "bytes"}
"""Of a metric, as columns name them."""

ROOFLINE = Column("of the roofline", "fraction", "higher", "share of what the measured peak of "
                  "matrix products and the bandwidth of memory leave possible")  # fmt: skip
BINDS = Column("bound by", help="which side of the roofline is the lower one")


def build(found: View) -> list[Table]:
    """All that have rows."""
    made = [front(found), others(found)]
    return [table for table in made if table.rows]


def front(found: View) -> Table:
    """The configurations that none beats in both throughput and latency, the fastest first."""
    keys = result.front(found)
    standings = {s.cell.key: s for s in found.standings if s.cell.key in keys}
    summaries = [found.summaries[key] for key in standings]
    summaries.sort(key=lambda s: -(s.throughput.value or 0.0))
    extra = [m for m in _asked(found) if any(mean(s, m).value for s in summaries)]

    def own(s: Summary, kind: Kind, plain: Estimate) -> Estimate:
        """The search's own estimate where it is what was sought: that of the tiles."""
        mine = standings[s.key].value
        return mine if mine.value and Metric(kind) == found.goal.objective else plain

    roof: list[Field] = [(ROOFLINE, roofline.estimate), (BINDS, roofline.binding)]
    text = "geometric mean over the repeats that have it"
    fields: list[Field] = [
        (Column("images/s", "images/s", "higher", "images of all replicas / wall time"),
         lambda s: own(s, "throughput", s.throughput)),
        (Column("time of a batch", "ns", "lower", "median"),
         lambda s: own(s, "latency", s.p50)),
        *((Column(m.name, UNITS[m.kind], "lower", text), partial(mean, asked=m)) for m in extra),
        *accuracy.bound(summaries),
        *(roof if any(map(roofline.binding, summaries)) else []),
        (Column("outcome", help="what became of it"),
         lambda s: OUTCOMES[outcome(found, standings[s.key])]),
    ]  # fmt: skip
    notes = ["Of the measured configurations whose answers match. Limits do not count here: "
             "the front shows what they cost. 95 % intervals."]  # fmt: skip
    return of_rows("Pareto front", summaries, fields, notes)


def _asked(found: View) -> list[Metric]:
    """Metrics beside throughput and p50: those of the goal, and memory."""
    asked = [*found.goal.metrics, Metric("memory"), Metric("energy")]
    plain = (Metric("throughput"), Metric("latency"))
    return [m for m in dict.fromkeys(asked) if m not in plain]


def mean(s: Summary, asked: Metric) -> Estimate:
    """Of the repeats that ended well; of memory the most."""
    if asked.kind == "energy":
        return telemetry.energy(s) or Estimate(why="not counted")
    values = [v for r in s.records if r.status == "ok" and (v := objective.value(r, asked))]
    if asked.kind == "memory":
        return Estimate(value=max(values), n=len(values)) if values else Estimate()
    if len(values) < 2:
        return stats.geometric_mean(values) if values else Estimate(why="not measured")
    return Estimate(value=geometric_mean(values), n=len(values))


def others(found: View) -> Table:
    """Everything that is not recommended, and why: what came nearest first."""
    rows = result.nearest(found, [s for s in found.standings if s is not found.best])
    goal = found.goal.objective
    columns = (
        Column("outcome", help="what became of it"), Column("why"),
        Column(goal.name, UNITS[goal.kind], "higher" if goal.more_is_better else "lower",
               "the objective; 95 % interval"),
        Column("cost", "x", "lower", "against the recommended one's; 95 % interval"),
        Column("repeats", "count", help="measured"),
    )  # fmt: skip
    body = []
    for s in rows:
        each = found.summaries[s.cell.key]
        marks = [f for f in flags_of(each) if f not in UNSAID]
        none = Estimate(why="not measured")
        body.append((each, [OUTCOMES[outcome(found, s)], s.reason, s.value if s.n else none,
                            s.behind if s.n and s.behind else none, s.n, marks]))  # fmt: skip
    return with_axes("Not chosen", columns, body, [])


UNSAID = ("ruled-out", "not reached", "missing")
"""What the outcome says already."""
