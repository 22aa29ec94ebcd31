"""Accuracy, its floors, and the pictures of a disagreement: and that each of them can fail."""

from __future__ import annotations

import base64
import io
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image

from gpubench.cache import Cache
from gpubench.errors import InputError
from gpubench.records.parity import MOST_SHOWN, Parity, over_repeats, over_replicas
from gpubench.suite.types import Policy, Workload
from gpubench.workload.data.preprocess import Spec, apply
from gpubench.workload.models import outputs as kinds
from gpubench.workload.parity import MOST_NAME, check, ranks, thumbnail
from gpubench.workload.reference import Reference, asked, batches, build, load

LOOSE = {"max_relative_error": 1e6, "min_top1_agreement": 0.01}
Outputs = list[NDArray[np.float32]]


def judge(reference: Reference, outputs: Outputs, size: int = 8, **policy: Any) -> Parity:
    picked = batches(size, 64, 64)
    return check(reference, picked, outputs, "fp32", Policy(**(LOOSE | policy)))


def right(reference: Reference, size: int = 8) -> Outputs:
    return [reference.logits[b].copy() for b in batches(size, 64, 64)]


def answering(reference: Reference, wrong: list[int]) -> Outputs:
    """Honest, but for these images, which get the next class's answer."""
    outputs = right(reference)
    for batch, z in zip(batches(8, 64, 64), outputs, strict=True):
        bad = np.isin(batch, wrong)
        z[bad] = np.roll(z[bad], 1, axis=1)
    return outputs


def test_ranks_agree_with_argmax_also_among_equals() -> None:
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 3, (200, 7)).astype(np.float32)
    labels = rng.integers(0, 7, 200)
    found = ranks(logits, labels)
    assert ((found == 0) == (logits.argmax(1) == labels)).all()
    order = np.argsort(-logits, axis=1, kind="stable")
    assert (found == (order == labels[:, None]).argmax(1)).all()
    # A network that says nothing is not right about everything.
    assert (ranks(np.zeros((10, 10)), np.arange(10)) < 5).mean() == 0.5


def test_the_label_among_five(reference: Reference) -> None:
    known = np.flatnonzero(reference.labels >= 0)
    second, last = int(known[0]), int(known[1])
    outputs = right(reference)
    for batch, z in zip(batches(8, 64, 64), outputs, strict=True):
        for image, down in ((second, 1), (last, 9)):
            for slot in np.flatnonzero(batch == image):
                order = np.roll(np.argsort(-z[slot]), -1)  # the label last
                order = np.insert(order[:-1], down, order[-1])
                z[slot, order] = np.arange(10, 0, -1)
    parity = judge(reference, outputs)
    assert (parity.labelled, parity.correct, parity.correct5) == (56, 54, 55)
    assert parity.reference_correct5 == 56


def test_no_top5_of_five_classes(reference: Reference) -> None:
    few = replace(reference, logits=reference.logits[:, :5].copy(), labels=reference.labels % 5)
    parity = check(few, batches(8, 64, 64), right(few), "fp32", Policy())
    assert parity.labelled > 0
    assert (parity.correct5, parity.reference_correct5) == (0, 0)


@pytest.mark.parametrize(
    ("wrong", "floors", "kept"),
    [
        (0, {"min_accuracy": 1.0, "max_accuracy_drop": 0.0}, True),
        (7, {"min_accuracy": 49 / 56}, True),
        (8, {"min_accuracy": 49 / 56}, False),
        (7, {"max_accuracy_drop": 12.5}, True),
        (8, {"max_accuracy_drop": 12.5}, False),
        (8, {"min_accuracy": 0.5, "max_accuracy_drop": 1.0}, False),
        (50, {}, True),
    ],
)
def test_floors(reference: Reference, wrong: int, floors: dict[str, float], kept: bool) -> None:
    known = np.flatnonzero(reference.labels >= 0)[:wrong]
    parity = judge(reference, answering(reference, list(known)), **floors)
    assert parity.accurate == kept
    assert parity.correct == 56 - wrong
    assert parity.passed  # the floors alone
    assert parity.min_accuracy == floors.get("min_accuracy")


def test_floors_are_judged_where_accuracy_is_measured(reference: Reference) -> None:
    """Other repeats ask about few images, whose share says less than the floor means."""
    policy = Policy(parity_images=32, accuracy_images=64, min_accuracy=1.0, **LOOSE)
    assert [asked(policy, n) for n in range(3)] == [64, 32, 32]
    assert asked(Policy(parity_images=32), 0) == 32
    outputs, picked = answering(reference, [1]), batches(8, 64, 64)
    assert not check(reference, picked, outputs, "fp32", policy).accurate
    few = check(reference, picked[:4], outputs[:4], "fp32", policy)
    assert few.accurate
    assert few.min_accuracy is None
    assert few.correct < few.labelled


