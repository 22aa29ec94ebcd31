"""What a person sees while a run goes on: on a terminal a live bar, elsewhere a line a record."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from gpubench import units
from gpubench.records.record import Record
from gpubench.run.agent import messages
from gpubench.run.watcher import Watcher
from gpubench.suite.types import Cell

REFRESH_PER_SECOND = 2
"""Drawing costs CPU time on the machine that is being measured."""


class Lines(Watcher):
    """Not a terminal (a CI log): one line for each step and each record."""

    def __init__(self, console: Console) -> None:
        self._print = console.print
        self._total = self._count = 0
        self._leads = ""

    def said(self, text: str) -> None:
        self._print(Text(text))

    def begin(self, total: int) -> None:
        self._total, self._count = total, 0

    def task(self, cell: Cell | None, words: str, remaining_s: float) -> None:  # noqa: ARG002
        if self._total == 0:
            self._print(Text(f"{words}: {cell.label}" if cell else words))

    def recorded(self, record: Record) -> None:
        if record.status == "ruled-out":
            return
        self._count += 1
        count = f"[{self._count}/{self._total}] " if self._total > 0 else ""
        self._print(Text(f"{count}{outcome(record)}"))

    def course(self, tried: str, leads: str) -> None:
        if leads != self._leads:
            self._print(Text(f"{leads}; {tried}"))
        self._leads = leads


class Live(Watcher):
    """A bar with the time left, the cell in hand and its p50 so far."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[left]}", style="dim"),
            console=console,
            refresh_per_second=REFRESH_PER_SECOND,
            transient=True,
        )
        self._bar: TaskID = self._progress.add_task("", total=None, count="", left="")
        self._total = self._count = 0
        self._leads = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def said(self, text: str) -> None:
        self._progress.console.print(Text(text))

    def begin(self, total: int) -> None:
        self._total, self._count = total, 0
        self._progress.reset(self._bar, total=max(0, total) or None)

    def task(self, cell: Cell | None, words: str, remaining_s: float) -> None:
        left = f"about {units.clock(remaining_s)} left" if remaining_s else ""
        where = f"{cell.label}  {words}" if cell else words
        self._progress.update(self._bar, description=where, left=left)

    def step(self, cell: Cell, progress: messages.Progress) -> None:
        if progress.p50_ns:
            words = f"{cell.label}  p50 about {units.duration(progress.p50_ns)}"
            self._progress.update(self._bar, description=words)

    def recorded(self, record: Record) -> None:
        self._count += 1
        if record.status not in ("ok", "ruled-out"):
            self._progress.console.print(Text(outcome(record)))
        if self._total >= 0:
            count = f"{self._count}/{self._total}" if self._total else ""
            self._progress.update(self._bar, completed=self._count, count=count)

    def course(self, tried: str, leads: str) -> None:
        if leads != self._leads:
            self._progress.console.print(Text(leads))
        self._leads = leads
        self._progress.update(self._bar, count=tried)


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
