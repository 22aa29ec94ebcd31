"""What was found when answers were checked: against the reference, and against labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, TypeVar

from msgspec import Meta, Struct
from msgspec.structs import replace

from gpubench.records.samples import Count
from gpubench.suite.types import Natural

Share = Annotated[float, Meta(ge=0, le=1)]
Error = Annotated[float, Meta(ge=0)]
Score = Annotated[float, Meta(ge=-1, le=1)]
Answer = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
Picture = Annotated[str, Meta(max_length=8192, pattern=r"\A(/9j/[A-Za-z0-9+/]+={0,2})?\Z")]
"""Base64 that begins as a JPEG does: readers put it into a page as it is."""

MOST_SHOWN = 12
"""Disagreements that a record keeps; all are counted."""


class Disagreement(Struct, frozen=True, kw_only=True):
    """One image to which a cell gave another answer than the reference.

    Classes by name where the images' source has names, else by number.
    """

    name: str
    answer: str
    score: Score
    """Softmax of the logits, of ``answer``; -1: the logits were not finite."""
    expected: str
    """The reference's answer."""
    expected_score: Score
    label: str = ""
    """The right answer; '': not known."""
    thumbnail: Picture = ""
    """What the network saw: a small JPEG, base64."""


class Answers(Struct, frozen=True, kw_only=True):
    """What a cell answered to each picture that it was asked about, for the same of another arm."""

    pictures: str
    """Digest of their names and labels and of the number of classes: only equal ones are paired."""
    given: list[Answer]
    """Class by picture; -1: not finite. One asked about several times: a wrong answer, if any."""
    labels: list[Answer]
    """Likewise; -1: not known."""


class Changed(Struct, frozen=True, kw_only=True):
    """Interleaved A/B: pictures that the candidate answered otherwise than the baseline."""

    pictures: Natural
    shown: Annotated[list[Disagreement], Meta(max_length=1000)]
    """The first MOST_SHOWN: ``expected`` is the baseline's answer; scores (-1) are not known."""


class Parity(Struct, frozen=True, kw_only=True):
    """Answers against the fp32 eager reference on the same images, every batch slot."""

    images: Count
    """Answers compared (slots x batches, over all replicas)."""
    relative_error: Error | None
    """Largest ||logits - reference|| / ||reference|| of an image, centred; None: not finite.

    Of the first ``Policy.parity_images``; those that only accuracy asks for have to be finite.
    """
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
    preprocessing: str = ""
    """How pictures became inputs, and who says so; '': not recorded."""
    assumed: bool = False
    """Whether some of that is only assumed."""
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
    answers: Answers | None = None
    """Of the first repeat, which asks about the most images."""


def over_repeats(checks: Sequence[Parity]) -> Parity | None:
    """What a cell's repeats found, as one; None where there were none.

    The worst error and agreement of all. Accuracy is that of the repeat that asked about the most
    images (`Policy.accuracy_images`: the first), the worst of equals; disagreements are those of
    the repeat that had the most.
    """
    if not checks:
        return None
    most = _of_most_labels(checks)
    apart = max(checks, key=lambda p: p.disagreeing)
    least = min(checks, key=lambda p: (p.top1_agreement, -p.images))
    return replace(
        max(checks, key=_finite),
        images=least.images,
        top1_agreement=least.top1_agreement,
        passed=all(p.passed for p in checks),
        labelled=most[0].labelled,
        correct=min(p.correct for p in most),
        correct5=min(p.correct5 for p in most),
        reference_correct=most[0].reference_correct,
        reference_correct5=most[0].reference_correct5,
        min_accuracy=most[0].min_accuracy,
        max_accuracy_drop=most[0].max_accuracy_drop,
        accurate=all(p.accurate for p in checks),
        disagreeing=apart.disagreeing,
        disagreements=apart.disagreements,
        answers=next((p.answers for p in checks if p.answers), None),
    )


def over_replicas(parities: list[Parity]) -> Parity:
    """One verdict over replicas: the worst error; passed, and accurate, when every one was.

    Answers are pooled. Images with labels are not, because all replicas are asked the same ones:
    of those that were correct, the worst replica's count. Disagreements are those of all, each
    image once; ``disagreeing`` is the most of one replica, or as many as are shown.
    """
    worst = max(parities, key=_finite)
    total = sum(p.images for p in parities)
    shown: dict[str, Disagreement] = {}
    for each in (d for p in parities for d in p.disagreements):
        shown.setdefault(each.name, each)
    return replace(
        worst,
        images=total,
        top1_agreement=sum(p.top1_agreement * p.images for p in parities) / total,
        passed=all(p.passed for p in parities),
        labelled=max(p.labelled for p in parities),
        correct=min(p.correct for p in parities),
        correct5=min(p.correct5 for p in parities),
        accurate=all(p.accurate for p in parities),
        disagreeing=max(len(shown), *(p.disagreeing for p in parities)),
        disagreements=list(shown.values())[:MOST_SHOWN],
    )


def _finite(parity: Parity) -> float:
    return math.inf if parity.relative_error is None else parity.relative_error


_Check = TypeVar("_Check", "Parity", "PipelineCheck")


def _of_most_labels(checks: Sequence[_Check]) -> list[_Check]:
    """Those that asked about the most labelled images."""
    most = max(check.labelled for check in checks)
    return [check for check in checks if check.labelled == most]


class PipelineCheck(Struct, frozen=True, kw_only=True):
    """Boundary ``pipeline``: the whole pipeline, from encoded bytes, against the reference's.

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


def worst_pipeline(checks: Iterable[PipelineCheck | None]) -> PipelineCheck | None:
    """Over replicas, or repeats: the worst of everything; None without any.

    Accuracy is that of the repeat that asked about the most images, as of `over_repeats`.
    """
    found = [check for check in checks if check is not None]
    if not found:
        return None
    most = _of_most_labels(found)
    return replace(
        min(found, key=lambda check: (check.passed, check.top1_agreement)),
        max_difference=max(check.max_difference for check in found),
        mean_difference=max(check.mean_difference for check in found),
        labelled=most[0].labelled,
        correct=min(check.correct for check in most),
        correct5=min(check.correct5 for check in most),
    )
