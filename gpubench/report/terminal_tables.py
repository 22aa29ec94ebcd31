"""Tables of the terminal, in windows of 80 columns and more: numbers stay whole.

What is too wide is laid out anew: the table of a run by moving words below their row, any other
by its columns, which go on below, behind the ones that say which row it is.
"""

from __future__ import annotations

from collections import Counter

from msgspec import Struct
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

ANSWERS = "agreement / accuracy"
"""The column of `Cells` that is said once where most rows share it."""
WORDS = 30
"""Columns that a text takes at most, before it is broken; of flags in `Cells`: `FLAGS`."""
FLAGS = 24
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
    """A row per cell. In a window too narrow for all columns, the words go below: no number breaks.

    Of the answers, those that most cells share are then said once.
    """

    rows: list[dict[str, str]]
    styles: list[str]
    """Of the flags."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = {n: max(cell_len(n), *(cell_len(r[n]) for r in self.rows)) for n in self.rows[0]}
        flags = min(FLAGS, widths["flags"])
        wide = sum(widths.values()) - widths["flags"] + flags + _GAP * len(widths)
        yield from self._wide() if wide <= options.max_width else self._narrow(widths, options)

    def _wide(self) -> RenderResult:
        made = _grid()
        for name in self.rows[0]:
            left = name in ("cell", "flags")
            made.add_column(name, justify="left" if left else "right", no_wrap=name != "flags")
        for row, style in zip(self.rows, self.styles, strict=True):
            *texts, flags = row.values()
            made.add_row(*map(Text, texts), Text(flags, style=style))
        yield made

    def _narrow(self, widths: dict[str, int], options: ConsoleOptions) -> RenderResult:
        said = [row[ANSWERS].partition(" [")[0] for row in self.rows]
        usual, n = Counter(said).most_common(1)[0]
        kept = {name: w for name, w in widths.items() if name not in (ANSWERS, "flags")}
        others = sum(w + 2 for name, w in kept.items() if name != "cell")
        kept["cell"] = max(20, min(widths["cell"], options.max_width - others - 2))
        yield line({name: name for name in kept}, kept, "bold", "bold")
        for row, style, answers in zip(self.rows, self.styles, said, strict=True):
            yield line(row, kept, "", "")
            notes = [f"{ANSWERS} {answers}"] if answers != usual else []
            notes += [row["flags"]] if row["flags"] else []
            if notes:
                yield Padding(Text("; ".join(notes), style=style), (0, 0, 0, 2))
        where = "" if n == len(said) else ", where nothing else is said"
        yield Text(f"{ANSWERS}: {usual}{where}.", style="dim")


def line(row: dict[str, str], widths: dict[str, int], style: str, first: str) -> Grid:
    made = Grid.grid(padding=(0, 2, 0, 0))
    for name, width in widths.items():
        right = name not in ("verdict", "cell")
        made.add_column(width=width, justify="right" if right else "left", overflow="fold")
    texts = [Text(row[name], style=first if name == "verdict" else style) for name in widths]
    made.add_row(*texts)
    return made
