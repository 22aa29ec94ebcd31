"""What a bisection tells a person in the end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gpubench.analysis.compare.bisection import Outlook, Stretch
from gpubench.run.bisect import result
from gpubench.suite.types import Axes


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


def test_what_is_found_is_named_and_shown() -> None:
    """A step that is proved, of one version and of several; and what ended too early."""
    shift: Any = SimpleNamespace(value=0.1, n=9, interval=lambda: (0.05, 0.15))
    versions = [SimpleNamespace(name=f"1.{n}", line=f"lib 1.{n}") for n in range(9)]
    job: Any = SimpleNamespace(
        row=SimpleNamespace(versions=versions, kind="release", words=lambda *_: ["--x", "y"]),
        metric="speed", rule=SimpleNamespace(alpha=0.01, delta=0.02), out="there", suite="ci",
        exact=False, chosen={"output": "logits"},
    )  # fmt: skip
    end: Any = SimpleNamespace(label="a cell", verdict="REGRESSED", reason="")

    def of(*stretches: Stretch, wanted: Any = None) -> result.Bisection:
        outcome: Any = SimpleNamespace(
            outlook=Outlook([*stretches], wanted, 0.5, (0, 8)), cell="a cell", ends=[end],
            differ=[end], skipped={6: "no wheel\nmore"}, pairs=9, built=4,
            cells=[SimpleNamespace(label="a cell", **dict.fromkeys(Axes.__struct_fields__, 1))],
        )  # fmt: skip
        return result.Bisection(job, outcome)

    made = of(Stretch(0, 3, "alike", None), Stretch(3, 4, "step", shift))
    assert (made.code, made.finished, [v.name for v in made.found]) == (0, True, ["1.4"])
    assert made.facts()["found"][1]["candidates"] == ["1.4"]
    text = repr(made)
    assert "lib 1.4: 10.5 % slower [5.1, 16.2], 9 pairs" in text
    assert "see it again: gpubench ab ci --x y --output-name logits --delta 2%" in text
    assert "not measured: lib 1.6: no wheel" in text
    assert "lib 1.4: 10.5 % slower" in made._repr_html_()
    several = of(Stretch(0, 2, "step", shift), Stretch(2, 8, "undecided", None), wanted=(2, 8))
    assert (several.code, several.finished) == (3, False)
    assert [v.name for v in several.found] == ["1.1", "1.2"]
