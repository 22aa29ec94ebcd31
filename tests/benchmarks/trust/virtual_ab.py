"""Interleaved pairs on a virtual machine whose speed changes, second by second, while they run.

A pair is two processes: SETUP_S until both are open, then each samples for SAMPLING_S in turns.
What the machine does meanwhile is a log slowdown at each moment; what a process does by itself is
added.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from msgspec import Struct

from gpubench.analysis.compare import sequential_test
from gpubench.analysis.compare.sequential_test import Pair
from gpubench.measure import steady_state
from gpubench.run.ab.pair_runner import sequence
from gpubench.suite.types import Rule
from tests.benchmarks.trust.processes import Draw, Floats, noise

LEVEL_NS = 5e6
TOLERANCE = 0.02
"""`Policy.target_half_width`: what `measure.steady_state` takes for a drift."""
SETUP_S, SAMPLING_S = 2.6, 1.0
PAIR_S = SETUP_S + 2 * SAMPLING_S
KEPT = 500
"""Orders that the pairs of one draw share."""

Slowdown = Callable[[np.random.Generator, Floats], Floats]
"""(rng, seconds of the samples of each session: (sessions, pairs, slots, samples)) -> log slowdown.
"""


def quiet(rng: np.random.Generator, t: Floats) -> Floats:
    """Nothing happens."""
    return np.zeros_like(t)


def _switched(rng: np.random.Generator, t: Floats, on_s: float, off_s: float) -> Floats:
    """Number of the state (odd: on) that each session is in; states last exponentially long."""
    n = 8 + int(3 * t.max() / (on_s + off_s))
    lengths = rng.exponential([[off_s, on_s] * n] * len(t))
    lengths[:, 0] *= rng.random(len(t))
    edges = np.cumsum(lengths, axis=1)
    return np.stack([np.searchsorted(e, x) for e, x in zip(edges, t, strict=True)]).astype(float)


def bursts(rng: np.random.Generator, t: Floats) -> Floats:
    """Other work: 15 % of the time, for 1.5 s on average, 10 to 40 % slower."""
    state = _switched(rng, t, 1.5, 8.5).astype(int)
    height = rng.uniform(0.1, 0.4, (len(t), state.max() + 1))
    return np.stack([h[s] * (s % 2) for h, s in zip(height, state, strict=True)])


def clock(rng: np.random.Generator, t: Floats) -> Floats:
    """A clock with two states, 8 % apart, of 20 s on average."""
    return np.asarray(0.08 * (_switched(rng, t, 20, 20) % 2))


def tenant(rng: np.random.Generator, t: Floats) -> Floats:
    """Somebody else's job every 30 s, for 6 s, 25 % slower."""
    phase = rng.uniform(0, 30, (len(t), 1, 1, 1))
    return np.asarray(0.25 * ((t + phase) % 30 < 6))


def pink(rng: np.random.Generator, t: Floats) -> Floats:
    """1/f: equal noise, sd 1.5 %, in every factor of four of time, from 0.1 to 400 s."""
    found = np.zeros_like(t)
    for span in 0.1 * 4.0 ** np.arange(7):
        at = np.arange(t.max() / span + 2) * span
        found += [np.interp(x, at, 0.015 * rng.normal(size=len(at))) for x in t]
    return found


def ramp(rng: np.random.Generator, t: Floats) -> Floats:
    """Heating up: 30 % slower within 140 s, then as fast down again, and so on."""
    phase = rng.uniform(0, 280, (len(t), 1, 1, 1))
    return np.asarray(0.3 * np.abs((t + phase) % 280 - 140) / 140)


def sessions(rng: np.random.Generator, t: Floats) -> Floats:
    """Every pair finds another level (sd 5 %); in 1 of 20 it jumps by 10 % meanwhile."""
    each = (*t.shape[:2], 1, 1)
    level = rng.normal(0, 0.05, each)
    jump = 0.1 * rng.choice([-1, 1], each) * (rng.random(each) < 0.05)
    begin, end = t[:, :, :1, :1], t[:, :, -1:, -1:]
    return np.asarray(level + jump * (t > begin + rng.random(each) * (end - begin)))


class Locked(Struct, frozen=True):
    """An antagonist that is active, 10 % slower, in exactly these of every four turns of a pair."""

    turns: tuple[int, ...]

    def __call__(self, rng: np.random.Generator, t: Floats) -> Floats:
        on = np.isin(np.arange(t.shape[2]) % 4, self.turns)
        return np.broadcast_to(0.1 * on[None, None, :, None], t.shape)


Launch = Callable[[np.random.Generator, tuple[int, ...]], Floats]
"""(rng, shape) -> levels of processes."""


def launched(sd: float) -> Launch:
    """Normal."""
    return lambda rng, shape: rng.normal(0, sd, shape)


