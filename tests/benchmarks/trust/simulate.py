"""Show gpubench's promises by simulation: `python -m tests.benchmarks.trust.simulate`.

The real protocol, gate and statistics judge; only time is virtual. Writes simulation.md, .html and
.json. A promise that was not kept is shown as MISSED, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from tests.benchmarks.trust import (
    answers,
    bisections,
    coverage,
    evidence,
    gates,
    history,
    rivals,
    sessions,
    show,
    steadiness,
)

ALL = (
    sessions.SESSIONS, coverage.REPEATS, coverage.PAIRS, gates.AA, gates.EDGES, gates.ALL_3X,
    gates.MINUTE_3X, gates.ONE_5, gates.ALL_5, gates.POWER, gates.CURVE, gates.DETECTABLE,
    gates.BUILDS, steadiness.REFUSED, steadiness.KEPT, steadiness.SHORT, rivals.RIVALS,
    gates.ANTAGONIST, gates.DETERMINISM, history.HISTORY, answers.EQUAL, answers.POWER,
    answers.FAMILY, bisections.BISECT, bisections.BISECT_RULES,
)  # fmt: skip
EXPERIMENTS = {experiment.name: experiment for experiment in ALL}
SEED = 20261130
"""The day's date, fixed before anything was tried with it."""
HERE = Path(__file__).parents[3] / "reports" / "reference" / "trust"


def held(output: Path, seed: int, quick: bool) -> dict[str, dict[str, evidence.Counts]]:
    """Experiment -> case -> sums in ``output``, of experiments whose cases are still the same."""
    path = output / "simulation.json"
    before = json.loads(path.read_bytes()) if path.exists() else {}
    if (before.get("seed"), before.get("quick")) != (seed, quick):
        return {}
    return {
        one["name"]: one["counts"]
        for one in before["experiments"]
        if one["name"] in EXPERIMENTS
        and one["counts"].keys() == EXPERIMENTS[one["name"]].cases.keys()
    }


def write(names: list[str], seed: int, quick: bool, output: Path, workers: int) -> list[str]:
    """Run experiments, write the three files, and name the promises that were not kept.

    What ``output`` holds of other experiments, of the same seed, stays.
    """
    chosen = [EXPERIMENTS[name] for name in names]
    counts = held(output, seed, quick) | evidence.run(chosen, seed, quick, workers)
    results = [(e, show.rows(e, counts[e.name], quick)) for e in ALL if e.name in counts]
    how = f"Seed {seed}" + (", --quick: too few repetitions to show anything" if quick else "")
    output.mkdir(parents=True, exist_ok=True)
    (output / "simulation.md").write_text(show.markdown(results, how), "utf-8")
    (output / "simulation.html").write_text(show.html(results, how), "utf-8")
    (output / "simulation.json").write_bytes(show.as_json(results, counts, seed, quick))
    return show.missed(results)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions: does it run?")
    parser.add_argument("--only", action="append", choices=EXPERIMENTS, metavar="NAME",
                        help=f"one of {', '.join(EXPERIMENTS)}; may be repeated; the "
                        "others stay as the output has them")  # fmt: skip
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="directory")
    given = parser.parse_args()
    names = given.only or list(EXPERIMENTS)
    missed = write(names, given.seed, given.quick, given.output, given.workers)
    print((given.output / "simulation.md").read_text("utf-8"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
