"""What is shown while a search goes on."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pytest
from msgspec.structs import replace
from rich.console import Console

from gpubench.records.record import Record
from gpubench.run import progress
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


def lines(records: Iterable[tuple[Record, str]], seconds: float, total: int = -1) -> list[str]:
    """What a log gets of a run whose tasks take so many ``seconds`` each."""
    now = [0.0]
    screen = Console(file=io.StringIO(), width=200)
    watcher = progress.Lines(screen, lambda: now[0])
    watcher.begin(0)
    for _ in range(3):
        watcher.task(None, "peaks of the machine", 0)
    watcher.begin(total)
    for n, (record, arm) in enumerate(records):
        now[0] += seconds
        watcher.task(record.cell, f"screen pair {n // 2 + 1}", 90.0)
        watcher.recorded(record, arm)
    watcher.begin(0)  # the proof of a search
    watcher.task(None, "peaks of the machine", 0)
    return screen.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("seconds", "most"), [(0.1, 10), (2.0, 40), (60.0, 70)])
def test_a_log_gets_the_fewer_lines_the_longer_a_run_takes(seconds: float, most: int) -> None:
    records = [(searches.record(cell, r), "") for r in range(10) for cell in cells(40)]
    told = lines(records, seconds, len(records))
    assert told.count("peaks of the machine") == 1
    assert 3 <= len(told) <= most
    assert "[400/400] " in told[-1]
    assert "; about 1 min 30 s left" in told[-1]


def test_pairs_of_an_ab_name_both_arms_in_one_line() -> None:
    cell = cells(1)[0]
    order = ["baseline", "candidate", "candidate", "baseline"] * 5
    told = lines([(searches.record(cell, n // 2), arm) for n, arm in enumerate(order)], 8.0)[1:]
    assert 5 <= len(told) <= 10
    for line in told:
        assert line.startswith("screen pair ")
        assert f": {cell.label}: baseline 800 images/s, candidate 800" in line
        assert line.endswith("; about 1 min 30 s left")


def test_arms_that_are_different_cells_say_once_what_they_share() -> None:
    first, other = (searches.record(cells(1)[0], 0) for _ in range(2))
    other = replace(other, cell=replace(other.cell, backend="openvino"))
    (told,) = lines([(first, "candidate"), (other, "baseline")], 11.0)[1:]
    shared = first.cell.label.removeprefix(first.cell.backend).strip()
    values = f"baseline openvino 800 images/s, candidate {first.cell.backend} 800 images/s"
    assert told == f"screen pair 1: {shared}: {values}; about 1 min 30 s left"


@pytest.mark.parametrize("kind", [progress.Lines, progress.Live])
def test_a_cause_is_told_once(kind: type[progress.Lines | progress.Live]) -> None:
    screen = Console(file=io.StringIO(), width=200)
    watcher = kind(screen)
    for cell in cells(9):
        watcher.recorded(Record(cell=cell, repeat=0, status="failed", kind="error",
                                reason="needs 128 pictures"))  # fmt: skip
    assert screen.file.getvalue().count("128 pictures") == 1  # type: ignore[attr-defined]


def test_the_course_of_a_search() -> None:
    space, told = cells(40), list[tuple[str, str]]()
    what, bench = asked(baseline=space[:1]), Bench(ms, bound=lambda c: ms(c) / 1.2)
    noted: list[Record] = []
    search(
        space, what, bench, Everything(what, bench).next, (), noted.append,
        lambda standings: told.append(driver.course(standings, what)),
    )  # fmt: skip
    assert told[0][0].startswith("1 of 40 measured")
    assert told[0][1] == f"leads: {space[0].label}, 556 images/s"
    tried = len({r.cell.key for r in noted if r.status == "ok"})
    assert told[-1][0] == f"{tried} of 40 measured, {40 - tried} ruled out"
    assert space[7].label in told[-1][1]
