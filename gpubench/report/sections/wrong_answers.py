"""Images to which a cell gave another answer than the reference, or than the baseline of an A/B:
the wrong answers first."""

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
    "Images answered otherwise than by the reference in any repeat, or than by the baseline of an "
    "A/B in the first pair, the wrong answers first. "
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

    rival: str = "reference"
    """Whom they differ from."""
    cells: list[Summary]
    disagreeing: int
    """Different images; of them ``images`` are listed."""
    images: list[Disagreement]

    @property
    def head(self) -> str:
        """'openvino fp32 b8 x1 latency and 3 more cells: 5 images'; of an A/B '... changed'."""
        more = len(self.cells) - 1
        others = f" and {count(more, 'more cell')}" if more else ""
        n, listed = self.disagreeing, len(self.images)
        some = f", {listed} of them listed" if listed < n else ""
        what = "changed" if self.rival == "baseline" else ""
        told = f"{self.cells[0].cell.label}{others}: {count(n, 'image')} {what}".rstrip()
        return told + some


def groups(summaries: Sequence[Summary]) -> list[Group]:
    """In plan order; first what changed between the arms of an A/B."""
    same: dict[tuple[Any, ...], list[tuple[Summary, int, list[Disagreement]]]] = {}
    each = [(s, "baseline", x.pictures, x.shown) for s in summaries for r in s.records
            if (x := r.changed)]  # fmt: skip
    each += [(s, "reference", s.parity.disagreeing, s.parity.disagreements)
             for s in summaries if s.parity and s.parity.disagreements]  # fmt: skip
    for s, rival, many, images in each:
        told = tuple(replace(d, thumbnail="", score=0, expected_score=0) for d in images)
        place = (rival, s.run, s.cell.model, s.cell.images, told)
        same.setdefault(place, []).append((s, many, images))
    return [
        Group(
            rival=place[0], cells=[s for s, _, _ in rows],
            images=sorted(rows[0][2], key=_gravity),
            disagreeing=max(len(rows[0][2]), *(many for _, many, _ in rows)),
        )
        for place, rows in same.items()
    ]  # fmt: skip


def _gravity(d: Disagreement) -> int:
    if not d.label:
        return 2
    if d.answer == d.label:
        return 3
    return 0 if d.expected == d.label else 1


def outcome(d: Disagreement, rival: str = "reference") -> str:
    """What the label says of it."""
    return (
        f"wrong, the {rival} right", "both wrong", "label not known", f"right, the {rival} wrong"
    )[_gravity(d)]  # fmt: skip


def score(value: float) -> str:
    """'61.0 %'."""
    return percent(value) if 0 <= value <= 1 else "not finite"


def sentence(d: Disagreement, rival: str = "reference") -> str:
    """'digits/7.jpg: 4 (61.0 %); reference: 7 (58.0 %); label: 7: wrong, the reference right'."""
    one, other = (f" ({score(x)})" if rival == "reference" else ""
                  for x in (d.score, d.expected_score))  # fmt: skip
    text = f"{d.name}: {d.answer}{one}; {rival}: {d.expected}{other}"
    return f"{text}; {f'label: {d.label}: ' if d.label else ''}{outcome(d, rival)}"


def lines(group: Group, most: int = MOST_SHOWN) -> list[str]:
    """A line for each image."""
    more = len(group.images) - most
    told = [sentence(d, group.rival) for d in group.images[:most]]
    return told + ([f"{more} more: gpubench report -f json"] if more > 0 else [])


def plain(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """All of them as JSON-able values."""
    return [
        {
            "run": g.cells[0].run, "than": g.rival, "cells": [s.key for s in g.cells],
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
        items, scored = [], g.rival == "reference"
        for d in g.images:
            picture = thumbnail(d.thumbnail)
            picture = picture if len(picture) <= left else ""
            left -= len(picture)
            items.append({
                "name": d.name, "picture": picture, "label": d.label,
                "outcome": outcome(d, g.rival),
                "wrong": _gravity(d) < 2, "answer": d.answer, "score": score(d.score) * scored,
                "expected": d.expected, "expected_score": score(d.expected_score) * scored,
            })  # fmt: skip
        head = f"{g.cells[0].run}: {g.head}" if several else g.head
        also = [s.cell.label for s in g.cells[1:]]
        made.append({"head": head, "also": also, "rival": g.rival, "images": items})
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
