"""What `plan`, `list` and `cache info` print."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gpubench import units
from gpubench.analysis.compare.metrics import outlook
from gpubench.backends import base
from gpubench.cache import Cache
from gpubench.cli import options
from gpubench.errors import InputError, Unavailable
from gpubench.pipeline.decoders import base as decoders_base
from gpubench.run.plan import Durations, sampling_s, task_seconds, undecidable
from gpubench.run.tune.space import options as space_options
from gpubench.suite import file, gate
from gpubench.suite.types import MIN_BLOCKS
from gpubench.workload.models import registry as networks

if TYPE_CHECKING:
    from gpubench.run.driver import RunJob
    from gpubench.suite.types import Option


ENOUGH = 3
"""Repeats; of two, what the rounds have in common is one difference, whose t is 12.7."""


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def plan_tables(session: RunJob, keys: bool = False) -> Group:
    """Cells in the suite's order, skips with reasons, and the estimated time."""
    plan = session.plan
    policy = plan.suite.policy
    seen = Durations(session.cache_dir)
    table = _table(f"{plan.suite.name}: cells", *["key"] * keys, "cell", "one task")
    total = 0.0
    for cell in plan.cells:
        seconds = task_seconds(cell, policy, seen)
        total += seconds * policy.repeats
        table.add_row(*[cell.key] * keys, Text(cell.label), units.clock(seconds))
    parts: list[Table | Text] = [table]
    if plan.skips:
        skips = _table("skipped", "cells", "backend", "why", "remedy")
        same = Counter((s.cell.backend, s.reason, s.remedy) for s in plan.skips)
        for words, count in same.items():
            skips.add_row(str(count), *(Text(word) for word in words))
        parts.append(skips)
    parts.append(
        Text(
            f"{units.count(len(plan.cells), 'cell')} x {units.count(policy.repeats, 'repeat')} "
            f"(up to {policy.max_repeats}): "
            f"about {units.clock(total)}, plus preparing what the cache lacks; every round in an "
            "order of its own"
        )
    )
    if plan.cells:
        parts.append(Text(as_ab(session)))
    if policy.repeats < ENOUGH:
        few = units.count(policy.repeats, "repeat")
        parts.append(Text(f"{few}: no usable intervals; --repeats {ENOUGH}"))
    if reason := undecidable(plan.suite, Cache(session.cache_dir)):
        parts.append(Text(reason))
    least = max((sampling_s(cell, policy) for cell in plan.cells), default=0.0)
    if least > policy.duration_s:
        parts.append(
            Text(
                f"a repeat of throughput samples for {least:g} s, not {policy.duration_s:g} s "
                f"(policy.duration_s): {MIN_BLOCKS} blocks of policy.block_s, or "
                "policy.max_samples"
            )
        )
    return Group(*parts)


def as_ab(session: RunJob, budget: str = options.AB_BUDGET) -> str:
    """What its cells take in an A/B, and what ``budget`` finds."""
    plan, seen = session.plan, Durations(session.cache_dir)
    each = [2 * task_seconds(cell, plan.suite.policy, seen) for cell in plan.cells]
    budget_s = options.seconds("--budget", budget)
    return f"as an A/B: {outlook(each, budget_s, gate.rule(plan.suite.gate))}"


def everything() -> Group:
    """Suites, backends, decoders and models, each as short as it can be said."""
    short = _table("backends (gpubench list backends: with their options)", "name", "what it is",
                   "here")  # fmt: skip
    for name, backend, here in _registered(base):
        short.add_row(name, Text(backend.summary if backend else ""), Text(here))
    families: dict[str, list[str]] = {}
    for name in networks.names():
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
    table = _table("", *columns)
    for name, backend, here in _registered(base):
        options = "\n".join(map(_option, backend.options)) if backend else ""
        table.add_row(name, Text(backend.summary if backend else ""), Text(here), Text(options))
    return table


def _option(option: Option) -> str:
    tried = ", ".join(
        str(value) for value in space_options.tried(option) if value != option.default
    )
    return f"{option.name} ({option.default}{'; ' if tried else ''}{tried})"


def decoders() -> Table:
    """Registered decoders: what they are, where they work, and whether they are here."""
    table = _table("", "decoder", "what it is", "here", "works on")
    for name, decoder, here in _registered(decoders_base):
        place = ("a CUDA device" if decoder.on_device else "the host") if decoder else ""
        table.add_row(name, Text(decoder.summary if decoder else ""), Text(here), place)
    return table


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
    return Text("\n".join(networks.names()))


def suites() -> Table:
    """Shipped suites with their descriptions."""
    table = _table("", "suite", "what it measures")
    for path in file.shipped():
        description = tomllib.loads(path.read_text(encoding="utf-8")).get("description", "")
        table.add_row(path.stem, Text(description))
    return table


def cache(cache_dir: Path | None) -> Group:
    """Where the cache is and what it holds."""
    store = Cache(cache_dir)
    table = _table("", "kind", "entries", "size")
    found = store.info()
    for usage in found:
        table.add_row(usage.kind, str(usage.entries), units.size(usage.bytes))
    total = units.size(sum(usage.bytes for usage in found))
    return Group(Text(f"cache: {store.root}, {total}"), table)
