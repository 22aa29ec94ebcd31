"""What is shown in a notebook's cell: the terminal's words and tables as HTML without any script.

Colours are the notebook's own, so that it can be read on light and on dark. It needs no network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gpubench.escape import line
from gpubench.report.html.templating import templates
from gpubench.report.sections import compare
from gpubench.report.terminal import ORDER, Verdicts
from gpubench.report.terminal_tables import Cells, Folding

NUMBERS = ("p50", "images/s", "speed-up", "baseline", "candidate", "effect")


class Part(Struct, frozen=True, kw_only=True):
    """A line of words, or a table."""

    words: str = ""
    title: str = ""
    heads: list[str] = []
    rows: list[list[str] | str] = []
    """Values by ``heads``; or a line that is the title of those below."""
    numbers: tuple[str, ...] = NUMBERS
    """Columns that stand to the right."""


def page(parts: Sequence[RenderableType]) -> str:
    """What the terminal would show, as one element."""
    made = [each for part in parts for each in _made(part)]
    look = {"line": "border-bottom: 1px solid rgba(128, 128, 128, 0.4); "
                    "padding: 0.2em 0.8em 0.2em 0; vertical-align: top; text-align: ",
            "left": "left", "right": "right"}  # fmt: skip
    return templates().get_template("notebook.html.j2").render(parts=made, **look)


def _made(part: RenderableType) -> Iterator[Part]:
    if isinstance(part, Group):
        for each in part.renderables:
            yield from _made(each)
    elif isinstance(part, Padding):
        yield from _made(part.renderable)
    elif isinstance(part, Cells):
        heads = list(next(row for row in part.rows if isinstance(row, dict)))
        rows: list[list[str] | str] = [
            line(r) if isinstance(r, str) else [r[name] for name in heads] for r in part.rows
        ]
        yield Part(heads=heads, rows=rows)
    elif isinstance(part, Verdicts):
        texts = compare.texts(part.comparisons, part.found)
        heads = [name for name in ORDER if texts and name in texts[0]]
        why = [[line(compare.why(c))] for c in part.comparisons]
        told = [[line(row[name]) for name in heads] for row in texts]
        yield Part(heads=[*heads, "why"], rows=[a + b for a, b in zip(told, why, strict=True)])
    elif isinstance(part, Folding):
        right = [name for name, number in zip(part.names, part.right, strict=True) if number]
        yield Part(title=part.title, heads=part.names, numbers=tuple(right),
                   rows=[[line(value) for value in row] for row in part.rows])  # fmt: skip
    elif isinstance(part, Table):
        heads = [_plain(column.header) for column in part.columns]
        lines = zip(*(column.cells for column in part.columns), strict=True)
        yield Part(title=_plain(part.title), heads=heads if any(heads) else [],
                   rows=[[_plain(cell) for cell in row] for row in lines])  # fmt: skip
    elif words := _plain(part):
        yield Part(words=words)


def _plain(part: RenderableType | None) -> str:
    if isinstance(part, Group):
        return "\n".join(_plain(each) for each in part.renderables)
    text = part.plain if isinstance(part, Text) else str(part or "")
    return line(text)