def test_the_tolerance_is_for_as_many_images_as_parity_asks_for(reference: Reference) -> None:
    """The worst error grows with their number; answers that are not finite never pass."""
    outputs, picked = right(reference), batches(8, 64, 64)
    outputs[5][2] *= 1.3
    few, all_ = Policy(parity_images=32, accuracy_images=64), Policy(parity_images=64)
    assert check(reference, picked, outputs, "fp32", few).passed
    assert not check(reference, picked, outputs, "fp32", all_).passed
    outputs[5][2] = np.nan
    broken = check(reference, picked, outputs, "fp32", few)
    assert (broken.passed, broken.relative_error, broken.worst_slot) == (False, None, 2)


def test_a_gain_on_the_reference_is_no_drop(reference: Reference) -> None:
    image = int(np.flatnonzero(reference.labels >= 0)[0])
    reference.labels[image] = (reference.logits[image].argmax() + 1) % 10
    parity = judge(reference, answering(reference, [image]), max_accuracy_drop=0.0)
    assert parity.accurate
    assert parity.correct == parity.reference_correct + 1


@pytest.mark.parametrize("floor", ["min_accuracy", "max_accuracy_drop"])
def test_a_floor_without_labels_is_refused(cache: Cache, floor: str) -> None:
    workload = Workload(model="digits", images="photos")
    policy = Policy(**{floor: 0.9})
    with pytest.raises(InputError, match=rf"policy.{floor} = 0.9: images 'photos' have no labels"):
        build(workload, policy, cache)
    build(workload, Policy(accuracy_images=70), cache)
    build(Workload(model="digits"), policy, cache)


def test_every_image_of_accuracy_images_is_asked_about(cache: Cache) -> None:
    policy = Policy(accuracy_images=300)
    made = load(build(Workload(model="digits"), policy, cache))
    picked = batches(7, len(made.images), asked(policy, 0))
    parity = check(made, picked, [made.logits[b] for b in picked], "fp32", policy)
    assert parity.labelled >= 300
    assert parity.correct == parity.reference_correct >= 0.97 * parity.labelled
    assert parity.correct5 == parity.reference_correct5 > parity.correct


def test_disagreements_are_named_and_shown(reference: Reference) -> None:
    names = ["nought", "one", "two\x1b[2J", *"3456789"]
    pictures = np.random.default_rng(0).normal(size=(64, 3, 90, 120)).astype(np.float32)
    known = replace(reference, classes=tuple(names), images=pictures)
    known.names[3] = "a\x1b]0;owned\x07" + "x" * 500 + ".png"
    wrong = [3, 8, 9, *range(20, 40)]
    outputs = answering(known, wrong)
    parity = judge(known, outputs)
    assert parity.disagreeing == len(wrong)
    assert [d.name for d in parity.disagreements[1:]] == list(map(str, wrong[1:MOST_SHOWN]))
    for d, image in zip(parity.disagreements, wrong, strict=False):
        expected = int(known.logits[image].argmax())
        safe = ["nought", "one", r"two\x1b[2J", *"3456789"]
        assert (d.expected, d.answer) == (safe[expected], safe[(expected + 1) % 10])
        assert d.label == ("" if known.labels[image] < 0 else safe[expected])
        powers = np.exp(known.logits[image].astype(float))
        assert [d.score, d.expected_score] == pytest.approx([powers.max() / powers.sum()] * 2)
        picture = Image.open(io.BytesIO(base64.b64decode(d.thumbnail)))
        assert picture.format == "JPEG"
        assert max(picture.size) <= 64
    first = parity.disagreements[0].name
    assert first.isprintable()
    assert len(first) == MOST_NAME
    assert first.endswith("x.png")
    stored = msgspec.json.encode(parity)
    assert len(stored) < 25_000  # noise: the worst that pictures can be
    assert msgspec.json.decode(stored, type=Parity) == parity


def test_a_thumbnail_is_what_the_network_saw() -> None:
    half = np.zeros((200, 200, 3), np.uint8)
    half[:, 100:] = (250, 120, 10)
    spec = Spec(size=(96, 96), resize=96)
    data = base64.b64decode(thumbnail(apply(spec, half), spec))
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)
    assert picture.shape == (64, 64, 3)
    assert abs(picture[:, :28]).max() < 12
    assert abs(picture[:, 36:] - (250, 120, 10)).max() < 12
    assert len(data) < 1100


