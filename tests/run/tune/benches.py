"""A bench whose truth is known and whose clock is its own; spaces with options that depend."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from gpubench.analysis.tune import objective as tune_objective
from gpubench.records.record import Record
from gpubench.run.tune import space
from gpubench.suite.goal import Metric, Search
from gpubench.suite.types import Cell, Option, OptionValue
from tests.analysis import searches

Truth = Callable[[Cell], float]
"""ms per batch."""


class Bench:
    """Each measurement takes ``seconds``; ``wrong`` fails where answers are checked."""

    def __init__(
        self,
        truth: Truth,
        *,
        seconds: float = 2.0,
        sd: float = 0.01,
        seed: int = 0,
        unready: Callable[[Cell], bool] = lambda _: False,
        wrong: Callable[[Cell], bool] = lambda _: False,
        bound: Truth | None = None,
    ) -> None:
        self._truth, self._seconds, self._sd, self._seed = truth, seconds, sd, seed
        self._unready, self._wrong, self._bound = unready, wrong, bound
        self.spent = 0.0
        self.asked: list[tuple[str, int]] = []
        """(key, repeat) of everything measured, in order."""

    def measure(self, cell: Cell, repeat: int) -> Record:
        self.spent += self._seconds
        if self._unready(cell):
            why = "cannot be built"
            return Record(cell=cell, repeat=repeat, status="failed", kind="error", reason=why)
        self.asked.append((cell.key, repeat))
        noise = random.Random(f"{self._seed}/{cell.key}/{repeat}").gauss(0, self._sd)
        found = searches.record(cell, repeat, self._truth(cell) * math.exp(noise))
        found = replace(found, wall_s=self._seconds)
        if repeat == 1 and self._wrong(cell):
            return replace(found, status="failed", kind="accuracy", reason="too often wrong")
        return found

    def best(self, cell: Cell, metric: Metric) -> float | None:
        if self._bound is None or metric.kind != "throughput":
            return None
        return 1e3 * cell.total_batch / self._bound(cell)

    def elapsed(self) -> float:
        return self.spent


class Everything:
    """A proposer that names every cell in the end: by its bound, else in the order of a seed."""

    def __init__(self, what: Search, bench: Bench) -> None:
        self._what, self._bench = what, bench

    def next(self, unmeasured: Sequence[Cell], records: Sequence[Record]) -> Cell | None:
        return min(unmeasured, key=self._rank, default=None)

    def _rank(self, cell: Cell) -> tuple[float, float]:
        objective = self._what.goal.objective
        bound = self._bench.best(cell, objective)
        any_ = random.Random(f"{self._what.seed}/{cell.key}").random()
        return math.inf if bound is None else tune_objective.cost(objective, bound), any_


def cells(n: int = 12, **changes: Any) -> list[Cell]:
    """The first is today's default."""
    return [searches.cell(i, **changes) for i in range(n)]


OPTIONS = {
    "a": (Option(name="layout", kind="str", default="nchw", choices=("nchw", "nhwc"), help="."),),
    "b": (
        Option(name="streams", kind="int", default=1, help="."),
        Option(name="hint", kind="str", default="none", help="."),
    ),
    "c": (
        Option(name="parallel", kind="bool", default=False, help="."),
        Option(name="workers", kind="int", default=1, help=".", when={"parallel": (True,)}),
    ),
}


def conditional() -> list[Cell]:
    """360 cells of three backends, whose options differ; one needs another."""
    variants: dict[str, list[dict[str, Any]]] = {
        "a": [{}, {"layout": "nhwc"}],
        "b": [{"streams": n, "hint": h} for n in (2, 4) for h in ("rate", "latency")],
        "c": [{}, *({"parallel": True, "workers": n} for n in (2, 4, 8))],
    }
    precisions = {"a": ("fp32",), "b": ("fp32", "bf16"), "c": ("fp32", "int8")}
    return [
        searches.cell(backend=backend, precision=precision, batch_size=batch, cores=cores,
                      options=options)
        for backend, precision in ((b, p) for b in precisions for p in precisions[b])
        for options in variants[backend]
        for batch in (1, 2, 4, 8, 16, 32)
        for cores in (1, 2, 4)
    ]  # fmt: skip


def cost(cell: Cell) -> float:
    """ms per batch of a cell of `conditional`; the best: c, int8, parallel, 4 workers, batch 16."""
    per_image = {"a": 4.0, "b": 3.0, "c": 3.2}[cell.backend]
    per_image *= {"fp32": 1.0, "bf16": 0.6, "int8": 0.4}[cell.precision]
    per_image *= 1 + 0.12 * abs(math.log2(cell.batch_size / 16))
    per_image *= 1 + 0.2 * (2 - math.log2(cell.cores))
    said = cell.options
    per_image *= 0.9 if said.get("layout") == "nhwc" or said.get("hint") == "rate" else 1.0
    if said.get("parallel"):
        per_image *= 0.8 * (1 + 0.1 * abs(math.log2(int(said["workers"]) / 4)))
    return per_image * cell.batch_size


def coordinates(cell: Cell) -> dict[str, OptionValue]:
    """Of a cell of `conditional`."""
    return space.coordinates(cell, OPTIONS[cell.backend])
