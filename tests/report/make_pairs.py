"""Seeded synthetic A/B sessions, whose pairs say exactly what one asks for, and A/A histories.

The log ratio of a pair is log(1 + effect) + sd x a normal number, free of sampling noise: samples
lie around their turn's cost in a fixed, symmetric pattern, so that its median is that cost, and so
is its rate. Machine noise that both arms of a pair share is large, as on a real machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gpubench.analysis.compare import sequential_test
from gpubench.analysis.compare.paired import pair_of
from gpubench.records.record import Arm, Header, Pairing, Record, RecordFile
from gpubench.records.samples import Samples
from gpubench.suite.types import Cell, Policy, Rule
from tests.report import make

Match = tuple[Cell, Cell]
Change = Callable[[Record, Arm], Record | None]
"""Edits one record, or drops it: returns None."""
SHARED = 0.05
"""sd of what both arms of a pair share (drift, a neighbour)."""
WITHIN = 0.01
"""sd of the samples of one turn."""
PATTERN = (0.0, 1.0, -1.0, 1.4, -1.4)
"""Of the samples, in units of `WITHIN`: any five in a row have the turn's cost as their median."""


def turn(c: Cell, cost: float, samples: int) -> list[Samples]:
    """One turn of all replicas at ``cost`` times the cell's true ns per batch."""
    offsets = np.resize(PATTERN, samples)
    iterations = 8 if c.scenario == "throughput" else 1
    level = make.batch_ns(c) * cost * iterations
    durations = np.rint(level * np.exp(WITHIN * offsets)).astype(int).tolist()
    return [
        Samples(
            replica=index, device=f"{c.device}:{index}", durations_ns=durations,
            iterations=iterations, warmup_durations_ns=[20 * make.MS] * 10,
            end_ns=sum(durations), open_ns=80 * make.MS, first_inference_ns=35 * make.MS,
            stop_reason="time", peak_host_bytes=400 << 20,
        )
        for index in range(c.replicas)
    ]  # fmt: skip


def header(
    cells: Sequence[Cell], arm: Arm, rule: Rule, session: str, differs: str, **changes: Any
) -> Header:
    """Of one arm."""
    pairing = Pairing(session=session, arm=arm, differs=differs, rule=rule)
    return make.header(list(cells), f"{session}-{arm}", pairing=pairing, **changes)


class _Session:
    """Draws pairs; every cell has a generator of its own, so one cell's pairs are the same
    whatever else is measured."""

    def __init__(self, matches: Sequence[Match], effect: Sequence[float], sd: float, seed: int,
                 samples: int, turns: int, trends: tuple[float, float],
                 change: Change | None) -> None:  # fmt: skip
        self.matches, self.effect, self.sd = matches, effect, sd
        self.samples, self.turns, self.trends = samples, turns, trends
        self.change = change or (lambda record, arm: record)
        self.rng = [np.random.default_rng((seed, n)) for n in range(len(matches))]
        self.found: dict[Arm, list[Record]] = {"baseline": [], "candidate": []}
        self.pairs: list[list[sequential_test.Pair]] = [[] for _ in matches]
        self.repeat = [0] * len(matches)

    def pair(self, n: int) -> None:
        """Measure one more pair of the n-th cells."""
        rng = self.rng[n]
        shared = SHARED * rng.standard_normal()
        apart = math.log1p(self.effect[n]) + self.sd * rng.standard_normal()
        first = "AB"[int(rng.integers(2))]
        other = "BA"["AB".index(first)]
        order = first + other + (other + first if self.turns == 2 else "")
        records: list[Record | None] = []
        arms: tuple[Arm, Arm] = ("baseline", "candidate")
        for arm, c, level, trend in zip(arms, self.matches[n], (0.0, apart), self.trends,
                                        strict=True):  # fmt: skip
            visits = [
                turn(c, math.exp(shared + level + at * trend), self.samples)
                for at in ((-0.5, 0.5) if self.turns == 2 else (0.0,))
            ]
            record = Record(
                cell=c, repeat=self.repeat[n], status="ok", replicas=visits[0],
                again=visits[1] if self.turns == 2 else [], order=order,
                parity=make.parity(c, rng), facts={"version": "1.2.3"},
                started="2026-01-02T03:04:05Z", wall_s=1.7,
            )  # fmt: skip
            changed = self.change(record, arm)
            records.append(changed)
            if changed:
                self.found[arm].append(changed)
        self.repeat[n] += 1
        baseline, candidate = records
        made = pair_of(baseline, candidate) if baseline and candidate else None
        if made:
            self.pairs[n].append(made)


