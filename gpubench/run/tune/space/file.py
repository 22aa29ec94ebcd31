"""A file that restricts or extends a space: TOML, like a suite's ``[axes]`` and ``[[exclude]]``.

What it does not name stays as it is; what it names takes the place of the default's values.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import UNSET, to_builtins
from msgspec.structs import replace

from gpubench.run.tune.space import options as space_options
from gpubench.run.tune.space.axes import FIELDS, Placement, Space, no_room, placed, placements_of
from gpubench.run.tune.space.grid import MOST_TRIED, count, grid, matches, values_of
from gpubench.suite import schema as suite_schema
from gpubench.suite import toml_file
from gpubench.suite.file import exclusions, idle, listed, too_many
from gpubench.suite.grid import MAX_CELLS
from gpubench.suite.schema import CORES, MOST, REPLICAS, Mistake, Schema, nearest, same
from gpubench.suite.types import Catalog, Option, OptionValue

WHAT = "space"
_NEVER = {"device", "scenario", "boundary", "dispatch", "decoder", "loader", "loader_cores"}
"""Axes of a suite that a search sets otherwise."""


def schema(catalog: Catalog) -> Schema:
    """JSON schema of the file on this installation."""
    suite = suite_schema.schema(catalog)["properties"]
    axes = suite["axes"]["properties"]
    table, scalar_or_list = suite_schema.table, suite_schema.scalar_or_list
    places = {"replicas": REPLICAS, "cores": CORES, "replicas_per_device": REPLICAS}
    taken = ("backend", "precision", "input", "batch_size", "replicas", "options")
    own = {key: axes[key] for key in taken}
    own["placement"] = scalar_or_list(table(places, required=["replicas"]))
    rule = suite["exclude"]["items"]["properties"]
    rules = {key: value for key, value in rule.items() if key not in _NEVER}
    rules["cores"] = scalar_or_list(CORES)
    exclude = {"type": "array", "items": table(rules) | {"minProperties": 1}}
    return table({"description": {"type": "string"}, "axes": table(own), "exclude": exclude})


def read(path: str | Path, space: Space, catalog: Catalog) -> Space:
    """``space`` as the file says. Raises SuiteError with all mistakes."""
    data = toml_file.read(Path(path), WHAT)
    found = list(itertools.islice(suite_schema.mistakes(data, schema(catalog)), MOST + 1))
    if not found:
        axes = data.get("axes", {})
        found = list(_placement_mistakes(space, axes))
        changed = _changed(space, data, catalog)
        found += itertools.islice(_checks(changed, data, catalog), MOST + 1)
    if found:
        raise toml_file.error(WHAT, Path(path), found, {})
    return changed


def _changed(space: Space, data: toml_file.Data, catalog: Catalog) -> Space:
    """Data that satisfies the schema -> what takes the place of the values in ``space``."""
    axes = data.get("axes", {})
    fields = {FIELDS[key]: tuple(listed(axes[key])) for key in FIELDS if key in axes}
    options = {backend: dict(values) for backend, values in space.options.items()}
    for backend, table in axes.get("options", {}).items():
        known = {o.name: o for o in catalog.backends[backend]}
        options.setdefault(backend, {}).update(
            (name, tuple(space_options.typed(known[name], value) for value in listed(values)))
            for name, values in table.items()
        )
    if places := [place for _, place in _placements(space, axes)]:
        fields["placements"] = tuple(places)
    return replace(space, **fields, options=options, exclude=space.exclude + exclusions(data))


def _placements(space: Space, axes: toml_file.Data) -> Iterator[tuple[str, Placement]]:
    """With the key that each stands under; replicas alone share out all devices."""
    for i, n in enumerate(listed(axes.get("replicas", []))):
        for place in placements_of(space, n):
            yield f"axes.replicas[{i}]", place
    for i, table in enumerate(listed(axes.get("placement", []))):
        yield f"axes.placement[{i}]", placed(space, table)


def _placement_mistakes(space: Space, axes: toml_file.Data) -> Iterator[Mistake]:
    if "replicas" in axes and "placement" in axes:
        yield Mistake("axes.replicas", axes["replicas"], "axes.placement has them too; give one")
        return  # what both say twice is no mistake of its own
    if space.device == "cuda":
        for i, table in enumerate(listed(axes.get("placement", []))):
            if "cores" in table:
                text = "replicas own GPUs here, not cores; leave it out"
                yield Mistake(f"axes.placement[{i}].cores", table["cores"], text)
    seen = set()
    for at, place in _placements(space, axes):
        if reason := no_room(space, place):
            yield Mistake(at, to_builtins(place) if "placement" in at else UNSET, reason)
        elif place in seen:
            yield Mistake(at, to_builtins(place), "given twice")
        seen.add(place)


def _checks(space: Space, data: toml_file.Data, catalog: Catalog) -> Iterator[Mistake]:
    """What the schema cannot say: keys that depend on one another."""
    tables = data.get("axes", {}).get("options", {})
    for backend in tables:
        at = f"axes.options.{backend}"
        if backend not in space.backends:
            text = f"axes.backend must name it too; {nearest(backend, space.backends)}"
            yield Mistake(at, UNSET, text)
        elif count(space.options[backend]) > MAX_CELLS:
            text = f"more than {MAX_CELLS:,} combinations; shorten a list"
            yield Mistake(at, UNSET, text)
            return
        else:
            yield from _option_checks(space, backend, tables[backend], catalog.backends[backend])
    if rules := data.get("exclude"):
        yield from _exclusion_checks(space, rules, catalog)


def _option_checks(
    space: Space, backend: str, table: Mapping[str, Any], options: Sequence[Option]
) -> Iterator[Mistake]:
    """Values that no cell can show. On another device they might: a file may be for both."""
    space_options.check(backend, options)
    tried: dict[str, Sequence[OptionValue]] = {o.name: (o.default,) for o in options}
    tried |= space.options[backend]
    tried |= {
        "device": space_options.FIELDS["device"],
        "precision": space.precisions,
        "scenario": (space.scenario,),
        "boundary": (space.boundary,),
    }
    for option in options:
        values = listed(table.get(option.name, option.default))
        plain = all(same(value, option.default) for value in values)
        met = (any(same(a, b) for a in tried[n] for b in option.when[n]) for n in option.when)
        if not plain and not all(met):
            text = f"no effect in this space, {space_options.condition(option)}"
            yield Mistake(f"axes.options.{backend}.{option.name}", table[option.name], text)


def _exclusion_checks(
    space: Space, tables: list[dict[str, Any]], catalog: Catalog
) -> Iterator[Mistake]:
    found = list(itertools.islice(grid(space, catalog), MOST_TRIED + 1))
    if mistake := too_many(space.exclude, len(found)):
        yield mistake
    elif len(found) <= MOST_TRIED:
        known = [values_of(cell, catalog.backends[cell.backend]) for cell in found]
        yield from idle(tables, "the space has", lambda r: any(matches(r, each) for each in known))
