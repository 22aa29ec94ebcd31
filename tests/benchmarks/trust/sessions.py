"""Do the intervals that a report prints hold the truth, with the policies of the shipped suites?"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np

from gpubench.analysis import stats
from gpubench.suite.types import Policy
from tests.benchmarks.trust import processes
from tests.benchmarks.trust.evidence import Case, Counts, Experiment, Row
from tests.benchmarks.trust.processes import Draw, Floats

LOW, HIGH = 0.93, 0.97
BATCH_S = 0.01
BETWEEN_S = 3.0
"""From one task's sampling to the next one's: start, opening, warm-up, answers."""
ROUNDS = 0.01
"""Standard deviation of what all cells of a round share."""
CELLS = {"quick": 12, "latency": 6, "throughput": 24, "scaling": 15, "pipeline": 15}
"""Suite -> cells of one scenario, about as many as a machine without a GPU measures."""
BLOCKS = ("throughput", "scaling")
"""Suites whose samples are blocks of batches: images/s is all they print."""
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
PINK, TENANT = "1/f", "co-tenant every 30 s"
KINDS: dict[str, Draw] = {
    "iid": processes.noise,
    "AR(1), 0.9": lambda g, n, k: processes.ar1(g, n, k, 0.9),
    "bimodal": processes.bimodal,
    "Pareto stalls": processes.spiked,
    PINK: processes.noise,
    TENANT: processes.noise,
}
RARE = 0.05
"""A percentile that fewer of the rows show is left out."""


def shipped(suite: str) -> Policy:
    """The policy of a suite that comes with gpubench."""
    text = (Path(__file__).parents[3] / "suites" / f"{suite}.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text)["policy"], Policy)


def samples(policy: Policy) -> int:
    """Of one repeat."""
    return max(10, round(policy.duration_s / BATCH_S))


def disturbance(rng: np.random.Generator, kind: str, at: Floats, n: int) -> Floats:
    """What the session does to ``n`` samples of tasks that begin ``at`` s; shape (*at.shape, n)."""
    times = at[..., None] + BATCH_S * np.arange(n)
    if kind == TENANT:  # 20 % slower for ten seconds
        return 0.2 * ((times + rng.uniform(0, 30)) % 30 < 10)
    if kind == PINK:  # about the level of this session, with an sd of 2 %
        series = processes.pink(rng, int(times.max() / 0.05) + 1)
        return 0.02 * series[(times / 0.05).astype(int)]
    return np.zeros_like(times)


@lru_cache(maxsize=256)
def truths(kind: str, n: int, length_s: float) -> dict[str, float]:
    """Log of each value: of a process for ever, or the mean of what repeats at any time of such a
    session show."""
    rng = np.random.default_rng(5)
    if kind in (TENANT, PINK):
        found: Counter[str] = Counter()
        for _ in range(200):
            traces = KINDS[kind](rng, 20, n)
            traces += disturbance(rng, kind, rng.uniform(0, length_s, 20), n)
            found.update({name: float(x.mean()) / 200 for name, x in shown(traces).items()})
        return dict(found)
    trace = np.concatenate([KINDS[kind](rng, 400, 10_000).ravel() for _ in range(2)])
    found = {name: float(np.quantile(trace, q)) for name, q in QUANTILES.items()}
    return found | {"images/s": -float(np.log(np.exp(trace).mean()))}


def shown(traces: Floats, rates_only: bool = False) -> dict[str, Floats]:
    """Log values of repeats; shape without the last axis of ``traces``."""
    enough = {name: q for name, q in QUANTILES.items() if traces.shape[-1] * (1 - q) >= 1 - 1e-9}
    told = {} if rates_only else enough
    # all at once, as `stats.percentile` does it one by one
    found = {n: np.quantile(traces, q, axis=-1, method="hazen") for n, q in told.items()}
    return found | {"images/s": -np.log(np.exp(traces).mean(-1))}


def session(
    rng: np.random.Generator,
    policy: Policy,
    cells: int,
    kind: str,
    launch: Floats,
    rates_only: bool,
) -> tuple[dict[str, Floats], list[int], Floats]:
    """(log values (cells, most repeats), repeats of each cell, traces) of one run.

    ``launch``: sd of the level from process to process, of each cell; shape (cells, 1).
    """
    most, n = max(policy.repeats, policy.max_repeats), samples(policy)
    order = rng.random((cells, most)).argsort(0).argsort(0)
    at = (np.arange(most) * cells + order) * (BETWEEN_S + policy.duration_s)
    level = launch * rng.normal(size=(cells, most)) + ROUNDS * rng.normal(size=most)
    traces = KINDS[kind](rng, cells * most, n).reshape(cells, most, n) + level[..., None]
    traces += disturbance(rng, kind, at, n)
    values, repeats = shown(traces, rates_only), [policy.repeats] * cells
    if most > policy.repeats:
        fit = fitted(values["p50"], repeats, policy)
        repeats = [min(most, fit.needed(str(c), policy.target_half_width)) for c in range(cells)]
    return values, repeats, traces


def fitted(logs: Floats, repeats: list[int], policy: Policy) -> stats.TwoWay:
    values = {str(c): dict(enumerate(np.exp(row[:n]).tolist()))
              for c, (row, n) in enumerate(zip(logs, repeats, strict=True))}  # fmt: skip
    return stats.two_way(values, policy.repeats)


def judged(
    suite: str, kind: str, launches: tuple[float, ...]
) -> Callable[[np.random.Generator, int], Counts]:
    """Every interval of ``count`` runs; cells have the launch effects in turn."""
    policy, cells = shipped(suite), CELLS[suite]
    launch = np.resize(np.asarray(launches), (cells, 1))
    enough = {q: samples(policy) * policy.repeats >= stats.minimum_n(QUANTILES[q])
              for q in QUANTILES}  # fmt: skip

    def once(rng: np.random.Generator, count: int) -> Counts:
        found: Counter[str] = Counter()
        length_s = policy.repeats * cells * (BETWEEN_S + policy.duration_s)
        true = truths(kind, samples(policy), length_s)
        for _ in range(count):
            values, repeats, traces = session(rng, policy, cells, kind, launch, suite in BLOCKS)
            for name, logs in values.items():
                if not enough.get(name, True):
                    continue
                fit = fitted(logs, repeats, policy)
                for c in range(cells):
                    tail = QUANTILES[name] if name in ("p90", "p99") else 0.0
                    if tail and stats.too_few(list(traces[c, : repeats[c]]), tail):
                        continue
                    e = fit.level(str(c))
                    _count(found, name, e.low, np.exp(true[name]), e.high)
                if name in ("p50", "images/s"):
                    for c in range(1, cells):
                        e = fit.ratio("0", str(c)).estimate()
                        _count(found, f"ratio of {name}", e.low, 1.0, e.high)
                        half = e.relative_half_width or 0.0
                        found["half"] += min(half, 1.0) if name == "images/s" else 0.0
        return found

    return once


def _count(
    found: Counter[str], name: str, low: float | None, truth: float, high: float | None
) -> None:
    usable = low is not None and high is not None
    found[f"{name}, shown"] += usable
    found[f"{name}, held"] += bool(usable and low <= truth <= high)
    found["not usable"] += not usable


COLUMNS = ("p50", "images/s", "p90", "p99", "ratio of p50", "ratio of images/s")


def _row(case: str, n: Counts) -> list[Row]:
    held = {c: n[f"{c}, held"] / n[f"{c}, shown"] for c in COLUMNS
            if n.get(f"{c}, shown", 0) > RARE * n["images/s, shown"]}  # fmt: skip
    ratios = n["ratio of images/s, shown"]
    values = {c: f"{held[c]:.1%}" if c in held else "-" for c in COLUMNS}
    values["a ratio's half-width"] = f"{n['half'] / max(1, ratios):.1%}"
    ok = all(LOW <= share <= HIGH for share in held.values())
    return [Row(case=case, values=values, reach="93 to 97 %", ok=ok)]


def _cases() -> dict[str, Case]:
    made = {}
    for suite in CELLS:
        counts = (75, 75, 10) if suite == "latency" else (200, 200, 20)
        for kind in KINDS:
            made[f"{suite}, {kind}"] = Case(judged(suite, kind, (0.01,)), *counts)
        for words, launches in (("0.5 %", (0.005,)), ("3 %", (0.03,)),
                                ("0.5, 1 and 3 % in turn", (0.005, 0.01, 0.03))):  # fmt: skip
            case = f"{suite}, iid, launch effects of {words}"
            made[case] = Case(judged(suite, "iid", launches), *counts)
    return made


SESSIONS = Experiment(
    name="sessions",
    title="What a report prints holds the true value of its session 95 times in 100",
    about=(
        "Whole runs with the shipped suites' own policies, second stage included: cells in random "
        "order in every round, a batch of 10 ms, 3 % noise within a process (sd), levels that "
        "differ by 1 % from launch to launch and by 1 % from round to round where nothing else is "
        "said. Every interval is judged: time of a batch at p50, p90 and p99, images/s, and the "
        "ratios that speed-ups and scaling efficiencies are, all from one fit to the run. 1/f: "
        "2 % (sd) over the session, whose own mean level is the truth. Co-tenant: 20 % slower for "
        "ten of thirty seconds; the truth is the mean over time. Which percentiles are shown "
        "depends on the samples."
    ),
    cases=_cases(),
    rows=_row,
)
