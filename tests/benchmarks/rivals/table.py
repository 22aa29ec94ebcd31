"""What the rules said of the same commits, as tables: alarms, finds, misses, seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from gpubench.analysis.stats import clopper_pearson
from tests.benchmarks.trust import machine
from tests.benchmarks.trust.machine_report import table

Row = dict[str, Any]
DOCS = "documentation"
LAYERS = {DOCS: 100, "+3 %": 103, "+5 %": 105, "+10 %": 110, "+200 %": 300}
COUNTS = {kind: 100 if kind == DOCS else 30 for kind in LAYERS}
GATE, HYPERFINE = "gpubench ab", "hyperfine"
RULES = (
    GATE, "pytest-benchmark median:5%", "pytest-benchmark mean:10%", "github-action-benchmark 110%",
    "github-action-benchmark 150%", "github-action-benchmark 200%", HYPERFINE,
    "interleaved medians 10 %",
)  # fmt: skip
CONDITIONS = {
    "reserved": "One core reserved by real-time priority; other work on the other core",
    "shared": "Nothing pinned; other work on both cores, more of it than there are cores",
}
OVERLOADED = 8.0
"""The load average of two cores above which commits are counted apart."""

ABOUT = (
    "Made by `python -m tests.benchmarks.rivals.measure`; the commits' data are in rivals.jsonl. A "
    "scratch repository has a network of 100 equal layers (convolution, ReLU, sum; ONNX Runtime, "
    "one thread). A commit changes its README only, or adds layers: exact extra work. All rules "
    "judge every commit, one after the other in random order, each by its tool's own code and "
    "defaults:",
    "",
    "- `gpubench ab`: exit code 1 alarms, and 3 is undecided. The model files of the two commits "
    "are its arms.",
    "- pytest-benchmark: the base's result was stored by an earlier process, some commits and at "
    "least two minutes before, and serves once. On hosted CI it is often another machine's, which "
    "is harder.",
    "- github-action-benchmark: the same two results, `fail-on-alert` at that threshold.",
    "- hyperfine: the program that classifies 300 pictures, of both commits, in one call. It "
    "alarms where the head is slower and *ran 1.05 ± 0.03 times faster* leaves out 1. It times "
    "the start of the program too, so that the same commit is a smaller change of what it sees.",
    "- interleaved medians: a script of ten lines; both models in one process, ten turns of 0.1 s "
    "each, alarm beyond 10 %.",
    "",
    "Seconds are those of base and head together. What a rule finds of 3 or 5 % says little where "
    "it alarms as often on documentation.",
    "",
    "## What the changes cost",
    "",
    "Median over the commits (of so many), each against its base. In a single process, in turns of "
    "50 ms over a minute, the network with 3 % more layers stayed 15 % slower, probably for the "
    "place in memory that it got once.",
)


def write(out: Path) -> None:
    """``out``/rivals.jsonl -> rivals.md beside it."""
    rows = machine.kept(out / "rivals.jsonl")
    (out / "rivals.md").write_text(text(rows))


def text(rows: Sequence[Row]) -> str:
    """The Markdown page."""
    lines = [
        "# The same commits through the gate and through the rules that people use", "",
        *ABOUT, "", *true_ratios(rows), "",
    ]  # fmt: skip
    for (condition, words), overloaded in product(CONDITIONS.items(), (True, False)):
        under = [row for row in rows if row["condition"] == condition]
        group = [row for row in under if (row["load"] > OVERLOADED) == overloaded]
        if group:
            load = median(row["load"] for row in group)
            cpus = Counter(row.get("cpu", "not noted") for row in group)
            where = ", ".join(f"{cpu} ({number})" for cpu, number in cpus.most_common())
            lines += [
                f"## {words}: a load average {'above' if overloaded else 'of at most'} "
                f"{OVERLOADED:.0f}", "",
                f"{len(group)} commits; load average {load:.0f} (median); CPU: {where}.", "",
                *verdicts(group), "", *gate_words(group), "",
            ]  # fmt: skip
    return "\n".join([*lines, "## All", "", *pooled(rows), *missing(rows), ""])


def verdicts(rows: Sequence[Row]) -> Iterable[str]:
    """A line for each rule: alarms of the kinds of commits that there are, and seconds."""
    kinds = [kind for kind in LAYERS if any(row["kind"] == kind for row in rows)]
    heads = [f"false alarms: {DOCS} only" if kind == DOCS else f"found: {kind}" for kind in kinds]
    return table(
        ["rule", *heads, "seconds a commit, median (most)"],
        ([rule, *(count(rows, rule, kind) for kind in kinds), seconds(rows, rule)]
         for rule in RULES),
    )  # fmt: skip


def count(rows: Sequence[Row], rule: str, kind: str) -> str:
    """'28 of 30, 2 undecided'."""
    said = [row["rules"][rule]["alarm"] for row in rows if row["kind"] == kind]
    undecided = f", {said.count(None)} undecided" if None in said else ""
    return f"{said.count(True)} of {len(said)}{undecided}"


def seconds(rows: Sequence[Row], rule: str) -> str:
    took = [row["rules"][rule]["seconds"] for row in rows]
    return f"{median(took):.0f} ({max(took):.0f})"


def gate_words(rows: Sequence[Row]) -> Iterable[str]:
    """What the gate said, verdict by verdict, and how well its intervals hold the truth."""
    for kind in LAYERS:
        cells = [row["rules"][GATE] for row in rows if row["kind"] == kind]
        if cells:
            words = [cell["verdict"] for cell in cells]
            counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
            pairs = median(cell["pairs"] for cell in cells)
            spread = [cell["pair_sd"] for cell in cells if cell["pair_sd"] is not None]
            sd = f", pair sd {median(spread):.1%}" if spread else ""
            yield f"- {GATE}, {kind}: {counts}; {pairs:.0f} pairs{sd} (medians)."


def pooled(rows: Sequence[Row]) -> Iterable[str]:
    """How the gate did under all loads of a condition; the bound of its false alarms."""
    for condition in dict.fromkeys(row["condition"] for row in rows):
        under = [row for row in rows if row["condition"] == condition]
        found = ", ".join(
            f"{count(under, GATE, kind)} of {kind}"
            for kind in LAYERS
            if kind != DOCS and any(row["kind"] == kind for row in under)
        )
        docs = [row["rules"][GATE]["alarm"] for row in under if row["kind"] == DOCS]
        if docs:
            high = clopper_pearson(docs.count(True), len(docs)).high or 0
            yield (
                f"- {condition}, {GATE}: {docs.count(True)} false alarms in {len(docs)}, so the "
                f"rate is at most {high:.1%} (exact 95 % interval)"
                + f"; found: {found}"
                * bool(found)
            )


def true_ratios(rows: Sequence[Row]) -> Iterable[str]:
    """What each change really costs, by the fresh processes that the other tools started."""
    lines = [
        [
            kind,
            str(layers),
            _ratio(rows, kind, RULES[1], "min"),
            _ratio(rows, kind, HYPERFINE, "times"),
        ]
        for kind, layers in LAYERS.items()
    ]
    return table(
        ["change", "layers", "one inference: fastest round of a pytest-benchmark",
         "hyperfine's program: median run"],
        lines,
    )  # fmt: skip


def _ratio(rows: Sequence[Row], kind: str, rule: str, what: str) -> str:
    """'+9.8% (6)': the head's over its base's, median of the commits on a reserved core."""
    found = [
        median(np.atleast_1d(head)) / median(np.atleast_1d(base))
        for row in rows
        if (row["condition"], row["kind"]) == ("reserved", kind)
        for base, head in [row["rules"][rule][what]]
    ]
    return f"{median(found) - 1:+.1%} ({len(found)})" if found else ""


def missing(rows: Sequence[Row]) -> Iterable[str]:
    """How many commits of the plan are still to come."""
    for condition in dict.fromkeys(row["condition"] for row in rows):
        kinds = [row["kind"] for row in rows if row["condition"] == condition]
        left = {kind: n - kinds.count(kind) for kind, n in COUNTS.items() if kinds.count(kind) < n}
        if left:
            yield f"- {condition}, not yet measured: " + ", ".join(
                f"{n} x {kind}" for kind, n in left.items()
            )
