"""What numbers of this machine are worth: the clock, the harness, and how often A/A cries wolf.

Half of the time goes to interleaved A/A: the gate judges two arms that are the same, over and over,
so every REGRESSED or IMPROVED is a false alarm. The other half goes to ordinary runs of the suite,
kept as the machine's A/A history, from which `gpubench compare` takes its alarm limit.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Group
from rich.table import Table
from rich.text import Text

from gpubench import units
from gpubench.analysis import aa, gate, stats
from gpubench.analysis.compare import compare
from gpubench.analysis.verdicts import Comparison
from gpubench.backends.null import NullSession
from gpubench.errors import GpubenchError
from gpubench.measure import protocol
from gpubench.measure.loop import TIMER_SHARE, timer_overhead
from gpubench.record import RecordFile
from gpubench.run import ab, arms, driver, setup
from gpubench.run.client import AgentClient
from gpubench.run.progress import Silent
from gpubench.suite import Cell, Policy, Rule

ALARMS = ("REGRESSED", "IMPROVED")
LEAST_S = 20.0
"""An A/A comparison has at least so much time: with less it would measure next to nothing."""


class Clock(Struct, frozen=True, kw_only=True):
    """The timer and the harness, ns."""

    resolution_ns: float
    """Smallest step seen between two readings."""
    overhead_ns: int
    """Median of what the readings add to a sample."""
    shortest_sample_ns: int
    """Shorter iterations share a sample, so that reading the clock is at most 0.1 % of one."""
    null_iteration_ns: float
    """One iteration of a backend that computes nothing: what the loop itself adds."""


class CellResult(Struct, frozen=True, kw_only=True):
    """What the A/A pairs of one cell say."""

    label: str
    pairs: int
    pair_sd: float | None
    """Of log(candidate / baseline)."""
    pair_s: float
    """Wall time of one pair."""
    smallest_detectable: float | None
    """The slowdown found 95 times in 100 at the rule's numbers of pairs."""
    verdicts: dict[str, int]


class Result(Struct, frozen=True, kw_only=True):
    """Everything that the self-test found out."""

    clock: Clock
    suite: str
    rule: Rule
    suites: int
    """A/A comparisons made and judged; one that measured nothing is not counted."""
    alarms: int
    alarm_rate: stats.Estimate
    """Share of A/A suites with an alarm, with its exact (Clopper-Pearson) 95 % interval."""
    cells: list[CellResult]
    sessions: int
    """Ordinary runs added to the history."""
    history: int
    """Runs that the history holds now."""
    history_path: str
    noise: dict[str, float]
    """Noise source -> share of the measured tasks that showed it, and spreads."""


def clock() -> Clock:
    """Measure the timer and the loop in this process."""
    steps = [b - a for a, b in ((time.perf_counter_ns(), time.perf_counter_ns())
                                for _ in range(10_000)) if b > a]  # fmt: skip
    overhead = timer_overhead()
    cell = Cell(backend="null", device="cpu", model="null", weights="random", images="synthetic",
                precision="fp32", batch_size=1, replicas=1, cores=1, scenario="latency",
                boundary="compute")  # fmt: skip
    images = np.zeros((1, 3, 8, 8), np.float32)
    sampler = protocol.warm_up(NullSession((1, 10)), images, cell, Policy(warmup_s=0.05))
    found = protocol.measure(sampler, Policy(sample_s=0.2))
    return Clock(
        resolution_ns=float(min(steps, default=0)),
        overhead_ns=overhead,
        shortest_sample_ns=overhead * TIMER_SHARE,
        null_iteration_ns=median(found.durations) / found.iterations,
    )


