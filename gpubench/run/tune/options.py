"""What backends declare as worth searching: checked, and reduced to what has an effect."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from gpubench.errors import SuiteError
from gpubench.suite import schema
from gpubench.suite.schema import nearest, same, show
from gpubench.suite.types import Boundary, Cell, Option, OptionValue, Precision, Scenario

FIELDS: dict[str, tuple[str, ...]] = {
    "device": ("cpu", "cuda"),
    "precision": get_args(Precision),
    "scenario": get_args(Scenario),
    "boundary": get_args(Boundary),
}
"""Fields of a cell that `Option.when` may name, with all their values."""
_KINDS = ("bool", "int", "float", "str")

Values = Mapping[str, Sequence[OptionValue]]


def check(backend: str, options: Iterable[Option]) -> None:
    """Raises SuiteError, naming backend and option, for a declaration that cannot be searched."""
    listed = list(options)
    for option in listed:
        for what in _wrong(option, listed):
            raise SuiteError(
                f"backend {show(backend)}, option {show(option.name)}: {what}; this is for the "
                "backend's authors to mend, and --backend leaves it out"
            )


def tried(option: Option) -> tuple[OptionValue, ...]:
    """Its ``search``; () where that is no tuple, which `check` tells whoever asks for cells."""
    search: Any = option.search
    return tuple(search) if isinstance(search, tuple | list) else ()


def canonical(
    options: Sequence[Option], values: Mapping[str, OptionValue], fields: Mapping[str, str]
) -> dict[str, OptionValue]:
    """``values`` in the order of ``options``, less those at their default or without effect.

    ``fields``: at least those of `FIELDS`.
    """
    kept = {o.name: typed(o, values[o.name]) for o in options if o.name in values}
    kept = {o.name: kept[o.name] for o in options if not same(_value(o, kept), o.default)}
    while idle := [
        o.name for o in options if o.name in kept and not _acts(o, options, kept, fields)
    ]:
        for name in idle:
            del kept[name]
    return kept


def combinations(
    options: Sequence[Option], values: Values, fields: Mapping[str, str]
) -> Iterator[dict[str, OptionValue]]:
    """All that ``values`` (by option; others keep their default) can mean, each once."""
    lists = {
        o.name: values[o.name]
        for o in options
        if o.name in values and _holds(o, fields, (n for n in o.when if n in FIELDS))
    }
    seen = set()
    for chosen in itertools.product(*lists.values()):
        found = canonical(options, dict(zip(lists, chosen, strict=True)), fields)
        if (mark := repr(found)) not in seen:
            seen.add(mark)
            yield found


def effective(options: Sequence[Option], cell: Cell) -> dict[str, OptionValue]:
    """The options that have an effect in ``cell``, with their values, defaults filled in."""
    fields = {name: getattr(cell, name) for name in FIELDS}
    return {
        o.name: _value(o, cell.options) for o in options if _acts(o, options, cell.options, fields)
    }


def typed(option: Option, value: OptionValue) -> OptionValue:
    """``value`` as a suite would hold it: 1 is 1.0 where the option is a float."""
    return float(value) if option.kind == "float" else value


def condition(option: Option) -> str:
    """'only where device is "cuda" and mode is "default" or "max-autotune"', from its ``when``."""
    parts = [f"{name} is {' or '.join(map(show, values))}" for name, values in option.when.items()]
    return "only where " + " and ".join(parts)


def _acts(
    option: Option,
    options: Sequence[Option],
    values: Mapping[str, OptionValue],
    fields: Mapping[str, str],
) -> bool:
    known = {**{o.name: _value(o, values) for o in options}, **fields} if option.when else {}
    return _holds(option, known, option.when)


def _holds(option: Option, known: Mapping[str, OptionValue], names: Iterable[str]) -> bool:
    return all(any(same(known[name], value) for value in option.when[name]) for name in names)


def _value(option: Option, values: Mapping[str, OptionValue]) -> OptionValue:
    return values.get(option.name, option.default)


def _wrong(option: Option, options: Sequence[Option]) -> Iterator[str]:
    """What is wrong with ``search`` and ``when``; a struct does not check what it is made with."""
    said: Any = option
    kind, search, when = said.kind, said.search, said.when
    if kind not in _KINDS:
        yield f"kind = {show(kind)}: expected one of {', '.join(_KINDS)}"
    elif not isinstance(search, tuple | list):
        yield f"search = {show(search)}: expected a tuple of values"
    elif search:
        yield from _not_its(option, "search", search)
        if not any(same(value, option.default) for value in search):
            yield f"search = {show(search)}: the default, {show(option.default)}, is not among them"
    if not isinstance(when, Mapping):
        yield f"when = {show(when)}: expected a dict of names and tuples of values"
        return
    others = {o.name: o for o in options if o.name != option.name}
    for name, values in when.items():
        place = f"when[{show(name)}]"
        if name not in FIELDS and name not in others:
            yield f"when: {show(name)} is unknown; {nearest(str(name), [*FIELDS, *others])}"
        elif not isinstance(values, tuple | list) or not values:
            yield f"{place} = {show(values)}: expected a tuple of values"
        elif name not in FIELDS:
            yield from _not_its(others[name], place, values)
        elif unknown := [v for v in values if v not in FIELDS[name]]:
            yield f"{place} = {show(unknown[0])}: {nearest(str(unknown[0]), FIELDS[name])}"


def _not_its(option: Option, place: str, values: Iterable[Any]) -> Iterator[str]:
    rule = schema.option(option)
    for i, value in enumerate(values):
        for mistake in schema.mistakes(value, rule, f"{place}[{i}]"):
            yield str(mistake)
