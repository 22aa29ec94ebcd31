from __future__ import annotations

import pytest

from gpubench import units


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.012345, 3, "0.0123"),
        (1234.5, 3, "1,230"),
        (9.996, 3, "10.00"),
        (0, 3, "0"),
        (12.0, 2, "12"),
        (float("inf"), 3, "inf"),
    ],
)
def test_significant(value: float, digits: int, text: str) -> None:
    assert units.significant(value, digits) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [(12_345_678, "12.3 ms"), (999.6, "1,000 ns"), (1_500, "1.50 us"), (2e9, "2.00 s")],
)
def test_duration(ns: float, text: str) -> None:
    assert units.duration(ns) == text


@pytest.mark.parametrize(
    ("half_width", "digits"),
    [(0.5, 2), (0.1, 2), (0.02, 3), (0.004, 4), (None, 3), (1e-9, 5), (float("inf"), 2)],
)
def test_digits_follow_the_precision(half_width: float | None, digits: int) -> None:
    assert units.digits_for(half_width) == digits


def test_clock_size_percent() -> None:
    assert [units.clock(s) for s in (4.6, 75, 7322)] == ["5 s", "1 min 15 s", "2 h 2 min"]
    assert [units.size(b) for b in (12, 2048, 1.5 * 2**30)] == ["12 B", "2.00 KiB", "1.50 GiB"]
    assert units.percent(0.0123) == "1.2 %"


def test_a_limit_keeps_every_digit() -> None:
    shown = [units.percentage(x) for x in (0.02, 0.0025, 0.00125, 0.1, 0.07)]
    assert shown == ["2 %", "0.25 %", "0.125 %", "10 %", "7 %"]
