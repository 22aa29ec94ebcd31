"""The results as Markdown, as one HTML page and as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

import msgspec
from msgspec.structs import replace

from tests.benchmarks.trust.evidence import Counts, Experiment, Row

TITLE = "What gpubench promises, and what simulation shows"
INTRO = (
    "gpubench's own protocol and decision code, driven by a virtual clock and by processes whose "
    "truth is known. Written by `python -m tests.benchmarks.trust.simulate`; the same seed gives "
    "the same bytes. Numbers in brackets are exact 95 % bounds. This validates the statistics and "
    "the design, not the noise of any real machine: `gpubench selftest` measures that of yours."
)
MARKS = {True: "kept", False: "MISSED", None: ""}
Results = Sequence[tuple[Experiment, Sequence[Row]]]


def rows(experiment: Experiment, counts: Mapping[str, Counts], quick: bool) -> list[Row]:
    """All rows of an experiment that was run; ``quick``: too few to tell what was kept."""
    found = [row for case in experiment.cases for row in experiment.rows(case, counts[case])]
    return [replace(row, ok=None) for row in found] if quick else found


def missed(results: Results) -> list[str]:
    """'experiment: case' of every promise that was not kept."""
    return [f"{e.name}: {row.case}" for e, found in results for row in found if row.ok is False]


def _summary(results: Results) -> str:
    promised = sum(row.ok is not None for _, found in results for row in found)
    gone = missed(results)
    return f"{promised - len(gone)} of {promised} promises kept" + (
        _spaced(f"; missed: {'; '.join(gone)}") if gone else ""
    )


def _table(found: Sequence[Row]) -> list[list[str]]:
    promised = any(row.reach for row in found)
    lines = [["", *found[0].values, *(["promised", ""] if promised else [])]]
    for row in found:
        tail = [row.reach, MARKS[row.ok]] if promised else []
        lines.append([row.case, *row.values.values(), *tail])
    return [[_spaced(text) for text in line] for line in lines]


def _spaced(text: str) -> str:
    """'5%' as this project writes it: '5 %'."""
    return re.sub(r"(?<=\d)%", " %", text)


def markdown(results: Results, how: str) -> str:
    """A table for each experiment; misses are in bold."""
    parts = [f"# {TITLE}", INTRO, f"{how}. **{_summary(results)}.**"]
    for experiment, found in results:
        head, *body = _table(found)
        lines = [head, ["---"] * len(head), *body]
        table = [
            "| " + " | ".join(_bold(x).replace("|", "\\|") for x in line) + " |" for line in lines
        ]
        parts += [f"## {experiment.title}", _spaced(experiment.about), "\n".join(table)]
    return "\n\n".join(parts) + "\n"


def _bold(text: str) -> str:
    return f"**{text}**" if text == MARKS[False] else text


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #8884; padding: .25rem .6rem; text-align: left }
th { font-weight: 600 } .wide { overflow-x: auto } .kept { color: #187a3c }
.missed { color: #b3261e; font-weight: 700 } :root { color-scheme: light dark }
@media (prefers-color-scheme: dark) { .kept { color: #6fd08c } .missed { color: #ff8a80 } }
"""


def html(results: Results, how: str) -> str:
    """One self-contained page."""
    parts = [f"<h1>{escape(TITLE)}</h1>", f"<p>{escape(INTRO.replace('`', ''))}</p>",
             f"<p>{escape(how)}. <strong>{escape(_summary(results))}.</strong></p>"]  # fmt: skip
    for experiment, found in results:
        head, *body = _table(found)
        cells = "".join(f'<th scope="col">{escape(x)}</th>' for x in head)
        lines = [
            "<tr>" + "".join(f"<td{_class(x)}>{escape(x)}</td>" for x in line) + "</tr>"
            for line in body
        ]
        parts += [
            f"<h2>{escape(experiment.title)}</h2>", f"<p>{escape(_spaced(experiment.about))}</p>",
            f'<div class="wide"><table><thead><tr>{cells}</tr></thead>',
            f"<tbody>{''.join(lines)}</tbody></table></div>",
        ]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(TITLE)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _class(text: str) -> str:
    return f' class="{text.lower()}"' if text and text in MARKS.values() else ""


def as_json(
    results: Results, counts: Mapping[str, Mapping[str, Counts]], seed: int, quick: bool
) -> bytes:
    """Everything counted, and the rows made from it."""
    found = {
        "seed": seed,
        "quick": quick,
        "missed": missed(results),
        "experiments": [
            {
                "name": experiment.name,
                "title": experiment.title,
                "counts": {
                    case: dict(sorted(n.items())) for case, n in counts[experiment.name].items()
                },
                "rows": found,
            }
            for experiment, found in results
        ],
    }
    return msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"
