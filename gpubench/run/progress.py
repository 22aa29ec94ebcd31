"""What a person sees while a run goes on: on a terminal or in a notebook a live bar, elsewhere a
few lines."""

from __future__ import annotations

import sys
from collections.abc import Callable
from html import escape as escaped
from time import monotonic
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from gpubench import escape, units
from gpubench.records.record import Record
from gpubench.run.ab.pair_runner import ARMS
from gpubench.run.agent import messages
from gpubench.run.screen import console
from gpubench.run.watcher import Silent, Watcher
from gpubench.suite.types import Cell

EVERY_S = 10.0
"""Seconds between two lines of a log; as a run grows long, a tenth of what it has taken."""
REFRESH_PER_SECOND = 2
"""Drawing costs CPU time on the machine that is being measured."""


class _Shows(Watcher):
    """What both ways have in common."""

    def __init__(self, where: Console | Told | NotebookBar) -> None:
        self._print = where.print
        self._total = self._count = 0
        self._leads = ""
        self._said: set[str] = set()
        self._pair: dict[str, tuple[str, str]] = {}

    def said(self, text: str) -> None:
        self._print(Text(text))

    def _once(self, words: str) -> bool:
        first = words not in self._said
        self._said.add(words)
        return first

    def _broke(self, record: Record, arm: str) -> bool:
        """Whether it is of no measurement; each cause is told once."""
        if record.status == "ok":
            return False
        self._pair.clear()
        if self._once(f"{record.cell.backend} {record.status} {record.kind} {record.reason}"):
            self._print(Text(f"{arm} {outcome(record)}".strip()))
        return True


