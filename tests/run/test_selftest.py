"""The self-test on the fake backend: what it reports, and what it leaves behind."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from rich.console import Console

from gpubench.analysis.compare import aa_history
from gpubench.cli.main import cli
from gpubench.errors import GpubenchError
from gpubench.records.reader import read
from gpubench.records.record import RecordFile, encode
from gpubench.run import selftest
from gpubench.suite.types import Rule

WriteSuite = Callable[..., Path]


def test_the_clock_and_the_loop_are_measured() -> None:
    found = selftest.clock()
    assert 0 < found.resolution_ns < 1e6
    assert found.shortest_sample_ns == 1000 * found.overhead_ns
    assert 0 < found.null_iteration_ns < 1e6


def test_it_counts_alarms_and_keeps_a_history(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite(axes="[axes.options.fake]\nlatency_us = 300", batch_size="[1]")
    done = CliRunner().invoke(
        cli, ["selftest", str(suite), "--minutes", "0.1", "--json", "--cache-dir", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["suites"] >= 1
    assert found["alarm_rate"]["n"] == found["suites"]
    assert found["alarm_rate"]["high"] >= found["alarms"] / found["suites"]
    [cell] = found["cells"]
    assert cell["pairs"] >= Rule().looks[0]
    assert sum(cell["verdicts"].values()) == found["suites"]
    assert cell["smallest_detectable"] > 0.02
    history = aa_history.load(Path(found["history_path"]), print)
    assert len(history) == found["history"] == found["sessions"] >= 1
    assert history[0].header.pairing is None
    assert read(next(Path(found["history_path"]).glob("*.jsonl"))).records[0].status == "ok"


def test_a_suite_without_a_measurable_cell_is_an_error(
    write_suite: WriteSuite, tmp_path: Path
) -> None:
    suite = write_suite(backend='["fake-missing"]')
    with pytest.raises(GpubenchError, match=r"can be measured here: \w.*; \w"):
        selftest.run(str(suite), 0.01, {}, Rule(), tmp_path, lambda _: None)


def test_a_comparison_that_measured_nothing_is_no_evidence(
    write_suite: WriteSuite, tmp_path: Path
) -> None:
    suite = write_suite(axes='[axes.options.fake]\nfail = "open"', batch_size="[1]")
    with pytest.raises(GpubenchError, match=r"A/A comparison decided no cell: fake .*MISSING"):
        selftest.run(str(suite), 0.01, {}, Rule(), tmp_path, lambda _: None)


def test_an_interrupt_keeps_the_sessions_that_are_done(
    write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(words: str) -> None:
        if words.startswith("ordinary run"):
            raise KeyboardInterrupt

    monkeypatch.setattr(selftest, "LEAST_S", 6.0)
    suite = write_suite(axes="[axes.options.fake]\nlatency_us = 300", batch_size="[1]")
    found = selftest.run(str(suite), 0.001, {}, Rule(), tmp_path, interrupt)
    assert (found.interrupted, found.suites, found.sessions) == (True, 1, 1)
    [kept] = (path for path in tmp_path.rglob("*.jsonl"))
    assert read(kept).records[0].status == "ok"


def test_an_interrupt_keeps_the_comparisons_that_are_done(
    write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(selftest, "LEAST_S", 6.0)
    monkeypatch.setattr(selftest.driver, "run", interrupted)
    suite = write_suite(axes="[axes.options.fake]\nlatency_us = 300", batch_size="[1]")
    words = ["selftest", str(suite), "--minutes", "0.001", "--cache-dir", str(tmp_path)]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 130
    assert "interrupted" in done.stdout
    assert "0 of 1 A/A comparisons alarmed" in done.stdout
    assert "0 runs added, 0 in" in done.stdout
    monkeypatch.setattr(selftest.ab_driver, "run", interrupted)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        selftest.run(str(suite), 0.001, {}, Rule(), tmp_path, said.append)
    assert said[-1] == "interrupted: nothing was measured"


def test_sessions_that_do_not_count_are_not_promised(
    write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flagged session is kept, but `compare` has no use for it."""
    measure = selftest.driver.run

    def unsteady(*given: Any) -> RecordFile:
        file = measure(*given)
        header, *_ = Path(file.path).read_bytes().splitlines(keepends=True)
        records = [replace(r, flags=[*r.flags, "DRIFT"]) for r in file.records]
        lines = [encode("record", record) for record in records]
        Path(file.path).write_bytes(header + b"".join(lines))
        return replace(file, records=records)

    monkeypatch.setattr(selftest, "LEAST_S", 6.0)
    monkeypatch.setattr(selftest.driver, "run", unsteady)
    suite = write_suite(axes="[axes.options.fake]\nlatency_us = 300", batch_size="[1]")
    found = selftest.run(str(suite), 0.001, {}, Rule(), tmp_path, lambda _: None)
    assert (found.history, found.usable) == (1, 0)
    told = io.StringIO()
    Console(file=told, width=200).print(selftest.render(found))
    assert "0 of them of use for every cell" in told.getvalue()
    assert "of the tasks: level or spread moved" in told.getvalue()
    assert "takes 368 comparisons without an alarm" in told.getvalue()


@pytest.mark.parametrize("minutes", ["0", "-1", "1e9"])
def test_minutes_are_checked(minutes: str) -> None:
    done = CliRunner().invoke(cli, ["selftest", "--minutes", minutes])
    assert "expected more than 0" in str(done.exception)
