"""A row of versions, of which each may have brought a change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from gpubench.run.ab.interpreters import Made


class Version(Struct, frozen=True):
    """One of the row."""

    name: str
    """'5319bc7abcde', '1.20.1'"""
    line: str
    """What people know it by: '5319bc7 A subject (who, when)', 'onnxruntime 1.20.1'."""


class Arm(NamedTuple):
    """What an A/B measures a version with."""

    python: Path | None
    made: Made | None
    """Of a commit: its interpreter and its files."""


class Row(ABC):
    """The versions, the good one first, and how each is measured."""

    def __init__(self, kind: str, versions: Sequence[Version], notes: Sequence[str] = ()) -> None:
        self.kind, self.versions, self.notes = kind, list(versions), list(notes)

    def option(self, place: int) -> str:
        """How messages name a version: by the option where it was given."""
        if place in (0, len(self.versions) - 1):
            return "--bad" if place else "--good"
        return f"{self.kind} {self.versions[place].name}"

    @abstractmethod
    def arm(self, place: int) -> Arm:
        """Its environment, made where it is not there yet. Raises InputError where it cannot be."""

    @abstractmethod
    def words(self, first: int, second: int) -> list[str]:
        """What `gpubench ab` compares two of them by."""

    def suite_of(self) -> Made | None:
        """The commit whose suite is measured; None: the working tree's."""
        return None
