"""How the stages of an iteration are timed, each alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import fmean, median, stdev
from time import perf_counter_ns
from typing import TYPE_CHECKING

from gpubench.measure.loop import Clock, sample

if TYPE_CHECKING:
    from gpubench.backends.base import Images, Session

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
    error: float = math.inf,
) -> dict[str, list[int]]:
    """ns that each of ``parts`` took of each batch, done in turn and each waited for.

    Of ``at_least`` so many batches, then until ``seconds`` are over and the relative standard
    error of their mean is no larger than ``error``: soon where all cost the same. ``at_most`` of
    so many.
    """
    took: dict[str, list[int]] = {name: [] for name in parts}
    whole: list[int] = []
    check = at_least
    for number in range(max(at_least, at_most)):
        if number >= check and sum(whole) > seconds * 1e9:
            if stdev(whole) / math.sqrt(number) <= error * fmean(whole):
                break
            check = math.ceil(1.1 * number)
        for name, part in parts.items():
            took[name] += sample(part, finish, clock=clock).durations
        whole.append(sum(ns[-1] for ns in took.values()))
    return took


def alone(session: Session, images: Images, clock: Clock = perf_counter_ns) -> dict[str, int]:
    """Median ns of what a transfer consists of, in turn and each waited for.

    ``convert``, where the session tells it apart, is the host's part of the copy in, and is then
    not in ``copy_in``.
    """
    parts: dict[str, Callable[[], object]] = {"copy_in": lambda: session.copy_in(images)}
    if session.convert(images):
        parts = {"convert": lambda: session.convert(images), "copy_in": session.upload}
    parts |= {"run": session.run, "copy_out": session.copy_out}
    took = each_alone(parts, session.sync, clock)
    return {name: round(median(ns)) for name, ns in took.items()}
