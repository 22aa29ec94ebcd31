"""What is said of answers: match and accuracy, bound to every row, and the table of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from gpubench import units
from gpubench.analysis import floors, stats
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary
from gpubench.analysis.tables.table import Column, Field, Table, of_rows
from gpubench.records.parity import Parity

_OF_ALL = (
    "different images right every time, against their labels, in the repeat that asked about the "
    "most; Wilson interval"
)
DOUBTFUL = 0.6
"""Accuracy of the reference below which an assumption deserves a doubt."""
MATCH = "match"
_TOP1 = Column("accuracy", "share of n", "higher", f"top-1: {_OF_ALL}")


def agreement(s: Summary) -> float | None:
    """Top-1 with the reference: of what the row timed, so of the whole pipeline where that was."""
    check = s.pipeline or s.parity
    return check.top1_agreement if check else None


def accuracy(s: Summary) -> Estimate:
    """Top-1 accuracy, as `over_repeats` picks it; of the whole pipeline where that was timed."""
    return of_pipeline(s) if s.pipeline and s.pipeline.labelled else computed(s)


def of_pipeline(s: Summary) -> Estimate:
    """Top-1 accuracy of the whole pipeline."""
    return stats.wilson(s.pipeline.correct, s.pipeline.labelled) if s.pipeline else Estimate()


def computed(s: Summary) -> Estimate:
    """As `accuracy`, of what the backend computes from the reference's own inputs."""
    return stats.wilson(s.parity.correct, s.parity.labelled) if s.parity else Estimate()


def accuracy5(s: Summary) -> Estimate:
    """Top-5 of the same; no value with fewer than six classes."""
    p = s.parity
    if p is None or not p.reference_correct5:
        return Estimate(why="no top-5")
    return stats.wilson(p.correct5, p.labelled)


def reference_name(rows: Sequence[Summary]) -> str:
    """'the fp32 reference', or what else it was: a network may be nowhere else, or not in fp32."""
    names = _references(rows)
    plain = all(name.endswith("fp32") for name in names)
    return "the fp32 reference" if plain else f"the reference ({', '.join(names)})"


def _references(rows: Sequence[Summary]) -> list[str]:
    return sorted({s.parity.reference for s in rows if s.parity})


def reference(s: Summary) -> Estimate:
    """The reference's top-1 accuracy on the same images."""
    return stats.wilson(s.parity.reference_correct, s.parity.labelled) if s.parity else Estimate()


def drop(s: Summary) -> float | None:
    """Percentage points of `computed` below the reference's; negative: above."""
    p = s.parity
    return 100 * (p.reference_correct - p.correct) / p.labelled if p and p.labelled else None


def bound(rows: Sequence[Summary]) -> list[Field]:
    """What every table of times says of its rows' answers."""
    fields: list[Field] = []
    if any(agreement(s) is not None for s in rows):
        text = "top-1, with the reference, of what the row timed; worst repeat"
        fields.append((Column("match", "fraction", "higher", text), agreement))
    if labelled(rows):
        fields.append((_TOP1, accuracy))
    return fields


def labelled(rows: Sequence[Summary]) -> bool:
    """Whether any row's images have labels."""
    return any(c.labelled for s in rows for c in (s.parity, s.pipeline) if c)


def preprocessing(rows: Sequence[Summary]) -> list[str]:
    """How pictures became inputs, and who says so: a line for each way."""
    found = dict.fromkeys(s.parity.preprocessing for s in rows if s.parity)
    return [f"Preprocessing: {words}." for words in found if words]


def doubts(checks: Iterable[Parity | None]) -> list[str]:
    """Floors that are kept as counted and no further; and where the reference's own answers are so
    wrong that what is assumed may be the cause."""
    checks = list(checks)
    unsure = [f for p in checks if p and p.accurate and (f := floors.of(p))
              if f.state == "undecided"]  # fmt: skip
    of = units.count(len(unsure), "cell")
    said = [f"Not settled for {of}: {min(unsure, key=lambda f: f.hits).text}."] if unsure else []
    assumed = [p for p in checks if p and p.assumed and p.labelled]
    worst = min(assumed, key=lambda p: p.reference_correct / p.labelled, default=None)
    if worst is None or worst.reference_correct >= DOUBTFUL * worst.labelled:
        return said
    return [
        *said,
        f"The reference itself classifies {worst.reference_correct} of {worst.labelled} images "
        "correctly. "
        "Its preprocessing is assumed, which may be why: give the one that the network was "
        "trained with as [workload.preprocess], or with --preprocess.",
    ]


