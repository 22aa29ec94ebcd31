"""HTML of a search: the recommendation first, then its evidence, charts and tables."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from gpubench.analysis.compare.compare import view
from gpubench.analysis.tables import tune
from gpubench.analysis.tune import result
from gpubench.analysis.tune.result import Evidence, View
from gpubench.records.record import RecordFile
from gpubench.report import formatting
from gpubench.report.charts import compare
from gpubench.report.charts import tune as charts_tune
from gpubench.report.html import page, templating
from gpubench.report.sections import recommendation

SHAPES = compare.PATHS | {"cross": "M3 3l8 8M11 3l-8 8", "triangle-up": "M7 2l5 9.5H2z"}
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
    verdicts = [found.verdict] if found.verdict else []
    looks = {look["name"]: look for look in compare.legend(verdicts)}
    near = found.leader or result.closest(found)
    sure = not found.unseen and not found.unconfirmed
    shown = {
        "title": f"{formatting.title([file])}: search",
        "tone": "bad" if found.settled or not near else "good" if found.best and sure else "warn",
        "headline": told[0], "lines": told[1:],
        "commands":
            list(zip(recommendation.commands(file), WHAT, strict=True)) if found.best else [],
        "charts": drawn["charts"], "backends": drawn["backends"],
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