def modes(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """3 processes in 10 are in a slow mode, 5 % slower."""
    return np.asarray(rng.normal(0, 0.005, shape) + 0.05 * (rng.random(shape) < 0.3))


HIT, LEAST, MOST = 0.15, 0.05, 0.35
"""Dirty pairs: how many are off, and by how much at least and at most."""


def dirty(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """One process is slower so that 15 % of the pairs are off by 5 to 35 %."""
    off = np.log1p(rng.uniform(LEAST, MOST, shape)) * (rng.random(shape) < HIT / 2)
    return np.asarray(rng.normal(0, 0.003, shape) + off)


class Machine(Struct, frozen=True):
    """Where pairs run."""

    slowdown: Slowdown = quiet
    launch: Launch = launched(0.005)
    """Level of a process."""
    process: Draw = noise
    samples: int = 48
    """Of a process."""
    turns: int = 12
    """Of each process; their samples have one median."""
    orders: tuple[str, ...] = ()
    """Another rule than the product's: one is drawn for each pair, and repeated."""


class Drawn(Struct, frozen=True):
    """Pairs of identical arms, (sessions, pairs, ...): what an arm is slower by may be added."""

    d: Floats
    trends: Floats
    """(..., arm): log(late cost / early cost)."""
    spreads: Floats
    cost: Floats
    """(..., arm, samples): log cost."""

    def pair(self, session: int, n: int, effect: float, *, unsteady: bool = False) -> Pair:
        """With a candidate that is slower by ``effect`` (a log)."""
        at = session, n
        trends, spreads = self.trends[at].tolist(), self.spreads[at].tolist()
        return Pair(d=float(self.d[at]) + effect, trends=(trends[0], trends[1]),
                    spreads=(spreads[0], spreads[1]), unsteady=unsteady)  # fmt: skip


def _orders(rng: np.random.Generator, turns: int, pairs: int) -> list[str]:
    """As many as there are pairs, and enough that which there are does not matter."""
    blocks = random.Random(int(rng.integers(2**63)))
    return [sequence(turns, blocks.choice("AB"), blocks) for _ in range(min(pairs, KEPT))]


def draw(rng: np.random.Generator, machine: Machine, start_s: Floats) -> Drawn:
    """Pairs that begin at ``start_s``: (sessions, pairs)."""
    turns, each = machine.turns, -(-machine.samples // machine.turns)
    slot_s = SAMPLING_S / turns
    slots, k = np.arange(2 * turns), (np.arange(each) + 0.5) / each
    at = SETUP_S + slot_s * (slots[:, None] + k)
    slow = machine.slowdown(rng, start_s[:, :, None, None] + at)
    orders = machine.orders or _orders(rng, turns, start_s.size)
    # (pairs, arm, turn) -> slot
    rows = [[[s for s in slots if o[s % len(o)] == arm] for arm in "AB"] for o in orders]
    drawn = np.array(rows)[rng.integers(len(rows), size=start_s.shape)]
    shape = (*start_s.shape, 2, turns * each)
    seen = np.take_along_axis(slow[:, :, None], drawn[..., None], axis=3).reshape(shape)
    own = machine.process(rng, math.prod(shape[:3]), shape[3]).reshape(shape)
    cost = seen + own + machine.launch(rng, shape[:3])[..., None]
    level, halves = np.median(cost, axis=3), np.split(cost, [shape[3] // 2], axis=3)
    early, late = (np.median(half, axis=3) for half in halves)
    spreads = [np.median(np.abs(np.expm1(half - np.median(half, axis=3, keepdims=True))), axis=3)
               for half in halves]  # fmt: skip
    return Drawn(level[..., 1] - level[..., 0], late - early, spreads[1] - spreads[0], cost)


def measure(
    rng: np.random.Generator, machine: Machine, start_s: Floats, effect: float = 0.0
) -> tuple[list[Pair], Floats]:
    """(pairs of one session, their samples: log cost of baseline and candidate, (2, pairs, k)).

    ``effect``: log(candidate / baseline). `measure.steady_state` looks at every process.
    """
    found = draw(rng, machine, start_s[None])
    _, unsteady = settle(found.cost[0])
    pairs = [
        found.pair(0, n, effect, unsteady=bool(unsteady[n].any())) for n in range(len(start_s))
    ]
    cost = np.moveaxis(found.cost[0], 1, 0).copy()
    cost[1] += effect
    return pairs, cost


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

Measure = Callable[[str, int], list[Pair]]
"""(cell, how many) -> fresh pairs of that cell."""
Cells = dict[str, list[Pair]]
Verdicts = dict[str, sequential_test.Verdict]


def suite(keys: Sequence[str], fresh: Measure, rule: Rule) -> tuple[Cells, Verdicts]:
    """A whole A/B without a budget: every cell goes from look to look until it is decided."""
    looks = [*sequential_test.levels(rule)]
    cells: dict[str, list[Pair]] = {key: [] for key in keys}
    while wanted := sequential_test.needs(cells, rule):
        for key in wanted:
            have = len(cells[key])
            more = next(n for n in looks if n > have) - have
            cells[key] = [*cells[key], *fresh(key, more)]
    return cells, sequential_test.judge(cells, rule)


def timed(
    rng: np.random.Generator,
    drawn: Drawn,
    session: int,
    effects: Mapping[str, float],
    budget_s: float,
    rule: Rule,
) -> tuple[Cells, Verdicts]:
    """A whole A/B within a budget: `sequential_test.turn` says which cell is measured when.

    As the driver has it: a round is a pair of each, in random order, and none begins too late.
    The n-th pair of the session is the n-th that was ``drawn``, whichever cell it is of.
    """
    cells: dict[str, list[Pair]] = {key: [] for key in effects}
    each, n = dict.fromkeys(effects, PAIR_S), 0
    while keys := sequential_test.turn(cells, rule, each, budget_s - n * PAIR_S):
        for i in rng.permutation(len(keys)):
            key = keys[i]
            if not cells[key] or n * PAIR_S < budget_s:
                cells[key].append(drawn.pair(session, n, effects[key]))
                n += 1
    return cells, sequential_test.judge(cells, rule)


def on(machine: Machine, rng: np.random.Generator, effects: Mapping[str, float]) -> Measure:
    """Pairs of a suite on ``machine``; cells take turns: each pair of a cell is a round later."""
    at = dict.fromkeys(effects, 0)

    def fresh(key: str, n: int) -> list[Pair]:
        rounds = at[key] + np.arange(n)
        at[key] += n
        when = PAIR_S * (len(effects) * rounds + rng.integers(0, len(effects), n))
        return measure(rng, machine, when, effects[key])[0]

    return fresh
