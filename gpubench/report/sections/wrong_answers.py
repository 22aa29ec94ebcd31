"""Images to which a cell gave another answer than the reference: the wrong answers first."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gpubench.analysis.summary import Summary
from gpubench.records.parity import MOST_SHOWN, Disagreement
from gpubench.units import count, percent

TITLE = "Answers that differ"
NOTE = (
    "Images answered otherwise than by the reference in any repeat, the wrong answers first. "
    "Scores are the network's probabilities: its own, or a softmax of its logits."
)
OPEN = 12
"""More images than these start folded."""
LARGEST = 16 << 10
"""Bytes of one thumbnail."""
WIDEST = 256
"""Pixels of its sides: a few bytes may claim gigabytes of them."""
BUDGET = 600_000
"""Bytes of all thumbnails of a page."""


class Group(Struct, frozen=True, kw_only=True):
    """Cells that differ from the reference on the same images, with the same answers."""

    cells: list[Summary]
    disagreeing: int
    """Different images; of them ``images`` are listed."""
    images: list[Disagreement]

    @property
    def head(self) -> str:
        """'openvino fp32 b8 x1 latency and 3 more cells: 5 images'."""
        more = len(self.cells) - 1
        others = f" and {count(more, 'more cell')}" if more else ""
        n, listed = self.disagreeing, len(self.images)
        some = f", {listed} of them listed" if listed < n else ""
        return f"{self.cells[0].cell.label}{others}: {count(n, 'image')}{some}"


def groups(summaries: Sequence[Summary]) -> list[Group]:
    """In plan order."""
    same: dict[object, list[Summary]] = {}
    for s in summaries:
        if s.parity and s.parity.disagreements:
            told = tuple(replace(d, thumbnail="", score=0, expected_score=0)
                         for d in s.parity.disagreements)  # fmt: skip
            same.setdefault((s.run, s.cell.model, s.cell.images, told), []).append(s)
    found = []
    for cells in same.values():
        checks = [s.parity for s in cells if s.parity]
        images = sorted(checks[0].disagreements, key=_gravity)
        most = max(len(images), *(p.disagreeing for p in checks))
        found.append(Group(cells=cells, disagreeing=most, images=images))
    return found


def _gravity(d: Disagreement) -> int:
    if not d.label:
        return 2
    if d.answer == d.label:
        return 3
    return 0 if d.expected == d.label else 1


def outcome(d: Disagreement) -> str:
    """What the label says of it."""
    return (
        "wrong, the reference right", "both wrong", "label not known", "right, the reference wrong"
    )[_gravity(d)]  # fmt: skip


def score(value: float) -> str:
    """'61.0 %'."""
    return percent(value) if 0 <= value <= 1 else "not finite"


def sentence(d: Disagreement) -> str:
    """'digits/7.jpg: 4 (61.0 %); reference: 7 (58.0 %); label: 7: wrong, the reference right'."""
    text = f"{d.name}: {d.answer} ({score(d.score)}); "
    text += f"reference: {d.expected} ({score(d.expected_score)})"
    return text + (f"; label: {d.label}: {outcome(d)}" if d.label else f"; {outcome(d)}")


def lines(group: Group, most: int = MOST_SHOWN) -> list[str]:
    """A line for each image."""
    more = len(group.images) - most
    told = [sentence(d) for d in group.images[:most]]
    return told + ([f"{more} more: gpubench report -f json"] if more > 0 else [])


def plain(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """All of them as JSON-able values."""
    return [
        {
            "run": g.cells[0].run, "cells": [s.key for s in g.cells],
            "disagreeing": g.disagreeing,
            "images": [replace(d, thumbnail=thumbnail(d.thumbnail)) for d in g.images],
        }
        for g in groups(summaries)
    ]  # fmt: skip


def page(summaries: Sequence[Summary]) -> dict[str, Any]:
    """What the page's section needs; {} where there is none."""
    left, made = BUDGET, []
    several = len({s.run for s in summaries}) > 1
    for g in groups(summaries):
        items = []
        for d in g.images:
            picture = thumbnail(d.thumbnail)
            picture = picture if len(picture) <= left else ""
            left -= len(picture)
            items.append({
                "name": d.name, "picture": picture, "label": d.label, "outcome": outcome(d),
                "wrong": _gravity(d) < 2, "answer": d.answer, "score": score(d.score),
                "expected": d.expected, "expected_score": score(d.expected_score),
            })  # fmt: skip
        head = f"{g.cells[0].run}: {g.head}" if several else g.head
        also = [s.cell.label for s in g.cells[1:]]
        made.append({"head": head, "also": also, "images": items})
    total = sum(len(g["images"]) for g in made)
    return {"title": TITLE, "note": NOTE, "open": total <= OPEN, "groups": made} if made else {}


def thumbnail(text: str) -> str:
    """Base64 of what is a small JPEG picture indeed; '' for anything else that a file may hold."""
    try:
        data = base64.b64decode(text, validate=True) if len(text) <= 2 * LARGEST else b""
    except (binascii.Error, ValueError):
        return ""
    good = data.startswith(b"\xff\xd8\xff") and data.endswith(b"\xff\xd9") and len(data) <= LARGEST
    return base64.b64encode(data).decode() if good and _small(data) else ""


def _small(data: bytes) -> bool:
    """Whether its frame header (ITU-T T.81, B.2.2) claims no more than `WIDEST` pixels a side."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[at + n : at + n + 2]) for n in (5, 7))
            return 0 < height <= WIDEST and 0 < width <= WIDEST
        at += 2 + size
    return False