def arms(
    cells: Sequence[Cell | Match],
    pairs: int | None = None,
    effect: float | Mapping[int, float] = 0.0,
    sd: float = 0.01,
    seed: int = 0,
    *,
    rule: Rule | None = None,
    samples: int = 11,
    turns: int = 2,
    trends: tuple[float, float] = (0.0, 0.0),
    change: Change | None = None,
    session: str = "ab-session",
    differs: tuple[str, str] = ("ref=main", "ref=feature"),
    baseline: Mapping[str, Any] | None = None,
    candidate: Mapping[str, Any] | None = None,
) -> tuple[RecordFile, RecordFile]:
    """(baseline, candidate) of one session.

    ``cells``: one cell for both arms, or (baseline's, candidate's). ``pairs`` of every cell; None:
    as many as `sequential_test.turn` asks for, as in a real run. ``effect``: how much the
    candidate costs more (0.05: 5 %), of all cells or by their place. ``sd``: of a pair's log ratio.
    ``turns`` 2: ABBA or BAAB; 1: AB or BA. ``trends``: log(second turn / first) of each arm's
    processes. ``change`` edits or drops single records.
    ``baseline`` and ``candidate``: fields of the arms' headers, such as ``fingerprint``.
    """
    matches = [c if isinstance(c, tuple) else (c, c) for c in cells]
    rule = rule or Rule()
    places = range(len(matches))
    effects = [effect.get(n, 0.0) if isinstance(effect, Mapping) else effect for n in places]
    made = _Session(matches, effects, sd, seed, samples, turns, trends, change)
    if pairs is None:
        instant = {str(n): 0.0 for n in places}
        while keys := sequential_test.turn(
            {str(n): p for n, p in enumerate(made.pairs)}, rule, instant, math.inf
        ):
            for key in keys:
                made.pair(int(key))
    else:
        for _ in range(pairs):
            for n in places:
                made.pair(n)
    first, second = ([match[side] for match in matches] for side in (0, 1))
    return (
        RecordFile("ab/baseline/records.jsonl",
                   header(first, "baseline", rule, session, differs[0], **(baseline or {})),
                   made.found["baseline"]),
        RecordFile("ab/candidate/records.jsonl",
                   header(second, "candidate", rule, session, differs[1], **(candidate or {})),
                   made.found["candidate"]),
    )  # fmt: skip


def sessions(
    cells: Sequence[Cell],
    n: int,
    sd: float = 0.01,
    seed: int = 0,
    *,
    within: float = 0.005,
    repeats: int = 3,
    effect: float = 0.0,
    heavy: bool = False,
    name: str = "session",
    **header: Any,
) -> list[RecordFile]:
    """``n`` small ordinary runs of the same code: what an A/A history is made of.

    The level of a session is its cell's true cost x (1 + effect) x exp(``sd`` x noise): normal, or
    with ``heavy`` tails (Student's t, 3 degrees of freedom, scaled to the same sd). Repeats lie
    around it with sd ``within``; each has a single sample.
    """
    rng = np.random.default_rng((seed, n))
    policy = Policy(repeats=repeats, max_repeats=repeats)
    made = []
    for index in range(n):
        noise = (
            rng.standard_t(3, len(cells)) / math.sqrt(3) if heavy else rng.normal(size=len(cells))
        )
        logs = (sd * noise)[:, None] + within * rng.standard_normal((len(cells), repeats))
        level = np.array([make.batch_ns(c) * (1 + effect) for c in cells])[:, None]
        run_id = f"{name}-{seed}-{index}"
        head: dict[str, Any] = {"started": f"2026-01-{1 + index // 24:02}T{index % 24:02}:00:00Z"}
        records = [
            Record(cell=c, repeat=repeat, status="ok",
                   replicas=[Samples(replica=g, device=f"cpu:{g}", durations_ns=[ns], end_ns=ns)
                             for g in range(c.replicas)])
            for c, row in zip(cells, np.rint(level * np.exp(logs)).astype(int).tolist(),
                              strict=True)
            for repeat, ns in enumerate(row)
        ]  # fmt: skip
        top = make.header(list(cells), run_id, policy, **(head | header))
        made.append(RecordFile(f"{name}/{run_id}.jsonl", top, records))
    return made
