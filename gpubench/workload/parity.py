"""The check of a backend's answers: against the reference, and against labels.

Right answers by label, the floors of accuracy, and the images that were answered otherwise.
"""

from __future__ import annotations

import base64
from hashlib import sha256
from io import BytesIO
from math import inf
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from gpubench import escape
from gpubench.errors import CellFailed, InputError
from gpubench.records.parity import MOST_SHOWN, Answers, Changed, Disagreement, Parity
from gpubench.suite.types import Policy
from gpubench.workload.data import preprocess
from gpubench.workload.data.preprocess import Spec
from gpubench.workload.models import outputs
from gpubench.workload.reference import Reference, turns

if TYPE_CHECKING:
    from gpubench.workload.data.preprocess import Inputs

TOLERANCES = {
    "fp32": (2e-3, 0.95),
    "tf32": (0.1, 0.9),
    "fp16": (0.1, 0.9),
    "bf16": (0.5, 0.8),
    "amp": (0.5, 0.8),
    "int8": (1.5, 0.8),
}
"""Precision -> largest relative error of an image, least top-1 agreement.

Errors follow the rounding unit, times about 100 at the worst image. The limits leave room for deep
networks, and yet fail a wrong answer (about 1) and a precision one step coarser than the cell says.
What was seen, int8 too, is in the documentation (suites, "Tolerances").
"""
TOP = 5
THUMBNAILS = ((64, 70), (48, 60), (32, 50), (16, 30))
"""Longest side, JPEG quality: the first whose file is at most MOST_BYTES; even noise fits."""
MOST_BYTES = 1100
MOST_NAME, MOST_CLASS = 120, 40
"""Characters that are kept, so that the disagreements of a record stay below 20 KB."""


def check(
    reference: Reference,
    batches: list[NDArray[np.intp]],
    answered: list[NDArray[np.float32]],
    precision: str,
    policy: Policy,
) -> Parity:
    """Judge the logits (batch, classes) that a backend gave for each of ``batches``.

    The relative error of an image is ||(z - mean z) - (r - mean r)|| / ||r - mean r||, because a
    common offset of all logits changes no answer; of a network that answers with probabilities, z
    and r are `outputs.comparable`. Logits that are not finite fail. An image with
    a label counts once for accuracy, and as correct when it was right every time it was asked: a
    batch larger than the pool asks several times, which is no more evidence. The floors of accuracy
    are judged where as many images were asked about as ``policy.accuracy_images`` says. Of those
    beyond ``policy.parity_images`` the relative error is left out, but that it is finite: the worst
    of a thousand is larger than that of the few that TOLERANCES are for (bf16, ResNet-18 probe:
    0.6 of 640 images). Raises CellFailed("parity") for logits of the wrong number or shape.
    """
    expected = [(len(batch), reference.logits.shape[1]) for batch in batches]
    found = [np.shape(output) for output in answered]
    if found != expected:
        both = zip(found, expected, strict=False)
        what = next((f"{f}, not {e}" for f, e in both if f != e), f"{len(found)} batches")
        raise CellFailed("parity", f"logits are {what}, expected {len(expected)} batches")
    compared = [_compare(reference, *pair) for pair in zip(batches, answered, strict=True)]
    answers, errors, ranks = (np.stack(each) for each in zip(*compared, strict=True))
    further = errors[turns(len(batches[0]), policy.parity_images) :]
    further[np.isfinite(further)] = 0.0
    picked = np.stack(batches)
    wrong = answers != reference.logits.argmax(axis=1)[picked]
    largest, least = _tolerance(precision, policy)
    error, agreement = float(errors.max()), float(1 - wrong.mean())
    counts = count(reference, picked, ranks)
    whole = len(np.unique(picked)) >= min(policy.accuracy_images, len(reference.labels))
    disagreeing, shown = disagreements(reference, picked, wrong, answered)
    return Parity(
        images=picked.size,
        relative_error=error if error < inf else None,
        top1_agreement=agreement,
        worst_slot=int(errors.max(axis=0).argmax()),
        max_relative_error=largest,
        min_top1_agreement=least,
        passed=error <= largest and agreement >= least,
        reference=reference.engine,
        preprocessing=preprocess.words(reference.spec),
        assumed=reference.spec.assumed,
        min_accuracy=policy.min_accuracy if whole else None,
        max_accuracy_drop=policy.max_accuracy_drop if whole else None,
        accurate=accurate(counts, policy) if whole else True,
        disagreeing=disagreeing,
        disagreements=shown,
        answers=kept(
            reference, picked, answers, wrong, max(policy.parity_images, policy.accuracy_images)
        ),
        **counts,
    )


