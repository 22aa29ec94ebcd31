"""A suite and one's own tests: what is measured, handed over and told."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from statistics import median

import pytest

from gpubench.records.reader import read
from gpubench.report import exports
from tests.pytest_plugin.conftest import Pytest, WriteSuite, outcomes, write

MINE = """
    import pytest

    @pytest.mark.gpubench(suite="tiny.toml", batch_size=1)
    def test_mine(gpubench):
        assert gpubench.p50_ms > 0.2
        assert gpubench.agreement == 1
        assert gpubench.images_per_s > 0
        assert gpubench.half_width >= 0
        assert "SPEED-ONLY" in gpubench.flags
        assert gpubench.cell.batch_size == 1
        assert len(gpubench.records) == 2

    @pytest.mark.gpubench("../{here}/tiny.toml", batch_size=[1, 4])  # still the same suite
    @pytest.mark.parametrize("budget_ms", [0.1])
    def test_too_slow(gpubench, budget_ms):
        assert gpubench.p50_ms < budget_ms

    @pytest.mark.gpubench("tiny.toml", batch_size=1)
    def test_tail(gpubench):
        gpubench.percentile_ms(0.999)
"""


class Finished:
    """One run that many tests read."""

    def __init__(
        self, done: subprocess.CompletedProcess[str], directory: Path, left: list[Path]
    ) -> None:
        self.done, self.said = done, done.stdout
        self.json = json.loads((directory / "out.json").read_text())
        self.benchmarks = {bench["fullname"]: bench for bench in self.json["benchmarks"]}
        self.file = read(directory / "records" / "tiny")
        self.left = left


_finished: list[Finished] = []


@pytest.fixture
def finished(
    write_suite: WriteSuite, run_pytest: Pytest, tmp_path: Path, scratch: Path
) -> Finished:
    if not _finished:
        write_suite(
            scenario='["latency", "throughput"]', axes="[axes.options.fake]\nlatency_us = 200"
        )
        write(tmp_path / "test_mine.py", MINE.format(here=tmp_path.name))
        words = ("tiny.toml", "test_mine.py", "-v", "-rs", "--benchmark-json", "out.json")
        done = run_pytest(*words, "--gpubench-records", "records", TMPDIR=str(scratch))
        _finished.append(Finished(done, tmp_path, list(scratch.iterdir())))
    return _finished[0]


def test_one_test_a_cell_and_the_own_tests_beside_them(finished: Finished) -> None:
    found = outcomes(finished.said)
    cells = [
        f"fake-fp32-b{b}-x1-{s}-latency_us=200.0" for b in (1, 4) for s in ("latency", "throughput")
    ]
    assert {name: out for name, out in found.items() if name.startswith("tiny")} == {
        f"tiny.toml::{cell}": "PASSED" for cell in cells
    }
    assert finished.done.returncode == 1
    assert "assert" in finished.said


def test_rounds_are_the_repeats_of_the_records(finished: Finished) -> None:
    """Exactly, not nearly: the replayed clock loses nothing."""
    assert len(finished.file.records) == 8
    for cell in finished.file.header.planned:
        records = [r for r in finished.file.records if r.cell == cell]
        bench = finished.benchmarks[f"tiny.toml::{cell.label.replace(' ', '-')}"]
        data = bench["stats"]["data"]
        if cell.scenario == "latency":
            assert data == [r.median_ns() / 1e9 for r in records]
        else:
            assert data == [1 / r.images_per_s() for r in records]
            # ops of two rounds: the harmonic mean of what extra_info has the mean of
            low, high = sorted(r.images_per_s() for r in records)
            assert bench["stats"]["ops"] == pytest.approx(2 / (1 / low + 1 / high))
            assert low <= bench["extra_info"]["images_per_s"] <= high
        assert bench["stats"]["rounds"] == 2
        assert bench["stats"]["median"] == median(data)
        assert bench["stats"]["iterations"] == 1
        assert bench["group"].startswith(cell.scenario)
        assert bench["params"]["batch_size"] == cell.batch_size
        assert bench["params"]["latency_us"] == 200.0


def test_extra_info_says_what_a_reader_must_know(finished: Finished) -> None:
    header = finished.file.header
    for bench in finished.benchmarks.values():
        extra = bench["extra_info"]
        assert extra["cell"] in {cell.key for cell in header.planned}
        assert extra["fingerprint"] == header.fingerprint
        assert extra["run_id"] == header.run_id
        assert extra["parity"]["passed"] is True
        assert "SPEED-ONLY" in extra["flags"]
        if extra["interval_s"]:  # of repeats that differ wildly there is none
            low, high = extra["interval_s"]
            assert 0 < low <= bench["stats"]["median"] <= high
        assert extra["images_per_s"] > 0
        assert "one repeat" in extra["round"]
    assert finished.json["gpubench"]["comparable"]["cpu.model"]


def test_an_export_of_the_same_run_has_the_same_names(finished: Finished) -> None:
    """So that either can be the other's baseline."""
    exported = json.loads(exports.export([finished.file], "pytest-benchmark")[""])["benchmarks"]
    assert exported
    for there in exported:
        here = finished.benchmarks[there["fullname"]]
        for what in ("name", "group", "param", "params"):
            assert here[what] == there[what]
        for what in ("round", "interval_s", "images_per_s", "parity"):
            assert here["extra_info"][what] == there["extra_info"][what]
        assert here["stats"]["data"] == pytest.approx(there["stats"]["data"])


def test_records_are_an_ordinary_run(finished: Finished) -> None:
    assert finished.file.header.command[:2] == ["pytest", "-p"]
    assert finished.file.header.suite.name == "tiny"
    assert f"records: {finished.file.path}" in finished.said
    assert finished.left == []


def test_the_summary_has_intervals_and_flags(finished: Finished) -> None:
    assert "= gpubench: tiny =" in finished.said
    assert "±: half the interval" in finished.said
    assert re.search(r"^SPEED-ONLY \(4 cells\): random weights", finished.said, re.MULTILINE)


def test_own_tests_get_the_result_and_share_the_measurement(finished: Finished) -> None:
    found = {name: out for name, out in outcomes(finished.said).items() if "test_mine" in name}
    one, four = (f"fake-fp32-b{b}-x1-{{}}-latency_us=200.0" for b in (1, 4))
    assert found[f"test_mine.py::test_mine[{one.format('latency')}]"] == "PASSED"
    assert found[f"test_mine.py::test_too_slow[{one.format('latency')}-0.1]"] == "FAILED"
    assert found[f"test_mine.py::test_too_slow[{four.format('latency')}-0.1]"] == "FAILED"
    assert found[f"test_mine.py::test_tail[{one.format('latency')}]"] == "FAILED"
    assert found[f"test_mine.py::test_mine[{one.format('throughput')}]"] == "FAILED"
    assert "the throughput scenario has no time per batch" in finished.said
    assert "n too small" in finished.said
    mine = finished.benchmarks[f"test_mine.py::test_too_slow[{one.format('latency')}-0.1]"]
    assert mine["params"]["budget_ms"] == 0.1
    assert (
        mine["stats"]["data"]
        == (finished.benchmarks[f"tiny.toml::{one.format('latency')}"]["stats"]["data"])
    )
