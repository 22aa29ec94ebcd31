"""What every page is made with: templates, their assets, and tables as the templates need them.

Every text goes through Jinja2's autoescape; the JSON for the charts is escaped so that no name in
it can end the script element it stands in.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.resources import files as resources
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from gpubench import __version__, escape
from gpubench.analysis.stats import Estimate
from gpubench.analysis.tables.table import TIMES, Column, Table
from gpubench.machine import processes, software
from gpubench.machine.processes import signal_name
from gpubench.report import formatting

if TYPE_CHECKING:
    from jinja2 import Environment

FOLD_ROWS = 200
"""Longer tables start folded to keep the page quick to read."""

WORDS = ("backend", "precision", "input", "device", "scenario", "boundary", "sharing", "dispatch",
         "scaling", "one replica owns", "answers",
         "decoder", "loader", "bottleneck", "slower side", "outcome",
         "bound by", "verdict", "metric")  # fmt: skip
"""Columns of short words that stay on one line."""
WIDE = ("cell", "limited by", "shared out", "why")

OVERLAP = "Overlap"
"""The group of the table of stages that is shown; the bars show the stages."""
SEEN = ("", *TIMES, OVERLAP)
"""Groups of columns that are shown before any is ticked."""

_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}


class Value(Struct, frozen=True):
    """One table cell as the template needs it."""

    main: str
    aside: str
    sort: str
    """What the column sorts by; '' sorts last."""
    hint: str
    items: list[tuple[str, str]]
    """Flags with their meanings, or keys with their commands."""
    look: Any = None
    """Of a verdict: what its badge is drawn with."""


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
    return (resources("gpubench.report.html") / "templates" / name).read_text(encoding="utf-8")


_BUNDLE = """
import sys
if sys.platform != "win32":
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import vl_convert
sys.stdout.buffer.write(vl_convert.javascript_bundle().encode())
"""
BUNDLE_LIMIT_S = 60.0
NO_VEGA = "var vegaEmbed = () => new Promise(() => {});"
"""Draws nothing."""
HIDE = ".chart, .controls, .series { display: none; }"


@cache
def vega() -> tuple[str, str]:
    """(Vega, Vega-Lite and vega-embed as one script without imports, why there is none).

    From vl-convert, in a process of its own: V8 in it ends a process that may not reserve tens of
    gigabytes of addresses (``ulimit -v``), and ours has the results of a whole run.
    """
    command = [sys.executable, "-c", _BUNDLE]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=BUNDLE_LIMIT_S,
            env=software.environ_of_python(), check=False,
        )  # fmt: skip
        if not done.returncode:
            licence = f"/*!\n{asset('vega-license.txt')}*/\n"
            return licence + done.stdout.decode().replace("</script", "<\\/script"), ""
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        why = signal_name(done.returncode) or escape.line(last)
    except (OSError, subprocess.TimeoutExpired) as error:
        why = escape.line(str(error))
    why = f"no charts: vl-convert, which has their library, ended with {why}"
    if (limit := processes.address_limit()) is not None:
        why += f"; it needs more addresses than `ulimit -v {limit >> 10}` allows"
    escape.tell(f"warning: {why}. The tables hold every number.")
    return NO_VEGA, why


def fill(template: str, scripts: Sequence[str], data: Any, charts: bool, /, **values: Any) -> str:
    """``template`` with these values. ``data``: for the scripts; ``charts``: Vega draws some."""
    from markupsafe import Markup

    page = templates().get_template(template)
    library, no_charts = vega() if charts else ("", "")
    made = page.render(
        version=__version__,
        # these four are ours or made safe: the only text that is not escaped
        style=Markup(asset("style.css") + (HIDE if no_charts else "")),  # noqa: S704
        script=Markup("\n".join(map(asset, scripts))),  # noqa: S704
        vega=Markup(library),  # noqa: S704
        data=Markup(safe_json(data)),  # noqa: S704
        fold=FOLD_ROWS,
        no_charts=no_charts,
        **values,
    )
    return f"{made}\n"


def table(
    table: Table, of_cell: dict[str, str], groups: Sequence[tuple[str, int]] = (), *,
    fold: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """``groups``: as in `Joined`; all but times and what they share are shown when asked for.

    Times of a row have the unit of the first of their group. A column that says the same in every
    row is a note, unless ``fold`` is False.
    """
    table, merged = _named(table)
    groups = [(name, width - merged * (not n)) for n, (name, width) in enumerate(groups)]
    spans = [n for n, (_, width) in enumerate(groups) for _ in range(width)]
    spans += [0] * (len(table.columns) - len(spans))
    rows = []
    for row in table.rows:
        first: dict[int, float] = {}
        for v, c, n in zip(row, table.columns, spans, strict=True):
            number = v.value if isinstance(v, Estimate) else v
            if c.unit == "ns" and isinstance(number, int | float) and number:
                first.setdefault(n, number)
        rows.append([_value(v, c, of_cell, first.get(n) if c.unit == "ns" else None)
                     for v, c, n in zip(row, table.columns, spans, strict=True)])  # fmt: skip
    seen = [not groups or groups[n][0] in SEEN for n in spans]
    same = _constant(table, rows, seen) if fold else {}
    said = [f"{table.columns[n].name} {v}" for n, v in same.items() if v != formatting.NOTHING]
    columns = [
        {"name": c.name, "group": g, "css": "num" if formatting.is_number(c) else "word"
         if c.name in WORDS else "wide" if c.name in WIDE else "whole" if c.name == "options"
         else "", "help": c.help, "better": c.better, "unit": c.unit}
        for n, (c, g) in enumerate(zip(table.columns, spans, strict=True)) if n not in same
    ]  # fmt: skip
    left = [sum(1 for c in columns if c["group"] == n and c["unit"] not in _LAST)
            for n in range(len(groups))]  # fmt: skip
    return {
        "id": table.title.lower().replace(" ", "-"), "title": table.title, "columns": columns,
        "rows": [[v for n, v in enumerate(row) if n not in same] for row in rows],
        "notes": formatting.with_shared(table.notes, said), "more": (),
        "groups": [(name, width, name in SEEN)
                   for (name, _), width in zip(groups, left, strict=True)],
    }  # fmt: skip


def _named(table: Table) -> tuple[Table, int]:
    """Precision and options where they vary beside the backend's name; how many columns less."""
    names = [c.name for c in table.columns]
    rows = [[formatting.show(v, c.unit).main for v, c in zip(row, table.columns, strict=True)]
            for row in table.rows]  # fmt: skip
    more = [n for n, name in enumerate(names) if name in ("precision", "options")
            and "backend" in names and len({row[n] for row in rows}) > 1]  # fmt: skip
    if not more:
        return table, 0
    at = names.index("backend")
    made = []
    for row, shown in zip(table.rows, rows, strict=True):
        name = " ".join(shown[n] for n in (at, *more) if shown[n] != formatting.NOTHING)
        made.append([name if n == at else v for n, v in enumerate(row) if n not in more])
    columns = tuple(c for n, c in enumerate(table.columns) if n not in more)
    return Table(table.title, columns, made, table.notes), len(more)


