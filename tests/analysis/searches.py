"""A machine to search on, whose truth is known: costs, drift, bursts; and the driver's loop."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from gpubench.analysis.tune import racing
from gpubench.analysis.tune.racing import Standing
from gpubench.records.record import Record
from gpubench.records.samples import Samples
from gpubench.suite.goal import Goal, Limit, Metric, Search
from gpubench.suite.types import Cell
from tests.report import make

THROUGHPUT, P99, P90 = Metric("throughput"), Metric("latency", 0.99), Metric("latency", 0.9)
MEMORY = Metric("memory")
MS = 1_000_000


def cell(index: int = 0, **changes: Any) -> Cell:
    """Cells of different ``index`` are different."""
    values = {"scenario": "throughput", "batch_size": 8, "boundary": "transfer",
              "options": {"n": index} if index else {}}  # fmt: skip
    return make.cell(**values | changes)


def record(c: Cell, repeat: int, ms: float | Sequence[float] = 10.0, **changes: Any) -> Record:
    """A repeat whose batches take ``ms`` (one time, or one each)."""
    times = [ms] if isinstance(ms, int | float) else ms
    durations = [round(x * MS) for x in times]
    samples = Samples(replica=0, device="cpu:0", durations_ns=durations, end_ns=sum(durations),
                      peak_host_bytes=400 << 20)  # fmt: skip
    return Record(**{"cell": c, "repeat": repeat, "status": "ok", "replicas": [samples]} | changes)


def search(objective: Metric = THROUGHPUT, *limits: Limit, **changes: Any) -> Search:
    return Search(**{"goal": Goal(objective, limits), "baseline": ()} | changes)


class Machine(Struct):
    """Batches take ``ms[i]`` x what the machine does to them."""

    ms: Sequence[float]
    sd: float = 0.015
    bursts: float = 0.0
    """Share of measurements that somebody else's work makes 30 % slower."""
    drift: float = 0.0
    """log of how much slower everything is after 100 measurements."""
    within: float = 0.0
    """sd of the batches of one repeat."""
    samples: int = 1
    batches: Sequence[int] = ()
    """Of each configuration; (): 8."""

    def cells(self) -> list[Cell]:
        sizes = self.batches or [8] * len(self.ms)
        return [cell(i, batch_size=size) for i, size in enumerate(sizes)]

    def bench(self, seed: int) -> Callable[[Cell, int], Record]:
        rng, done = random.Random(seed), 0

        def measure(c: Cell, repeat: int) -> Record:
            nonlocal done
            off = rng.gauss(0, self.sd) + self.drift * done / 100
            off += math.log(1.3) * (rng.random() < self.bursts)
            done += 1
            level = self.ms[index(c)] * math.exp(off)
            times = [level * math.exp(rng.gauss(0, self.within)) for _ in range(self.samples)]
            return record(c, repeat, times)

        return measure


def index(c: Cell) -> int:
    return int(c.options.get("n", 0))


def run(
    machine: Machine, goal: Search, seed: int, best: racing.Best | None = None
) -> tuple[list[Standing], int, set[int]]:
    """(standings, measurements, all that were ever called worse): everything is explored once."""
    rng = random.Random(seed)
    cells = machine.cells()
    measure, records, worse = machine.bench(seed), [], set[int]()

    def judged() -> list[Standing]:
        found = racing.judge(cells, records, goal, best)
        worse.update(index(s.cell) for s in found if s.status == "worse")
        return found

    for c in rng.sample(cells, len(cells)):
        records.append(measure(c, 0))
        lead = next((s for s in judged() if s.status == "leader"), None)
        if lead and lead.n < 2:
            records.append(measure(lead.cell, 1))
    while want := racing.wanted(standings := judged(), goal):
        rng.shuffle(want)
        records += [measure(c, repeat) for c, repeat in want]
    return standings, len(records), worse
