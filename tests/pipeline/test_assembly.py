"""Who gets which cores, and what the check of a path makes of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from gpubench.errors import CellFailed
from gpubench.pipeline.check import judge
from gpubench.pipeline.core_split import StageTimes, is_open, loader_cores, split
from gpubench.records.parity import worst_pipeline
from gpubench.run.agent.messages import Measure
from gpubench.suite.types import Policy
from gpubench.workload.data.preprocess import Spec
from gpubench.workload.reference import Reference
from tests.measure.virtual import make_cell


def request(cores: list[tuple[int, ...]], times: StageTimes | None = None, **cell: Any) -> Measure:
    settings = {"boundary": "pipeline", "scenario": "throughput", "cores": len(cores[0])}
    return Measure(make_cell(**(settings | cell)), Policy(), "", "", cores, times=times)


def divided(of: Measure, replica: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return split(of.cell, of.cores, replica, of.times)


def asked(of: Measure) -> bool:
    return is_open(of.cell, len(of.cores[0]))


@pytest.mark.parametrize(
    ("cores", "data", "session", "loading"),
    [
        (1, 5, 5, 0),
        (2, 1, 1000, 0),
        (2, 17, 28, 0),
        (2, 50, 28, 1),
        (2, 1000, 1, 1),
        (8, 10, 10, 1),
        (8, 80, 10, 4),
        (8, 240, 10, 6),
        (8, 10, 1000, 0),
        (8, 1000, 1, 7),
    ],
)
def test_cores_are_shared_out_by_core_time(
    cores: int, data: int, session: int, loading: int
) -> None:
    """The session's was measured with all of the cores: its core-time is ``cores`` times that."""
    assert loader_cores(cores, StageTimes(data, session)) == loading


def test_groups_are_disjoint_and_the_suite_has_the_first_say() -> None:
    own = (4, 5, 6, 7)
    assert divided(request([own], loader_cores=1), 0) == ((7,), (4, 5, 6))
    assert divided(request([own], StageTimes(120, 10)), 0) == ((5, 6, 7), (4,))
    assert divided(request([own]), 0) == ((6, 7), (4, 5))
    assert divided(request([own], StageTimes(1, 10)), 0) == (own, own), "a core to load would idle"
    assert divided(request([(4,)]), 0) == ((4,), (4,)), "the only one does both"
    assert divided(request([own], scenario="latency"), 0) == (own, own)


def test_gpus_with_the_same_cores_beside_them_share_those_out() -> None:
    near, far = tuple(range(8)), tuple(range(8, 16))
    cuda = request([near, near, far], device="cuda", replicas=3)
    assert divided(cuda, 0) == ((1, 2, 3), ()), "one is kept to feed the GPU"
    assert divided(cuda, 1) == ((5, 6, 7), ())
    assert divided(cuda, 2) == (far[1:], ())
    few = request([(3,), (3,)], device="cuda", replicas=2)
    assert divided(few, 1) == ((3,), ())


def test_only_a_choice_is_measured() -> None:
    three = (0, 1, 2)
    assert asked(request([three]))
    assert asked(request([three[:2]])), "one each, or both for both"
    assert not asked(request([three[:1]]))
    assert not asked(request([three], loader_cores=1))
    assert not asked(request([three], scenario="latency"))
    assert not asked(request([three], boundary="compute"))
    assert not asked(request([()], device="cuda"))


def reference() -> Reference:
    """Ten pictures, the i-th of class i (unknown of the last), answered so by the reference."""
    return Reference(
        images=np.zeros((10, 3, 8, 8), np.float32),
        labels=np.array([*range(9), -1]),
        names=[f"{i}" for i in range(10)],
        logits=np.eye(10, dtype=np.float32),
        engine="",
        path=Path(),
        spec=Spec(size=(8, 8), resize=8),
    )


def test_answers_are_judged_against_the_reference_and_labels() -> None:
    asked = np.arange(10)
    logits = np.eye(10, dtype=np.float32)
    logits[1] = np.linspace(1, 0, 10)  # another answer, the right one second
    apart = [(3.0, 0.5)] + [(1.0, 0.1)] * 9
    found = judge("d", reference(), asked, logits, apart, Policy())
    assert (found.images, found.top1_agreement, found.passed) == (10, 0.9, True)
    assert (found.labelled, found.correct, found.correct5) == (9, 8, 9)
    alike = judge("d", reference(), asked, np.zeros_like(logits), apart, Policy())
    assert alike.correct5 == 5, "of equal logits the first five are the best"
    assert found.max_difference == 3
    assert found.mean_difference == pytest.approx(0.14)
    logits[2] = logits[1]
    worse = judge("d", reference(), asked, logits, apart, Policy())
    assert (worse.passed, worse.correct) == (False, 7)
    assert worst_pipeline([found, worse, None]) == worse
    assert worst_pipeline([None]) is None
    first = replace(found, labelled=500, correct=480, correct5=490, max_difference=9.0)
    both = worst_pipeline([first, worse])
    assert both is not None
    assert (both.labelled, both.correct, both.correct5) == (500, 480, 490), "of the most images"
    assert (both.top1_agreement, both.max_difference) == (worse.top1_agreement, 9.0)
    both = worst_pipeline([replace(found, correct=7, correct5=9), replace(found, correct5=8)])
    assert both is not None
    assert (both.correct, both.correct5) == (7, 8), "the worst of everything"


def test_values_that_are_not_finite_fail() -> None:
    with pytest.raises(CellFailed, match="not finite"):
        judge("d", reference(), np.arange(1), np.zeros((1, 10), np.float32), [(np.nan, 0.0)],
              Policy())  # fmt: skip
