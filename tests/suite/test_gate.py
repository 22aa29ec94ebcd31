"""`--metric` and `[gate]`: which metrics, and their margins."""

from __future__ import annotations

import pytest

from gpubench.errors import InputError
from gpubench.suite import gate


def test_margins_are_shares_or_points() -> None:
    assert gate.parse(["p99=5%", "accuracy=0.5,size", "memory=0.1"]) == {
        "p99": 0.05, "accuracy": 0.005, "size": None, "memory": 0.1
    }  # fmt: skip


@pytest.mark.parametrize("word", ["speeds", "p99=", "p99=x", "p99=0", "p99=nan", "accuracy=100"])
def test_what_is_no_metric_or_margin_is_shown(word: str) -> None:
    with pytest.raises(InputError, match=f"--metric '{word}'"):
        gate.parse([word])


def test_the_command_line_takes_the_place_of_the_suite() -> None:
    said = {"speed": 0.05, "accuracy": 1.0, "size": 0.0}
    assert gate.rule(said).delta == 0.05
    assert gate.rule(said).metrics == (("accuracy", 0.01), ("size", 0.0))
    asked = gate.rule(said, ["accuracy", "memory"], delta=0.03)
    assert asked.delta == 0.03
    assert asked.metrics == (("accuracy", 0.01), ("memory", 0.05))
    assert gate.rule({}).metrics == ()
