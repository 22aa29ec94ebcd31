"""Backends and decoders by name: built-ins and third parties alike are entry points of a group."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any

from gpubench.errors import InputError, Unavailable


def names(group: str) -> list[str]:
    """Names of all that is registered in ``group``, sorted; imports nothing."""
    return sorted(_entries(group))


def get(group: str, name: str) -> Any:
    """What is registered as ``name``, called without arguments.

    ``group``: 'gpubench.backends', for example. Raises InputError when there is no such name, or
    its module cannot be loaded.
    """
    entry, kind = _entries(group).get(name), group.rpartition(".")[2].removesuffix("s")
    if entry is None:
        raise InputError(f"unknown {kind} {name!r}; registered: {', '.join(names(group))}")
    try:
        return entry.load()()
    except Exception as error:  # a third party's module may raise anything at import
        raise InputError(f"{kind} {name!r} ({entry.value}) cannot be loaded: {error!r}") from error


def installed(*packages: str, remedy: str = "") -> dict[str, str]:
    """Their versions. Raises Unavailable for one that is not there."""
    try:
        return {name: version(name) for name in packages}
    except PackageNotFoundError as error:
        name = error.name
        raise Unavailable(f"{name} is not installed", remedy or f"pip install {name}") from error


def _entries(group: str) -> Mapping[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}
