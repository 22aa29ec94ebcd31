"""What a plan shows: its cells, what is left out and why, and how long it will take."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gpubench import units
from gpubench.analysis.compare.metrics import outlook
from gpubench.cache import Cache
from gpubench.run.plan import Durations, sampling_s, task_seconds, undecidable
from gpubench.suite import gate, goal
from gpubench.suite.types import MIN_BLOCKS

if TYPE_CHECKING:
    from gpubench.run.driver import RunJob

ENOUGH = 3
"""Repeats; of two, what the rounds have in common is one difference, whose t is 12.7."""


def table(title: str, *columns: str) -> Table:
    """An empty one."""
    made = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def tables(session: RunJob, keys: bool = False) -> Group:
    """Cells in the suite's order, skips with reasons, and the estimated time."""
    plan = session.plan
    policy = plan.suite.policy
    seen = Durations(session.cache_dir)
    cells = table(f"{plan.suite.name}: cells", *["key"] * keys, "cell", "one task")
    total = 0.0
    for cell in plan.cells:
        seconds = task_seconds(cell, policy, seen)
        total += seconds * policy.repeats
        cells.add_row(*[cell.key] * keys, Text(cell.label), units.clock(seconds))
    parts = [cells]
    if plan.skips:
        skips = table("skipped", "cells", "backend", "why", "remedy")
        same = Counter((s.cell.backend, s.reason, s.remedy) for s in plan.skips)
        for words, count in same.items():
            skips.add_row(str(count), *(Text(word) for word in words))
        parts.append(skips)
    repeats = units.count(policy.repeats, "repeat")
    lines = [
        f"{units.count(len(plan.cells), 'cell')} x {repeats} (up to {policy.max_repeats}): about "
        f"{units.clock(total)}, plus preparing what the cache lacks; every round in an order of "
        "its own"
    ]
    if plan.cells:
        lines.append(as_ab(session))
    if policy.repeats < ENOUGH:
        lines.append(f"{repeats}: no usable intervals; --repeats {ENOUGH}")
    if reason := undecidable(plan.suite, Cache(session.cache_dir)):
        lines.append(reason)
    least = max((sampling_s(cell, policy) for cell in plan.cells), default=0.0)
    if least > policy.duration_s:
        lines.append(
            f"a repeat of throughput samples for {least:g} s, not {policy.duration_s:g} s "
            f"(policy.duration_s): {MIN_BLOCKS} blocks of policy.block_s, or policy.max_samples"
        )
    return Group(*parts, *map(Text, lines))


def as_ab(session: RunJob, budget: str = goal.BUDGET) -> str:
    """What its cells take in an A/B, and what ``budget`` finds."""
    plan, seen = session.plan, Durations(session.cache_dir)
    each = [2 * task_seconds(cell, plan.suite.policy, seen) for cell in plan.cells]
    budget_s = goal.seconds("--budget", budget)
    return f"as an A/B: {outlook(each, budget_s, gate.rule(plan.suite.gate))}"
