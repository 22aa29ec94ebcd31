"""What a cell needs beside its backend: with boundary ``pipeline`` a decoder, loader and cores."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from gpubench import loader
from gpubench.decoders import base as decoders

if TYPE_CHECKING:
    from gpubench.backends.base import Backend
    from gpubench.suite import Cell, Suite


decoder = cache(decoders.get)
"""By name; looking through what is installed takes longer than a plan has for each of its cells."""


def decoders_of(suite: Suite) -> list[str]:
    """Names of those that it uses: none without boundary ``pipeline``."""
    return sorted(suite.axes.decoder) if "pipeline" in suite.axes.boundary else []


def parts(cell: Cell) -> list[str]:
    """What a machine may lack for it, as keys of `gpubench.run.pool.Node.lacks`."""
    path = [named(cell.decoder)] if cell.boundary == "pipeline" else []
    return [cell.backend, *path]


def named(name: str) -> str:
    """A decoder, among backends that may be called the same."""
    return f"decoder {name}"


def preload(cell: Cell, backends: Mapping[str, Backend]) -> list[str]:
    """Modules that its workers import."""
    found = list(backends[cell.backend].preload)
    if cell.boundary == "pipeline":
        found += decoder(cell.decoder).preload
    return found


def unsupported(cell: Cell) -> str | None:
    """Why there is no such path, or None."""
    if cell.boundary != "pipeline":
        return None
    decodes = decoder(cell.decoder)
    if reason := decodes.unsupported(cell.device):
        return f"decoder {cell.decoder}: {reason}"
    if cell.scenario == "latency":
        return None
    if cell.dispatch != "independent":
        return f"dispatch {cell.dispatch}: with boundary pipeline each replica has its own loader"
    if cell.cores and cell.loader_cores >= cell.cores:
        return (
            f"loader_cores = {cell.loader_cores} of a replica's {cell.cores} core(s) leave none "
            "to compute"
        )
    return loader.unsupported(cell.loader, decodes)
