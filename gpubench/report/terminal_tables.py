"""Tables of the terminal, in windows of 80 columns and more: numbers stay whole.

What is too wide is laid out anew: the table of a run by moving words below their row, any other
by its columns, which go on below, behind the ones that say which row it is.
"""

from __future__ import annotations

from msgspec import Struct
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

ANSWERS = "match / accuracy"
"""A column of `Cells` that may go below."""
WORDS = 30
"""Columns that a text takes at most, before it is broken."""
_GAP = 3


def _grid(title: str = "") -> Grid:
    head = Text(title, style="bold") if title else None
    return Grid(title=head, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


class Folding(Struct, frozen=True, kw_only=True):
    """A table in as many parts as the window asks for, each with its first columns in front."""

    title: str
    names: list[str]
    rows: list[list[str]]
    styles: list[str]
    """Of the rows."""
    right: list[bool]
    """Columns of numbers."""
    whole: list[bool]
    """Columns of words that do not break."""
    first: int
    """Columns that say which row it is."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for n, places in enumerate(self._parts(options.max_width)):
            yield self._part(places, "" if n else self.title)

    def _parts(self, width: int) -> list[list[int]]:
        """Places of the columns of each part."""
        widths = [self._width(n) + _GAP for n in range(len(self.names))]
        front = list(range(self.first))
        parts, left = [list(front)], width - sum(widths[n] for n in front)
        room = left
        for n in range(self.first, len(self.names)):
            if widths[n] > room and len(parts[-1]) > self.first:
                parts.append(list(front))
                room = left
            parts[-1].append(n)
            room -= widths[n]
        return parts

    def _width(self, n: int) -> int:
        widest = max((cell_len(row[n]) for row in self.rows), default=0)
        kept = self.right[n] or self.whole[n]
        return max(cell_len(self.names[n]), widest if kept else min(WORDS, widest))

    def _part(self, places: list[int], title: str) -> Grid:
        made = _grid(title)
        for n in places:
            made.add_column(
                Text(self.names[n]), justify="right" if self.right[n] else "left",
                no_wrap=self.right[n] or self.whole[n], overflow="fold",
            )  # fmt: skip
        for row, style in zip(self.rows, self.styles, strict=True):
            made.add_row(*(Text(row[n]) for n in places), style=style)
        return made


class Cells(Struct, frozen=True):
    """A row per cell, below its group's name. In a window too narrow for all columns, the flags and
    then the answers go below their row: no number breaks.
    """

    rows: list[dict[str, str] | str]
    """Of a cell, with equal keys; or the name of a group."""
    styles: list[str]
    """Of a group's name, or of a cell's flags."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = [row for row in self.rows if isinstance(row, dict)]
        indent = "  " if len(cells) < len(self.rows) else ""
        widths = {n: max(cell_len(n), *(cell_len(r[n]) for r in cells)) for n in cells[0]}
        widths["cell"] += len(indent)
        below = []
        for name in ("flags", ANSWERS):
            if name in widths and sum(w + 2 for w in widths.values()) > options.max_width:
                below.append(name)
                del widths[name]
        others = sum(w + 2 for name, w in widths.items() if name != "cell")
        widths["cell"] = max(20, min(widths["cell"], options.max_width - others - 2))
        yield line(
            {name: "" if name == "cell" else name for name in widths}, widths, "bold", "bold"
        )
        for row, style in zip(self.rows, self.styles, strict=True):
            if isinstance(row, str):
                yield Text(row, style=style)
                continue
            yield line(row | {"cell": indent + row["cell"]}, widths, "", "", style)
            notes = [f"{name} {row[name]}" if name == ANSWERS else row[name]
                     for name in reversed(below) if row[name]]  # fmt: skip
            if notes:
                yield Padding(Text("; ".join(notes), style=style), (0, 0, 0, len(indent) + 2))


def line(
    row: dict[str, str], widths: dict[str, int], style: str, first: str, flags: str = ""
) -> Grid:
    """``first``: style of a verdict; ``flags``: of flags."""
    made = Grid.grid(padding=(0, 2, 0, 0))
    for name, width in widths.items():
        left = name in ("verdict", "cell", "metric", "flags")
        made.add_column(width=width, justify="left" if left else "right", overflow="fold")
    styles = {"verdict": first, "flags": flags}
    made.add_row(*(Text(row[name], style=styles.get(name, style)) for name in widths))
    return made
