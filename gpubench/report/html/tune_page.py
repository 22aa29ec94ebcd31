"""HTML of a search: the recommendation first, then its evidence, charts and tables."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from gpubench import units
from gpubench.analysis.compare.compare import view
from gpubench.analysis.summary import Summary
from gpubench.analysis.tables import accuracy, tune
from gpubench.analysis.tune import result
from gpubench.analysis.tune.constraints import Kept
from gpubench.analysis.tune.pruning import MARGIN
from gpubench.analysis.tune.result import Evidence, View
from gpubench.records.record import RecordFile
from gpubench.report import formatting
from gpubench.report.charts import compare
from gpubench.report.charts import tune as charts_tune
from gpubench.report.html import page, templating
from gpubench.report.html.compare_page import PATHS
from gpubench.report.sections import recommendation
from gpubench.suite.goal import Metric

SHAPES = PATHS | {"cross": "M3 3l8 8M11 3l-8 8", "triangle-up": "M7 2l5 9.5H2z"}
SAMPLED = 20
"""Cells that are not told apart and whose samples are drawn, at most."""
LISTED = 200
"""Cells in the run's own tables, at most: the page stays below 3 MB."""
WHAT = ("measures it again", "writes what serves it")
"""What `recommendation.commands` do."""


def render(file: RecordFile, evidence: Evidence | None = None) -> str:
    """The page of a search; raises InputError for the records of something else."""
    found = result.view(file, evidence)
    drawn, behind = charts_tune.build(found), _behind(found, evidence)
    told = recommendation.lines(file, evidence)
    command = formatting.command(file.header)
    of_cell = {c.key: formatting.command(file.header, c.key) for c in file.header.planned}
    looks = {look["name"]: look | {"path": PATHS[look["shape"]]}
             for look in (compare.legend([found.verdict]) if found.verdict else [])}  # fmt: skip
    near = found.leader or result.closest(found)
    sure = not found.unseen and not (found.verdict and found.verdict.verdict == "INCONCLUSIVE")
    shown = {
        "title": f"{formatting.title([file])}: search", "best": found.best is not None,
        "tone": "bad" if found.settled or not near else "good" if found.best and sure else "warn",
        "headline": told[0], "lines": _said(found) if found.best else told[1:],
        "commands":
            list(zip(recommendation.commands(file), WHAT, strict=True)) if found.best else [],
        "tiles": _tiles(found), "charts": drawn["charts"], "backends": drawn["backends"],
        "shapes": [
            {"name": text, "path": SHAPES[shape], "filled": filled, "colour": "var(--ink)"}
            for (shape, filled, _), text in drawn["shapes"]
        ],
        "behind": [{**c, "look": looks[c["verdict"]]} for c in behind.get("cells", ())],
        "evidence": "The recommended configuration against today's default, interleaved.",
        "sampled": _sampled(found), "listed": _listed(found),
        "tables": [templating.table(t, of_cell) for t in tune.build(found)],
        "again": command,
    }  # fmt: skip
    listed = [s for key, s in found.summaries.items() if key in shown["listed"]]
    return page.page([file], listed, {}, {"behind": behind} if behind else {}, shown, drawn)


def _said(found: View) -> list[str]:
    """What no tile says of a recommendation."""
    tied = recommendation.ties(found, found.best) if found.best else []
    return tied + recommendation.failures(found)


def _sampled(found: View) -> list[str]:
    """Cells whose samples are drawn: hundreds would make the page too large to be quick."""
    near = [s.cell.key for s in found.standings if s.status in ("leader", "alive")][:SAMPLED]
    also = [s.cell.key for s in (found.best, found.base) if s]
    return [*near, *also]


def _listed(found: View) -> list[str]:
    """Cells that the run's own tables have: those measured, the best first."""
    measured = result.measured(found)
    tried = [s for s in found.standings if s.cell.key in measured or s.status == "failed"]
    tried = result.nearest(found, tried)
    return [s.cell.key for s in tried[:LISTED]] + [s.cell.key for s in (found.base,) if s]


def _behind(found: View, evidence: Evidence | None) -> dict[str, Any]:
    """The A/B pair by pair; {} without one."""
    if found.verdict is None or evidence is None:
        return {}
    return compare.behind(replace(view(*evidence), rows=[found.verdict]))


def _tiles(found: View) -> list[dict[str, Any]]:
    best, goal = found.best, found.goal.objective
    tiles = []
    if best is not None:
        tiles.append(_tile(recommendation.title(goal), *recommendation.shown(best.value, goal)))
        times, _, aside = recommendation.times(found.gain).partition(" ")
        times = f"{times}×" if found.gain.value else formatting.NOTHING
        what = f"{recommendation.BETTER[goal.kind]} today's default"
        default = found.base and recommendation.default(found, found.base)
        tiles.append(_tile("Against today's default", times, f"{what} {aside}",
                           recommendation.sureness(found) if found.gain.value else "",
                           default or ""))  # fmt: skip
        tiles.append(_answers(found.summaries[best.cell.key]))
        tiles += map(_limit, best.limits)
        tiles += _left(found)
    measured, (seen, of) = len(result.measured(found)), recommendation.backends(found)
    tiles.append(_tile("Measured", f"{measured} of {len(found.standings)}",
                       f"configurations, of {seen} of {units.count(of, 'backend')}, in "
                       f"{units.clock(result.spent_s(found))}",
                       *recommendation.outcomes(found)))  # fmt: skip
    return tiles


def _answers(summary: Summary) -> dict[str, Any]:
    agree = accuracy.agreement(summary)
    if agree is None:
        return _tile("Answers", formatting.NOTHING, "not checked")
    right, drop = accuracy.accuracy(summary), accuracy.drop(summary)
    more = [] if right.value is None else [f"accuracy {formatting.full(right, 'share of n')}"]
    more += [] if drop is None else [f"{0.0 - drop:+.1f} points against the reference's"]
    return _tile("Answers", units.percent(agree), "match the fp32 reference's", *more)


def _limit(kept: Kept) -> dict[str, Any]:
    metric = kept.limit.metric
    value = formatting.NOTHING if kept.value is None else metric.text(kept.value)
    aside = f"{kept.limit.text}: {'kept' if kept.state == 'met' else 'not yet shown'}"
    worst = "" if kept.worst is None else metric.text(kept.worst)
    more = worst and f"one repeat in 100 would show {worst}"
    return _tile(recommendation.title(metric), value, aside, more)


def _left(found: View) -> list[dict[str, Any]]:
    share = result.share_of(found)
    if share is None or found.best is None:
        return []
    if share.share > 1 + MARGIN:
        return [_tile("How much is left", formatting.NOTHING, recommendation.left(found))]
    rate = Metric("throughput").text(1e9 * found.best.cell.total_batch / share.roofline_ns)
    side = {"compute": "the measured peak of matrix products",
            "memory": "the measured bandwidth of memory"}[share.binds]  # fmt: skip
    times = units.significant(1 / share.share) if share.share else formatting.NOTHING
    more = f"it allows {rate}" + (f", {times} times as many" if share.share < 1 else "")
    return [_tile("How much is left", units.percent(share.share), "of the roofline",
                  f"bound by {share.binds}: {side}", more)]  # fmt: skip


def _tile(title: str, main: str, aside: str, *more: str) -> dict[str, Any]:
    return {"title": title, "main": main, "aside": aside, "more": [m for m in more if m]}
