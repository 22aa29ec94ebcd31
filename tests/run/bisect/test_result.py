"""What a bisection tells a person in the end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gpubench.analysis.compare.bisection import Outlook, Stretch
from gpubench.run.bisect import result


def test_where_a_change_probably_came_is_told_of_the_stretch_that_holds_it() -> None:
    stretches = [Stretch(0, 4, "undecided", None), Stretch(4, 8, "undecided", None)]
    outcome: Any = SimpleNamespace(outlook=Outlook(stretches, None, 0.96, (2, 3)))
    versions = [SimpleNamespace(name=f"1.{n}", line=f"lib 1.{n}") for n in range(9)]
    job: Any = SimpleNamespace(row=SimpleNamespace(versions=versions, kind="release"))
    said = [list(result.told(job, outcome, stretch)) for stretch in stretches]
    assert said == [
        [
            "after lib 1.0, up to lib 1.4; measuring ended before it was known",
            "  probably (96 %) after 1.2, by lib 1.3: 1 release",
        ],
        ["after lib 1.4, up to lib 1.8; measuring ended before it was known"],
    ]
