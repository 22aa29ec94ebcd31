"""The same virtual machine, judged by the rules of popular tools and by gpubench's gate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np

from gpubench.analysis.compare import aa_history, sequential_test
from gpubench.analysis.compare.compare import compare
from gpubench.records.record import Record, RecordFile
from gpubench.records.samples import Samples
from gpubench.suite.types import Policy, Rule
from tests.benchmarks.trust import popular, virtual_ab
from tests.benchmarks.trust.evidence import Case, Counts, Experiment, Row, at_most, few
from tests.benchmarks.trust.processes import NOISE, Floats
from tests.benchmarks.trust.virtual_ab import Machine, launched
from tests.report import make

RULE = Rule()
CELLS, REPEATS, SAMPLES = 12, 8, 80
SESSION, LAUNCH, EFFECT = 0.01, 0.005, 0.05
KEYS = [f"cell {n}" for n in range(CELLS)]
GATE = "gpubench ab"
STORED = f"gpubench compare, {aa_history.ENOUGH} A/A sessions kept"
CHANGED = ("REGRESSED", "IMPROVED")
PLANNED = [make.cell(batch_size=1 + n) for n in range(CELLS)]


def _session(rng: np.random.Generator, effect: float) -> Floats:
    """Durations of one stored run: every cell has this session's level; (cell, repeat, sample)."""
    level = rng.normal(effect, SESSION, (CELLS, 1, 1)) + rng.normal(0, LAUNCH, (CELLS, REPEATS, 1))
    return np.exp(level + rng.normal(0, NOISE, (CELLS, REPEATS, SAMPLES)))


def one_after_the_other(rng: np.random.Generator, count: int) -> Counts:
    """Baseline in one session, candidate in the next: A/A, then all cells 5 % slower."""
    found: Counter[str] = Counter(suites=count, cells=count * CELLS)
    for _ in range(count):
        base, same, slow = (_session(rng, x) for x in (0.0, 0.0, math.log1p(EFFECT)))
        _ask_all(rng, found, base, same, slow)
        kept = [_stored(f"kept {n}", _session(rng, 0.0)) for n in range(aa_history.ENOUGH)]
        aa_rows, slow_rows = (
            compare(_stored("base", base), _stored("candidate", costs), history=kept)
            for costs in (same, slow)
        )
        found[f"{STORED}/alarms"] += any(r.verdict in CHANGED for r in aa_rows)
        found[f"{STORED}/missed"] += sum(r.verdict != "REGRESSED" for r in slow_rows)
    return found


def _stored(name: str, costs: Floats) -> RecordFile:
    """A run in which every repeat has one sample, its median."""
    values = np.rint(1e7 * np.median(costs, axis=2)).astype(int).tolist()
    records = [
        Record(cell=cell, repeat=repeat, status="ok",
               replicas=[Samples(replica=0, device="cpu:0", durations_ns=[ns], end_ns=ns)])
        for cell, row in zip(PLANNED, values, strict=True)
        for repeat, ns in enumerate(row)
    ]  # fmt: skip
    policy = Policy(repeats=REPEATS, max_repeats=REPEATS)
    return RecordFile(name, make.header(PLANNED, name, policy), records)


def _ask_all(
    rng: np.random.Generator, found: Counter[str], base: Floats, same: Floats, slow: Floats
) -> None:
    for name, rule in popular.RULES.items():
        found[f"{name}/alarms"] += bool(rule(rng, base, same).any())
        found[f"{name}/missed"] += int(CELLS - rule(rng, base, slow).sum())


def _moved(rng: np.random.Generator, t: Floats) -> Floats:
    """Every pair has its session's level."""
    return np.broadcast_to(rng.normal(0, SESSION, (*t.shape[:2], 1, 1)), t.shape)


MACHINE = Machine(_moved, launched(LAUNCH), samples=SAMPLES, turns=10)


def interleaved(rng: np.random.Generator, count: int) -> Counts:
    """The pairs that the gate asked for; the other rules get the first eight of every cell."""
    found: Counter[str] = Counter(suites=count, cells=count * CELLS)
    for _ in range(count):
        for what, effect in (("alarms", 0.0), ("missed", math.log1p(EFFECT))):
            said, first = _suite(rng, effect)
            arms = np.exp(first)
            if effect:
                wrong = sum(v.verdict != "REGRESSED" for v in said.values())
            else:
                wrong = any(v.verdict in CHANGED for v in said.values())
            found[f"{GATE}/{what}"] += wrong
            for name, rule in popular.RULES.items():
                yes = rule(rng, arms[0], arms[1])
                found[f"{name}/{what}"] += int(CELLS - yes.sum()) if effect else bool(yes.any())
    return found


def _suite(
    rng: np.random.Generator, effect: float
) -> tuple[dict[str, sequential_test.Verdict], Floats]:
    """(verdicts, log costs of every cell's first pairs: (arm, cell, pair, sample))."""
    most = np.zeros((CELLS, RULE.looks[-1]))
    drawn = virtual_ab.draw(rng, MACHINE, most)
    at = dict.fromkeys(KEYS, 0)

    def fresh(key: str, n: int) -> list[sequential_test.Pair]:
        at[key] += n
        session = KEYS.index(key)
        return [drawn.pair(session, i, effect) for i in range(at[key] - n, at[key])]

    _, said = virtual_ab.suite(KEYS, fresh, RULE)
    first = np.moveaxis(drawn.cost[:, :REPEATS], 2, 0).copy()
    first[1] += effect
    return said, first


DESIGNS: dict[str, tuple[Callable[[np.random.Generator, int], Counts], tuple[str, ...]]] = {
    "one session after the other": (one_after_the_other, (*popular.RULES, STORED)),
    "interleaved pairs": (interleaved, (*popular.RULES, GATE)),
}


def _rows(case: str, n: Counts) -> list[Row]:
    """One row for each rule that judged this design."""
    found = []
    for rule in DESIGNS[case][1]:
        ours, alarms, missed = rule == GATE, n[f"{rule}/alarms"], n[f"{rule}/missed"]
        found.append(Row(
            case=f"{rule}; {case}",
            values={
                "A/A suites with an alarm": few(alarms, n["suites"]),
                "5 % slowdowns missed": few(missed, n["cells"]),
            },
            reach="at most 1 % and 5 %, at 95 % confidence" if ours else "",
            ok=at_most(alarms, n["suites"]) <= 0.01 and at_most(missed, n["cells"]) <= 0.05
            if ours else None,
        ))  # fmt: skip
    return found


RIVALS = Experiment(
    name="rules",
    title="The rules of popular tools on the same machine",
    about=(
        f"12 cells; from session to session a cell's level moves by {SESSION:.0%} (sd), from "
        f"process to process by {LAUNCH:.1%}; sample noise {NOISE:.0%}; 8 processes of 80 samples "
        "an arm. A/A suites for false alarms, then all cells 5 % slower for misses (of cells). "
        "Interleaved: all rules get the very same first pairs; the gate goes on from them by its "
        "own rule. Two stored runs cannot tell the session from the code: with sessions this far "
        "apart `gpubench compare` keeps quiet, and misses what only pairs can show."
    ),
    cases={name: Case(repeat, 400, 10, 2) for name, (repeat, _) in DESIGNS.items()},
    rows=_rows,
)
