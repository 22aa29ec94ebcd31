"""How the stages of an iteration are timed, each alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter_ns

from gpubench.measure.loop import Clock, sample

Parts = Mapping[str, Callable[[], object]]
"""Steps of one batch, by name, in their order."""

STAGES_S, LEAST_STAGES, MOST_STAGES = 0.15, 3, 20
"""Stages whose work is always the same are timed for so long, each so often."""


def each_alone(
    parts: Parts,
    finish: Callable[[], object],
    clock: Clock = perf_counter_ns,
    *,
    seconds: float = STAGES_S,
    at_least: int = LEAST_STAGES,
    at_most: int = MOST_STAGES,
) -> dict[str, list[int]]:
    """ns that each of ``parts`` took of each batch, done in turn and each waited for.

    Of ``at_least`` so many batches, then until ``seconds`` are over; ``at_most`` of so many.
    """
    took: dict[str, list[int]] = {name: [] for name in parts}
    spent = 0
    for number in range(max(at_least, at_most)):
        if number >= at_least and spent > seconds * 1e9:
            break
        for name, part in parts.items():
            took[name] += sample(part, finish, clock=clock).durations
            spent += took[name][-1]
    return took
