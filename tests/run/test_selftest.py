"""The self-test on the fake backend: what it reports, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from gpubench.analysis import aa
from gpubench.cli import cli
from gpubench.errors import GpubenchError
from gpubench.record import read
from gpubench.run import selftest
from gpubench.suite import Rule

WriteSuite = Callable[..., Path]


def test_the_clock_and_the_loop_are_measured() -> None:
    found = selftest.clock()
    assert 0 < found.resolution_ns < 1e6
    assert found.shortest_sample_ns == 1000 * found.overhead_ns
    assert 0 < found.null_iteration_ns < 1e6


def test_it_counts_alarms_and_keeps_a_history(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite(axes="[axes.options.fake]\nlatency_us = 300", batch_size="[1]")
    done = CliRunner().invoke(
        cli, ["selftest", str(suite), "--minutes", "0.02", "--json", "--cache-dir", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["suites"] >= 1
    assert found["alarm_rate"]["n"] == found["suites"]
    assert found["alarm_rate"]["high"] >= found["alarms"] / found["suites"]
    [cell] = found["cells"]
    assert cell["pairs"] >= 8
    assert sum(cell["verdicts"].values()) == found["suites"]
    assert cell["smallest_detectable"] > 0.02
    history = aa.load(Path(found["history_path"]))
    assert len(history) == found["history"] == found["sessions"] >= 1
    assert history[0].header.pairing is None
    assert read(next(Path(found["history_path"]).glob("*.jsonl"))).records[0].status == "ok"


def test_a_suite_without_a_measurable_cell_is_an_error(
    write_suite: WriteSuite, tmp_path: Path
) -> None:
    suite = write_suite(backend='["fake-missing"]')
    with pytest.raises(GpubenchError, match="none of its cells can be measured here"):
        selftest.run(str(suite), 0.01, {}, Rule(), tmp_path, lambda _: None)


def test_a_comparison_that_measured_nothing_is_no_evidence(
    write_suite: WriteSuite, tmp_path: Path
) -> None:
    suite = write_suite(axes='[axes.options.fake]\nfail = "open"', batch_size="[1]")
    with pytest.raises(GpubenchError, match=r"A/A comparison measured no cell: fake .*MISSING"):
        selftest.run(str(suite), 0.01, {}, Rule(), tmp_path, lambda _: None)


def test_an_interrupt_keeps_the_sessions_that_are_done(
    write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(words: str) -> None:
        if words.startswith("ordinary run"):
            raise KeyboardInterrupt

    monkeypatch.setattr(selftest, "LEAST_S", 0.01)
    suite = write_suite(axes="[axes.options.fake]\nlatency_us = 300", batch_size="[1]")
    with pytest.raises(KeyboardInterrupt):
        selftest.run(str(suite), 0.001, {}, Rule(), tmp_path, interrupt)
    [kept] = (path for path in tmp_path.rglob("*.jsonl"))
    assert read(kept).records[0].status == "ok"


@pytest.mark.parametrize("minutes", ["0", "-1", "1e9"])
def test_minutes_are_checked(minutes: str) -> None:
    done = CliRunner().invoke(cli, ["selftest", "--minutes", minutes])
    assert "expected more than 0" in str(done.exception)
