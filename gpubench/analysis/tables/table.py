"""What a table is, and how rows about cells are laid out: axes that vary in front, flags behind.

A table holds numbers (`Estimate`, `Part`, int, float, text, lists of text), never formatted ones:
each report formats them, and sorts by what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary, flags_of
from gpubench.suite.types import title
from gpubench.units import count

AXES = ("model", "weights", "images", "device", "backend", "precision", "input", "cache", "options",
        "batch", "replicas", "per device", "sharing", "cores", "boundary", "dispatch", "decoder",
        "loader", "loading cores")  # fmt: skip
ALWAYS = ("backend", "precision", "batch", "replicas")
"""Axes shown even when all rows agree; the others then move into a note."""
_NUMERIC = ("batch", "replicas", "per device", "cores", "loading cores")
_SILENT = {"input": "float32", "cache": "warm", "options": "", "cores": 0, "per device": 1,
           "sharing": "auto", "dispatch": "independent", "decoder": "", "loader": "",
           "loading cores": ""}  # fmt: skip
"""Values that a note does not mention."""


class Part(Struct, frozen=True):
    """A part of a sum, and its share of it."""

    value: float
    share: float


class Amount(Struct, frozen=True):
    """A value whose unit is its row's: ns, bytes, images/s, share; or a change (of a cost, or in
    points), with its 95 % interval."""

    value: float
    unit: str
    low: float | None = None
    high: float | None = None


class Column(Struct, frozen=True):
    """``unit``: ns, bytes, images/s, x (ratio), fraction, share (a fraction that may be small),
    share of n (the same, shown with its n), points (percentage points), steps (of 8-bit pixels),
    MHz, °C, W, J, GFLOP/s, GB/s, FLOP/byte, amount (an `Amount`), spread (a small fraction), count,
    flags, key (of the cell) or '' (text)."""

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
    return (title(c.model), c.weights, c.images, c.device, c.backend, c.precision, c.input, c.cache,
            options, c.batch_size, c.replicas, c.replicas_per_device, c.sharing, c.cores,
            c.boundary, c.dispatch, *path)  # fmt: skip


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
    fronts = zip(*(axes[a] for a in shown), strict=True) if shown else [()] * len(body)
    rows = [[*front, *own, s.key] for front, (s, own) in zip(fronts, body, strict=True)]
    head = tuple(Column(a, "count" if a in _NUMERIC else "") for a in shown)
    return Table(title, (*head, *columns, FLAGS, KEY), rows, notes + _agreed(axes, shown))


def _agreed(axes: Mapping[str, Sequence[Any]], shown: Sequence[str]) -> list[str]:
    """A note of the values of axes that are not ``shown``, since all rows agree in them."""
    agree = [f"{a} {v[0]}" for a, v in axes.items()
             if a not in shown and a != "run" and v[0] != _SILENT.get(a)]  # fmt: skip
    return [f"In every row: {', '.join(agree)}."] if agree else []


class Joined(Struct, frozen=True):
    """Tables about the same cells as one, with a row for each configuration."""

    table: Table
    groups: list[tuple[str, int]]
    """Name and number of columns, in order; axes and flags have none."""
    keys: list[list[str]]
    """Of each row: the cells that are in it."""


ONCE = ("match", "accuracy", "repeats")
"""Columns that several tables bring; the joined one has them once, beside the times."""
TIMES = ("Latency", "Throughput")
"""Groups that come first."""
_OWN = ("run", "scenario", FLAGS.name, KEY.name, *AXES)


def joined(summaries: Sequence[Summary], tables: Sequence[tuple[str, Table]]) -> Joined:
    """``tables``, each with its group's name, side by side: axes once, flags once, constants out.

    Both scenarios of a configuration share a row; where they say different things of one column,
    the row shows that of the cell with more flags.
    """
    of = {(s.run, s.key): s for s in summaries}
    rows: dict[tuple[Any, ...], dict[str, Summary]] = {}
    groups: dict[str, dict[str, Column]] = {}
    values: dict[tuple[Any, ...], list[tuple[int, Any]]] = {}
    for name, each in tables:
        for row, s in zip(each.rows, _summaries_of(each, of), strict=True):
            place = (s.run, *axis_values(s))
            rows.setdefault(place, {})[s.key] = s
            for c, value in zip(each.columns, row, strict=True):
                if c.name not in _OWN:
                    group = "" if c.name in ONCE else name
                    groups.setdefault(group, {}).setdefault(c.name, c)
                    values.setdefault((place, group, c.name), []).append((len(flags_of(s)), value))
    if not rows:
        return Joined(Table("Measurements", (), [], []), [], [])
    lacks = _drop_sparse(groups, values, len(rows))
    once = groups.pop("", {})
    main = [name for name in groups if name in TIMES]
    rest = [name for name in groups if name not in TIMES]
    order = [*main, "", *rest] if once else [*main, *rest]
    groups[""] = once
    axes = dict(zip(("run", *AXES), zip(*rows, strict=True), strict=True))
    shown = [a for a, v in axes.items() if len(set(v)) > 1 or a == "backend"]
    laid = [(name, c) for name in order for c in groups[name].values()]
    body = []
    for at, (place, cells) in enumerate(rows.items()):
        found = [max(values.get((place, g, c.name), [(0, None)]), key=lambda v: v[0])[1]
                 for g, c in laid]  # fmt: skip
        keys = list(cells)
        body.append([*(axes[a][at] for a in shown), *found, flags_of(*cells.values()), keys])
    head = [Column(a, "count" if a in _NUMERIC else "") for a in shown]
    made = Table("Measurements", (*head, *(c for _, c in laid), FLAGS, KEY), body,
                 _agreed(axes, shown) + lacks)  # fmt: skip
    return Joined(made, [("", len(head)), *((g, len(groups[g])) for g in order if groups[g])],
                  [list(cells) for cells in rows.values()])  # fmt: skip


def _summaries_of(table: Table, of: dict[tuple[str, str], Summary]) -> list[Summary]:
    """Of each row; a table without a column for the run is about one that has timed every row."""
    keys = [row[-1] for row in table.rows]
    if table.columns[0].name == "run":
        return [of[row[0], row[-1]] for row in table.rows]
    runs = dict.fromkeys(run for run, key in of if keys and key == keys[0])
    whole = [run for run in runs if all((run, k) in of and of[run, k].timed for k in keys)]
    return [of[(whole or list(runs))[0], k] for k in keys]


def _drop_sparse(
    groups: dict[str, dict[str, Column]], values: dict[tuple[Any, ...], list[Any]], rows: int
) -> list[str]:
    """Take out percentiles that fewer than half of the rows have; say which, and what to do."""
    out = []
    for group, columns in groups.items():
        for name in [n for n in columns if n.startswith("p9")]:
            seen = sum(
                isinstance(v, Estimate) and v.value is not None
                for (_, g, n), found in values.items() if (g, n) == (group, name)
                for _, v in found
            )  # fmt: skip
            if 2 * seen < rows:
                del columns[name]
                out.append(f"{name} ({seen} of {count(rows, 'row')})")
    if not out:
        return []
    return [f"Left out, for too few samples: {', '.join(out)}. A longer policy.duration_s or more "
            "repeats bring them."]  # fmt: skip


def labels(rows: Sequence[Summary], hidden: Sequence[str] = ()) -> list[str]:
    """'openvino bf16, batch 8, 2 replicas': of each row what tells it from the others."""
    values = [dict(zip(("run", *AXES), (s.run, *axis_values(s)), strict=True)) for s in rows]
    vary = [a for a in ("run", *AXES) if a not in hidden
            and (a == "backend" or len({v[a] for v in values}) > 1)]  # fmt: skip
    found = []
    for v in values:
        front = " ".join(str(v[a]) for a in vary if a in _NAMES and v[a])
        found.append(", ".join([front, *(_said(a, v[a]) for a in vary
                                         if a not in _NAMES and v[a] != "")]))  # fmt: skip
    return found


_NAMES = ("backend", "precision", "options")


def _said(axis: str, value: Any) -> str:
    many = {"replicas": "replica", "cores": "core", "loading cores": "loading core"}
    if axis in many:
        return count(value, many[axis])
    return f"{value} per device" if axis == "per device" else \
        f"batch {value}" if axis == "batch" else str(value)  # fmt: skip
