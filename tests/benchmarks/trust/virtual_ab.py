"""Interleaved pairs on a virtual machine whose speed changes while they run.

A pair is two processes with two turns each, in the order ABBA or BAAB (A: baseline). What the
machine does is a log slowdown for each sample of the four turns: shape (pairs, 4, samples).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from msgspec import Struct

from gpubench.analysis.compare import sequential_test
from gpubench.measure import steady_state
from gpubench.suite.types import Rule
from tests.benchmarks.trust.processes import Draw, Floats, noise

LEVEL_NS = 5e6
TOLERANCE = 0.02
"""`Policy.target_half_width`: what `measure.steady_state` takes for a drift."""
ORDERS = {"ABBA": ((0, 3), (1, 2)), "BAAB": ((1, 2), (0, 3)), "ABAB": ((0, 2), (1, 3))}
"""Order -> (turns of the baseline, turns of the candidate)."""

Slowdown = Callable[[np.random.Generator, Floats, int], Floats]
"""(rng, when each pair runs in units of pairs, samples of a turn) -> log slowdown."""


def quiet(rng: np.random.Generator, when: Floats, k: int) -> Floats:
    """Nothing happens."""
    return np.zeros((len(when), 4, k))


def bursts(rng: np.random.Generator, when: Floats, k: int) -> Floats:
    """Other work: 15 % of the time, 10 to 40 % slower, for one and a half turns on average."""
    n, leave, enter = len(when), 1 / (1.5 * k), 0.15 / 0.85 / (1.5 * k)
    busy, height = rng.random(n) < 0.15, rng.uniform(0.1, 0.4, n)
    found = np.empty((n, 4 * k))
    for step in range(4 * k):
        found[:, step] = busy * height
        change = rng.random(n) < np.where(busy, leave, enter)
        height = np.where(change & ~busy, rng.uniform(0.1, 0.4, n), height)
        busy = busy ^ change
    return found.reshape(n, 4, k)


def ramp(rng: np.random.Generator, when: Floats, k: int) -> Floats:
    """Heating up: 1 % slower with each pair for 30 pairs, then as fast down again, and so on."""
    at = when[:, None] + np.linspace(0, 1, 4 * k)
    return 0.01 * np.abs((at + 30) % 60 - 30).reshape(len(when), 4, k)


def sessions(rng: np.random.Generator, when: Floats, k: int) -> Floats:
    """Every pair finds another level (sd 5 %); in 1 of 20 it jumps by 10 % meanwhile."""
    n, at = len(when), np.arange(4 * k) / (4 * k)
    jump = 0.1 * rng.choice([-1, 1], n) * (rng.random(n) < 0.05)
    level = rng.normal(0, 0.05, (n, 1)) + jump[:, None] * (at > rng.random((n, 1)))
    return level.reshape(n, 4, k)


HIT, LEAST, MOST = 0.15, 0.05, 0.35
"""Dirty pairs: how many are off, and by how much at least and at most."""


def dirty(rng: np.random.Generator, when: Floats, k: int) -> Floats:
    """One turn is slower so much that 15 % of the pairs are off by 5 to 35 %."""
    found = np.zeros((len(when), 4, k))
    hit = np.flatnonzero(rng.random(len(when)) < HIT)
    off = 2 * np.log1p(rng.uniform(LEAST, MOST, len(hit)))  # a process is the mean of two turns
    found[hit, rng.integers(4, size=len(hit))] = off[:, None]
    return found


class Locked(Struct, frozen=True):
    """An antagonist that is active, 10 % slower, in exactly these turns of every pair."""

    turns: tuple[int, ...]

    def __call__(self, rng: np.random.Generator, when: Floats, k: int) -> Floats:
        found = np.zeros((len(when), 4, k))
        found[:, list(self.turns)] = 0.1
        return found


class Machine(Struct, frozen=True):
    """Where pairs run."""

    slowdown: Slowdown = quiet
    launch: float = 0.005
    """Standard deviation of the level from process to process."""
    samples: int = 40
    """Of each turn."""
    process: Draw = noise
    orders: tuple[str, ...] = ("ABBA", "BAAB")
    """One is drawn for each pair."""


def measure(
    rng: np.random.Generator, machine: Machine, when: Floats, effect: float = 0.0
) -> tuple[list[sequential_test.Pair], Floats]:
    """(pairs, their samples: log cost of baseline and candidate, shape (2, pairs, 2 k)).

    ``effect``: log(candidate / baseline), 0 for A/A. `measure.steady_state` looks at every turn.
    """
    n, k = len(when), machine.samples
    slow = machine.slowdown(rng, when, k)
    drawn = rng.integers(len(machine.orders), size=n)
    turns = np.array([ORDERS[machine.orders[i]] for i in drawn])  # (pairs, arm, turn) -> slot
    cost = np.empty((2, n, 2, k))
    for arm in (0, 1):
        own = machine.process(rng, n, 2 * k) + rng.normal(0, machine.launch, (n, 1)) + arm * effect
        cost[arm] = own.reshape(n, 2, k) + slow[np.arange(n)[:, None], turns[:, arm]]
    medians, unsteady = settle(cost)
    level, trends = medians.mean(axis=2), medians[:, :, 1] - medians[:, :, 0]
    off = np.exp(cost - np.median(cost, axis=3, keepdims=True)) - 1
    spreads = np.diff(np.median(np.abs(off), axis=3), axis=2)[:, :, 0]
    pairs = [
        sequential_test.Pair(
            d=float(level[1, i] - level[0, i]),
            trends=(float(trends[0, i]), float(trends[1, i])),
            spreads=(float(spreads[0, i]), float(spreads[1, i])),
            unsteady=bool(unsteady[:, i].any()),
        )
        for i in range(n)
    ]
    return pairs, cost.reshape(2, n, 2 * k)


def settle(cost: Floats) -> tuple[Floats, Floats]:
    """(log medians, flagged?) of every trace (the last axis), as the protocol would record it."""
    traces = np.rint(LEVEL_NS * np.exp(cost)).reshape(-1, cost.shape[-1])
    medians, flagged = np.median(traces, axis=1), np.zeros(len(traces))
    for i, trace in enumerate(traces.astype(np.int64).tolist()):
        cut, flags = steady_state.steady(trace, TOLERANCE)
        flagged[i] = bool(flags)
        if cut:
            medians[i] = np.median(trace[cut:])
    shape = cost.shape[:-1]
    return np.log(medians / LEVEL_NS).reshape(shape), flagged.reshape(shape)


Noise = Callable[[np.random.Generator, int], Floats]
"""(rng, how many) -> what is added to the true difference of each pair."""


def normal(sd: float) -> Noise:
    """What is mostly assumed."""
    return lambda rng, n: sd * rng.normal(0, 1, n)


def t3(sd: float) -> Noise:
    """Student's t with 3 degrees of freedom: heavy tails."""
    return lambda rng, n: sd * rng.standard_t(3, n) / math.sqrt(3)


