"""Suites as text: what `gpubench.suite.file` reads back as the same suite."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gpubench.suite.grid import anywhere, matches
from gpubench.suite.types import (
    Axes,
    OptionValue,
    Policy,
    Suite,
    Workload,
    model_path,
    with_path,
)

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_ALWAYS = ("backend", "device", "precision", "batch_size", "replicas", "cores", "scenario",
           "boundary", "dispatch", "replicas_per_device")  # fmt: skip
"""Axes that are written whatever their value; the others where it is not the default."""


def to_toml(suite: Suite, head: str = "", folder: Path | None = None) -> str:
    """``suite``, below a comment. Its paths must be absolute, as those of a suite that was read
    are; what lies in ``folder``, which the text is written to, is named from there.

    A suite is called as its file is. Rules that leave out nothing of its axes are left out, as a
    file must not have them.
    """
    axes = {k: v for k, v in msgspec.structs.asdict(suite.axes).items() if k != "options"}
    plain = msgspec.structs.asdict(Axes(backend=()))
    said = suite.workload.preprocess
    parts = [
        "".join(f"# {_string(line)[1:-1]}\n" for line in head.splitlines())
        + _pair("description", suite.description)
        + (_pair("baseline", suite.baseline) if len(suite.axes.backend) > 1 else ""),
        table("workload", _work(suite.workload, folder)),
        table("workload.preprocess", {k: said.plain(k) for k in said.given} if said else {}),
        table("workload.arguments", dict(suite.workload.arguments)),
        table("axes", {k: _one(v) for k, v in axes.items() if k in _ALWAYS or v != plain[k]}),
        *(table(f"axes.options.{_key(backend)}", {k: _one(v) for k, v in options.items()})
          for backend, options in suite.axes.options.items()),
        table("policy", _policy(suite.policy)),
        table("gate", suite.gate),
        *(table("[exclude]", rule) for rule in _acting(suite)),
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def _acting(suite: Suite) -> Iterator[dict[str, OptionValue]]:
    for rule in suite.exclude:
        if any(matches(rule, cell) for cell in anywhere(suite)):
            yield rule


def _work(work: Workload, folder: Path | None) -> dict[str, str]:
    """Without the tables, and without what says nothing."""
    fields = msgspec.structs.asdict(work)
    found = {k: v for k, v in fields.items() if v and k not in ("preprocess", "arguments")}
    for key, said in found.items() if folder else ():
        path = Path(model_path(said) if key == "model" else said)
        if path.parent == folder:
            found[key] = with_path(said, path.name) if key == "model" else path.name
    return found


def _one(values: Any) -> Any:
    """A list of one value is that value."""
    listed = list(values) if isinstance(values, tuple) else values
    return listed[0] if isinstance(listed, list) and len(listed) == 1 else listed


def _policy(policy: Policy) -> dict[str, OptionValue]:
    """What differs from the default; that of ``max_repeats`` is ``repeats``."""
    fields, plain = msgspec.structs.asdict(policy), msgspec.structs.asdict(Policy())
    plain["max_repeats"] = policy.repeats
    return {key: said for key, said in fields.items() if said != plain[key]}


def table(name: str, pairs: Mapping[str, Any]) -> str:
    """A table of a suite; '' without ``pairs``."""
    return "".join([f"[{name}]\n", *(_pair(k, v) for k, v in pairs.items())]) if pairs else ""


def _pair(key: str, given: Any) -> str:
    return f"{_key(key)} = {value(given)}\n"


def value(given: Any) -> str:
    """As TOML has it: true, 3, 0.5, "text", [1, 2]."""
    if isinstance(given, list):
        return f"[{', '.join(map(value, given))}]"
    text = _string(given) if isinstance(given, str) else str(given)
    return text.lower() if isinstance(given, bool) else text


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