_LAST = ("flags", "key")
_FOLDED = ("", "count", "fraction", "share of n")
"""Units of columns that a note may stand for."""


def _constant(
    table: Table, rows: Sequence[Sequence[Value]], seen: Sequence[bool]
) -> dict[int, str]:
    """Place of a ``seen`` column behind the first that says the same in every row -> what."""
    if len(rows) < 2:
        return {}
    found = {}
    for n, column in enumerate(table.columns):
        shown = {(row[n].main, row[n].aside) for row in rows}
        if n and seen[n] and column.unit in _FOLDED and len(shown) == 1:
            found[n] = " ".join(filter(None, shown.pop()))
    return found


def _value(value: Any, column: Column, of_cell: dict[str, str], like: float | None = None) -> Value:
    shown = formatting.show(value, column.unit, like)
    if column.unit == "flags":
        items = [(flag, formatting.meaning(flag)) for flag in value]
        return Value("", "", " ".join(value), "", items)
    if column.unit == "key":
        keys = value if isinstance(value, list) else [value]
        return Value("", "", " ".join(keys), "", [(key, of_cell.get(key, "")) for key in keys])
    if isinstance(value, Estimate):
        hint = value.why or f"n = {value.n}"
        sort = "" if value.value is None else repr(value.value)
        return Value(shown.main, shown.aside, sort, hint, [])
    return Value(shown.main, shown.aside, sort_key(value), "", [])


def sort_key(value: Any) -> str:
    if isinstance(value, list):
        return str(min(value, default=""))
    own = getattr(value, "value", value)  # of a `Part`, and an `Amount`
    return "" if own is None else str(own)
