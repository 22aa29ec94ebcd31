"""What a table is, and how rows about cells are laid out: axes that vary in front, flags behind.

A table holds numbers (`Estimate`, `Part`, int, float, text, lists of text), never formatted ones:
each report formats them, and sorts by what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from msgspec import Struct

from gpubench.analysis.summary import Summary, flags_of

AXES = ("model", "weights", "images", "device", "backend", "precision", "options", "batch",
        "replicas", "per device", "cores", "boundary", "dispatch", "decoder", "loader",
        "loading cores")  # fmt: skip
ALWAYS = ("backend", "precision", "batch", "replicas")
"""Axes shown even when all rows agree; the others then move into a note."""
_NUMERIC = ("batch", "replicas", "per device", "cores", "loading cores")
_SILENT = {"options": "", "cores": 0, "per device": 1, "dispatch": "independent", "decoder": "",
           "loader": "", "loading cores": ""}  # fmt: skip
"""Values that a note does not mention."""


class Part(Struct, frozen=True):
    """A part of a sum, and its share of it."""

    value: float
    share: float


class Column(Struct, frozen=True):
    """``unit``: ns, bytes, images/s, x (ratio), fraction, share (a fraction that may be small),
    share of n (the same, shown with its n), points (percentage points), steps (of 8-bit pixels),
    MHz, °C, W, J, GFLOP/s, GB/s, FLOP/byte, count, flags, key (of the cell) or '' (text)."""

    name: str
    unit: str = ""
    better: Literal["lower", "higher", ""] = ""
    help: str = ""


class Table(Struct, frozen=True):
    """Rows of values that match ``columns``."""

    title: str
    columns: tuple[Column, ...]
    rows: list[list[Any]]
    notes: list[str]


Field = tuple[Column, Callable[[Summary], Any]]
Body = list[tuple[Summary, list[Any]]]

KEY = Column("cell", "key", help="key of the cell: `gpubench run SUITE --cell KEY`")
FLAGS = Column("flags", "flags", help="what to know before believing the row")


def axis_values(s: Summary) -> tuple[Any, ...]:
    """The values of `AXES`."""
    c = s.cell
    options = " ".join(f"{k}={v}" for k, v in sorted(c.options.items()))
    path: tuple[str | int, ...] = ("", "", "")
    if c.boundary == "pipeline":
        path = (c.decoder, "" if c.loader == "auto" else c.loader, c.loader_cores or "")
    return (c.model, c.weights, c.images, c.device, c.backend, c.precision, options, c.batch_size,
            c.replicas, c.replicas_per_device, c.cores, c.boundary, c.dispatch, *path)  # fmt: skip


def of_rows(title: str, rows: Sequence[Summary], fields: list[Field], notes: list[str]) -> Table:
    """A row for each summary, a column for each field."""
    body = [(s, [*(value(s) for _, value in fields), flags_of(s)]) for s in rows]
    return with_axes(title, tuple(column for column, _ in fields), body, notes)


def with_axes(
    title: str,
    columns: tuple[Column, ...],
    body: Body,
    notes: list[str],
    hidden: Sequence[str] = (),
    always: Sequence[str] = ALWAYS,
) -> Table:
    """Put the axes that vary in front, flags and key behind; axes that agree become a note.

    ``hidden``: axes that the columns speak of, or that rows pool. ``always``: shown in any case.
    """
    if not body:
        return Table(title, columns, [], notes)
    values = zip(*((s.run, *axis_values(s)) for s, _ in body), strict=True)
    axes = {a: v for a, v in zip(("run", *AXES), values, strict=True) if a not in hidden}
    shown = [a for a, v in axes.items() if len(set(v)) > 1 or a in always]
    agree = [f"{a} {v[0]}" for a, v in axes.items()
             if a not in shown and a != "run" and v[0] != _SILENT.get(a)]  # fmt: skip
    fronts = zip(*(axes[a] for a in shown), strict=True) if shown else [()] * len(body)
    rows = [[*front, *own, s.key] for front, (s, own) in zip(fronts, body, strict=True)]
    head = tuple(Column(a, "count" if a in _NUMERIC else "") for a in shown)
    notes = notes + ([f"In every row: {', '.join(agree)}."] if agree else [])
    return Table(title, (*head, *columns, FLAGS, KEY), rows, notes)