def test_an_agreeing_backend_shows_nothing(reference: Reference) -> None:
    parity = judge(reference, right(reference))
    assert (parity.disagreeing, parity.disagreements) == (0, [])


def test_what_is_not_finite_disagrees_and_is_never_right(reference: Reference) -> None:
    outputs = right(reference)
    outputs[0][2] = np.nan
    parity = judge(reference, outputs, min_accuracy=1.0)
    assert (parity.correct, parity.correct5) == (55, 55)
    assert not parity.accurate
    [d] = parity.disagreements
    assert (d.name, d.answer, d.score) == ("2", "not finite", -1)


def test_an_image_asked_about_often_is_shown_once(reference: Reference) -> None:
    picked = batches(128, 64, 256)
    outputs = [reference.logits[b].copy() for b in picked]
    for z in outputs:
        z[:] = np.roll(z, 1, axis=1)
    parity = check(reference, picked, outputs, "fp32", Policy(**LOOSE))
    assert parity.disagreeing == 64
    assert len({d.name for d in parity.disagreements}) == MOST_SHOWN


def test_merging_replicas_unites_what_they_show(reference: Reference) -> None:
    one, two = (judge(reference, answering(reference, wrong)) for wrong in ([1, 2], [2, 3, 9]))
    both = over_replicas([one, two])
    assert [d.name for d in both.disagreements] == ["1", "2", "3", "9"]
    assert both.disagreeing == 4
    assert both.correct == min(one.correct, two.correct)
    assert both.correct5 == min(one.correct5, two.correct5)
    floor = judge(reference, answering(reference, [1, 2]), min_accuracy=1.0)
    assert not over_replicas([judge(reference, right(reference), min_accuracy=1.0), floor]).accurate


def test_over_repeats_keeps_the_worst_of_each(reference: Reference) -> None:
    assert over_repeats([]) is None
    good, bad = (judge(reference, answering(reference, wrong)) for wrong in ([], [1, 2]))
    broken = replace(good, relative_error=None, passed=False, labelled=8, correct=8)
    found = over_repeats([good, broken, bad])
    assert found is not None
    assert (found.passed, found.relative_error) == (False, None)
    assert (found.labelled, found.correct, found.disagreeing) == (56, 54, 2)
    near = replace(good, relative_error=1e3)
    found = over_repeats([bad, near])  # the error of the one, the agreement of the other
    assert found is not None
    assert bad.top1_agreement < near.top1_agreement
    assert (found.relative_error, found.top1_agreement) == (1e3, bad.top1_agreement)
    few = replace(near, images=near.images // 4, top1_agreement=1.0)
    found = over_repeats([bad, few])
    assert found is not None
    assert (found.images, found.top1_agreement) == (bad.images, bad.top1_agreement)
    found = over_repeats([replace(good, correct=9, correct5=15), replace(good, correct5=14)])
    assert found is not None
    assert (found.correct, found.correct5) == (9, 14)


def test_probabilities_are_compared_as_the_logits_that_they_were(reference: Reference) -> None:
    """A second softmax, and shares of fp16 that are right, are told apart by the same limits."""
    shares = kinds.scores(reference.logits, "logits")
    known = replace(reference, logits=shares.astype(np.float32), output="probabilities")
    picked = batches(8, 64, 64)

    def judged(answers: NDArray[np.float32], precision: str) -> Parity:
        return check(known, picked, [answers[b] for b in picked], precision, Policy())

    assert judged(known.logits, "fp32").relative_error == 0
    exact = judged(known.logits.astype(np.float16).astype(np.float32), "fp16")
    assert exact.passed
    assert 0 < (exact.relative_error or 0) < 0.01
    twice = kinds.scores(known.logits, "logits")
    assert not judged(twice, "fp16").passed
    wrong = judged(np.roll(known.logits, 1, axis=1), "int8")
    assert not wrong.passed
    assert wrong.disagreements[0].score == pytest.approx(float(known.logits[0].max()))
    assert wrong.disagreements[0].expected_score == pytest.approx(float(known.logits[0].max()))


def test_what_answers_are_is_seen_where_the_graph_does_not_say() -> None:
    logits = np.random.default_rng(0).normal(size=(64, 10))
    assert kinds.of_answers(logits, "logits") == "logits"
    assert kinds.of_answers(kinds.scores(logits, "logits"), "logits") == "probabilities"
    assert kinds.of_answers(abs(logits), "probabilities") == "probabilities", "of a sigmoid"
    logs = np.log(kinds.scores(logits, "logits"))
    assert kinds.of_answers(logs, "log-probabilities") == "log-probabilities"
    assert kinds.scores(logs, "log-probabilities") == pytest.approx(np.exp(logs))
