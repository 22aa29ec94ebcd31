"""HTML: one self-contained file that opens from disk, needs no network and prints well.

Every text goes through Jinja2's autoescape; the JSON for the charts is escaped so that no name in
it can end the script element it stands in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files as resources
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from gpubench import __version__, escape
from gpubench.analysis.cells import run_names, summarise
from gpubench.analysis.compare import Comparison, compare
from gpubench.analysis.diagnosis import diagnose
from gpubench.analysis.layout import Column, Table
from gpubench.analysis.stats import Estimate
from gpubench.analysis.tables import of_cells
from gpubench.record import RecordFile
from gpubench.report import (
    charts,
    differing,
    forest,
    headline,
    pathview,
    series,
    shortfalls,
    show,
    verdictpage,
    verdicts,
)
from gpubench.suite import Rule

if TYPE_CHECKING:
    from jinja2 import Environment

    from gpubench.analysis.tuning import Evidence

FOLD_ROWS = 200
"""Longer tables start folded to keep the page quick to read."""

WORDS = ("backend", "precision", "device", "scenario", "boundary", "dispatch", "scaling",
         "one replica owns", "answers",
         "decoder", "loader", "bottleneck", "slower side", "outcome", "choice",
         "binds")  # fmt: skip
"""Columns of short words that stay on one line."""
WIDE = ("limited by", "shared out", "why", "best without it")

SCRIPTS = ("page.js", "charts.js", "path.js", "verdict.js", "samples.js", "tune.js")

_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}


class Value(Struct, frozen=True):
    """One table cell as the template needs it."""

    main: str
    aside: str
    sort: str
    """What the column sorts by; '' sorts last."""
    hint: str
    items: list[tuple[str, str]]
    """Flags with their meanings."""


def safe_json(value: Any) -> str:
    """JSON that may stand inside a script element, which draws what it says."""
    return escape.drawn(value).translate(_UNSAFE)


@cache
def templates() -> Environment:
    """The only way to fill a template: every text in it is escaped, and nothing hides in it."""
    import jinja2

    return jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=jinja2.FunctionLoader(asset),
        finalize=lambda value: escape.visible(value) if type(value) is str else value,
    )  # fmt: skip


@cache
def asset(name: str) -> str:
    """A file of ``templates/``."""
    return (resources("gpubench.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def vega() -> str:
    """Vega, Vega-Lite and vega-embed as one script without imports, from vl-convert."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub errs
    return bundle.replace("</script", "<\\/script")


def render(files: Sequence[RecordFile], evidence: Evidence | None = None) -> str:
    """The whole page; of the two arms of an interleaved A/B, with the verdict on top.

    Of a search alone its own page, with its ``evidence``.
    """
    if len(files) == 1 and files[0].header.search:
        from gpubench.report import tunepage

        return tunepage.render(files[0], evidence)
    sides = verdicts.arms(files)
    return render_comparison(*sides, compare(*sides)) if sides else _page(files, {}, {})


def render_comparison(
    base: RecordFile,
    candidate: RecordFile,
    comparisons: Sequence[Comparison],
    *,
    rule: Rule | None = None,
    code: int | None = None,
) -> str:
    """The page of a comparison: the verdict and its evidence first, then both runs, folded.

    ``rule``: the one that gave the verdicts; default: the A/B's own, or `compare`'s defaults.
    ``code``: the exit code, where --fail-on made it another one.
    """
    rule = rule or verdicts.rule_of(base, candidate)
    drawn = {"forest": forest.forest(comparisons, rule),
             "behind": forest.behind(base, candidate, comparisons, rule)}  # fmt: skip
    shown = verdictpage.context(base, candidate, comparisons, drawn, rule, code)
    return _page([base, candidate], shown, drawn)


def render_search(
    file: RecordFile, shown: dict[str, Any], drawn: dict[str, Any], behind: dict[str, Any]
) -> str:
    """The page of a search (`gpubench.report.tunepage`): its own report first, then the run's."""
    return _page([file], {}, {"behind": behind} if behind else {}, shown, drawn)


