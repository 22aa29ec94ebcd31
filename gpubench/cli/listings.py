"""What `plan`, `list` and `cache info` print."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gpubench import escape, units
from gpubench.backends import base
from gpubench.cache import Cache
from gpubench.errors import InputError, Unavailable
from gpubench.pipeline.decoders import base as decoders_base
from gpubench.run import availability
from gpubench.run.plan_view import table
from gpubench.run.tune import options as space_options
from gpubench.suite import file
from gpubench.workload.models import registry as networks

if TYPE_CHECKING:
    from gpubench.suite.types import Option


def everything() -> Group:
    """Suites, backends, decoders and models, each as short as it can be said."""
    short = table("backends (gpubench list backends: with their options)", "name", "what it is",
                   "here")  # fmt: skip
    for name, backend, here in _registered(base):
        short.add_row(name, Text(backend.summary if backend else ""), Text(here))
    families: dict[str, list[str]] = {}
    for name in _models():
        family = (re.match(r"[a-z]+_?", name) or [name])[0]
        families.setdefault(family, []).append(name.removeprefix(family))
    words = [f"{f}{{{','.join(more)}}}" if len(more) > 1 else f"{f}{more[0]}"
             for f, more in families.items()]  # fmt: skip
    return Group(
        *(part for made in (_titled("suites", suites()), short, _titled("decoders", decoders()))
          for part in (made, Text())),
        Text(f"models (gpubench list models: one a line)\n{'  '.join(words)}"),
    )  # fmt: skip


def _titled(title: str, table: Table) -> Table:
    table.title = Text(title)
    return table


def backends() -> Table:
    """Registered backends: what they are, and whether they run here."""
    columns = ("backend", "what it is", "here", "options (default; what tune tries besides)")
    made = table("", *columns)
    for name, backend, here in _registered(base):
        options = "\n".join(map(_option, backend.options)) if backend else ""
        made.add_row(name, Text(backend.summary if backend else ""), Text(here), Text(options))
    return made


def _option(option: Option) -> str:
    tried = ", ".join(
        str(value) for value in space_options.tried(option) if value != option.default
    )
    return f"{option.name} ({option.default}{'; ' if tried else ''}{tried})"


def decoders() -> Table:
    """Registered decoders: what they are, where they work, and whether they are here."""
    made = table("", "decoder", "what it is", "here", "works on")
    for name, decoder, here in _registered(decoders_base):
        place = ("a CUDA device" if decoder.on_device else "the host") if decoder else ""
        made.add_row(name, Text(decoder.summary if decoder else ""), Text(here), place)
    return made


def _registered(registry: Any) -> Iterator[tuple[str, Any, str]]:
    """(name, what it is or None when it cannot be loaded, its versions or why it is not here)."""
    for name in registry.names():
        found = None
        try:
            found = registry.get(name)
            here = ", ".join(f"{key} {value}" for key, value in found.probe().items())
        except Unavailable as error:
            here = f"no: {error.reason}. {error.remedy}"
        except InputError as error:
            here = f"no: {error}"
        yield name, found, here


def models() -> Text:
    """Names of the classification networks, one a line."""
    return Text("\n".join(_models()))


def _models() -> tuple[str, ...]:
    lack = None if networks.listed() else availability.lack(networks.source("torchvision"))
    if lack:
        escape.tell(f"note: torchvision's are not listed: {lack.reason}; {lack.remedy}")
    return networks.names()


def suites() -> Table:
    """Shipped suites with their descriptions."""
    made = table("", "suite", "what it measures")
    for path in file.shipped():
        description = tomllib.loads(path.read_text(encoding="utf-8")).get("description", "")
        made.add_row(path.stem, Text(description))
    return made


def cache(cache_dir: Path | None) -> Group:
    """Where the cache is and what it holds."""
    store = Cache(cache_dir)
    made = table("", "kind", "entries", "size")
    found = store.info()
    for usage in found:
        made.add_row(usage.kind, str(usage.entries), units.size(usage.bytes))
    total = units.size(sum(usage.bytes for usage in found))
    return Group(Text(f"cache: {store.root}, {total}"), made)
