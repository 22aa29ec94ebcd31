"""What numbers of this machine are worth: the clock, the harness, and how often A/A cries wolf.

Half of the time goes to interleaved A/A: the gate judges two arms that are the same, over and over,
so every REGRESSED or IMPROVED is a false alarm. The other half goes to ordinary runs of the suite,
kept as the machine's A/A history, from which `gpubench compare` takes its alarm limit.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gpubench import units
from gpubench.analysis import stats
from gpubench.analysis.compare import aa_history, sequential_test
from gpubench.analysis.compare.compare import compare
from gpubench.analysis.compare.verdicts import CODES, Comparison
from gpubench.backends.null import NullSession
from gpubench.errors import GpubenchError
from gpubench.measure import protocol
from gpubench.measure.loop import TIMER_SHARE, timer_overhead
from gpubench.records.record import FLAGS, RecordFile
from gpubench.run import driver, setup
from gpubench.run.ab import arms
from gpubench.run.ab import driver as ab_driver
from gpubench.run.ab import setup as ab_setup
from gpubench.run.agent.client import AgentClient
from gpubench.run.results import Shown
from gpubench.run.watcher import Silent
from gpubench.suite.types import Cell, Policy, Rule

ALARMS = ("REGRESSED", "IMPROVED")
Pair = tuple[RecordFile, RecordFile]
Say = Callable[[str], object]
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
    undecided: dict[str, int]
    """Reason codes of what is not EQUIVALENT."""


class Result(Shown, Struct, frozen=True, kw_only=True):
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
    usable: int
    """Of these, how many count for the cell that has the fewest: those of other suites do not,
    nor does a session in which the cell failed or was flagged as unsteady."""
    history_path: str
    noise: dict[str, float]
    """Noise source -> share of the measured tasks that showed it, and spreads."""
    interrupted: bool
    """Ctrl-C ended it early; what was done by then is counted."""

    def _parts(self) -> Sequence[RenderableType]:
        return [render(self)]


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
    found = protocol.measure(sampler, Policy(duration_s=0.2))
    return Clock(
        resolution_ns=float(min(steps, default=0)),
        overhead_ns=overhead,
        shortest_sample_ns=overhead * TIMER_SHARE,
        null_iteration_ns=median(found.durations_ns) / found.iterations,
    )


def run(
    suite: str,
    minutes: float,
    chosen: Mapping[str, Any],
    rule: Rule,
    cache_dir: Path | None,
    say: Say,
) -> Result:
    """Test this machine for about ``minutes``. ``say`` hears what is going on.

    Ctrl-C ends it early, and raises KeyboardInterrupt only before the first A/A comparison is done.
    """
    say("timing the clock and the loop")
    first = clock()
    end = time.monotonic() + 60 * minutes
    with TemporaryDirectory(prefix="gpubench-selftest-") as scratch:
        place = Path(scratch)
        job = ab_setup.comparison(
            suite, chosen, (arms.parse("--baseline", ()), arms.parse("--candidate", ())),
            (None, None), rule, 60 * minutes, cache_dir, place / "aa", False, (),
        )  # fmt: skip
        if not job.sides[0].plan.cells:
            skips = job.sides[0].plan.skips
            why = dict.fromkeys("; ".join(filter(None, (s.reason, s.remedy))) for s in skips)
            raise GpubenchError(
                f"suite {suite}: none of its cells can be measured here: {' | '.join(why)}"
            )
        pairs: list[Pair] = []
        runs: list[RecordFile] = []
        interrupted = False
        try:
            with AgentClient(ab_driver.modules(job), job.cache_dir, place / "agent.log") as agent:
                broken = agent.start().errors
                middle = time.monotonic() + (end - time.monotonic()) / 2
                pairs.extend(_interleaved(job, agent, broken, middle, say))
            for number in _until(end):  # each in the history once it is done
                out = place / f"run-{number}"
                file = driver.run(setup.session(suite, chosen, cache_dir, out), Silent())
                aa_history.add(out, _history(file, job))
                runs.append(file)
                say(f"ordinary run {number + 1} for the history")
        except KeyboardInterrupt:
            if not pairs:
                say("interrupted: nothing was measured")
                raise
            say("interrupted: this is what was done by then")
            interrupted = True
    judged = [compare(*pair) for pair in pairs]
    history = _history((runs or pairs[0])[0], job)
    kept = aa_history.load(history, say)
    known = aa_history.by_cell(kept)
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
        history=len(kept),
        usable=min(len(known.get(row.key, ())) for row in judged[0]),
        history_path=str(history),
        noise=_noise([file for pair in pairs for file in pair] + runs),
        interrupted=interrupted,
    )


def _history(run: RecordFile, job: ab_driver.ABJob) -> Path:
    return aa_history.directory(job.cache_dir, run.header.fingerprint)


def _until(end: float) -> Iterator[int]:
    """Numbers until the moment ``end``, one at least."""
    number = 0
    while not number or time.monotonic() < end:
        yield number
        number += 1


def _interleaved(
    job: ab_driver.ABJob, agent: AgentClient, broken: Mapping[str, str], end: float, say: Say
) -> Iterator[Pair]:
    """A/A comparisons until ``end``, at least one; those too short for a verdict are left out.

    Raises GpubenchError when the first one is.
    """
    for number in _until(end):
        budget_s = max(LEAST_S, end - time.monotonic())
        out = job.out.with_name(f"aa-{number}")
        again = replace(job, out=out, seed=number, budget_s=budget_s)
        files = ab_driver.run(again, Silent(), agent, broken)
        rows = compare(*files)
        if any(row.pairs >= job.rule.looks[0] for row in rows):  # fewer cannot alarm
            yield files
        elif not number:
            why = next((f"{r.label}: {r.verdict}, {r.reason}" for r in rows), "there is none")
            raise GpubenchError(f"the A/A comparison decided no cell: {why}")
        counts = Counter(row.verdict for row in rows)
        words = ", ".join(f"{n} {word}" for word, n in counts.items())
        say(f"A/A comparison {number + 1}: {words}")


def _cells(judged: list[list[Comparison]], pairs: list[Pair], rule: Rule) -> list[CellResult]:
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
            smallest_detectable=None if sd is None else sequential_test.smallest_detectable(
                sd, rule.looks[-1], 1, rule),
            verdicts=dict(Counter(r.verdict for r in same)),
            undecided=dict(Counter(r.code for r in same if r.verdict != "EQUIVALENT")),
        ))  # fmt: skip
    return found


NOISE = ("CPU-STEAL", "CPU-BUSY", "CPU-WITHHELD", "FROZEN", "THROTTLED", "POWER-CAP",
         "CO-TENANT", "DRIFT", "NO-STEADY-STATE", "BUSY-WHILE-IDLE")  # fmt: skip


SHARES = {
    "largest steal_share": "most CPU time taken by the hypervisor in a task",
    "largest other_busy_share": "most used by other processes",
}


def _noise(files: list[RecordFile]) -> dict[str, float]:
    """Shares of the tasks that each flag was raised in, and the CPU counters over all tasks."""
    records = [record for file in files for record in file.records if record.replicas]
    found = {flag: fmean(flag in r.flags for r in records) for flag in NOISE if records}
    cpu = [record.telemetry.get("cpu", {}) for record in records]
    for name in ("steal_share", "other_busy_share"):  # see `SHARES`
        values = [c[name] for c in cpu if name in c]
        found |= {f"largest {name}": max(values)} if values else {}
    if mhz := [c["mhz"] for c in cpu if "mhz" in c]:
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
    undecided = sum((Counter(cell.undecided) for cell in result.cells), Counter[str]())
    lines = [
        "finds: the slowdown found 95 times in 100 with as many pairs as the rule allows",
        *(f"{n} x {code}: {CODES[code]}" for code, n in undecided.items()),
        *_pace(result),
        f"clock: steps of {c.resolution_ns:.0f} ns, {c.overhead_ns} ns a sample; iterations below "
        f"{units.duration(c.shortest_sample_ns)} share a sample",
        f"harness: {c.null_iteration_ns:.0f} ns an iteration of a backend that computes nothing",
        *_sources(result.noise),
        f"A/A history: {units.count(result.sessions, 'run')} added, {result.history} in "
        f"{result.history_path}, "
        f"{result.usable} of them of use for every cell; gpubench compare needs {aa_history.ENOUGH}"
        + (": test again for more" if result.usable < aa_history.ENOUGH else ""),
    ]
    alpha, low, high = result.rule.alpha, rate.low or 0, rate.high or 1
    style = "red" if low > alpha else "green" if high <= alpha else "yellow"
    return Group(Text(head, style=style), table, *(Text(line) for line in lines))


def _pace(result: Result) -> list[str]:
    """How long the promise takes to be shown here, where it is neither shown nor refuted."""
    rate, alpha = result.alarm_rate, result.rule.alpha
    if (rate.low or 0) > alpha or (rate.high or 1) <= alpha:
        return []
    need = math.ceil(math.log((1 - stats.LEVEL) / 2) / math.log1p(-alpha))
    took = sum(cell.pairs * cell.pair_s for cell in result.cells) / result.suites
    return [
        f"whether that promise holds here is open: an interval that ends at {units.percent(alpha)} "
        f"takes {need} comparisons without an alarm, {units.clock(need * took)} here"
    ]


def _sources(noise: Mapping[str, float]) -> list[str]:
    """A line for each kind of noise that was seen."""
    seen = [
        f"noise: {flag} in {units.percent(noise[flag])} of the tasks: {FLAGS[flag]}"
        for flag in NOISE if noise.get(flag)
    ]  # fmt: skip
    rest = [
        f"{name} {value:,.0f}"
        if name.startswith("MHz")
        else f"{SHARES.get(name, name)} {units.percent(value)}"
        for name, value in noise.items() if name not in NOISE and value
    ]  # fmt: skip
    return (seen or ["noise: none seen"]) + ([f"noise: {', '.join(rest)}"] if rest else [])