def bimodal(sd: float) -> Noise:
    """Each arm is in a slow mode 3 times in 10, on top of normal noise."""

    def draw(rng: np.random.Generator, n: int) -> Floats:
        slow = (rng.random((2, n)) < 0.3) * 1.0
        both = slow[1] - slow[0] + rng.normal(0, 0.3, n)
        return np.asarray(sd * both / math.sqrt(2 * 0.3 * 0.7 + 0.09))

    return draw


def hit(sd: float) -> Noise:
    """Normal, and 15 % of the pairs are off by 5 to 35 %, in either direction."""

    def draw(rng: np.random.Generator, n: int) -> Floats:
        off = np.log1p(rng.uniform(LEAST, MOST, n)) * rng.choice([-1, 1], n)
        return np.asarray(rng.normal(0, sd, n) + off * (rng.random(n) < HIT))

    return draw


DIRTY = f"dirty ({HIT:.0%} of pairs off by {100 * LEAST:.0f}-{MOST:.0%})"

Measure = Callable[[str, int], list[sequential_test.Pair]]
"""(cell, how many) -> fresh pairs of that cell."""


def suite(
    keys: Sequence[str], fresh: Measure, rule: Rule
) -> tuple[Mapping[str, sequential_test.Pairs], dict[str, sequential_test.Verdict]]:
    """A whole A/B as the driver runs it: measure what `wanted` asks for, then judge."""
    cells = {key: sequential_test.Pairs() for key in keys}
    while wanted := sequential_test.wanted(cells, rule):
        for key, (stage, n) in wanted.items():
            had = cells[key]
            if stage == "screen":
                more = fresh(key, n - len(had.screen))
                cells[key] = sequential_test.Pairs(screen=[*had.screen, *more])
            else:
                more = fresh(key, n - len(had.confirm))
                cells[key] = sequential_test.Pairs(screen=had.screen, confirm=[*had.confirm, *more])
    return cells, sequential_test.judge(cells, rule)


def on(machine: Machine, rng: np.random.Generator, effects: Mapping[str, float]) -> Measure:
    """Pairs of a suite on ``machine``; cells take turns: each pair of a cell is a round later."""
    at = dict.fromkeys(effects, 0)
    start = rng.uniform(0, 60)

    def fresh(key: str, n: int) -> list[sequential_test.Pair]:
        rounds = at[key] + np.arange(n)
        at[key] += n
        when = start + len(effects) * rounds + rng.integers(0, len(effects), n)
        return measure(rng, machine, when, effects[key])[0]

    return fresh