def run(
    suite: str,
    minutes: float,
    chosen: Mapping[str, Any],
    rule: Rule,
    cache_dir: Path | None,
    say: Callable[[str], None],
) -> Result:
    """Test this machine for about ``minutes``. ``say`` hears what is going on."""
    say("timing the clock and the loop")
    first = clock()
    end = time.monotonic() + 60 * minutes
    with TemporaryDirectory(prefix="gpubench-selftest-") as scratch:
        place = Path(scratch)
        job = setup.comparison(
            suite, chosen, (arms.parse("--baseline", ()), arms.parse("--candidate", ())),
            (None, None), rule, 60 * minutes, cache_dir, place / "aa", False, (),
        )  # fmt: skip
        if not job.sides[0].plan.cells:
            raise GpubenchError(
                f"suite {suite}: none of its cells can be measured here; "
                f"'gpubench plan {suite}' says why"
            )
        with AgentClient(ab.modules(job), job.cache_dir, place / "agent.log") as agent:
            broken = agent.start().errors
            middle = time.monotonic() + (end - time.monotonic()) / 2
            pairs = _interleaved(job, agent, broken, place, middle, say)
        runs = _sessions(suite, chosen, cache_dir, place, end, say)
        return _result(first, suite, rule, pairs, runs, _history(runs[0], job.cache_dir))


def _interleaved(
    job: ab.Job,
    agent: AgentClient,
    broken: Mapping[str, str],
    place: Path,
    end: float,
    say: Callable[[str], None],
) -> list[tuple[RecordFile, RecordFile]]:
    """A/A comparisons until ``end``, at least one; those that measured nothing are left out.

    Raises GpubenchError when the first one measured nothing.
    """
    made: list[tuple[RecordFile, RecordFile]] = []
    number = 0
    while not made or time.monotonic() < end:
        budget_s = max(LEAST_S, end - time.monotonic())
        again = replace(job, out=place / f"aa-{number}", seed=number, budget_s=budget_s)
        files = ab.run(again, Silent(), agent, broken)
        rows = compare(*files)
        number += 1
        say(f"A/A comparison {number}: {_counts(rows)}")
        if any(row.pairs >= ab.LEAST for row in rows):
            made.append(files)
        elif not made:
            raise GpubenchError(f"the A/A comparison measured no cell: {_why(rows)}")
    return made


def _why(rows: Sequence[Comparison]) -> str:
    """Of the first cell."""
    return next((f"{row.label}: {row.verdict}, {row.reason}" for row in rows), "there is none")


def _history(run: RecordFile, cache_dir: Path) -> Path:
    return aa.directory(cache_dir, run.header.fingerprint)


def _sessions(
    suite: str,
    chosen: Mapping[str, Any],
    cache_dir: Path | None,
    place: Path,
    end: float,
    say: Callable[[str], None],
) -> list[RecordFile]:
    """Ordinary runs until ``end``, at least one; an interrupt keeps those that are done."""
    runs: list[RecordFile] = []
    while not runs or time.monotonic() < end:
        out = place / f"run-{len(runs)}"
        session = setup.session(suite, chosen, cache_dir, out, False, ())
        runs.append(driver.run(session.plan, session.job, session.backends, Silent()))
        aa.add(runs[-1], _history(runs[-1], session.job.cache_dir))
        say(f"ordinary run {len(runs)} for the history")
    return runs


def _counts(rows: Any) -> str:
    return ", ".join(f"{n} {word}" for word, n in Counter(r.verdict for r in rows).items())


def _result(
    first: Clock,
    suite: str,
    rule: Rule,
    pairs: list[tuple[RecordFile, RecordFile]],
    runs: list[RecordFile],
    history: Path,
) -> Result:
    judged = [compare(*pair) for pair in pairs]
    alarms = sum(any(row.verdict in ALARMS for row in rows) for rows in judged)
    return Result(
        clock=first,
        suite=suite,
        rule=rule,
        suites=len(pairs),
        alarms=alarms,
        alarm_rate=stats.clopper_pearson(alarms, len(pairs)),
        cells=_cells(judged, pairs, rule),
        sessions=len(runs),
        history=len(aa.load(history)),
        history_path=str(history),
        noise=_noise([file for pair in pairs for file in pair] + runs),
    )


