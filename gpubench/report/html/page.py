"""HTML: one self-contained file that opens from disk, needs no network and prints well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpubench.analysis.compare.compare import View
from gpubench.analysis.scaling.diagnosis import diagnose
from gpubench.analysis.summary import Summary, run_names
from gpubench.analysis.tables.run import of_cells
from gpubench.records.record import RecordFile
from gpubench.report import formatting
from gpubench.report.charts import compare, overview, pipeline
from gpubench.report.charts import samples as charts_samples
from gpubench.report.html import compare_page, templating
from gpubench.report.sections import headline, scaling, wrong_answers
from gpubench.report.sections import pipeline as sections_pipeline

SCRIPTS = ("page.js", "charts.js", "pipeline.js", "compare.js", "samples.js", "tune.js")


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
) -> str:
    """The page of runs; ``verdict`` and ``tune``: what stands on top of it."""
    verdict = verdict or {}
    found = diagnose(summaries)
    drawn = overview.build(summaries)
    samples = charts_samples.build([s for s in summaries if not tune or s.key in tune["sampled"]])
    stages = pipeline.page(summaries)
    drawn |= {"verdict": evidence or None, "samples": samples, "pipeline": stages, "tune": tuned}
    lines = sections_pipeline.headline(summaries)
    named = list(zip(run_names(files), files, strict=True))
    headers = {name: f.header for name, f in named}
    of_cell = {s.key: formatting.command(headers[s.run], s.key) for s in reversed(summaries)}
    some = bool(drawn["charts"] or samples["cells"] or evidence or (tuned and tuned["charts"]))
    shared = _shared(files)
    return templating.fill(
        "page.html.j2",
        SCRIPTS,
        drawn,
        some,
        title=(tune or verdict).get("title", formatting.title(files)),
        drawn=some,
        verdict=verdict,
        tune=tune,
        shared=shared,
        runs=[_run(name, f, shared) for name, f in named],
        winners=[(w, headline.where(w.summary)) for w in headline.winners(summaries)],
        counts=headline.counts(summaries),
        flags=[(flag, n, formatting.meaning(flag)) for flag, n in headline.flags(summaries)],
        charts=drawn["charts"],
        pipeline=stages | {"headline": lines} if stages or lines else {},
        differing=wrong_answers.page(summaries),
        differences=formatting.differences(files),
        shortfalls=scaling.page(found),
        tables=[templating.table(t, of_cell) for t in of_cells(summaries, found)],
        samples=[{**cell, "note": charts_samples.note(cell)} for cell in samples["cells"]],
        commands=list(dict.fromkeys(formatting.command(header) for header in headers.values())),
        paired=all(header.pairing for header in headers.values()),
    )


def _shared(files: Sequence[RecordFile]) -> list[str]:
    """What the head says once: description and machine, where several runs have the same."""
    words = [(f.header.suite.description, formatting.machine(f.header)) for f in files]
    columns = zip(*words, strict=True) if len(files) > 1 else ()
    return [column[0] for column in columns if column[0] and len(set(column)) == 1]


def _run(name: str, file: RecordFile, shared: Sequence[str] = ()) -> dict[str, Any]:
    head = file.header
    machine = formatting.machine(head)
    told = [head.suite.description, machine]
    run = head.run_id if head.pairing else name  # an arm's name is said beside it
    own = [*(t for t in told if t and t not in shared), head.started, f"run {run}",
           f"raw records: {file.path}"]  # fmt: skip
    others = [_sections(environment) for environment in head.nodes]
    return {
        "name": name, "machine": machine, "path": file.path, "own": own, "notes": file.notes,
        "sections": {} if others else _sections(head.environment),
        "nodes": list(zip(formatting.nodes(head), others, strict=True)),
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
