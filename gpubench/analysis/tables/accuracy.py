"""What is said of answers: agreement and accuracy, bound to every row, and the table of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gpubench.analysis import stats
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary
from gpubench.analysis.tables.table import Column, Field, Table, of_rows

_OF_ALL = (
    "different images right every time, against their labels, in the repeat that asked about the "
    "most; Wilson interval"
)
higher, lower = partial(Column, better="higher"), partial(Column, better="lower")


def agreement(s: Summary) -> float | None:
    """Top-1 with the reference: of what the row timed, so of the whole path where that was."""
    check = s.path or s.parity
    return check.top1_agreement if check else None


def accuracy(s: Summary) -> Estimate:
    """Top-1 accuracy, as `answers.over_repeats` picks it; of the whole path where it was timed."""
    check = s.path if s.path and s.path.labelled else s.parity
    return stats.wilson(check.correct, check.labelled) if check else Estimate()


def computed(s: Summary) -> Estimate:
    """As `accuracy`, of what the backend computes from the reference's own inputs."""
    return stats.wilson(s.parity.correct, s.parity.labelled) if s.parity else Estimate()


def accuracy5(s: Summary) -> Estimate:
    """Top-5 of the same; no value with fewer than six classes."""
    p = s.parity
    if p is None or not p.reference_correct5:
        return Estimate(why="no top-5")
    return stats.wilson(p.correct5, p.labelled)


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
        fields.append((higher(name="agree", unit="fraction", help=text), agreement))
    if labelled(rows):
        text = f"top-1: {_OF_ALL}"
        fields.append((higher(name="accuracy", unit="share of n", help=text), accuracy))
    return fields


def labelled(rows: Sequence[Summary]) -> bool:
    """Whether any row's images have labels."""
    return any(c.labelled for s in rows for c in (s.parity, s.path) if c)


def answers(rows: Sequence[Summary]) -> Table:
    """The check of every cell that had one."""
    rows = [s for s in rows if s.parity or s.path]
    fields = _parity() + (_path() if any(s.path for s in rows) else [])
    names = sorted({s.parity.reference for s in rows if s.parity})
    return of_rows("Answers", rows, fields, [f"Reference: {', '.join(names)}, same images."])


def accuracies(rows: Sequence[Summary]) -> Table:
    """Of every cell whose images have labels."""
    rows = [s for s in rows if labelled([s])]
    text = "Against labels; the reference's on the same images. 95 % intervals (Wilson)."
    return of_rows("Accuracy", rows, _accuracy(rows), [text])


def verdict(s: Summary) -> str:
    """'agree'; else what is wrong."""
    if s.parity and not s.parity.passed:
        return "WRONG"
    if s.path and not s.path.passed:
        return "WRONG PATH"
    return "agree" if not s.parity or s.parity.accurate else "BELOW FLOOR"


def _of(check: str, name: str) -> Callable[[Summary], Any]:
    return lambda s: getattr(getattr(s, check), name, None)


def _parity() -> list[Field]:
    of = partial(_of, "parity")
    return [
        (Column(name="answers", help="within tolerance, and above the floors, in every repeat"),
         verdict),
        (Column(name="images", unit="count", help="answers compared in one repeat"), of("images")),
        (lower(name="relative error", help="largest, over images and repeats"),
         lambda s: s.parity and ("not finite" if s.parity.relative_error is None
                                 else s.parity.relative_error)),
        (Column(name="tolerance", help="largest relative error allowed"), of("max_relative_error")),
        (higher(name="top-1 agreement", unit="fraction", help="with the reference; worst repeat"),
         of("top1_agreement")),
        (Column(name="at least", unit="fraction", help="agreement asked for"),
         of("min_top1_agreement")),
        (Column(name="worst slot", unit="count", help="batch slot of the largest error"),
         of("worst_slot")),
    ]  # fmt: skip


def _accuracy(rows: Sequence[Summary]) -> list[Field]:
    checks = [s.parity for s in rows if s.parity]
    fields: list[Field] = [
        (higher(name="accuracy", unit="share of n", help=f"top-1: {_OF_ALL}"), computed),
        (higher(name="reference", unit="fraction", help="the reference on the same images"),
         lambda s: reference(s).value),
        (lower(name="drop", unit="points", help="percentage points below the reference"), drop),
    ]  # fmt: skip
    if any(p.reference_correct5 for p in checks):
        fields.append((higher(name="top-5", unit="share", help=f"top-5: {_OF_ALL}"),
                       accuracy5))  # fmt: skip
    if any(p.min_accuracy is not None for p in checks):
        fields.append((Column(name="floor", unit="fraction", help="least accuracy that the suite "
                              "accepts: min_accuracy"), _of("parity", "min_accuracy")))  # fmt: skip
    if any(p.max_accuracy_drop is not None for p in checks):
        fields.append((Column(name="drop allowed", unit="points", help="that the suite accepts: "
                              "max_accuracy_drop"),
                       _of("parity", "max_accuracy_drop")))  # fmt: skip
    if any(s.path and s.path.labelled for s in rows):
        text = "top-1 of the whole path, different images, against their labels"
        fields.append((higher(name="whole path", unit="share of n", help=text), of_path))
    return fields


def of_path(s: Summary) -> Estimate:
    """Top-1 accuracy of the whole path."""
    return stats.wilson(s.path.correct, s.path.labelled) if s.path else Estimate()


def _path() -> list[Field]:
    """Boundary ``pipeline``: the same, from the encoded pictures on."""
    of = partial(_of, "path")
    return [
        (higher(name="path agreement", unit="fraction", help="top-1, of the whole path from "
                "encoded pictures, with the reference's"), of("top1_agreement")),
        (Column(name="path at least", unit="fraction", help="agreement asked for"),
         of("min_top1_agreement")),
        (lower(name="input off by", unit="steps", help="largest difference of a value of the "
               "network's input from the reference's, in steps of 8-bit pixels"),
         of("max_difference")),
    ]  # fmt: skip