def _cells(
    judged: list[list[Comparison]], pairs: list[tuple[RecordFile, RecordFile]], rule: Rule
) -> list[CellResult]:
    """One row a cell; the pair sd pools all A/A comparisons, each around its own mean."""
    rows: dict[str, list[Comparison]] = {}
    for row in (row for found in judged for row in found):
        rows.setdefault(row.key, []).append(row)
    walls: dict[str, list[float]] = {}
    for record in (record for _, candidate in pairs for record in candidate.records):
        walls.setdefault(record.cell.key, []).append(record.wall_s)
    found = []
    for key, same in rows.items():
        spread = [(r.pairs - 1, r.pair_sd) for r in same if r.pair_sd is not None]
        dof = sum(n for n, _ in spread)
        sd = math.sqrt(sum(n * s * s for n, s in spread) / dof) if dof else None
        found.append(CellResult(
            label=same[0].label, pairs=len(walls.get(key, ())), pair_sd=sd,
            pair_s=fmean(walls.get(key) or [0.0]),
            smallest_detectable=None if sd is None else gate.smallest_detectable(
                sd, rule.most, 1, rule),
            verdicts=dict(Counter(r.verdict for r in same)),
        ))  # fmt: skip
    return found


NOISE = ("CPU-STEAL", "CPU-BUSY", "THROTTLED", "POWER-CAP", "CO-TENANT", "DRIFT",
         "NO-STEADY-STATE", "BUSY-WHILE-IDLE")  # fmt: skip


def _noise(files: list[RecordFile]) -> dict[str, float]:
    """Shares of the tasks that each flag was raised in, and the CPU counters over all tasks."""
    records = [record for file in files for record in file.records if record.replicas]
    found = {flag: fmean(flag in r.flags for r in records) for flag in NOISE if records}
    cpu = [record.telemetry.get("cpu", {}) for record in records]
    for name in ("steal_share", "other_busy_share"):
        values = [c[name] for c in cpu if name in c]
        found |= {f"largest {name}": max(values)} if values else {}
    mhz = [c["mhz"] for c in cpu if "mhz" in c]
    if mhz:
        found |= {"MHz, least": min(m["min"] for m in mhz), "MHz, most": max(m["max"] for m in mhz)}
    return found


def render(result: Result) -> Group:
    """What a person reads: the verdict on the machine first."""
    rate, c = result.alarm_rate, result.clock
    percent = units.percent
    head = (
        f"{result.alarms} of {result.suites} A/A comparisons alarmed: "
        f"{percent(rate.low or 0)} to {percent(rate.high or 1)} (exact 95 % interval; "
        f"at most {percent(result.rule.alpha)} is promised)"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("cell", "pairs", "s a pair", "pair sd", "finds", "verdicts"):
        table.add_column(name, justify="left" if name in ("cell", "verdicts") else "right")
    for cell in result.cells:
        finds, sd = cell.smallest_detectable, cell.pair_sd
        table.add_row(
            Text(cell.label), str(cell.pairs), f"{cell.pair_s:.1f}",
            "-" if sd is None else percent(sd), "-" if finds is None else percent(finds),
            ", ".join(f"{n} {word}" for word, n in cell.verdicts.items()),
        )  # fmt: skip
    noise = ", ".join(
        f"{name} {value:,.0f}" if name.startswith("MHz") else f"{name} {percent(value)}"
        for name, value in result.noise.items() if value
    )  # fmt: skip
    lines = (
        f"clock: steps of {c.resolution_ns:.0f} ns, {c.overhead_ns} ns a sample; iterations below "
        f"{units.duration(c.shortest_sample_ns)} share a sample",
        f"harness: {c.null_iteration_ns:.0f} ns an iteration of a backend that computes nothing",
        f"noise (share of the tasks): {noise or 'none seen'}",
        f"A/A history: {result.sessions} runs added, {result.history} in {result.history_path}; "
        f"gpubench compare needs {aa.ENOUGH}",
        "finds: the slowdown found 95 times in 100 with as many pairs as the rule allows",
    )
    style = "red" if (rate.low or 0) > result.rule.alpha else "green"
    return Group(Text(head, style=style), table, *(Text(line) for line in lines))