class Lines(_Shows):
    """Not a terminal (a CI log): the steps once, then a line now and then, and what went wrong."""

    def __init__(self, where: Console | Told, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(where)
        self._clock = clock
        self._began = self._due = clock()
        self._words = self._left = ""

    def begin(self, total: int) -> None:
        self._total, self._count = total, 0

    def task(self, cell: Cell | None, words: str, remaining_s: float) -> None:
        self._words, self._left = words, left(remaining_s)
        if self._total == 0 and (self._once(words) or (cell and self._now())):
            self._print(Text(f"{words}: {cell.label}" if cell else words))

    def recorded(self, record: Record, arm: str = "") -> None:
        if record.status == "ruled-out":
            return
        self._count += 1
        if self._broke(record, arm):
            return
        text = outcome(record)
        if arm:
            text = paired(self._pair, record, arm)
        if text and (self._now() or self._count == self._total):
            count = f"[{self._count}/{self._total}] " if self._total > 0 else ""
            if arm:  # how many pairs there will be is not known; which one this is, is
                count = f"{self._words}: "
            self._print(Text(f"{count}{text}{self._left and f'; {self._left}'}"))

    def course(self, tried: str, leads: str) -> None:
        if leads != self._leads:
            self._print(Text(f"{leads}; {tried}"))
        self._leads = leads

    def _now(self) -> bool:
        """Whether a line is due: `EVERY_S` after the last, or a tenth of the time until then."""
        if (now := self._clock()) < self._due:
            return False
        self._due = now + max(EVERY_S, 0.1 * (now - self._began))
        return True


class NotebookBar:
    """A bar in the output of a notebook's cell, gone when it stops; as far as `Live` asks for it,
    `rich.progress.Progress`, whose own needs ipywidgets."""

    def __init__(self) -> None:
        self._shown: dict[str, Any] = {"description": "", "count": "", "left": "", "total": None}
        self._due = 0.0
        self._handle: Any = None

    @property
    def console(self) -> Self:
        """Where lines that stay are printed."""
        return self

    def print(self, line: Text) -> None:
        print(escape.terminal(line.plain))

    def add_task(self, description: str, **fields: Any) -> TaskID:
        self._shown |= {"description": description} | fields
        return TaskID(0)

    def start(self) -> None:
        from IPython.display import display

        self._handle = display(self._bundle(), raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        self._handle.update({"text/html": "", "text/plain": ""}, raw=True)

    def reset(self, task: TaskID, **fields: Any) -> None:
        self.update(task, completed=0, **fields)

    def update(self, _: TaskID, **fields: Any) -> None:
        self._shown |= fields
        if (now := monotonic()) >= self._due:
            self._due = now + 1 / REFRESH_PER_SECOND
            self._handle.update(self._bundle(), raw=True)

    def _bundle(self) -> dict[str, str]:
        words, count, left = (
            escape.line(str(self._shown[k])) for k in ("description", "count", "left")
        )
        done, total = self._shown.get("completed", 0), self._shown["total"]
        bar = f'<progress value="{done}" max="{total}"></progress> ' if total else ""
        text = " ".join(filter(None, (words, count, left)))
        return {"text/html": f"<div>{bar}{escaped(text)}</div>", "text/plain": text}


class Live(_Shows):
    """A bar with the time left, the cell in hand and its p50 so far."""

    def __init__(self, where: Console | NotebookBar) -> None:
        self._progress = where if isinstance(where, NotebookBar) else Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[left]}", style="dim"),
            console=where,
            refresh_per_second=REFRESH_PER_SECOND,
            transient=True,
        )  # fmt: skip
        super().__init__(self._progress.console)
        self._bar: TaskID = self._progress.add_task("", total=None, count="", left="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, total: int) -> None:
        self._total, self._count = total, 0
        self._progress.reset(self._bar, total=max(0, total) or None)

    def task(self, cell: Cell | None, words: str, remaining_s: float) -> None:
        where = f"{cell.label}  {words}" if cell else words
        self._progress.update(self._bar, description=where, left=left(remaining_s))

    def step(self, cell: Cell, progress: messages.Progress) -> None:
        if progress.p50_ns:
            words = f"{cell.label}  p50 about {units.duration(progress.p50_ns)}"
            self._progress.update(self._bar, description=words)

    def recorded(self, record: Record, arm: str = "") -> None:
        if record.status == "ruled-out":
            return
        self._count += 1
        if not self._broke(record, arm) and arm and (both := paired(self._pair, record, arm)):
            self._progress.update(self._bar, description=both)
        if self._total >= 0:
            count = f"{self._count}/{self._total}" if self._total else ""
            self._progress.update(self._bar, completed=self._count, count=count)

    def course(self, tried: str, leads: str) -> None:
        if leads != self._leads:
            self._print(Text(leads))
        self._leads = leads
        self._progress.update(self._bar, count=tried)


def shown(progress: bool | Watcher) -> Watcher:
    """Who tells the person behind a call from Python; False: nobody."""
    if isinstance(progress, Watcher):
        return progress
    if not progress:
        return Silent()
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if hasattr(shell, "kernel"):
        return Live(NotebookBar())
    screen = console()
    return Live(screen) if screen.is_terminal else Lines(Told())


class Told:
    """Lines where there is no display: on stderr, so that a script's own output is its own."""

    def print(self, line: Text) -> None:
        escape.tell(line.plain)


class Named(Told):
    """Lines of several machines, each of which says whose it is; ``screen`` instead of stderr."""

    def __init__(self, name: str, screen: Console | None = None) -> None:
        self._name, self._screen = name, screen

    def print(self, line: Text) -> None:
        named = Text(f"{self._name}: {line.plain}")
        if self._screen:
            self._screen.print(named, soft_wrap=True)
        else:
            super().print(named)


def left(remaining_s: float) -> str:
    """'about 2 min left', or nothing where that is not known."""
    return f"about {units.clock(remaining_s)} left" if remaining_s else ""


def paired(halves: dict[str, tuple[str, str]], record: Record, arm: str) -> str:
    """Both arms of a pair in one line, once the second is there; ``halves`` is kept until then.

    'fp32 b1 x1 latency: baseline openvino p50 56.3 us, candidate onnxruntime p50 39.5 us'.
    """
    halves[arm] = record.cell.label, outcome(record).rpartition(": ")[2]
    if len(halves) < len(ARMS):
        return ""
    both = [label.split() for label, _ in halves.values()]
    shared = [word for word in both[0] if word in both[1]]
    texts = [" ".join([arm, *(w for w in label.split() if w not in shared), value])
             for arm, (label, value) in sorted(halves.items())]  # fmt: skip
    halves.clear()
    return f"{' '.join(shared)}: {', '.join(texts)}"


def outcome(record: Record) -> str:
    """One line: what became of a task."""
    label = f"{record.cell.label} #{record.repeat + 1}"
    if record.status != "ok":
        kind = f" ({record.kind})" if record.kind else ""
        return f"{label}: {record.status}{kind}: {record.reason}"
    value = record.value()
    if value is None:
        return f"{label}: no common window"
    if record.cell.scenario == "throughput":
        return f"{label}: {units.significant(value)} images/s"
    return f"{label}: p50 {units.duration(value)}"
