"""The A/B gate: false alarms, power, what randomising buys, and that it repeats itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from gpubench.analysis.compare import sequential_test
from gpubench.suite.types import Rule
from tests.benchmarks.trust import virtual_ab
from tests.benchmarks.trust.evidence import Case, Counts, Experiment, Row, at_most, few, share
from tests.benchmarks.trust.virtual_ab import Locked, Machine

RULE = Rule()
KEYS = [f"cell {n}" for n in range(12)]
ALARMS = ("REGRESSED", "IMPROVED")
VERDICTS = ("REGRESSED", "IMPROVED", "EQUIVALENT", "INCONCLUSIVE")


def spent(cells: Mapping[str, sequential_test.Pairs]) -> int:
    """Pairs of all cells and stages."""
    return sum(len(pairs.screen) + len(pairs.confirm) for pairs in cells.values())


def identical(machine: Machine) -> Callable[[np.random.Generator, int], Counts]:
    """A/A suites of 12 cells."""

    def once(rng: np.random.Generator, count: int) -> Counts:
        found: Counter[str] = Counter()
        for _ in range(count):
            fresh = virtual_ab.on(machine, rng, dict.fromkeys(KEYS, 0.0))
            cells, verdicts = virtual_ab.suite(KEYS, fresh, RULE)
            found.update(suites=1, pairs=spent(cells))
            found["alarms"] += any(v.verdict in ALARMS for v in verdicts.values())
            found.update(v.verdict for v in verdicts.values())
            found.update(v.code for v in verdicts.values())
        return found

    return once


def _verdict_shares(n: Counts) -> dict[str, str]:
    cells = n["suites"] * len(KEYS)
    return {
        "cells EQUIVALENT": f"{n.get('EQUIVALENT', 0) / cells:.1%}",
        "not steady": f"{n.get('not-steady', 0) / cells:.1%}",
        "otherwise inconclusive": (
            f"{(n.get('INCONCLUSIVE', 0) - n.get('not-steady', 0)) / cells:.1%}"
        ),
        "pairs a cell": f"{n['pairs'] / cells:.1f}",
    }


def _alarm_row(case: str, n: Counts) -> list[Row]:
    bound = at_most(n["alarms"], n["suites"])
    return [
        Row(
            case=case,
            values={"suites with an alarm": few(n["alarms"], n["suites"])} | _verdict_shares(n),
            reach="at most 1 % of suites, at 95 % confidence",
            ok=bound <= 0.01,
        )
    ]


MACHINES = {
    "quiet": Machine(),
    "CPU bursts (15 % of the time, 10-40 % slower)": Machine(virtual_ab.bursts),
    "ramp (1 % a pair, up and down)": Machine(virtual_ab.ramp),
    "launch effects (sd 3 %)": Machine(launch=0.03),
    virtual_ab.DIRTY: Machine(virtual_ab.dirty, launch=0.003),
    "session effects (sd 5 % a pair, jumps of 10 %)": Machine(virtual_ab.sessions),
}
AA = Experiment(
    name="false-alarms",
    title="Identical code is called different in at most 1 % of suites",
    about=(
        "A/A suites of 12 cells by the default rule. Every pair is two processes with two turns "
        "of 40 samples each (noise 3 %) on a machine whose speed changes meanwhile; the order, "
        "ABBA or BAAB, is drawn for each pair. Any REGRESSED or IMPROVED cell is an alarm of its "
        "suite."
    ),
    cases={name: Case(identical(m), 1000, 25, 5) for name, m in MACHINES.items()},
    rows=_alarm_row,
)


def slower(
    effects: list[float], noise: virtual_ab.Noise
) -> Callable[[np.random.Generator, int], Counts]:
    """Suites whose first cells are slower by ``effects``."""

    def once(rng: np.random.Generator, count: int) -> Counts:
        found: Counter[str] = Counter()
        true = dict(zip(KEYS, [*effects, *[0.0] * len(KEYS)], strict=False))

        def fresh(key: str, n: int) -> list[sequential_test.Pair]:
            return [sequential_test.Pair(d=float(d)) for d in math.log1p(true[key]) + noise(rng, n)]

        for _ in range(count):
            cells, verdicts = virtual_ab.suite(KEYS, fresh, RULE)
            for key in KEYS[: len(effects)]:
                pairs = cells[key]
                found.update(cells=1, screen=len(pairs.screen), confirm=len(pairs.confirm))
                found["missed"] += verdicts[key].verdict != "REGRESSED"
            found["wrong"] += any(verdicts[k].verdict in ALARMS for k in KEYS[len(effects) :])
            found["suites"] += 1
        return found

    return once


def _power_row(case: str, n: Counts) -> list[Row]:
    bound = at_most(n["missed"], n["cells"])
    return [
        Row(
            case=case,
            values={
                "slower cells missed": few(n["missed"], n["cells"]),
                "pairs: screen + fresh": (
                    f"{n['screen'] / n['cells']:.1f} + {n['confirm'] / n['cells']:.1f}"
                ),
                "alarm in another cell": f"{n['wrong']:.0f} of {n['suites']:.0f}",
            },
            reach="at most 5 % missed, at 95 % confidence",
            ok=bound <= 0.05,
        )
    ]


NOISES = {f"sd {sd:.0%}": virtual_ab.normal(sd) for sd in (0.01, 0.02, 0.03)} | {
    "sd 3%, t3 noise": virtual_ab.t3(0.03),
    f"sd 0.7%, {virtual_ab.DIRTY}": virtual_ab.hit(0.007),
}
POWER = Experiment(
    name="power",
    title="A true slowdown of 5 % is found 95 times in 100 at a pair sd of 3 % or less",
    about="Suites of 12 cells by the default rule; pair differences drawn around the true effect.",
    cases={
        f"5 % in {which}, {name}": Case(
            slower([0.05] * cells, noise), 1000 if cells == 1 else 200, 50, 8
        )
        for which, cells in (("1 cell of 12", 1), ("12 cells of 12", 12))
        for name, noise in NOISES.items()
    },
    rows=_power_row,
)


def _curve_row(case: str, n: Counts) -> list[Row]:
    cells = n["cells"]
    return [
        Row(
            case=case,
            values={
                "found": share(cells - n["missed"], cells),
                "pairs: screen + fresh": f"{n['screen'] / cells:.1f} + {n['confirm'] / cells:.1f}",
            },
        )
    ]


CURVE = Experiment(
    name="power-curve",
    title="How often a slowdown in 1 cell of 12 is found, and what it costs",
    about="As above. Nothing is promised here: read off what your machine's pair sd can find.",
    cases={
        f"{effect:.0%} slower, sd {sd:.0%}": Case(
            slower([effect], virtual_ab.normal(sd)), 300, 50, 3
        )
        for effect in (0.03, 0.04, 0.05, 0.07, 0.1)
        for sd in (0.01, 0.02, 0.03, 0.05)
    },
    rows=_curve_row,
)


def detectable(sd: float) -> Callable[[np.random.Generator, int], Counts]:
    """The effect that an A/A suite calls detectable, looked for in a new suite."""

    def once(rng: np.random.Generator, count: int) -> Counts:
        found: Counter[str] = Counter()

        def fresh(key: str, n: int) -> list[sequential_test.Pair]:
            return [sequential_test.Pair(d=float(d)) for d in rng.normal(true.get(key, 0.0), sd, n)]

        for _ in range(count):
            true: dict[str, float] = {}
            said = virtual_ab.suite(KEYS, fresh, RULE)[1][KEYS[0]].smallest_detectable or math.nan
            true[KEYS[0]] = math.log1p(said)
            verdict = virtual_ab.suite(KEYS, fresh, RULE)[1][KEYS[0]]
            found.update(suites=1, effect=said, found=verdict.verdict == "REGRESSED")
        return found

    return once


def _detectable_row(case: str, n: Counts) -> list[Row]:
    return [
        Row(
            case=case,
            values={
                "effect said to be detectable": f"{n['effect'] / n['suites']:.2%}",
                "found": share(n["found"], n["suites"]),
            },
            reach="at least 95 %, at 95 % confidence",
            ok=at_most(n["suites"] - n["found"], n["suites"]) <= 0.05,
        )
    ]


DETECTABLE = Experiment(
    name="detectable",
    title="What is called detectable is found",
    about=(
        "The smallest detectable slowdown that a cell of an A/A suite prints is put into a new "
        "suite."
    ),
    cases={
        f"sd {sd:.1%}": Case(detectable(sd), 600, 100, 4) for sd in (0.005, 0.01, 0.02, 0.03, 0.05)
    },
    rows=_detectable_row,
)


def _antagonist_row(case: str, n: Counts) -> list[Row]:
    fooled = "fixed" in case
    bound = at_most(n["alarms"], n["suites"])
    return [
        Row(
            case=case,
            values={"suites with an alarm": few(n["alarms"], n["suites"])} | _verdict_shares(n),
            reach="nearly 1 (shows the danger)" if fooled else "at most 1 %, at 95 % confidence",
            ok=n["alarms"] >= 0.99 * n["suites"] if fooled else bound <= 0.01,
        )
    ]


ANTAGONIST = Experiment(
    name="randomisation",
    title="Drawing the order at random is what protects from an antagonist in step",
    about=(
        "A/A suites. Somebody else's work makes exactly the 2nd and 4th turn (or the 2nd and 3rd) "
        "of every pair 10 % slower. A fixed order books that on the candidate; a drawn one cannot."
    ),
    cases={
        "locked to ABAB, order fixed ABAB": Case(
            identical(Machine(Locked((1, 3)), orders=("ABAB",))), 320, 20, 3
        ),
        "locked to ABAB, order drawn": Case(identical(Machine(Locked((1, 3)))), 320, 20, 3),
        "locked to ABBA, order fixed ABBA": Case(
            identical(Machine(Locked((1, 2)), orders=("ABBA",))), 320, 20, 3
        ),
        "locked to ABBA, order drawn": Case(identical(Machine(Locked((1, 2)))), 320, 20, 3),
    },
    rows=_antagonist_row,
)


def again(rng: np.random.Generator, count: int) -> Counts:
    """Judge the same pairs twice, the second time with the cells in another order."""
    found: Counter[str] = Counter()
    for _ in range(count):
        effects = {key: float(rng.choice([0, 0, 0.02, 0.04, -0.05])) for key in KEYS}
        fresh = virtual_ab.on(Machine(virtual_ab.sessions, launch=0.01), rng, effects)
        cells, first = virtual_ab.suite(KEYS, fresh, RULE)
        keys = [KEYS[i] for i in rng.permutation(len(KEYS))]
        second = sequential_test.judge({key: cells[key] for key in keys}, RULE)
        same = [msgspec.json.encode(first[k]) == msgspec.json.encode(second[k]) for k in KEYS]
        found.update(suites=1, different=not all(same))
    return found


def _again_row(case: str, n: Counts) -> list[Row]:
    return [
        Row(
            case=case,
            values={"suites with a different byte": f"{n['different']:.0f} of {n['suites']:.0f}"},
            reach="0",
            ok=n["different"] == 0,
        )
    ]


DETERMINISM = Experiment(
    name="determinism",
    title="The same records give the same verdicts",
    about="Every field of every verdict, encoded as JSON.",
    cases={"judged again, cells in another order": Case(again, 200, 50, 4)},
    rows=_again_row,
)
