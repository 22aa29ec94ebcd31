"""An experiment: cases that are repeated many times, counted, and held against what is promised."""

from __future__ import annotations

import sys
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from msgspec import Struct
from scipy.special import betaincinv

Counts = Mapping[str, float]
Repeat = Callable[[np.random.Generator, int], Counts]
"""(rng, how often) -> sums that may be added up over chunks."""


class Row(Struct, frozen=True, kw_only=True):
    """One line of the table."""

    case: str
    values: dict[str, str]
    """Column -> what it says."""
    reach: str = ""
    """What is promised; '' where nothing is."""
    ok: bool | None = None
    """Whether the promise was kept; None where nothing is promised."""


class Case(Struct, frozen=True):
    """What is repeated, how often in full, and in how large chunks (each has its own seed)."""

    repeat: Repeat
    count: int
    chunk: int
    quick: int
    """How often with --quick; one chunk."""


class Experiment(Struct, frozen=True, kw_only=True):
    """Cases with one question in common."""

    name: str
    title: str
    about: str
    """How it was done; a few sentences."""
    cases: dict[str, Case]
    rows: Callable[[str, Counts], list[Row]]


def bounds(hits: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a proportion (Clopper & Pearson 1934)."""
    tail = (1 - level) / 2
    low = float(betaincinv(hits, n - hits + 1, tail)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return low, high


def at_most(hits: float, n: float, confidence: float = 0.95) -> float:
    """Exact one-sided upper bound of a proportion: 0 of 299 -> 1 %."""
    return bounds(hits, n, 2 * confidence - 1)[1]


def share(hits: float, n: float) -> str:
    """'95.1 % (94.4-95.8)': a proportion and its exact 95 % interval."""
    low, high = bounds(hits, n)
    return f"{hits / n:.1%} ({100 * low:.1f}-{100 * high:.1f})".replace("%", " %")


def few(hits: float, n: float) -> str:
    """'0 of 700 (at most 0.43 %)': with the exact one-sided 95 % bound."""
    bound = 100 * at_most(hits, n)
    words = f"{bound:.0f}" if bound >= 10 else f"{bound:.2g}"
    return f"{hits:.0f} of {n:.0f} (at most {words} %)"


class _Task(Struct, frozen=True):
    experiment: str
    case: str
    chunk: int
    count: int
    seed: int


def run(
    experiments: Sequence[Experiment], seed: int, quick: bool, workers: int
) -> dict[str, dict[str, Counts]]:
    """Experiment -> case -> sums. The same whatever the number of ``workers``."""
    tasks = [
        _Task(e.name, name, chunk, min(case.chunk, total - chunk * case.chunk), seed)
        for e in experiments
        for name, case in e.cases.items()
        for total in [min(case.quick, case.chunk) if quick else case.count]
        for chunk in range(-(-total // case.chunk))
    ]
    found: dict[str, dict[str, Counts]] = {}
    with ProcessPoolExecutor(workers) as pool:
        for done, (task, counts) in enumerate(zip(tasks, pool.map(_run, tasks), strict=True)):
            if task.chunk == 0:
                print(f"{done}/{len(tasks)} {task.experiment}: {task.case}", file=sys.stderr)
            case = found.setdefault(task.experiment, {})
            merged = Counter(case.get(task.case, {}))
            merged.update(counts)
            case[task.case] = merged
    return found


def _run(task: _Task) -> Counts:
    from tests.benchmarks.trust.simulate import EXPERIMENTS

    case = EXPERIMENTS[task.experiment].cases[task.case]
    words = zlib.crc32(f"{task.experiment}/{task.case}".encode())
    rng = np.random.default_rng(np.random.SeedSequence([task.seed, words, task.chunk]))
    return case.repeat(rng, task.count)
