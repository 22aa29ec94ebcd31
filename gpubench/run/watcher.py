"""Who is told how a run goes.

`gpubench.run.progress` shows it in a terminal, `gpubench.pytest_plugin` in pytest's.
"""

from __future__ import annotations

from typing import Self

from gpubench.records.record import Record
from gpubench.run.agent.messages import Progress
from gpubench.suite.types import Cell

NOTHING_STORED = "; --resume: nothing is stored there yet, so this is its beginning"


class Watcher:
    """Whoever shows the run to a person; every method returns at once. This one shows nothing."""

    def said(self, text: str) -> None:
        """A line that stays."""

    def begin(self, total: int) -> None:
        """Preparing (``total`` 0) or measuring so many tasks starts; -1: nobody knows how many."""

    def task(self, cell: Cell | None, words: str, remaining_s: float) -> None:
        """This is now in hand."""

    def step(self, cell: Cell, progress: Progress) -> None:
        """A live figure of the task in hand."""

    def recorded(self, record: Record, arm: str = "") -> None:
        """A record was written; ``arm``: of an A/B."""

    def course(self, tried: str, leads: str) -> None:
        """How far a search is, and what leads now."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class Silent(Watcher):
    """Shows nothing: --quiet."""