def kept(
    reference: Reference,
    picked: NDArray[np.intp],
    answers: NDArray[np.intp],
    wrong: NDArray[np.bool_],
    most: int,
) -> Answers:
    """What a record keeps of (batches, slots) ``answers``: one for each of the first ``most``
    images, which whatever batch size asks about."""
    given = np.full(len(reference.labels), -1)
    given[picked] = answers
    given[picked[wrong]] = answers[wrong]
    n = min(most, int(picked.max()) + 1)  # `reference.batches` begins at the first
    labels = reference.labels[:n].tolist()
    about = [reference.names[:n], labels, reference.logits.shape[1]]
    pictures = sha256(msgspec.json.encode(about)).hexdigest()[:16]
    return Answers(pictures=pictures, given=given[:n].tolist(), labels=labels)


def changed(
    base: Reference, candidate: Reference, before: Answers, after: Answers
) -> Changed | None:
    """Pictures to which two arms gave different answers, as the candidate's network saw them; None
    where they were not asked about the same, or none is."""
    if before.pictures != after.pictures or before.given == after.given:
        return None
    both = list(zip(before.given, after.given, strict=True))
    differ = [n for n, (old, new) in enumerate(both) if old != new]
    shown = [
        Disagreement(
            name=_short(candidate.names[n], MOST_NAME), answer=_class(candidate, both[n][1]),
            score=-1.0, expected=_class(base, both[n][0]), expected_score=-1.0,
            label=_class(candidate, after.labels[n]) if after.labels[n] >= 0 else "",
            thumbnail=thumbnail(candidate.images[n], candidate.spec),
        )
        for n in differ[:MOST_SHOWN]
    ]  # fmt: skip
    return Changed(pictures=len(differ), shown=shown)


def _compare(
    reference: Reference, batch: NDArray[np.intp], output: NDArray[np.float32]
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.intp]]:
    """Of each image: the answer (-1: not finite), its relative error, its label's rank."""
    finite = np.asarray(np.isfinite(output).all(axis=1))
    z = np.where(finite[:, None], output, 0.0)
    each = (outputs.comparable(x, reference.output) for x in (reference.logits[batch], z))
    expected, found = (x - x.mean(axis=1, keepdims=True) for x in each)
    size = np.linalg.norm(expected, axis=1)
    errors = np.linalg.norm(found - expected, axis=1) / np.maximum(size, 1e-30)
    rank = ranks(z, reference.labels[batch])
    return (
        np.where(finite, z.argmax(axis=1), -1),
        np.where(finite, errors, inf),
        np.where(finite, rank, z.shape[1]),
    )


def _tolerance(precision: str, policy: Policy) -> tuple[float, float]:
    largest, least = TOLERANCES.get(precision, (None, None))
    largest, least = policy.max_relative_error or largest, policy.min_top1_agreement or least
    if largest is None or least is None:
        raise InputError(
            f"precision {precision!r} has no tolerance of its own: set policy.max_relative_error "
            "and policy.min_top1_agreement"
        )
    return largest, least


def ranks(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.intp]:
    """How many classes (N,) of ``logits`` (N, classes) stand before the label; of equals the first.

    So 0 is where argmax gives the label, and equal logits do not make all five right.
    """
    labels = np.maximum(labels, 0)  # without a label: whatever
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before = np.arange(logits.shape[1]) < labels[:, None]
    found: NDArray[np.intp] = ((logits > own) | ((logits == own) & before)).sum(axis=1)
    return found