def _page(
    files: Sequence[RecordFile],
    verdict: dict[str, Any],
    evidence: dict[str, Any],
    tune: dict[str, Any] | None = None,
    tuned: dict[str, Any] | None = None,
) -> str:
    from markupsafe import Markup

    summaries = [s for s in summarise(files) if not tune or s.key in tune["listed"]]
    found = diagnose(summaries)
    drawn = charts.build(summaries)
    samples = series.build([s for s in summaries if not tune or s.key in tune["sampled"]])
    path = pathview.page(summaries)
    drawn |= {"verdict": evidence or None, "samples": samples, "path": path, "tune": tuned}
    lines = pathview.headline(summaries)
    headers = {name: f.header for name, f in zip(run_names(files), files, strict=True)}
    commands = dict.fromkeys(show.command(header) for header in headers.values())
    of_cell = {s.key: show.command(headers[s.run], s.key) for s in reversed(summaries)}
    marks = [(flag, n, show.meaning(flag)) for flag, n in headline.flags(summaries)]
    scripts = "\n".join(asset(name) for name in SCRIPTS)
    some = bool(drawn["charts"] or samples["cells"] or evidence or (tuned and tuned["charts"]))
    shared = _shared(files)
    template = templates().get_template("page.html.j2")
    return template.render(
        title=(tune or verdict).get("title", show.title(files)),
        version=__version__,
        # these four are ours or made safe above: the only text that is not escaped
        style=Markup(asset("style.css")),  # noqa: S704
        script=Markup(scripts),  # noqa: S704
        vega=Markup(vega() if some else ""),  # noqa: S704
        data=Markup(safe_json(drawn)),  # noqa: S704
        drawn=some,
        verdict=verdict,
        tune=tune,
        shared=shared,
        runs=[_run(name, f, shared) for name, f in zip(run_names(files), files, strict=True)],
        winners=[(w, headline.where(w.summary)) for w in headline.winners(summaries)],
        counts=headline.counts(summaries),
        flags=marks,
        charts=drawn["charts"],
        path=path | {"headline": lines} if path or lines else {},
        differing=differing.page(summaries),
        differences=show.differences(files),
        shortfalls=shortfalls.page(found),
        tables=[table(t, of_cell) for t in of_cells(summaries, found)],
        samples=[{**cell, "note": series.note(cell)} for cell in samples["cells"]],
        commands=list(commands),
        paired=all(header.pairing for header in headers.values()),
        fold=FOLD_ROWS,
    )


def _shared(files: Sequence[RecordFile]) -> list[str]:
    """What the head says once: description and machine, where several runs have the same."""
    words = [(f.header.suite.description, show.machine(f.header)) for f in files]
    columns = zip(*words, strict=True) if len(files) > 1 else ()
    return [column[0] for column in columns if column[0] and len(set(column)) == 1]


def _run(name: str, file: RecordFile, shared: Sequence[str] = ()) -> dict[str, Any]:
    head = file.header
    machine = show.machine(head)
    told = [head.suite.description, machine]
    run = head.run_id if head.pairing else name  # an arm's name is said beside it
    own = [*(t for t in told if t and t not in shared), head.started, f"run {run}",
           f"raw records: {file.path}"]  # fmt: skip
    others = [_sections(environment) for environment in head.nodes]
    return {
        "name": name, "started": head.started, "machine": machine, "path": file.path, "own": own,
        "notes": file.notes, "description": head.suite.description,
        "sections": {} if others else _sections(head.environment),
        "nodes": list(zip(show.nodes(head), others, strict=True)),
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


def table(table: Table, of_cell: dict[str, str]) -> dict[str, Any]:
    rows = [
        [_value(v, c, of_cell) for v, c in zip(row, table.columns, strict=True)]
        for row in table.rows
    ]
    columns = [
        {"name": c.name, "css": "num" if show.is_number(c) else "word" if c.name in WORDS else
         "wide" if c.name in WIDE else "whole" if c.name == "options" else "",
         "help": c.help, "better": c.better, "unit": c.unit} for c in table.columns
    ]  # fmt: skip
    name = table.title.lower().replace(" ", "-")
    return {"id": name, "title": table.title, "columns": columns, "rows": rows,
            "notes": table.notes}  # fmt: skip


def _value(value: Any, column: Column, of_cell: dict[str, str]) -> Value:
    shown = show.show(value, column)
    if column.unit == "flags":
        items = [(flag, show.meaning(flag)) for flag in value]
        return Value("", "", " ".join(value), "", items)
    if column.unit == "key":
        return Value(value, "", value, of_cell.get(value, ""), [])
    if isinstance(value, Estimate):
        hint = value.why or f"n = {value.n}"
        sort = "" if value.value is None else repr(value.value)
        return Value(shown.main, shown.aside, sort, hint, [])
    return Value(shown.main, shown.aside, _sort_key(value), "", [])


def _sort_key(value: Any) -> str:
    if isinstance(value, list):
        return str(min(value, default=""))
    return "" if value is None else str(value)
