"""What is shown while a search goes on."""

from __future__ import annotations

import io

import pytest
from msgspec.structs import replace
from rich.console import Console

from gpubench.cli import progress
from gpubench.records.record import Record
from gpubench.run.tune import driver
from gpubench.run.tune.search import search
from tests.analysis import searches
from tests.run.tune.benches import Bench, Everything, cells
from tests.run.tune.test_search import asked, ms


@pytest.mark.parametrize("terminal", [True, False])
def test_what_leads_is_said_when_it_changes(terminal: bool) -> None:
    screen = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    watcher = (progress.Live if terminal else progress.Lines)(screen)
    first, second = cells(2)
    with watcher:
        watcher.begin(-1)
        watcher.task(first, "first try", 9.0)
        watcher.recorded(searches.record(first, 0))
        watcher.course("1 of 9 tried", "leads: first")
        watcher.recorded(replace(searches.record(second, 0), status="ruled-out", reason="no hope"))
        watcher.course("2 of 9 tried", "leads: first")
        watcher.course("3 of 9 tried", "leads: second")
    said = screen.file.getvalue()  # type: ignore[attr-defined]
    assert said.count("leads: first") == 1
    assert said.count("leads: second") == 1
    assert "no hope" not in said
    assert "[1/" not in said


def test_the_course_of_a_search() -> None:
    space, told = cells(40), list[tuple[str, str]]()
    what, bench = asked(baseline=space[:1]), Bench(ms, bound=lambda c: ms(c) / 1.2)
    noted: list[Record] = []
    search(
        space, what, bench, Everything(what, bench), (), noted.append,
        lambda standings: told.append(driver.course(standings, what)),
    )  # fmt: skip
    assert told[0][0].startswith("1 of 40 measured")
    assert told[0][1] == f"leads: {space[0].label}, 556 images/s"
    tried = len({r.cell.key for r in noted if r.status == "ok"})
    assert told[-1][0] == f"{tried} of 40 measured, {40 - tried} ruled out"
    assert space[7].label in told[-1][1]
