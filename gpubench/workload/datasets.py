"""Encoded pictures with labels, one by one: what the whole path starts from."""

from __future__ import annotations

from typing import Protocol


class Dataset(Protocol):
    """Encoded pictures in a fixed order; random access, so that any worker reads any of them.

    Cheap to open and to hold: of 100,000 pictures, names and places, never pixels.
    """

    classes: tuple[str, ...]
    """Names of the classes by number; empty: pictures have no labels."""

    def __len__(self) -> int:
        """Pictures."""

    def name(self, index: int) -> str:
        """Of one picture, for people; unique."""

    def label(self, index: int) -> int:
        """Its class; -1: none."""

    def read(self, index: int) -> bytes:
        """Its encoded bytes, from where it lies. Raises `pictures.Unusable`."""
