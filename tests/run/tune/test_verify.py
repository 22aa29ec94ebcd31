"""What the proof of a recommendation may speak against."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from gpubench.records.record import RecordFile
from gpubench.run.tune import verify
from gpubench.suite.goal import Limit
from tests.analysis import searches
from tests.report import make_pairs

BASE, BEST = searches.cell(), searches.cell(1)
LIMIT = Limit(searches.P90, 20e6)


def arms(effect: float) -> tuple[RecordFile, RecordFile]:
    """An A/B in which the recommendation costs ``effect`` more: 0.2 is 20 %."""
    return make_pairs.arms([(BASE, BEST)], None, effect, differs=("default", "recommended"))


def candidate(*times_ms: float, **changes: Any) -> RecordFile:
    """The arm of the recommendation: a repeat of 100 batches for each of ``times_ms``."""
    records = [searches.record(BEST, n, [ms] * 100) for n, ms in enumerate(times_ms)]
    if changes:
        records[-1] = replace(records[-1], **changes)
    return replace(arms(0.0)[1], records=records)


def fault(found: RecordFile) -> str:
    return verify.fault(
        arms(0.0)[0], found, searches.search(searches.THROUGHPUT, LIMIT), rival=True
    )


@pytest.mark.parametrize(("effect", "rival", "speaks"), [(0.2, True, True), (0.2, False, False),
                                                         (-0.5, True, False)])  # fmt: skip
def test_slower_than_todays_default(effect: float, rival: bool, speaks: bool) -> None:
    words = verify.fault(*arms(effect), searches.search(), rival=rival)
    assert ("slower" in words) == speaks


def test_one_repeat_beyond_the_limit_is_no_fault() -> None:
    """99 in 100 are promised, and twenty are measured."""
    assert fault(candidate(*[10.0] * 19, 21.0)) == ""


def test_repeats_beyond_the_limit_are_a_fault() -> None:
    assert "limit 20" in fault(candidate(*[25.0] * 8))


def test_a_failed_repeat_is_a_fault() -> None:
    found = candidate(10.0, 10.0, status="failed", kind="parity", reason="other answers")
    assert "other answers" in fault(found)
