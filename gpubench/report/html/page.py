"""HTML: one self-contained file that opens from disk, needs no network and prints well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gpubench import units
from gpubench.analysis.compare.compare import View
from gpubench.analysis.scaling.diagnosis import diagnose
from gpubench.analysis.summary import Summary, flags_of, run_names
from gpubench.analysis.tables import table
from gpubench.analysis.tables.pipeline import STAGES
from gpubench.analysis.tables.run import FAILED, of_cells
from gpubench.analysis.tables.table import Table
from gpubench.records.record import RecordFile
from gpubench.report import formatting
from gpubench.report.charts import compare, overview, pipeline, ranks
from gpubench.report.charts import samples as charts_samples
from gpubench.report.html import compare_page, templating
from gpubench.report.sections import answers, headline, scaling, wrong_answers
from gpubench.report.sections import pipeline as sections_pipeline

SCRIPTS = ("page.js", "charts.js", "compare.js", "samples.js", "tune.js")


def comparison(view: View, code: int | None = None) -> str:
    """The page of a comparison: the verdict and its evidence first, then both runs, folded.

    ``code``: the exit code, where --fail-on made it another one.
    """
    drawn = {"forest": compare.forest(view.rows, view.rule), "behind": compare.behind(view)}
    shown = compare_page.context(view, drawn, code)
    cells = [s for side in view.sides() for s in side.values()]  # whatever order runs came in
    return page([view.base, view.candidate], cells, shown, drawn)


def page(
    files: Sequence[RecordFile],
    summaries: list[Summary],
    verdict: dict[str, Any] | None = None,
    evidence: dict[str, Any] | None = None,
    tune: dict[str, Any] | None = None,
    tuned: dict[str, Any] | None = None,
    *,
    one: bool = False,
) -> str:
    """The page of runs; ``verdict`` and ``tune``: what stands on top of it.

    ``one``: only what fits on one screen or sheet, without scripts.
    """
    verdict = verdict or {}
    found = diagnose(summaries)
    won = answers.ordered(headline.winners(summaries))
    drawn = overview.build(summaries, won[0].summary if won else None)
    samples = charts_samples.build([s for s in summaries if not tune or s.key in tune["sampled"]])
    drawn |= {"verdict": evidence or None, "samples": samples, "tune": tuned}
    named = list(zip(run_names(files), files, strict=True))
    headers = {name: f.header for name, f in named}
    of_cell = {s.key: formatting.command(headers[s.run], s.key) for s in reversed(summaries)}
    places = answers.places(files)
    some = bool(drawn["charts"] or samples["cells"] or evidence or (tuned and tuned["charts"]))
    stages, lines = pipeline.page(summaries), sections_pipeline.headline(summaries)
    return templating.fill(
        "page.html.j2",
        () if one else SCRIPTS,
        drawn,
        some and not one,
        title=(tune or verdict).get("title", formatting.title(files)),
        drawn=some and not one,
        one=one,
        verdict=verdict,
        tune=tune,
        constants=_constants(files, summaries),
        runs=[_run(name, f) for name, f in named],
        answers=answers.answers(files, summaries, won, places),
        ranks=ranks.build(won, summaries),
        devices=ranks.by_device(summaries),
        machines=ranks.machines(won, summaries, places),
        causes=answers.causes(summaries),
        flags=[
            (flag, n, formatting.meaning(flag))
            for flag, n in Counter(
                f for s in summaries if s.timed for f in flags_of(s)
            ).most_common()
        ],
        charts=drawn["charts"],
        pipeline=stages | {"headline": lines} if stages or lines else {},
        differing=wrong_answers.page(summaries),
        differences=formatting.differences(files),
        shortfalls=scaling.page(found),
        tables=[] if one else _tables(summaries, of_cells(summaries, found), of_cell),
        samples=[{**cell, "note": charts_samples.note(cell)} for cell in samples["cells"]],
        commands=list(dict.fromkeys(formatting.command(header) for header in headers.values())),
        paired=all(header.pairing for header in headers.values()),
    )


JOINED = {
    "Latency per batch": "Latency", "Throughput": "Throughput", "Answers": "Check of answers",
    "Accuracy": "Accuracy", "Share of the roofline": "Roofline",
    "Machine while measuring": "Machine", "Cold start": "Cold start",
}  # fmt: skip
"""Tables with a row for each cell -> their group of columns in the one that the page shows."""


def _tables(
    summaries: Sequence[Summary], made: Sequence[Table], of_cell: dict[str, str]
) -> list[dict[str, Any]]:
    """The one of all cells, then those about something else; failures are told on top."""
    by_title = {t.title: t for t in made}
    joined = table.joined(summaries, [(name, by_title[t]) for t, name in JOINED.items()
                                      if t in by_title])  # fmt: skip
    notes = [(name, [n for n in by_title[t].notes if not n.startswith(formatting.EVERY)])
             for t, name in JOINED.items() if t in by_title]  # fmt: skip
    one = templating.table(joined.table, of_cell, joined.groups) | {"more": notes}
    rest = [templating.table(t, of_cell, _stages(t)) for t in made
            if t.title not in (*JOINED, FAILED)]  # fmt: skip
    return [*([one] if one["rows"] else []), *rest]


def _stages(made: Table) -> list[tuple[str, int]]:
    """Groups of the columns of the table of stages; of others none."""
    if made.title != STAGES:
        return []
    names = [c.name for c in made.columns]
    read, total, flags = names.index("read"), names.index("one after another"), len(names) - 2
    return [("", read), ("Stages", total - read), (templating.OVERLAP, flags - total)]


def _constants(files: Sequence[RecordFile], summaries: Sequence[Summary]) -> list[str]:
    """What all cells share: workload, machine, and axes with a single value."""
    words = []
    if summaries:
        axes = dict(zip(table.AXES, zip(*map(table.axis_values, summaries), strict=True),
                        strict=True))  # fmt: skip
        same = {a: v[0] for a, v in axes.items() if len(set(v)) == 1 and v[0] not in ("", 0)}
        said = {"model": "{}", "weights": "{} weights", "images": "{} images", "device": "on {}",
                "precision": "{}", "batch": "batch {}", "boundary": "boundary {}",
                "decoder": "{} decoder"}  # fmt: skip
        words = [text.format(same[a]) for a, text in said.items() if a in same]
        words += [f"{units.count(same['cores'], 'core')} a replica"] if "cores" in same else []
    machines = dict.fromkeys(answers.place(f) for f in files)
    return words + (list(machines) if len(machines) == 1 else [])


def _run(name: str, file: RecordFile) -> dict[str, Any]:
    head = file.header
    run = head.run_id if head.pairing else name  # an arm's name is said beside it
    own = [head.started[:16].replace("T", " "), f"run {run}", f"raw records: {file.path}"]
    others = [_sections(environment) for environment in head.nodes]
    return {
        "name": name, "machine": answers.place(file), "path": file.path, "own": own,
        "notes": file.notes,
        "description": head.suite.description,
        "sections": {} if others else _sections(head.environment),
        "nodes": list(zip(formatting.nodes(head.nodes), others, strict=True)),
        "fingerprint": head.fingerprint, "seed": head.seed, "baseline": head.suite.baseline,
        "repeats": head.suite.policy.repeats,
    }  # fmt: skip


def _sections(environment: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for path, value in flatten(environment):
        section, _, rest = path.partition(".")
        found.setdefault(section, []).append((rest or section, value))
    return found


def flatten(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested environment -> ('cpu.model', 'text'); lists of plain values stay on one line."""
    if isinstance(value, Mapping):
        pairs = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, list) and any(isinstance(v, Mapping | list) for v in value):
        pairs = [(str(i), v) for i, v in enumerate(value)]
    else:
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        return [(path, text or "none")]
    return [x for k, v in pairs for x in flatten(v, f"{path}.{k}" if path else k)]
