"""Searches of spaces that are too large to record: `python -m tests.benchmarks.tune.large`.

The spaces are those that `gpubench tune` has on other machines, with all that the shipped backends
declare; what is true of them comes from a seed. The real search, race and proposals decide, with
the default budget. Writes replay-large.md into -o; a promise that was not kept is shown as
MISSED, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property, partial
from math import inf
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Literal

import numpy as np
from msgspec import Struct

from gpubench.analysis.tune import racing
from gpubench.backends import base
from gpubench.records.record import Record
from gpubench.records.samples import Samples
from gpubench.run import availability
from gpubench.run.tune import proposals, space
from gpubench.run.tune.search import Propose, search
from gpubench.suite.goal import Goal, Limit, Metric, Search
from gpubench.suite.types import Cell, OptionValue, Workload
from tests.benchmarks.tune.synthetic import Noise

SEEDS = 20
BUDGET_S = 600.0
"""The default of `gpubench tune`."""
TASK_S, COMPILE_S = 2.5, 6.0
"""One measurement; compiling in every process on top of that."""
BUILD_S = {"onnxruntime": 20.0, "openvino": 20.0, "tensorrt": 40.0}
"""Once for each precision of these."""
REGRET = 0.05
"""Promised: the median search is so close to the best."""
ROOM = 0.9
"""The best keeps limits with so much room: what is closer to one cannot be promised to keep it."""


class Machine(Struct, frozen=True):
    """Whose space it is."""

    name: str
    device: Literal["cpu", "cuda"]
    cores: int
    gpus: int = 0


class Asked(Struct, frozen=True):
    """One question."""

    machine: Machine
    objective: Metric
    limit: Metric | None = None
    share: float = 1.0
    """The bound of the limit: of what the best without limits has."""


RATE, P50 = Metric("throughput"), Metric("latency")
CPU = Machine("64 cores", "cpu", 64)
GPU = Machine("1 GPU", "cuda", 16, 1)
GPUS = Machine("8 GPUs", "cuda", 64, 8)
QUESTIONS = (
    Asked(CPU, RATE),
    Asked(CPU, RATE, P50, 0.45),
    Asked(GPU, RATE),
    Asked(GPU, RATE, P50, 0.3),
    Asked(GPUS, P50, RATE, 0.5),
)


class Truth:
    """A space and what is true of it, by seed: effects of axes and options, and what these do
    not explain."""

    def __init__(self, asked: Asked, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.options = availability.catalog().backends
        loose = () if asked.limit is None else (Limit(asked.limit, 1.0),)
        machine = asked.machine
        whole = space.default(
            availability.catalog(), Workload(model="resnet50"), device=machine.device,
            cores=machine.cores, gpus=machine.gpus, goal=Goal(asked.objective, loose),
        )  # fmt: skip
        unsupported = {name: base.get(name).unsupported for name in whole.backends}
        self.cells = space.cells(whole, availability.catalog(), lambda c: unsupported[c.backend](c))
        self.today = tuple(c.key for c in space.baseline({}, whole, availability.catalog()))
        self._effects: dict[object, float] = {}
        self.rate = {c.key: self._rate_of(c) for c in self.cells}
        """Images/s."""
        self.goal = Goal(asked.objective)
        if asked.limit:
            bound = asked.share * self.value(self.best, asked.limit)
            self.goal = Goal(asked.objective, (Limit(asked.limit, bound),))
            del self.best

    def coordinates(self, cell: Cell) -> dict[str, OptionValue]:
        return space.coordinates(cell, self.options[cell.backend])

    def _effect(self, *what: object, sd: float) -> float:
        if what not in self._effects:
            self._effects[what] = self._rng.normal(0.0, sd)
        return self._effects[what]

    def _rate_of(self, cell: Cell) -> float:
        """More precision is slower, small batches use little, most options do little."""
        backend, place = cell.backend, (cell.replicas, cell.cores)
        log = {"fp32": 0.0, "tf32": 0.4, "bf16": 0.6, "fp16": 0.7}.get(cell.precision, 1.1)
        log += self._effect(backend, sd=0.3) + self._effect(backend, cell.precision, sd=0.25)
        half = np.exp(self._effect("half", backend, sd=0.5))
        log += np.log(cell.batch_size / (cell.batch_size + half))
        over = self._effect("over", backend, sd=0.1)
        log -= abs(over) * max(0.0, np.log2(cell.batch_size / 16))
        log += self._effect(place, sd=0.15) + self._effect(place, backend, sd=0.05)
        for name, value in self.coordinates(cell).items():
            if "." in name and value != self._default(name):
                log += self._effect(name, value, sd=0.08) + self._effect(
                    name, value, cell.precision, sd=0.03
                )
        return 1000 * float(np.exp(log + self._rng.normal(0, 0.03)))

    def _default(self, name: str) -> OptionValue:
        backend, _, option = name.partition(".")
        return next(o.default for o in self.options[backend] if o.name == option)

    def value(self, cell: Cell, metric: Metric) -> float:
        rate = self.rate[cell.key]
        return rate if metric.kind == "throughput" else 1e9 * cell.total_batch / rate

    def cost(self, cell: Cell) -> float:
        value = self.value(cell, self.goal.objective)
        return 1 / value if self.goal.objective.more_is_better else value

    def keeps(self, cell: Cell, room: float = 1.0) -> bool:
        return all(
            self.value(cell, x.metric) * room >= x.bound if x.metric.more_is_better
            else self.value(cell, x.metric) <= room * x.bound
            for x in self.goal.limits
        )  # fmt: skip

    @cached_property
    def best(self) -> Cell:
        return min((c for c in self.cells if self.keeps(c, ROOM)), key=self.cost)

    def regret(self, cell: Cell) -> float:
        """0.02: its cost is 2 % above that of the best."""
        return self.cost(cell) / self.cost(self.best) - 1


class Bench:
    """`gpubench.run.tune.search.Bench`, with a clock of its own."""

    def __init__(self, truth: Truth, seed: int) -> None:
        self._truth, self._rng, self._noise = truth, np.random.default_rng([seed, 1]), Noise()
        self._built: set[tuple[str, str]] = set()
        self._elapsed, self.tasks = 0.0, 0

    def measure(self, cell: Cell, repeat: int) -> Record:
        kind = cell.backend, cell.precision
        if cell.backend in BUILD_S and kind not in self._built:
            self._built.add(kind)
            self._elapsed += BUILD_S[cell.backend]
        self.tasks += 1
        seconds = TASK_S + COMPILE_S * (cell.backend == "torch-compile")
        self._elapsed += seconds
        slow = self._rng.normal(0, self._noise.tasks)
        if self._rng.random() < self._noise.burst:
            slow += self._rng.uniform(0.05, 0.35)
        batch_ns = round(self._truth.value(cell, P50) * np.exp(slow))
        replicas = [
            Samples(replica=n, device=f"{cell.device}:{n}", durations_ns=[batch_ns] * 12,
                    end_ns=12 * batch_ns)
            for n in range(cell.replicas)
        ]  # fmt: skip
        return Record(cell=cell, repeat=repeat, status="ok", replicas=replicas, wall_s=seconds)

    def best(self, cell: Cell, metric: Metric) -> float | None:
        """No roofline: what is found is found by what was measured."""
        return None

    def elapsed(self) -> float:
        return self._elapsed


class _Timed:
    """What is proposed, and what that took."""

    def __init__(self, propose: Propose) -> None:
        self._propose, self.took_s = propose, list[float]()

    def next(self, unmeasured: Sequence[Cell], records: Sequence[Record]) -> Cell | None:
        begin = perf_counter()
        found = self._propose(unmeasured, records)
        self.took_s.append(perf_counter() - begin)
        return found


class Found(Struct, frozen=True):
    """What one search came to."""

    regret: float
    """Infinite: nothing was recommended."""
    broken: bool
    tasks: int
    took_s: float
    """The median proposal."""
    slowest_s: float
    cells: int


def answer(asked: Asked, seed: int) -> Found:
    """One search."""
    truth = Truth(asked, seed)
    bench = Bench(truth, seed)
    wanted = Search(goal=truth.goal, baseline=truth.today, budget_s=BUDGET_S, seed=seed)
    proposer = _Timed(proposals.Proposals(truth.cells, wanted, bench.best, truth.options).next)
    standings = search(truth.cells, wanted, bench, proposer.next, (), lambda record: None)
    top = racing.recommended(standings)
    return Found(
        regret=truth.regret(top.cell) if top else inf,
        broken=top is not None and not truth.keeps(top.cell),
        tasks=bench.tasks,
        took_s=median(proposer.took_s),
        slowest_s=max(proposer.took_s),
        cells=len(truth.cells),
    )


class Row(Struct, frozen=True):
    """All searches of one question."""

    asked: str
    outcomes: list[Found]

    @property
    def kept(self) -> bool:
        regrets = [o.regret for o in self.outcomes]
        return median(regrets) <= REGRET and not any(o.broken for o in self.outcomes)

    @property
    def cells(self) -> list[str]:
        o = self.outcomes
        regrets = sorted(x.regret for x in o)
        within = [f"{mean(r <= most for r in regrets):.0%}" for most in (0.02, 0.05, 0.1)]
        ends = [
            f"{100 * r:.1f} %" if r < inf else "nothing" for r in (median(regrets), regrets[-1])
        ]
        return [
            self.asked, f"{median(x.cells for x in o):,.0f}", *ends,
            *(w.replace("%", " %") for w in within), f"{sum(x.broken for x in o)}",
            f"{median(x.tasks for x in o):g}", f"{1e3 * median(x.took_s for x in o):.0f}",
            f"{1e3 * max(x.slowest_s for x in o):.0f}", "kept" if self.kept else "**MISSED**",
        ]  # fmt: skip


HEAD = ["question", "configurations", "regret: median", "worst", "within 2 %",
        "5 %", "10 %", "breaks a limit", "measurements", "ms a proposal", "most", ""]  # fmt: skip
TEXT = f"""# What a search finds in spaces that are too large to measure

