"""HTML of a search: the recommendation first, then its evidence, charts and tables."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from gpubench import units
from gpubench.analysis import answertable, tuning, tuningtables
from gpubench.analysis.compare import view
from gpubench.analysis.layout import Column
from gpubench.analysis.tuning import Evidence, View
from gpubench.goal import Metric
from gpubench.record import RecordFile
from gpubench.report import forest, page, recommend, show, templating, tunecharts
from gpubench.report.verdictpage import PATHS

_RIGHT = Column(name="right", unit="share of n")

SHAPES = PATHS | {"cross": "M3 3l8 8M11 3l-8 8", "triangle-up": "M7 2l5 9.5H2z"}
SAMPLED = 20
"""Cells that are not told apart and whose samples are drawn, at most."""
LISTED = 200
"""Cells in the run's own tables, at most: the page stays below 3 MB."""
WHAT = ("measures it again", "writes what serves it")
"""What `recommend.commands` do."""


def render(file: RecordFile, evidence: Evidence | None = None) -> str:
    """The page of a search; raises InputError for the records of something else."""
    found = tuning.view(file, evidence)
    drawn = tunecharts.build(found)
    behind = _behind(found, evidence)
    shown = context(found, drawn, behind, evidence)
    return page.search(file, shown, drawn, behind)


def context(
    found: View, drawn: dict[str, Any], behind: dict[str, Any], evidence: Evidence | None
) -> dict[str, Any]:
    """What ``tune.html.j2`` lays out."""
    file = found.file
    told = recommend.lines(file, evidence)
    command = show.command(file.header)
    of_cell = {c.key: show.command(file.header, c.key) for c in file.header.planned}
    looks = {look["name"]: look | {"path": PATHS[look["shape"]]}
             for look in (forest.legend([found.verdict]) if found.verdict else [])}  # fmt: skip
    return {
        "title": f"{show.title([file])}: search", "best": found.best is not None,
        "headline": told[0], "lines": [] if found.best else told[1:],
        "commands": list(zip(recommend.commands(file), WHAT, strict=True)) if found.best else [],
        "tiles": _tiles(found), "charts": drawn["charts"], "backends": drawn["backends"],
        "shapes": [
            {"name": text, "path": SHAPES[shape], "filled": filled, "colour": "var(--ink)"}
            for (shape, filled, _), text in drawn["shapes"]
        ],
        "behind": [{**c, "look": looks[c["verdict"]]} for c in behind.get("cells", ())],
        "evidence": "The recommended configuration against today's default, interleaved.",
        "sampled": _sampled(found), "listed": _listed(found),
        "tables": [templating.table(t, of_cell) for t in tuningtables.build(found)],
        "again": command,
    }  # fmt: skip


def _sampled(found: View) -> list[str]:
    """Cells whose samples are drawn: hundreds would make the page too large to be quick."""
    near = [s.cell.key for s in found.standings if s.status in ("leader", "alive")][:SAMPLED]
    also = [s.cell.key for s in (found.best, found.base) if s]
    return [*near, *also]


def _listed(found: View) -> list[str]:
    """Cells that the run's own tables have: those measured, the best first."""
    measured = tuning.measured(found)
    tried = tuning.nearest(found, [s for s in found.standings if s.cell.key in measured])
    return [s.cell.key for s in tried[:LISTED]] + [s.cell.key for s in (found.base,) if s]


def _behind(found: View, evidence: Evidence | None) -> dict[str, Any]:
    """The A/B pair by pair; {} without one."""
    if found.verdict is None or evidence is None:
        return {}
    return forest.behind(replace(view(*evidence), rows=[found.verdict]))


def _tiles(found: View) -> list[dict[str, Any]]:
    best, goal = found.best, found.goal.objective
    tiles = []
    if best is not None:
        tiles.append(_tile(recommend.title(goal), *recommend.shown(best.value, goal)))
        times = show.show(found.gain, Column(name="", unit="x"))
        what = f"{recommend.BETTER[goal.kind]} today's default"
        default = found.base and f"{recommend.where(found, found.base)}: " + recommend.amount(
            found.base.value, goal
        )
        tiles.append(_tile("Against today's default", times.main, f"{what} {times.aside}".strip(),
                           recommend.sureness(found) if found.gain.value else "",
                           default or ""))  # fmt: skip
        tiles.append(_answers(found))
        tiles += _limits(found)
        tiles += _left(found)
    measured = len(tuning.measured(found))
    tiles.append(_tile("Tried", f"{measured} of {len(found.standings)}",
                       f"configurations, in {units.clock(tuning.spent_s(found))} of measuring",
                       *recommend.outcomes(found)))  # fmt: skip
    return tiles


def _answers(found: View) -> dict[str, Any]:
    summary = found.summaries[found.best.cell.key] if found.best else None
    agree = answertable.agreement(summary) if summary else None
    if summary is None or agree is None:
        return _tile("Answers", show.NOTHING, "not checked")
    right = answertable.accuracy(summary)
    drop = answertable.drop(summary)
    more = [] if right.value is None else [f"accuracy {show.full(right, _RIGHT)}"]
    more += [] if drop is None else [f"{0.0 - drop:+.1f} points against the reference's"]
    return _tile("Answers", units.percent(agree), "agree with the fp32 reference's", *more)


def _limits(found: View) -> list[dict[str, Any]]:
    made = []
    for kept in found.best.limits if found.best else ():
        metric = kept.limit.metric
        value = show.NOTHING if kept.value is None else metric.text(kept.value)
        aside = f"{kept.limit.text}: {'kept' if kept.state == 'met' else 'not yet shown'}"
        more = "" if kept.worst is None else (
            f"one repeat in 100 would show {metric.text(kept.worst)}"
        )  # fmt: skip
        made.append(_tile(recommend.title(metric), value, aside, more))
    return made


def _left(found: View) -> list[dict[str, Any]]:
    share = tuning.share_of(found)
    if share is None or found.best is None:
        return []
    rate = Metric("throughput").text(1e9 * found.best.cell.total_batch / share.roofline_ns)
    side = {"compute": "the measured peak of matrix products",
            "memory": "the measured bandwidth of memory"}[share.binds]  # fmt: skip
    times = units.significant(1 / share.share) if share.share else show.NOTHING
    more = f"it allows {rate}" + (f", {times} times as many" if share.share < 1 else "")
    return [_tile("How much is left", units.percent(share.share), "of the roofline",
                  f"{share.binds} binds: {side}", more)]  # fmt: skip


def _tile(title: str, main: str, aside: str, *more: str) -> dict[str, Any]:
    return {"title": title, "main": main, "aside": aside, "more": [m for m in more if m]}