def answers(rows: Sequence[Summary]) -> Table:
    """The check of every cell that had one."""
    rows = [s for s in rows if s.parity or s.pipeline]
    fields = _parity() + (_pipeline() if any(s.pipeline for s in rows) else [])
    notes = [f"Reference: {', '.join(_references(rows))}, same images."]
    notes += [] if labelled(rows) else preprocessing(rows)
    return of_rows("Answers", rows, fields, notes)


def accuracies(rows: Sequence[Summary]) -> Table:
    """Of every cell whose images have labels."""
    rows = [s for s in rows if labelled([s])]
    text = "Against labels; the reference's on the same images. 95 % intervals (Wilson)."
    return of_rows(
        "Accuracy",
        rows,
        _accuracy(rows),
        [text, *preprocessing(rows), *doubts(s.parity for s in rows)],
    )


def verdict(s: Summary) -> str:
    """`MATCH`; else what is wrong."""
    if s.parity and not s.parity.passed:
        return "MISMATCH"
    if s.pipeline and not s.pipeline.passed:
        return "PIPELINE MISMATCH"
    return MATCH if not s.parity or s.parity.accurate else "LOW ACCURACY"


def _of(check: str, name: str) -> Callable[[Summary], Any]:
    return lambda s: getattr(getattr(s, check), name, None)


def _parity() -> list[Field]:
    of = partial(_of, "parity")
    return [
        (Column("answers", help="within tolerance, and above the floors, in every repeat"),
         verdict),
        (Column("images", "count", help="answers compared in one repeat"), of("images")),
        (Column("relative error", "", "lower", "largest, over images and repeats"),
         lambda s: s.parity and ("not finite" if s.parity.relative_error is None
                                 else s.parity.relative_error)),
        (Column("tolerance", help="largest relative error allowed"), of("max_relative_error")),
        (Column("top-1 match", "fraction", "higher", "with the reference; worst repeat"),
         of("top1_agreement")),
        (Column("at least", "fraction", help="match asked for"), of("min_top1_agreement")),
        (Column("worst slot", "count", help="batch slot of the largest error"), of("worst_slot")),
    ]  # fmt: skip


def _accuracy(rows: Sequence[Summary]) -> list[Field]:
    checks = [s.parity for s in rows if s.parity]
    fields: list[Field] = [
        (_TOP1, computed),
        (Column("reference", "fraction", "higher", "the reference on the same images"),
         lambda s: reference(s).value),
        (Column("drop", "points", "lower", "percentage points below the reference"), drop),
    ]  # fmt: skip
    if any(p.reference_correct5 for p in checks):
        fields.append((Column("top-5", "share", "higher", f"top-5: {_OF_ALL}"), accuracy5))
    if any(p.min_accuracy is not None for p in checks):
        text = "least accuracy that the suite accepts: min_accuracy"
        fields.append((Column("floor", "fraction", help=text), _of("parity", "min_accuracy")))
    if any(p.max_accuracy_drop is not None for p in checks):
        column = Column("drop allowed", "points", help="that the suite accepts: max_accuracy_drop")
        fields.append((column, _of("parity", "max_accuracy_drop")))
    if any(s.pipeline and s.pipeline.labelled for s in rows):
        text = "top-1 of the whole pipeline, different images, against their labels"
        fields.append((Column("whole pipeline", "share of n", "higher", text), of_pipeline))
    return fields


def _pipeline() -> list[Field]:
    """Boundary ``pipeline``: the same, from the encoded pictures on."""
    of = partial(_of, "pipeline")
    return [
        (Column("pipeline match", "fraction", "higher", "top-1, of the whole pipeline from "
                "encoded pictures, with the reference's"), of("top1_agreement")),
        (Column("pipeline at least", "fraction", help="match asked for"),
         of("min_top1_agreement")),
        (Column("input off by", "steps", "lower", "largest difference of a value of the network's "
                "input from the reference's, in steps of 8-bit pixels"), of("max_difference")),
    ]  # fmt: skip
