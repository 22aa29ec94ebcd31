"""Cells as suites: of a search's header, and of one cell as a file that reads back as that cell."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gpubench.suite.types import Axes, Cell, OptionValue, Policy, Suite

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_AXES = ("backend", "device", "precision", "batch_size", "replicas", "replicas_per_device", "cores",
         "scenario", "boundary", "dispatch")  # fmt: skip
_INPUT = ("input",)
"""Written where it is not float32."""
_PIPELINE = ("decoder", "loader", "loader_cores")
"""Axes of boundary ``pipeline`` only."""
_SINGLE = ("device", "cores")
"""Axes that hold one value."""


def suite(
    name: str, cells: Sequence[Cell], policy: Policy, baseline_backend: str, description: str
) -> Suite:
    """What the header of a search's records says of ``cells``, at least one: the values they have.

    Options appear with the values that cells name. The product of the axes is more than the cells,
    which stand in `Header.planned`; ``cores`` is 0 where they differ.
    """
    first = cells[0]
    options: dict[str, dict[str, dict[OptionValue, None]]] = {}
    for cell in cells:
        for key, value in cell.options.items():
            options.setdefault(cell.backend, {}).setdefault(key, {})[value] = None
    cores = {cell.cores for cell in cells}
    fields: dict[str, Any] = {
        key: tuple(dict.fromkeys(getattr(cell, key) for cell in cells))
        for key in (*_AXES, *_INPUT, *_PIPELINE) if key not in _SINGLE
    }  # fmt: skip
    axes = Axes(
        **fields,
        device=first.device,
        cores=first.cores if len(cores) == 1 else 0,
        options={b: {k: tuple(v) for k, v in found.items()} for b, found in options.items()},
    )
    return Suite(
        name=name,
        description=description,
        workload=first.workload,
        axes=axes,
        policy=policy,
        baseline=baseline_backend,
    )


def to_toml(cell: Cell, policy: Policy, name: str, description: str) -> str:
    """A suite of one cell: loaded and expanded it gives ``cell`` and ``policy`` again.

    ``name`` stands in a comment: a suite is called as its file is. Paths in ``cell`` must be
    absolute, as those of a suite's cells are.
    """
    more = _INPUT * (cell.input != "float32") + _PIPELINE * (cell.boundary == "pipeline")
    axes = {key: getattr(cell, key) for key in _AXES + more}
    work = {k: v for k, v in msgspec.structs.asdict(cell.workload).items() if v}
    said, arguments = work.pop("preprocess", None), dict(work.pop("arguments", ()))
    parts = [
        f"# {_string(name)[1:-1]}\n{_pair('description', description)}",
        table("workload", work),
        table("workload.preprocess", {k: said.plain(k) for k in said.given} if said else {}),
        table("workload.arguments", arguments),
        table("axes", axes),
        table(f"axes.options.{_key(cell.backend)}", cell.options),
        table("policy", _policy(policy)),
    ]
    return "\n".join(part for part in parts if part)


def _policy(policy: Policy) -> dict[str, OptionValue]:
    """What differs from the default; that of ``max_repeats`` is ``repeats``."""
    fields, plain = msgspec.structs.asdict(policy), msgspec.structs.asdict(Policy())
    plain["max_repeats"] = policy.repeats
    return {key: value for key, value in fields.items() if value != plain[key]}


def table(name: str, pairs: Mapping[str, Any]) -> str:
    """A table of a suite; '' without ``pairs``."""
    return "".join([f"[{name}]\n", *(_pair(k, v) for k, v in pairs.items())]) if pairs else ""


def _pair(key: str, value: Any) -> str:
    return f"{_key(key)} = {_value(value)}\n"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    text = _string(value) if isinstance(value, str) else str(value)
    return text.lower() if isinstance(value, bool) else text


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    """A TOML basic string; what cannot be seen is written as an escape."""
    return f'"{"".join(map(_written, text))}"'


def _written(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
