"""What was found when answers were checked: against the reference, and against labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from gpubench.samples import Count
from gpubench.suite import Natural

Share = Annotated[float, Meta(ge=0, le=1)]
Error = Annotated[float, Meta(ge=0)]

MOST_SHOWN = 12
"""Disagreements that a record keeps; all are counted."""


class Disagreement(Struct, frozen=True, kw_only=True):
    """One image to which a cell gave another answer than the reference.

    Classes by name where the images' source has names, else by number.
    """

    name: str
    answer: str
    score: float
    """Softmax of the logits, of ``answer``; -1: the logits were not finite."""
    expected: str
    """The reference's answer."""
    expected_score: float
    label: str = ""
    """The right answer; '': not known."""
    thumbnail: str = ""
    """A small JPEG, base64."""


class Parity(Struct, frozen=True, kw_only=True):
    """Answers against the fp32 eager reference on the same images, every batch slot."""

    images: Count
    """Answers compared (slots x batches, over all replicas)."""
    relative_error: Error | None
    """Largest ||logits - reference|| / ||reference|| of an image, centred; None: not finite."""
    top1_agreement: Share
    worst_slot: Natural
    max_relative_error: Error
    min_top1_agreement: Share
    passed: bool
    labelled: Natural = 0
    """Different images with a label, however often each was asked about."""
    correct: Natural = 0
    """Of them, how many were answered rightly every time."""
    reference_correct: Natural = 0
    """Of them, how many the reference gets right."""
    reference: str = "torch-eager fp32"
    correct5: Natural = 0
    """As ``correct``, the label among the five highest logits; 0 with fewer than six classes."""
    reference_correct5: Natural = 0
    min_accuracy: Share | None = None
    """The floor that the suite sets, if any."""
    max_accuracy_drop: Annotated[float, Meta(ge=0, le=100)] | None = None
    """Percentage points below the reference on the same images that the suite allows, if any."""
    accurate: bool = True
    """Whether both floors are kept."""
    disagreeing: Natural = 0
    """Different images answered otherwise than by the reference at least once."""
    disagreements: Annotated[list[Disagreement], Meta(max_length=1000)] = []
    """The first MOST_SHOWN of them."""


class PathCheck(Struct, frozen=True, kw_only=True):
    """Boundary ``pipeline``: the whole path, from encoded bytes, against the reference's.

    `Parity` judges what the backend computes from the reference's own inputs; this what the
    decoder and the preprocessing change.
    """

    decoder: str
    images: Count
    """Different images that went through the path."""
    max_difference: Error
    """Largest difference of a value of the network's input, in steps of 8-bit pixels."""
    mean_difference: Error
    top1_agreement: Share
    """With the reference's answers."""
    min_top1_agreement: Share
    passed: bool
    labelled: Natural = 0
    correct: Natural = 0
    correct5: Natural = 0


def worst_path(checks: Iterable[PathCheck | None]) -> PathCheck | None:
    """Over replicas, which are all asked the same: the worst of everything; None without any."""
    found = [check for check in checks if check is not None]
    if not found:
        return None
    return replace(
        min(found, key=lambda check: (check.passed, check.top1_agreement)),
        max_difference=max(check.max_difference for check in found),
        mean_difference=max(check.mean_difference for check in found),
        correct=min(check.correct for check in found),
        correct5=min(check.correct5 for check in found),
    )
