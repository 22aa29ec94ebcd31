"""`--metric` and `[gate]`: which metrics, and their margins."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpubench.errors import InputError, SuiteError
from gpubench.suite import file, gate
from gpubench.suite.types import Catalog

CATALOG = Catalog(backends={"fake": ()}, models=("resnet18",))


def test_margins_are_shares_or_points() -> None:
    assert gate.parse(["p99=5%", "accuracy=0.5,size", "memory=0.1"]) == {
        "p99": 0.05, "accuracy": 0.005, "size": None, "memory": 0.1
    }  # fmt: skip


@pytest.mark.parametrize("word", ["speeds", "p99=", "p99=x", "p99=0", "p99=nan", "accuracy=100"])
def test_what_is_no_metric_or_margin_is_shown(word: str) -> None:
    with pytest.raises(InputError, match=f"--metric '{word}'"):
        gate.parse([word])


def test_a_metric_has_one_margin() -> None:
    with pytest.raises(InputError, match="--metric 'p99=9%': p99 is given twice"):
        gate.parse(["p99=5%", "size,p99=9%"])


def test_the_command_line_takes_the_place_of_the_suite() -> None:
    said = {"speed": 0.05, "accuracy": 1.0, "size": 0.0}
    assert gate.rule(said).delta == 0.05
    assert gate.rule(said).metrics == (("accuracy", 0.01), ("size", 0.0))
    asked = gate.rule(said, ["accuracy", "memory"], delta=0.03)
    assert asked.delta == 0.03
    assert asked.metrics == (("accuracy", 0.01), ("memory", 0.05))
    assert gate.rule({}).metrics == ()


def test_a_suite_holds_its_gate(tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    head = '[axes]\nbackend = "fake"\n[gate]\n'
    path.write_text(head + "speed = 0.03\naccuracy = 1\nsize = 0\n")
    suite = file.load(str(path), CATALOG)
    assert suite.gate == {"speed": 0.03, "accuracy": 1.0, "size": 0.0}
    assert gate.rule(suite.gate).metrics == (("accuracy", 0.01), ("size", 0.0))
    path.write_text(head + "p99 = 0\naccuracy = 100\nspeeds = 0.1\n")
    with pytest.raises(SuiteError) as told:
        file.load(str(path), CATALOG)
    for line in ("gate.p99 = 0: expected a number, above 0", "gate.accuracy = 100: expected",
                 'gate.speeds: unknown key; did you mean "speed"?'):  # fmt: skip
        assert line in str(told.value)
