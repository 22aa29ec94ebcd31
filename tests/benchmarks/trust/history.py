"""Series of runs of which it is known what they did: what `gpubench history` says of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np

from gpubench.analysis.history.changepoints import findings
from gpubench.suite.types import Rule
from tests.benchmarks.trust.evidence import Case, Counts, Experiment, Row, few, share
from tests.benchmarks.trust.processes import Floats

RUNS, CELLS = 200, 60
"""Of a series; and how many cells share the chance of anything false."""
SD = 0.01
NEAR = 5
"""A point so many runs from a true one is that one."""
RULE = Rule()
Made = tuple[Floats, list[int]]
"""(logs of a cell's cost without noise, where its level truly changes)."""


def _step(rng: np.random.Generator, by: float) -> Made:
    at = int(rng.integers(20, RUNS - 20))
    return math.log1p(by) * (np.arange(RUNS) >= at), [at]


def _steps(rng: np.random.Generator) -> Made:
    """Up by 5 %, later down by 4 %."""
    at = [int(rng.integers(20, 80)), int(rng.integers(110, 180))]
    by = (math.log1p(0.05), math.log1p(-0.04))
    return np.asarray(sum(b * (np.arange(RUNS) >= a) for a, b in zip(at, by, strict=True))), at


def _drift(rng: np.random.Generator, length: int) -> Made:
    begin = int(rng.integers(0, RUNS - length + 1))
    return 0.05 * np.clip((np.arange(RUNS) - begin) / (length - 1), 0, 1), []


def _states(rng: np.random.Generator) -> Made:
    """8 % apart, each for twelve runs on average."""
    return 0.08 * ((rng.random(RUNS) < 1 / 12).cumsum() % 2), []


def _odd(rng: np.random.Generator) -> Floats:
    """One run in twenty is 12 % slower."""
    return math.log1p(0.12) * (rng.random(RUNS) < 0.05)


def looked(
    make: Callable[[np.random.Generator], Made], odd: bool
) -> Callable[[np.random.Generator, int], Counts]:
    """Series of one kind."""

    def once(rng: np.random.Generator, count: int) -> Counts:
        found: Counter[str] = Counter()
        for _ in range(count):
            level, true = make(rng)
            noise = rng.normal(0, SD, RUNS) + (_odd(rng) if odd else 0.0)
            said = findings((level + noise).tolist(), RULE.delta, RULE.alpha / CELLS)
            near = [(b, t) for b in said.breaks for t in true if abs(b.at - t) <= NEAR]
            found.update(series=1, true=len(true), found=len(near))
            found["false"] += len(said.breaks) > len(near)
            found["held"] += sum(b.low <= t <= b.high for b, t in near)
            found["runs"] += sum(b.high - b.low + 1 for b, _ in near)
            found["drift"] += bool(said.ramps)
            found["states"] += said.states is not None
        return found

    return once


def _row(case: str, n: Counts) -> list[Row]:
    values = {
        "changes found": share(n["found"], n["true"]) if n["true"] else "-",
        "series with a false one": few(n["false"], n["series"]),
        "in the interval of runs": share(n["held"], n["found"]) if n["found"] else "-",
        "its runs": f"{n['runs'] / n['found']:.1f}" if n["found"] else "-",
        "a drift": f"{n['drift'] / n['series']:.1%}",
        "two states": f"{n['states'] / n['series']:.1%}",
    }
    reach, ok = {
        "two states": ("two states in 95 %", n["states"] >= 0.95 * n["series"]),
        "a drift of 5 % over 40 runs": ("a drift in 95 %", n["drift"] >= 0.95 * n["series"]),
        "a drift of 5 % over 108 runs": ("a drift in 95 %", n["drift"] >= 0.95 * n["series"]),
        "a drift of 5 % over 200 runs": ("a drift in 95 %", n["drift"] >= 0.95 * n["series"]),
        "no change": ("a false one in at most 1 %", n["false"] <= 0.01 * n["series"]),
        "odd runs, no change": ("a false one in at most 1 %", n["false"] <= 0.01 * n["series"]),
    }.get(case, (
        "95 % found, the interval holds it in 93 %, a false one in at most 1 %",
        n["found"] >= 0.95 * n["true"] and n["held"] >= 0.93 * n["found"]
        and n["false"] <= 0.01 * n["series"],
    ))  # fmt: skip
    return [Row(case=case, values=values, reach=reach, ok=ok)]


def _flat(rng: np.random.Generator) -> Made:
    return np.zeros(RUNS), []


_MADE: dict[str, tuple[Callable[[np.random.Generator], Made], bool]] = {
    "no change": (_flat, False),
    "odd runs, no change": (_flat, True),
    "one step of 3 %": (lambda rng: _step(rng, 0.03), False),
    "odd runs, one step of 5 %": (lambda rng: _step(rng, 0.05), True),
    "odd runs, one step of 10 %": (lambda rng: _step(rng, 0.10), True),
    "two steps": (_steps, False),
    "a drift of 5 % over 40 runs": (lambda rng: _drift(rng, 40), False),
    "a drift of 5 % over 108 runs": (lambda rng: _drift(rng, 108), False),
    "a drift of 5 % over 200 runs": (lambda rng: _drift(rng, 200), False),
    "two states": (_states, False),
}
HISTORY = Experiment(
    name="history",
    title="A history names changes, drifts and two states, and little else",
    about=(
        f"Series of {RUNS} runs of one of {CELLS} cells that share the chance of anything false, "
        f"with a noise of {100 * SD:g} % from run to run; odd runs: one in twenty is 12 % slower. "
        f"A point within {NEAR} runs of a true one counts as found."
    ),
    cases={name: Case(looked(*made), 300, 30, 3) for name, made in _MADE.items()},
    rows=_row,
)