def count(reference: Reference, picked: NDArray[np.intp], rank: NDArray[np.intp]) -> dict[str, int]:
    """Each labelled image once: right when it was right every time that it was asked about.

    ``picked``, ``rank``: (batches, slots), the images and the `ranks` of their labels. Returns
    fields of `Parity`.
    """
    worst = np.zeros(len(reference.labels), dtype=np.intp)
    np.maximum.at(worst, picked, rank)
    asked = np.unique(picked)
    known = asked[reference.labels[asked] >= 0]
    mine = worst[known]
    theirs = ranks(reference.logits[known], reference.labels[known])
    top5 = reference.logits.shape[1] > TOP
    return {
        "labelled": len(known),
        "correct": int((mine == 0).sum()),
        "reference_correct": int((theirs == 0).sum()),
        "correct5": int((mine < TOP).sum()) if top5 else 0,
        "reference_correct5": int((theirs < TOP).sum()) if top5 else 0,
    }


def accurate(counts: dict[str, int], policy: Policy) -> bool:
    """Whether both floors are kept: by the share as counted, over these very images.

    Every backend and the reference are asked about the same images, so the interval of the share,
    which says how another draw of images might come out, is no matter of the comparison.
    """
    labelled, correct = counts["labelled"], counts["correct"]
    tiny = 1e-9 * labelled  # a floor of 0.9 is kept by 9 of 10
    if correct < (policy.min_accuracy or 0.0) * labelled - tiny:
        return False
    if policy.max_accuracy_drop is None:
        return True
    lost = counts["reference_correct"] - correct
    return lost <= policy.max_accuracy_drop / 100 * labelled + tiny


def disagreements(
    reference: Reference,
    picked: NDArray[np.intp],
    wrong: NDArray[np.bool_],
    answered: list[NDArray[np.float32]],
) -> tuple[int, list[Disagreement]]:
    """How many different images are ``wrong`` (batches, slots), and the first MOST_SHOWN of them.

    An image that is asked about several times is shown with its first wrong answer.
    """
    places = np.argwhere(wrong)
    images, first = np.unique(picked[wrong], return_index=True)
    shown = [places[at] for at in sorted(first)[:MOST_SHOWN]]
    told = [_told(reference, int(picked[b, s]), answered[b][s]) for b, s in shown]
    return len(images), told


def _told(reference: Reference, image: int, logits: NDArray[np.float32]) -> Disagreement:
    def score(answers: NDArray[np.float32], at: int) -> float:
        return float(outputs.scores(answers[None].astype(np.float64), reference.output)[0, at])

    finite = bool(np.isfinite(logits).all())
    answer, expected = int(logits.argmax()), int(reference.logits[image].argmax())
    label = int(reference.labels[image])
    return Disagreement(
        name=_short(reference.names[image], MOST_NAME),
        answer=_class(reference, answer if finite else -1),
        score=score(logits, answer) if finite else -1.0,
        expected=_class(reference, expected),
        expected_score=score(reference.logits[image], expected),
        label=_class(reference, label) if label >= 0 else "",
        thumbnail=thumbnail(reference.images[image], reference.spec),
    )


def _class(reference: Reference, number: int) -> str:
    """Its name, or its number; -1: there is none."""
    if number < 0:
        return "not finite"
    known = reference.classes
    return _short(known[number] if number < len(known) else str(number), MOST_CLASS)


def _short(text: str, most: int) -> str:
    """`escape.visible`; of what is too long the end, which tells files apart."""
    text = escape.visible(text)
    return text if len(text) <= most else "…" + text[1 - most :]


def thumbnail(inputs: Inputs, spec: Spec) -> str:
    """What the network saw, one input as `preprocess.apply` made it: a small JPEG, base64."""
    from PIL import Image

    image = Image.fromarray(preprocess.shown(spec, inputs))
    data = b""
    for side, quality in THUMBNAILS:
        small, file = image.copy(), BytesIO()
        small.thumbnail((side, side))
        small.save(file, "JPEG", quality=quality, optimize=True)
        data = file.getvalue()
        if len(data) <= MOST_BYTES:
            break
    return base64.b64encode(data).decode()
