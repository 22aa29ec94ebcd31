"""A floor of right answers, judged by what so many images can tell."""

from __future__ import annotations

import pytest

from gpubench.analysis import floors, stats
from gpubench.analysis.floors import Floor
from gpubench.analysis.tables import accuracy
from gpubench.records.parity import Parity
from gpubench.suite.types import Policy


@pytest.mark.parametrize(
    ("hits", "n", "least", "state"),
    [(15, 16, 0.9, "undecided"), (16, 16, 0.9, "undecided"), (35, 35, 0.9, "kept"),
     (34, 34, 0.9, "undecided"), (9, 16, 0.9, "broken"), (13, 16, 0.9, "undecided"),
     (950, 1000, 0.9, "kept"), (900, 1000, 0.9, "undecided"), (870, 1000, 0.9, "broken"),
     (16, 16, 1.0, "kept"), (15, 16, 1.0, "broken"), (0, 16, 0.1, "undecided")],
)  # fmt: skip
def test_the_interval_decides(hits: int, n: int, least: float, state: str) -> None:
    assert Floor("min_accuracy", least, hits, n).state == state
    if least < 1:
        share = stats.wilson(hits, n)
        assert share.low is not None
        assert share.high is not None
        assert state == ("kept" if share.low >= least else "broken" if share.high < least
                         else "undecided")  # fmt: skip


def test_what_is_undecided_says_what_would_tell() -> None:
    assert Floor("min_accuracy", 0.9, 15, 16).text == (
        "min_accuracy 0.9: 93.8 % [71.7, 98.9] of 16 images; undecided, about 246 would tell"
    )
    assert Floor("min_accuracy", 0.5, 8, 16).text.endswith("too close for any number of images")
    assert Floor("min_accuracy", 0.9, 15 * 17, 16 * 17).state == "kept"


@pytest.mark.parametrize(
    ("policy", "pool", "said"),
    [
        ({}, 16, ""),
        ({"min_accuracy": 0.9, "accuracy_images": 256}, 16, "at least 35; give more images with"),
        ({"min_accuracy": 0.9, "accuracy_images": 20}, 500, "at least 35; raise accuracy_images"),
        ({"min_accuracy": 0.9}, 16, "raise accuracy_images and give more images with labels"),
        ({"min_accuracy": 0.9, "accuracy_images": 35}, 35, ""),
        ({"min_accuracy": 1.0}, 16, ""),
    ],
)
def test_what_no_answers_could_decide_is_told_before(
    policy: dict[str, float], pool: int, said: str
) -> None:
    found = floors.hopeless(Policy(**policy), pool)  # type: ignore[arg-type]
    assert said in found
    assert bool(found) == bool(said)


def test_reports_say_which_floors_the_images_do_not_settle() -> None:
    def checked(correct: int, least: float | None = 0.9) -> Parity:
        return Parity(images=16, relative_error=0.0, top1_agreement=1.0, worst_slot=0,
                      max_relative_error=1.0, min_top1_agreement=0.5, passed=True, labelled=16,
                      correct=correct, reference_correct=16, min_accuracy=least)  # fmt: skip

    [said] = accuracy.doubts([checked(15), checked(16), checked(3), checked(15, None), None])
    assert said.startswith("Not settled for 2 cells: min_accuracy 0.9: 93.8 % [71.7, 98.9] of 16 ")
    assert accuracy.doubts([checked(16, 1.0)]) == []
