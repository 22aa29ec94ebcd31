"""Replay searches on a recorded space: `python -m tests.benchmarks.tune.replay DIR`.

The real search, race and proposers decide; only the measuring is replaced, by what was recorded.
Writes replay.md and replay.json. A promise that was not kept is shown as MISSED, and the exit code
is 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import msgspec
from msgspec import Struct

from gpubench.records.reader import read
from gpubench.records.record import RecordFile
from tests.benchmarks.tune import cases
from tests.benchmarks.tune.cases import PROPOSERS, Case, Outcome
from tests.benchmarks.tune.recorded import Recorded

SEEDS = 20
REACH, COST = 0.97, 0.25
HERE = Path(__file__).parents[3] / "reports" / "reference" / "tune-epyc-2core"


class Row(Struct, frozen=True):
    """All searches of one question and proposer."""

    case: str
    proposer: str
    best: str
    outcomes: list[Outcome]

    @property
    def kept(self) -> bool:
        """Whether each search kept each promise, against the best of all."""
        return self.sound and all(o.reach >= REACH for o in self.outcomes)

    @property
    def sound(self) -> bool:
        """The same against the best of what can be promised to keep its limits."""
        return all(o.of_sure >= REACH and o.cost <= COST and not o.broken for o in self.outcomes)

    @property
    def mark(self) -> str:
        """What the last column says."""
        return "kept" if self.kept else "kept, of sure" if self.sound else "**MISSED**"


def run(file: RecordFile, seeds: int, workers: int = 1) -> list[Row]:
    """Every question by every proposer, with COST of the exhaustive cost as budget."""
    budget_s = COST * Recorded(file).exhaustive_s()
    asked = [(case, way.name) for case in cases.questions(file) for way in PROPOSERS]
    jobs = [(case, way, seed) for case, way in asked for seed in range(seeds)]
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            found = list(pool.map(partial(_one, file, budget_s), jobs, chunksize=5))
    else:
        found = [_one(file, budget_s, job) for job in jobs]
    return [
        Row(case.name, way, found[seeds * i].best, found[seeds * i : seeds * (i + 1)])
        for i, (case, way) in enumerate(asked)
    ]


def _one(file: RecordFile, budget_s: float, job: tuple[Case, str, int]) -> Outcome:
    case, name, seed = job
    way = next(way for way in PROPOSERS if way.name == name)
    return cases.answer(file, case, way, seed, budget_s)


def markdown(rows: Sequence[Row]) -> str:
    """One line a row; misses are in bold."""
    head = ["question", "proposer", "best of all", "reach: median", "worst", "of sure: worst",
            "cost: median", "most", "breaks a limit", "measurements", "promised", ""]  # fmt: skip
    lines = [head, ["---"] * len(head), *(list(_line(row)) for row in rows)]
    return "\n".join(
        "| " + " | ".join(x.replace("|", "\\|") for x in line) + " |" for line in lines
    )


def _line(row: Row) -> Iterator[str]:
    o = row.outcomes
    yield from (row.case, row.proposer, row.best or "nothing")
    yield f"{median(x.reach for x in o):.3f}"
    yield f"{min(x.reach for x in o):.3f}"
    yield f"{min(x.of_sure for x in o):.3f}"
    yield f"{median(x.cost for x in o):.1%}".replace("%", " %")
    yield f"{max(x.cost for x in o):.1%}".replace("%", " %")
    yield f"{sum(bool(x.broken) for x in o)} of {len(o)}"
    yield f"{median(x.tasks for x in o):g}"
    yield f"reach >= {REACH}, cost <= {COST:.0%}".replace("%", " %")
    yield row.mark


def write(file: RecordFile, seeds: int, output: Path, workers: int) -> list[Row]:
    """Run, and write the two files."""
    recorded = Recorded(file)
    whole = recorded.exhaustive_s()
    rows = run(file, seeds, workers)
    kept, sound = sum(row.kept for row in rows), sum(row.sound for row in rows)
    text = (
        "# What a search finds, and at what cost, against measuring everything\n\n"
        f"{len(recorded.cells)} configurations x {recorded.rounds} rounds took {whole / 60:.1f} "
        f"minutes, building included. Each line: {seeds} searches that are replayed on those "
        "records, each with another seed, with a quarter of that time as budget. Written by "
        "`python -m tests.benchmarks.tune.replay`.\n\n"
        "- *best of all*: by its median over all rounds, of what keeps its limits in each\n"
        "- *reach*: median of the recommendation / that of the best; 0: nothing was found\n"
        "- *of sure*: the same against the best of what measuring everything can promise to keep "
        "its limits in 99 repeats of 100: what is closer to a limit is never recommended\n"
        "- *cost*: time of the search / time of measuring everything; the final A/B is not in it\n"
        "- *breaks a limit*: recommendations that do so in any of the recorded rounds\n\n"
        f"**{kept} of {len(rows)} lines kept in each of their searches, {sound} of what can be "
        f"promised.**\n\n{markdown(rows)}\n"
    )
    output.mkdir(parents=True, exist_ok=True)
    (output / "replay.md").write_text(text, "utf-8")
    found = msgspec.json.encode({"exhaustive_s": whole, "seeds": seeds, "rows": rows})
    (output / "replay.json").write_bytes(msgspec.json.format(found, indent=1) + b"\n")
    return rows


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recorded", type=Path, nargs="?", default=HERE, help="a run of `record`")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="directory")
    given = parser.parse_args()
    rows = write(read(given.recorded), given.seeds, given.output, given.workers)
    print((given.output / "replay.md").read_text("utf-8"))
    return 0 if all(row.sound for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
