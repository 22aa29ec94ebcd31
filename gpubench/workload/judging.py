"""Right answers by label, the floors of accuracy, and the images that were answered otherwise."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import TYPE_CHECKING

from msgspec import Struct

from gpubench import escape
from gpubench.answers import MOST_SHOWN, Disagreement
from gpubench.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.suite import Policy, Workload
    from gpubench.workload.preprocess import Spec
    from gpubench.workload.reference import Reference

TOP = 5
THUMBNAILS = ((64, 70), (48, 60), (32, 50), (16, 30))
"""Longest side, JPEG quality: the first whose file is at most MOST_BYTES; even noise fits."""
MOST_BYTES = 1100
MOST_NAME, MOST_CLASS = 120, 40
"""Characters that are kept, so that the disagreements of a record stay below 20 KB."""


class Counts(Struct, frozen=True):
    """Fields of `gpubench.answers.Parity`."""

    labelled: int
    correct: int
    reference_correct: int
    correct5: int
    reference_correct5: int


def ranks(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.intp]:
    """How many classes (N,) of ``logits`` (N, classes) stand before the label; of equals the first.

    So 0 is where argmax gives the label, and equal logits do not make all five right.
    """
    import numpy as np

    labels = np.maximum(labels, 0)  # without a label: whatever
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before = np.arange(logits.shape[1]) < labels[:, None]
    found: NDArray[np.intp] = ((logits > own) | ((logits == own) & before)).sum(axis=1)
    return found


def count(reference: Reference, picked: NDArray[np.intp], rank: NDArray[np.intp]) -> Counts:
    """Each labelled image once: right when it was right every time that it was asked about.

    ``picked``, ``rank``: (batches, slots), the images and the `ranks` of their labels.
    """
    import numpy as np

    worst = np.zeros(len(reference.labels), dtype=np.intp)
    np.maximum.at(worst, picked, rank)
    asked = np.unique(picked)
    known = asked[reference.labels[asked] >= 0]
    mine = worst[known]
    theirs = ranks(reference.logits[known], reference.labels[known])
    top5 = reference.logits.shape[1] > TOP
    return Counts(
        labelled=len(known),
        correct=int((mine == 0).sum()),
        reference_correct=int((theirs == 0).sum()),
        correct5=int((mine < TOP).sum()) if top5 else 0,
        reference_correct5=int((theirs < TOP).sum()) if top5 else 0,
    )


def accurate(counts: Counts, policy: Policy) -> bool:
    """Whether both floors are kept: by the share as counted, over these very images.

    Every backend and the reference are asked about the same images, so the interval of the share,
    which says how another draw of images might come out, is no matter of the comparison.
    """
    tiny = 1e-9 * counts.labelled  # a floor of 0.9 is kept by 9 of 10
    least = (policy.min_accuracy or 0.0) * counts.labelled
    if counts.correct < least - tiny:
        return False
    if policy.max_accuracy_drop is None:
        return True
    lost = counts.reference_correct - counts.correct
    return lost <= policy.max_accuracy_drop / 100 * counts.labelled + tiny


def needs_labels(workload: Workload, policy: Policy, classes: int, labelled: bool) -> None:
    """Raises InputError where an accuracy floor is set and no image has a label that counts."""
    floors = {"min_accuracy": policy.min_accuracy, "max_accuracy_drop": policy.max_accuracy_drop}
    name = next((name for name, value in floors.items() if value is not None), None)
    if name and not labelled:
        raise InputError(
            f"policy.{name} = {floors[name]:g}: images {workload.images!r} have no labels that "
            f"number the {classes} classes of {workload.model} ({workload.weights}); give a folder "
            f"with one sub-folder for each of its classes or a file of labels, images = 'digits' "
            "with weights = 'probe', or leave the floor out"
        )


def disagreements(
    reference: Reference,
    picked: NDArray[np.intp],
    wrong: NDArray[np.bool_],
    outputs: list[NDArray[np.float32]],
) -> tuple[int, list[Disagreement]]:
    """How many different images are ``wrong`` (batches, slots), and the first MOST_SHOWN of them.

    An image that is asked about several times is shown with its first wrong answer.
    """
    import numpy as np

    places = np.argwhere(wrong)
    images, first = np.unique(picked[wrong], return_index=True)
    shown = [places[at] for at in sorted(first)[:MOST_SHOWN]]
    told = [_told(reference, int(picked[b, s]), outputs[b][s]) for b, s in shown]
    return len(images), told


def _told(reference: Reference, image: int, logits: NDArray[np.float32]) -> Disagreement:
    import numpy as np

    def name(number: int) -> str:
        known = reference.classes
        return _short(known[number] if number < len(known) else str(number), MOST_CLASS)

    finite = bool(np.isfinite(logits).all())
    answer, expected = int(logits.argmax()), int(reference.logits[image].argmax())
    label = int(reference.labels[image])
    return Disagreement(
        name=_short(reference.names[image], MOST_NAME),
        answer=name(answer) if finite else "not finite",
        score=_softmax(logits, answer) if finite else -1.0,
        expected=name(expected),
        expected_score=_softmax(reference.logits[image], expected),
        label=name(label) if label >= 0 else "",
        thumbnail=thumbnail(reference.images[image], reference.spec),
    )


def _short(text: str, most: int) -> str:
    """`escape.visible`; of what is too long the end, which tells files apart."""
    text = escape.visible(text)
    return text if len(text) <= most else "…" + text[1 - most :]


def _softmax(logits: NDArray[np.float32], at: int) -> float:
    import numpy as np

    powers = np.exp(logits.astype(np.float64) - logits.max())
    return float(powers[at] / powers.sum())


def thumbnail(inputs: NDArray[np.float32], spec: Spec) -> str:
    """What the network saw, (3, H, W) as `preprocess.apply` made it: a small JPEG, base64."""
    import numpy as np
    from PIL import Image

    pixels = inputs.transpose(1, 2, 0) * np.array(spec.std) + np.array(spec.mean)
    image = Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    data = b""
    for side, quality in THUMBNAILS:
        small, file = image.copy(), BytesIO()
        small.thumbnail((side, side))
        small.save(file, "JPEG", quality=quality, optimize=True)
        data = file.getvalue()
        if len(data) <= MOST_BYTES:
            break
    return base64.b64encode(data).decode()
