"""What the suites of `machine.py` say: misses and all, every rate with its exact interval."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from gpubench.analysis.stats import clopper_pearson
from tests.benchmarks.trust.machine import BUDGET_S
from tests.benchmarks.trust.popular import RULES

Row = dict[str, Any]
TRUE = {"same": 1.0, "slowed": 21 / 20}
TITLE = "# The gate on real code, on this machine"


def write(raw: Path, out: Path) -> None:
    """``raw``/*.jsonl -> ``out``/machine.md and machine.json (the suites themselves)."""
    rows = [json.loads(line) for path in sorted(raw.glob("*.jsonl"))
            for line in path.read_text().splitlines()]  # fmt: skip
    rows.sort(key=lambda row: (row["condition"], row["kind"], row["seed"]))
    out.mkdir(parents=True, exist_ok=True)
    (out / "machine.json").write_text(
        "[\n" + ",\n".join(json.dumps(row, sort_keys=True) for row in rows) + "\n]\n"
    )
    (out / "machine.md").write_text(text(rows))


def text(rows: list[Row]) -> str:
    """The Markdown page."""
    places = "; ".join(dict.fromkeys(row["machine"] for row in rows if row.get("machine")))
    lines = [
        TITLE, "",
        f"{places or 'The machine was not recorded'}. Made by "
        "`python -m tests.benchmarks.trust.machine`; the suites' data are in machine.json.",
        "", *(machine_lines(rows)), "",
        "A suite is one cell: a small network of three convolutions on ONNX Runtime, batch 1, "
        "one core, 20 inferences an iteration; in a slowed suite the candidate does 21. The "
        f"gate's default rule, a budget of {BUDGET_S:g} s. Bursts: another process burns the same "
        "core for random times (exponential, mean 0.15 s, pauses of 0.3 s). "
        "A CPU machine validates the statistics and the design, not the noise of GPUs.",
        *beside(rows),
        "", "## What the gate said", "",
        *table(["condition", "suites", "what was to be seen", "seen", "rate, exact 95 % interval",
                "seconds a suite", "pairs a cell", "pair sd, median (90 %)"],
               (gate_row(c, k, group) for c, k, group in groups(rows))),
        "", "## Verdicts, and whether the 95 % intervals hold the true ratio", "",
        *table(["condition", "true ratio", "verdicts of the cells", "intervals that hold it"],
               (truth_row(c, k, group) for c, k, group in groups(rows))),
        "", "## Other rules on the same pairs", "",
        "Each gets the values of all pairs of a cell, as if they were repeats of two runs. These "
        "rules usually judge two separate runs, which is harder: here they profit from pairing. Of "
        "suites whose values are kept.",
        "", *table(["condition", "rule", "A/A suites alarmed", "slowed suites found"],
                   rules(rows)), "",
    ]  # fmt: skip
    return "\n".join(lines)


def beside(rows: list[Row]) -> list[str]:
    """What else the machine did."""
    said = dict.fromkeys((r["condition"], r["beside"]) for r in rows if r.get("beside"))
    return ["", *(f"- {condition}: {words}." for condition, words in said)] if said else []


def machine_lines(rows: list[Row]) -> list[str]:
    """The misses, in words."""
    found = []
    for condition, kind, group in groups(rows):
        if kind == "same":
            bad = [r for r in group if alarmed(r, "REGRESSED", "IMPROVED")]
            found.append(f"- {condition}: {len(bad)} of {len(group)} A/A suites alarmed.")
        else:
            missed = [r for r in group if not alarmed(r, "REGRESSED")]
            wrong = [r for r in group if alarmed(r, "EQUIVALENT", "IMPROVED")]
            verdicts = [cell["verdict"] for r in group for cell in r["cells"]]
            blind = sum(verdict != "REGRESSED" for verdict in verdicts)
            found.append(
                f"- {condition}: {len(missed)} of {len(group)} suites slowed by 5 % missed (no "
                f"cell REGRESSED), and {blind} of their {len(verdicts)} cells; {len(wrong)} called "
                "a slowed cell EQUIVALENT or IMPROVED."
            )
    return found


def groups(rows: list[Row]) -> Iterable[tuple[str, str, list[Row]]]:
    """(condition, kind, suites)."""
    for condition in sorted({r["condition"] for r in rows}, reverse=True):
        for kind in TRUE:
            group = [r for r in rows if (r["condition"], r["kind"]) == (condition, kind)]
            if group:
                yield condition, kind, group


def alarmed(row: Row, *verdicts: str) -> bool:
    """Whether any cell has one of ``verdicts``."""
    return any(cell["verdict"] in verdicts for cell in row["cells"])


def share(hits: int, n: int) -> str:
    """'57 of 60: 95.0 % (86.1 to 99.0 %)'."""
    e = clopper_pearson(hits, n)
    return f"{hits / n:.1%} ({e.low or 0:.1%} to {e.high or 0:.1%})"


def gate_row(condition: str, kind: str, group: list[Row]) -> list[str]:
    """One line of the first table."""
    wanted = ("REGRESSED", "IMPROVED") if kind == "same" else ("REGRESSED",)
    hits = sum(alarmed(row, *wanted) for row in group)
    cells = [cell for row in group for cell in row["cells"]]
    sds = sorted(cell["pair_sd"] for cell in cells if cell["pair_sd"])
    seconds = [row["seconds"] for row in group]
    return [
        condition, str(len(group)),
        "no alarm" if kind == "same" else "an alarm (exit code 1)",
        f"{hits} alarmed", share(hits, len(group)),
        f"{median(seconds):.0f} (at most {max(seconds):.0f})",
        f"{median(cell['pairs'] for cell in cells):.0f}",
        f"{median(sds):.1%} ({sds[int(0.9 * len(sds))]:.1%})" if sds else "none",
    ]  # fmt: skip


def truth_row(condition: str, kind: str, group: list[Row]) -> list[str]:
    """One line of the second table."""
    cells = [cell for row in group for cell in row["cells"]]
    counts = Counter(sorted(cell["verdict"] for cell in cells))
    bound = [cell for cell in cells if cell["low"] is not None]
    held = sum(cell["low"] <= TRUE[kind] <= cell["high"] for cell in bound)
    words = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
    return [
        condition,
        f"{TRUE[kind]:.2f}",
        words,
        f"{held} of {len(bound)}: {share(held, len(bound))}" if bound else "no interval",
    ]


def rules(rows: list[Row]) -> Iterable[list[str]]:
    """Popular rules: how many suites of each kind they alarm in."""
    by = {(condition, kind): group for condition, kind, group in groups(rows)}
    for condition in dict.fromkeys(condition for condition, _ in by):
        for name, rule in RULES.items():
            counts = []
            for kind in TRUE:
                group = [r for r in by.get((condition, kind), []) if kept(r)]
                hits = sum(any(judged(rule, cell) for cell in row["cells"]) for row in group)
                counts.append(f"{hits} of {len(group)}")
            yield [condition, name, *counts]


def kept(row: Row) -> bool:
    """Whether the values of its pairs are there: those of some slowed suites were not stored."""
    return all(cell["baseline_ms"] for cell in row["cells"])


def judged(rule: Callable[..., Any], cell: Row) -> bool:
    """Whether ``rule`` sees a difference in the values of one cell."""
    if len(cell["baseline_ms"]) < 2:
        return False
    arms = [np.asarray(cell[f"{arm}_ms"])[None, :, None] for arm in ("baseline", "candidate")]
    return bool(rule(np.random.default_rng(0), *arms)[0])


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
