"""The A/B gate: false alarms, power, what randomising buys, and that it repeats itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import numpy as np

from gpubench.analysis.compare import sequential_test
from gpubench.analysis.compare.sequential_test import Pair
from gpubench.suite.types import Rule
from tests.benchmarks.trust import processes, virtual_ab
from tests.benchmarks.trust.evidence import Case, Counts, Experiment, Row, at_most, few, share
from tests.benchmarks.trust.virtual_ab import PAIR_S, Locked, Machine, launched

RULE = Rule()
KEYS = [f"cell {n}" for n in range(10)]
ALARMS = ("REGRESSED", "IMPROVED")
BUDGET_S, LONG_S = 600.0, 5520.0
EDGE = math.log1p(RULE.delta)
AA_TRUE = [0.0] * len(KEYS)

MACHINES = {
    "iid": Machine(),
    "1/f": Machine(virtual_ab.pink),
    "AR(1) 0.9": Machine(process=partial(processes.ar1, phi=0.9)),
    "processes differ (sd 1 %)": Machine(launch=launched(0.01)),
    "processes differ (sd 3 %)": Machine(launch=launched(0.03)),
    "processes in two modes, 5 % apart": Machine(launch=virtual_ab.modes),
    "samples in two modes, 15 % apart": Machine(process=processes.bimodal),
    "clock states of 20 s": Machine(virtual_ab.clock),
    "co-tenant (6 s of every 30 s)": Machine(virtual_ab.tenant),
    "bursts (15 % of the time, 10-40 % slower)": Machine(virtual_ab.bursts),
    "Pareto stalls": Machine(process=processes.spiked),
    "ramp (30 % up and down)": Machine(virtual_ab.ramp),
    "sessions (sd 5 % a pair, jumps of 10 %)": Machine(virtual_ab.sessions),
    virtual_ab.DIRTY: Machine(launch=virtual_ab.dirty),
}


def suites(
    machine: Machine,
    effects: Sequence[float],
    budget_s: float = BUDGET_S,
    builds: float = 0.0,
) -> Callable[[np.random.Generator, int], Counts]:
    """Suites within a budget, whose cells are slower by ``effects`` (logs).

    A true effect up to the margin is no change. ``builds``: sd of a persistent offset of a cell,
    as between two builds of the same code.
    """
    pairs = len(effects) + math.ceil(budget_s / PAIR_S)

    def once(rng: np.random.Generator, count: int) -> Counts:
        found: Counter[str] = Counter()
        start = rng.uniform(0, 60, (count, 1)) + PAIR_S * np.arange(pairs)
        drawn = virtual_ab.draw(rng, machine, start)
        for n in range(count):
            off = builds * rng.normal(size=len(effects))
            true = dict(zip(KEYS, (np.asarray(effects) + off).tolist(), strict=False))
            cells, said = virtual_ab.timed(rng, drawn, n, true, budget_s, RULE)
            slower = [k for k, e in zip(true, effects, strict=True) if e > EDGE]
            wrong = [k for k in said if k not in slower and said[k].verdict in ALARMS]
            hits = [k for k in slower if said[k].verdict == "REGRESSED"]
            found.update(suites=1, cells=len(true), slower=len(slower), hits=len(hits))
            found["alarms"] += bool(wrong)
            found["exit 1"] += bool(hits)
            found["pairs"] += sum(map(len, cells.values()))
            found["pairs on slower"] += sum(len(cells[k]) for k in slower)
            found.update(said[k].code for k in said if k not in slower)
        return found

    return once


def _minutes(n: Counts) -> str:
    return f"{n['pairs'] * PAIR_S / n['suites'] / 60:.1f}"


def _alarm_row(case: str, n: Counts) -> list[Row]:
    rest = n["cells"] - n["slower"]
    shares = {code: f"{n.get(code, 0) / rest:.1%}" for code in ("inside-margin", "not-steady")}
    return [
        Row(
            case=case,
            values={"suites with an alarm": few(n["alarms"], n["suites"]),
                    "cells EQUIVALENT": shares["inside-margin"], "not steady": shares["not-steady"],
                    "pairs a cell": f"{n['pairs'] / n['cells']:.1f}", "minutes": _minutes(n)},
            reach="at most 1 % of suites, at 95 % confidence",
            ok=at_most(n["alarms"], n["suites"]) <= 0.01,
        )
    ]  # fmt: skip


def _everywhere(
    effects: Sequence[float], count: int, quick: int = 3, budget_s: float = BUDGET_S
) -> dict[str, Case]:
    return {
        name: Case(suites(machine, effects, budget_s), count, 40, quick)
        for name, machine in MACHINES.items()
    }


HOW = (
    f"Suites of {len(KEYS)} cells by the default rule, within {BUDGET_S:.0f} s; a pair takes "
    f"{PAIR_S} s, of which each process samples for {virtual_ab.SAMPLING_S:.0f} s in 12 turns "
    "(48 samples, noise 3 %, one median). "
    "Which cell is measured when is the driver's own choice (`sequential_test.turn`), and the "
    "machine's speed is that of the second in which a sample is taken."
)
AA = Experiment(
    name="false-alarms",
    title="Identical code is called different in at most 1 % of suites",
    about=f"{HOW} Any REGRESSED or IMPROVED cell is an alarm of its suite.",
    cases=_everywhere(AA_TRUE, 2000),
    rows=_alarm_row,
)
EDGES = Experiment(
    name="edge",
    title="Nor is a suite in which every cell is slower by exactly the margin",
    about=(
        "As above: the hardest case, in which nothing may be said and everything nearly is. With "
        f"{LONG_S:.0f} s every cell can reach the last look."
    ),
    cases=_everywhere([EDGE] * len(KEYS), 2000)
    | {
        f"{name}; {LONG_S:.0f} s": Case(
            suites(MACHINES[name], [EDGE] * len(KEYS), LONG_S), 3000, 20, 2
        )
        for name in ("iid", "1/f", virtual_ab.DIRTY)
    },
    rows=_alarm_row,
)


def _found_row(reach: float) -> Callable[[str, Counts], list[Row]]:
    def rows(case: str, n: Counts) -> list[Row]:
        least = reach if reach == 1 or case in PROMISED else 0.0
        return [
            Row(
                case=case,
                values={"exit 1": f"{n['exit 1']:.0f} of {n['suites']:.0f}",
                        "slower cells found": share(n["hits"], n["slower"]),
                        "pairs on one": f"{n['pairs on slower'] / n['slower']:.1f}",
                        "alarm in another": f"{n['alarms']:.0f}", "minutes": _minutes(n)},
                reach=f"at least {reach * n['suites']:.0f}" if least else "",
                ok=n["exit 1"] >= reach * n["suites"] if least else None,
            )
        ]  # fmt: skip

    return rows


PROMISED = [name for name in MACHINES if name.startswith(("co-tenant", "bursts"))]
THREE, FIVE = math.log(3), math.log1p(0.05)
ALL_3X = Experiment(
    name="budget-3x",
    title="What is three times slower is found within the default budget, also everywhere at once",
    about=f"{HOW} All cells are 3 times slower.",
    cases=_everywhere([THREE] * len(KEYS), 40),
    rows=_found_row(1),
)
MINUTE_3X = Experiment(
    name="minute-3x",
    title="And within a minute",
    about="As above, with a budget of 60 s for ten cells: 14 pairs in all.",
    cases=_everywhere([THREE] * len(KEYS), 40, budget_s=60.0),
    rows=_found_row(1),
)
ONE_5 = Experiment(
    name="budget-5",
    title="One cell of ten that is 5 % slower is found within the default budget",
    about=(
        f"{HOW} Promised under a co-tenant and under bursts; 2 turns: two of half a second each, "
        "as before."
    ),
    cases=_everywhere([FIVE, *[0.0] * 9], 40)
    | {
        f"{name}; 2 turns": Case(
            suites(msgspec.structs.replace(MACHINES[name], turns=2), [FIVE, *[0.0] * 9]), 40, 40, 3
        )
        for name in MACHINES
        if name in ("iid", "1/f", *PROMISED)
    },
    rows=_found_row(0.95),
)
ALL_5 = Experiment(
    name="budget-5-all",
    title="All ten cells 5 % slower, within the default budget",
    about=f"{HOW} Nothing is promised here.",
    cases=_everywhere([FIVE] * len(KEYS), 40),
    rows=_found_row(0),
)
BUILDS = Experiment(
    name="builds",
    title="What two builds of the same code differ by is not in an A/B's interval",
    about=(
        "As above; each cell's arms differ by a persistent offset, as two builds of an engine may, "
        "or two checkouts. Fresh processes do not average it out: this shows the danger."
    ),
    cases={
        f"offset of sd {sd:.1%}": Case(suites(Machine(), AA_TRUE, builds=sd), 400, 40, 3)
        for sd in (0.005, 0.01, 0.02)
    },
    rows=lambda case, n: [msgspec.structs.replace(r, reach="", ok=None) for r in
                          _alarm_row(case, n)],
)  # fmt: skip


def slower(
    effects: list[float], noise: virtual_ab.Noise
) -> Callable[[np.random.Generator, int], Counts]:
    """Suites without a budget whose first cells are slower by ``effects``."""

    def once(rng: np.random.Generator, count: int) -> Counts:
        found: Counter[str] = Counter()
        true = dict(zip(KEYS, [*effects, *[0.0] * len(KEYS)], strict=False))

        def fresh(key: str, n: int) -> list[Pair]:
            return [Pair(d=float(d)) for d in math.log1p(true[key]) + noise(rng, n)]

        for _ in range(count):
            cells, said = virtual_ab.suite(KEYS, fresh, RULE)
            for key in KEYS[: len(effects)]:
                found.update(cells=1, pairs=len(cells[key]))
                found["missed"] += said[key].verdict != "REGRESSED"
            found["wrong"] += any(said[k].verdict in ALARMS for k in KEYS[len(effects) :])
            found["others"] += sum(len(cells[k]) for k in KEYS[len(effects) :])
            found["suites"] += 1
        return found

    return once


def _power_row(case: str, n: Counts) -> list[Row]:
    bound, most = at_most(n["missed"], n["cells"]), 20 if case == FEW else None
    pairs = n["pairs"] / n["cells"]
    return [
        Row(
            case=case,
            values={
                "slower cells missed": few(n["missed"], n["cells"]),
                "pairs on one": f"{pairs:.1f}",
                "alarm in another cell": f"{n['wrong']:.0f} of {n['suites']:.0f}",
            },
            reach="at most 5 % missed, at 95 % confidence" + (f"; {most} pairs" if most else ""),
            ok=bound <= 0.05 and (most is None or pairs <= most),
        )
    ]


NOISES = {f"sd {sd:.0%}": virtual_ab.normal(sd) for sd in (0.01, 0.02, 0.03)} | {
    "sd 3%, t3 noise": virtual_ab.t3(0.03),
    f"sd 0.7%, {virtual_ab.DIRTY}": virtual_ab.hit(0.007),
}
FEW = "5 % in 1 cell of 10, sd 2%"
POWER = Experiment(
    name="power",
    title="A true slowdown of 5 % is found 95 times in 100 at a pair sd of 3 % or less",
    about=(
        f"Suites of {len(KEYS)} cells by the default rule, without a budget; pair differences "
        "drawn around the true effect."
    ),
    cases={
        f"5 % in {which}, {name}": Case(
            slower([0.05] * cells, noise), 1000 if cells == 1 else 200, 50, 8
        )
        for which, cells in (("1 cell of 10", 1), ("10 cells of 10", 10))
        for name, noise in NOISES.items()
    },
    rows=_power_row,
)


def _curve_row(case: str, n: Counts) -> list[Row]:
    return [
        Row(
            case=case,
            values={
                "found": share(n["cells"] - n["missed"], n["cells"]),
                "pairs on it": f"{n['pairs'] / n['cells']:.1f}",
                "pairs on each other": f"{n['others'] / n['suites'] / (len(KEYS) - 1):.1f}",
            },
        )
    ]


CURVE = Experiment(
    name="power-curve",
    title=f"How often a slowdown in 1 cell of {len(KEYS)} is found, and what it costs",
    about="As above. Nothing is promised here: read off what your machine's pair sd can find.",
    cases={
        f"{effect:.0%} slower, sd {sd:.0%}": Case(
            slower([effect], virtual_ab.normal(sd)), 300, 50, 3
        )
        for effect in (0.02, 0.03, 0.04, 0.05, 0.07, 0.1)
        for sd in (0.01, 0.02, 0.03, 0.05)
    },
    rows=_curve_row,
)


def detectable(sd: float) -> Callable[[np.random.Generator, int], Counts]:
    """The effect that an A/A suite calls detectable, looked for in a new suite."""

    def once(rng: np.random.Generator, count: int) -> Counts:
        found: Counter[str] = Counter()

        def fresh(key: str, n: int) -> list[sequential_test.Pair]:
            return [Pair(d=float(d)) for d in rng.normal(true.get(key, 0.0), sd, n)]

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
            values=_alarm_row(case, n)[0].values,
            reach="nearly 1 (shows the danger)" if fooled else "at most 1 %, at 95 % confidence",
            ok=n["alarms"] >= 0.99 * n["suites"] if fooled else bound <= 0.01,
        )
    ]


ANTAGONIST = Experiment(
    name="randomisation",
    title="Drawing the order at random is what protects from an antagonist in step",
    about=(
        "A/A suites, processes with two turns. Somebody else's work makes exactly the 2nd and 4th "
        "turn (or the 2nd and 3rd) of every pair 10 % slower. A fixed order books that on the "
        "candidate; a drawn one cannot."
    ),
    cases={
        "locked to ABAB, order fixed ABAB": Case(
            suites(Machine(Locked((1, 3)), turns=2, orders=("ABAB",)), AA_TRUE), 320, 20, 3
        ),
        "locked to ABAB, order drawn": Case(
            suites(Machine(Locked((1, 3)), turns=2), AA_TRUE), 320, 20, 3
        ),
        "locked to ABBA, order fixed ABBA": Case(
            suites(Machine(Locked((1, 2)), turns=2, orders=("ABBA",)), AA_TRUE), 320, 20, 3
        ),
        "locked to ABBA, order drawn": Case(
            suites(Machine(Locked((1, 2)), turns=2), AA_TRUE), 320, 20, 3
        ),
    },
    rows=_antagonist_row,
)


def again(rng: np.random.Generator, count: int) -> Counts:
    """Judge the same pairs twice, the second time with the cells in another order."""
    found: Counter[str] = Counter()
    for _ in range(count):
        effects = {key: float(rng.choice([0, 0, 0.02, 0.04, -0.05])) for key in KEYS}
        drawn = virtual_ab.draw(rng, MACHINES["iid"], PAIR_S * np.arange(140.0)[None])
        cells, first = virtual_ab.timed(rng, drawn, 0, effects, BUDGET_S, RULE)
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
