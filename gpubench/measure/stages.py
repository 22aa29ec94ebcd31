"""How the stages of an iteration are timed, each alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter_ns

from gpubench.measure.loop import Clock, sample

Parts = Mapping[str, Callable[[], object]]
"""Steps of one batch, by name, in their order."""

STAGES_NS, LEAST_STAGES, MOST_STAGES = 150_000_000, 3, 20
"""Stages are timed for so long, each so often."""


def each_alone(
    parts: Parts, finish: Callable[[], object], clock: Clock = perf_counter_ns
) -> dict[str, int]:
    """Median ns of each of ``parts``, done in turn and each waited for."""
    took: dict[str, list[int]] = {name: [] for name in parts}
    for number in range(MOST_STAGES):
        if number >= LEAST_STAGES and sum(map(sum, took.values())) > STAGES_NS:
            break
        for name, part in parts.items():
            took[name] += sample(part, finish, clock=clock).durations
    return {name: round(median(ns)) for name, ns in took.items()}
