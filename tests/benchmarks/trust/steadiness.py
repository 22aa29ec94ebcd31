"""Traces that are labelled steady or not: what becomes of them in an A/B and in a stored run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np

from gpubench.analysis import stats
from gpubench.analysis.summary import most
from gpubench.suite.types import Rule
from tests.benchmarks.trust import virtual_ab
from tests.benchmarks.trust.evidence import Case, Counts, Experiment, Row, at_most, few
from tests.benchmarks.trust.processes import STEADY, UNSTEADY, Draw, Floats, unsteady
from tests.benchmarks.trust.virtual_ab import Machine

RULE = Rule()
REPEATS = 5
"""Of each of two stored runs."""


def traced(kind: str, samples: int) -> Callable[[np.random.Generator, int], Counts]:
    """A/A cells, and pairs of stored runs, of one kind of process."""

    def once(rng: np.random.Generator, count: int) -> Counts:
        found: Counter[str] = Counter()
        for _ in range(count):
            draw = _draw(kind, rng)
            machine = Machine(samples=samples, process=draw)
            fresh = virtual_ab.on(machine, rng, {"cell": 0.0})
            cells, verdicts = virtual_ab.suite(["cell"], fresh, RULE)
            said = verdicts["cell"]
            used = cells["cell"]
            medians, flagged = virtual_ab.settle(draw(rng, 2 * REPEATS, samples))
            found.update(cells=1, pairs=len(used), flagged=sum(p.unsteady for p in used))
            found["equivalent"] += said.verdict == "EQUIVALENT"
            found["not steady"] += said.code == "not-steady"
            found["alarm"] += said.verdict in ("REGRESSED", "IMPROVED")
            found["traces flagged"] += float(flagged.sum())
            found["stored equivalent"] += _stored(medians, flagged)
        return found

    return once


def _stored(medians: Floats, flagged: Floats) -> bool:
    """Whether `analysis.compare.compare` would call two stored runs EQUIVALENT: see `_doubted`."""
    sides = [[["DRIFT"] if flag else [] for flag in side] for side in np.split(flagged, 2)]
    bounds = stats.welch(*(np.exp(side).tolist() for side in np.split(medians, 2))).interval()
    inside = bounds is not None and max(map(abs, bounds)) < math.log1p(RULE.delta)
    return inside and not any(most(side) for side in sides)


def _draw(kind: str, rng: np.random.Generator) -> Draw:
    name, _, same = kind.partition(SAME)
    if name in STEADY:
        return STEADY[name]
    return unsteady(name, int(rng.integers(2**31)) if same else None)


SAME = ", the same "
KINDS = [
    *UNSTEADY,
    # a walk that takes the same steps in every process would be no walk
    *(f"{name}{SAME}in all processes" for name in UNSTEADY if name != "random walk"),
]


def _values(n: Counts) -> dict[str, str]:
    cells = n["cells"]
    return {
        "A/B EQUIVALENT": few(n["equivalent"], cells),
        "A/B not-steady": f"{n['not steady'] / cells:.1%}",
        "pairs flagged": f"{n['flagged'] / n['pairs']:.1%}",
        "stored runs EQUIVALENT": few(n["stored equivalent"], cells),
        "stored traces flagged": f"{n['traces flagged'] / (2 * REPEATS * cells):.2%}",
    }


def _unsteady_row(case: str, n: Counts) -> list[Row]:
    let = max(at_most(n["equivalent"], n["cells"]), at_most(n["stored equivalent"], n["cells"]))
    return [Row(case=case, values=_values(n), reach="never (at most 1 %, at 95 %)", ok=let <= 0.01)]


def _steady_row(case: str, n: Counts) -> list[Row]:
    return [Row(
        case=case, values=_values(n), reach="at most 5 % A/B not-steady",
        ok=n["not steady"] / n["cells"] <= 0.05,
    )]  # fmt: skip


def _short_row(case: str, n: Counts) -> list[Row]:
    return [Row(case=case, values=_values(n))]


REFUSED = Experiment(
    name="not-steady",
    title="What is not steady is never called EQUIVALENT",
    about=(
        "A/A cells, both arms of the same labelled kind, with 100 samples a turn: either every "
        "process changes in its own way, or all in the same. Two stored runs of 5 repeats are "
        "EQUIVALENT when their interval lies inside the margin and most repeats of neither are "
        "flagged. The constants of "
        "`measure.steady_state` and `sequential_test.not_steady` were chosen on these generators, "
        "with other seeds. Not covered: "
        "oscillations with a period below 0.8 of the trace (quarters and a parabola can miss them: "
        "periods of 0.5 were tried first, and some got through), two opposite shifts soon after "
        "one another, and a random walk that takes the same steps in every process (2 or 3 of 100 "
        "got through)."
    ),
    cases={kind: Case(traced(kind, 100), 700, 35, 2) for kind in KINDS},
    rows=_unsteady_row,
)
KEPT = Experiment(
    name="steady",
    title="What is steady is rarely refused",
    about="As above, with stationary processes. AR(1) with 0.9 wanders about by itself.",
    cases={kind: Case(traced(kind, 100), 700, 35, 2) for kind in STEADY},
    rows=_steady_row,
)
SHORT = Experiment(
    name="short-turns",
    title="With short turns less can be seen",
    about="As above with 40 samples a turn. Nothing is promised: sample longer.",
    cases={kind: Case(traced(kind, 40), 300, 50, 2) for kind in [*KINDS, *STEADY]},
    rows=_short_row,
)