Whole spaces of `gpubench tune resnet50` on other machines, with all that the shipped backends
declare. What is true of them comes from a seed: effects of backends, precisions, batch sizes,
placements and options, of their pairs with the backend, and 3 % that these do not explain; one
measurement in ten is hit by a burst. Each line: {{seeds}} searches, each of another truth, with the
default budget of {BUDGET_S:.0f} s, and no roofline to go by. Written by
`python -m tests.benchmarks.tune.large`.

- *regret*: how much more the recommendation costs than the best configuration (of those that keep
  the limit with a tenth to spare); *within*: searches that came so close
- *ms a proposal*: the median, and the longest of all; here, on a busy machine
- promised: a median regret of at most {REGRET:.0%}, and no limit broken

"""


def _name(asked: Asked) -> str:
    less = asked.limit and ("p50 latency <=" if asked.limit == P50 else "throughput >=")
    bound = f", {less} {asked.share:g} x the fastest's" if asked.limit else ""
    return f"{asked.machine.name}: {asked.objective.name}{bound}"


def run(seeds: int, workers: int) -> list[Row]:
    """Every question, on the same seeds."""
    with ProcessPoolExecutor(workers) as pool:
        return [
            Row(_name(asked), list(pool.map(partial(answer, asked), range(seeds))))
            for asked in QUESTIONS
        ]


def markdown(rows: Sequence[Row], seeds: int) -> str:
    lines = [HEAD, ["---"] * len(HEAD), *(row.cells for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{TEXT.format(seeds=seeds)}{table}\n"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-o", "--output", type=Path, default=Path(), help="directory")
    given = parser.parse_args()
    rows = run(given.seeds, given.workers)
    text = markdown(rows, given.seeds)
    (given.output / "replay-large.md").write_text(text, "utf-8")
    print(text)
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
