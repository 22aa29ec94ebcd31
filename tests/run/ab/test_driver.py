"""Interleaved A/B with real agents and workers, on the fake backend."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gpubench import units
from gpubench.analysis.compare.compare import compare, view
from gpubench.analysis.summary import summarise
from gpubench.errors import ChangedError, InputError, RecordError
from gpubench.records.record import Record, RecordFile, Work
from gpubench.records.writer import Writer
from gpubench.report.sections import compare as told
from gpubench.report.sections import wrong_answers
from gpubench.run import roofline
from gpubench.run.ab import arms, driver
from gpubench.run.ab import setup as ab_setup
from gpubench.run.agent import client
from gpubench.run.agent.messages import Counted, Gauge, Gauged, Request
from gpubench.run.prepare import prepare
from gpubench.run.watcher import Silent
from gpubench.suite import gate
from gpubench.suite.types import Rule
from tests.conftest import FAKES

WriteSuite = Callable[..., Path]
Arms = tuple[RecordFile, RecordFile]
POLICY = {"duration_s": 0.04}


class Watch(Silent):
    def __init__(self, stop_after: int | None = None) -> None:
        self.records: list[Record] = []
        self.lines: list[str] = []
        self._stop_after = stop_after

    def said(self, text: str) -> None:
        self.lines.append(text)

    def recorded(self, record: Record, arm: str = "") -> None:
        self.records.append(record)
        if len(self.records) == self._stop_after:
            raise KeyboardInterrupt


@pytest.fixture
def job(write_suite: WriteSuite, tmp_path: Path, cache_dir: Path) -> Callable[..., driver.ABJob]:
    def make(
        baseline: str = "",
        candidate: str = "",
        pythons: tuple[Path | None, Path | None] = (None, None),
        resume: bool = False,
        budget_s: float = 60.0,
        rule: Rule | None = None,
        **changes: Any,
    ) -> driver.ABJob:
        suite = write_suite(**{"policy": POLICY, "batch_size": "[1]"} | changes)
        specs = (
            arms.parse("--baseline", [baseline] if baseline else []),
            arms.parse("--candidate", [candidate] if candidate else []),
        )
        return ab_setup.comparison(
            str(suite), {}, specs, pythons, rule or Rule(), budget_s, cache_dir,
            tmp_path / "ab", resume, (),
        )  # fmt: skip

    return make


def verdicts(files: Arms) -> dict[str, str]:
    return {row.label: row.verdict for row in compare(*files)}


def test_a_slower_arm_is_found(job: Callable[..., driver.ABJob]) -> None:
    watch = Watch()
    files = driver.run(job("latency_us=300", "latency_us=600"), watch)
    assert re.search(r"; --budget 1m finds a slowdown of [\d.]+ %; ", watch.lines[0])
    [row] = compare(*files)
    assert row.verdict == "REGRESSED"
    assert row.code == "confirmed"
    assert row.ratio == pytest.approx(2, rel=0.3)
    base, candidate = files
    assert [r.repeat for r in base.records] == [r.repeat for r in candidate.records]
    assert [r.order for r in base.records] == [r.order for r in candidate.records]
    assert {r.order for r in base.records} <= {"ABBA", "BAAB"}
    assert row.pairs == len(base.records)
    pids = [r.facts["pid"] for f in files for r in f.records]
    assert len(set(pids)) == len(pids)  # a fresh process for each arm and pair


def test_each_process_has_two_turns_and_is_idle_between(job: Callable[..., driver.ABJob]) -> None:
    rule = Rule(looks=(8,))
    files = driver.run(job("latency_us=300", "latency_us=300", rule=rule), Watch())
    for record in (r for f in files for r in f.records):
        assert len(record.replicas) == len(record.again) == 1
        assert record.again[0].durations_ns
        assert record.parity
        assert record.parity.passed
        assert 0 <= record.facts["idle_cpu_share"] < 0.5
    assert files[0].header.pairing != files[1].header.pairing
    assert files[0].header.pairing
    assert files[0].header.pairing.rule == rule


def test_the_cpu_time_of_both_arms_is_counted_once(job: Callable[..., driver.ABJob]) -> None:
    long = {"duration_s": 0.3}  # so that the outer arm's window has more than 50 ticks
    files = driver.run(job("latency_us=300", "latency_us=301", budget_s=0.01, policy=long), Watch())
    counted = [r.telemetry["cpu"] for f in files for r in f.records]
    counted = [cpu for cpu in counted if "own_busy_share" in cpu]
    assert counted
    for cpu in counted:
        assert 0 < cpu["own_busy_share"] <= 1.1
        assert 0 <= cpu["other_busy_share"] <= 1.1


def test_an_arm_that_spins_while_idle_is_flagged(job: Callable[..., driver.ABJob]) -> None:
    files = driver.run(job("fail=spin", "latency_us=300", budget_s=0.1), Watch())
    assert all("BUSY-WHILE-IDLE" in r.flags for r in files[0].records)
    assert not any("BUSY-WHILE-IDLE" in r.flags for r in files[1].records)


def test_arms_that_do_not_fit_together_follow_one_another(job: Callable[..., driver.ABJob]) -> None:
    """The first of each pair is drawn anew: with seed 1, not the same one in all pairs."""
    made = replace(job("fail=crowded", "fail=crowded", rule=Rule(looks=(7, 8))), seed=1)
    files = driver.run(made, Watch())
    orders = [r.order for r in files[0].records]
    assert set(orders) == {"AB", "BA"}
    assert all(not r.again for f in files for r in f.records)
    assert [row.pairs for row in compare(*files)] == [len(files[0].records)]


@pytest.mark.parametrize("fail", ["open", "run", "sigkill", "wrong", "oom"])
def test_a_broken_arm_ends_its_cell_only(job: Callable[..., driver.ABJob], fail: str) -> None:
    made = job("latency_us=0", f"fail={fail}", rule=Rule(looks=(8,)))
    files = driver.run(made, Watch())
    [row] = compare(*files)
    assert row.verdict == "MISSING"
    assert row.code == "failed"
    assert [r.status for r in files[1].records] == ["failed"]
    assert all(r.status == "ok" for r in files[0].records)


def test_a_failing_cell_does_not_stop_the_others(job: Callable[..., driver.ABJob]) -> None:
    axes = '[axes.options.fake]\nfail = ["", "sigkill"]'
    rule = Rule(looks=(7, 9), alpha=0.2)  # few pairs will do
    made = job("latency_us=300", "latency_us=600", axes=axes, rule=rule, budget_s=90)
    files = driver.run(made, Watch())
    assert sorted(verdicts(files).values()) == ["MISSING", "REGRESSED"]


def test_the_budget_ends_it_and_a_pair_remains(job: Callable[..., driver.ABJob]) -> None:
    files = driver.run(job("latency_us=300", "latency_us=301", budget_s=0.01), Watch())
    assert [len(f.records) for f in files] == [1, 1]
    assert set(verdicts(files).values()) <= {"INCONCLUSIVE"}


def test_an_interrupted_comparison_goes_on_where_it_was(
    job: Callable[..., driver.ABJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the model file has become another one meanwhile."""

    def changed(*args: Any) -> Iterator[Any]:
        for ready in prepare(*args[:6]):
            args[6].check(ready.cell, {"model": "0" * 64})
            yield ready

    rule = Rule(looks=(8,))
    with pytest.raises(KeyboardInterrupt):
        driver.run(job("latency_us=300", "latency_us=300", rule=rule), Watch(stop_after=7))
    again, resumed = Watch(), job("latency_us=300", "latency_us=300", rule=rule, resume=True)
    with monkeypatch.context() as patched:
        patched.setattr(driver, "prepare", changed)
        with pytest.raises(ChangedError, match="contents have changed"):
            driver.run(resumed, again)
    assert again.records == []
    files = driver.run(resumed, again)
    assert [r.repeat for r in files[0].records] == [r.repeat for r in files[1].records]
    assert min(r.repeat for r in again.records) == 3  # pair 3 was half done
    assert len({r.repeat for r in files[0].records}) == len(files[0].records)


def test_resuming_another_comparison_is_refused(job: Callable[..., driver.ABJob]) -> None:
    first, other = Watch(), Watch()
    begun = job("latency_us=300", "latency_us=300", budget_s=0.01, resume=True)
    driver.run(begun, first)
    with pytest.raises(RecordError, match="another comparison"):
        driver.run(job("latency_us=300", "latency_us=400", resume=True), other)
    assert len(first.lines) == 1
    assert first.lines[0].endswith("nothing is stored there yet, so this is its beginning")
    assert other.lines == []


def test_one_killed_between_the_two_headers_begins_anew(
    job: Callable[..., driver.ABJob], tmp_path: Path
) -> None:
    asked = job("latency_us=300", "latency_us=300", budget_s=0.01, resume=True)
    header = replace(asked.sides[0].header, seed=asked.seed)
    with (
        Writer(tmp_path / "ab/baseline", header),
        pytest.raises(RecordError, match="another gpubench is writing"),
    ):
        driver.run(asked, Watch())
    watch = Watch()
    files = driver.run(asked, watch)
    assert [len(f.records) for f in files] == [1, 1]
    assert watch.lines[0].endswith("nothing is stored there yet, so this is its beginning")
    (tmp_path / "ab/candidate/records.jsonl").unlink()  # what was measured is not thrown away
    with pytest.raises(RecordError, match=r"candidate.*there is no A/B to go on with"):
        driver.run(asked, Watch())
    assert (tmp_path / "ab/baseline/records.jsonl").exists()


def wrapper(path: Path, omp_dynamic: str) -> Path:
    """An interpreter with the fake backends and a variable of its own."""
    path.write_text(
        f'#!/bin/sh\nexport PYTHONPATH="{FAKES}" OMP_DYNAMIC={omp_dynamic}\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    path.chmod(0o755)
    return path


def test_two_interpreters_have_their_own_agents_and_environments(
    job: Callable[..., driver.ABJob], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts = []
    launch = client.AgentClient.launch
    monkeypatch.setattr(
        client.AgentClient, "launch", lambda self: (starts.append(self), launch(self))[1]
    )
    pythons = tuple(wrapper(tmp_path / name, name) for name in ("TRUE", "FALSE"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "nothing"))  # ours: must not reach the others
    files = driver.run(
        job("latency_us=300", "latency_us=600", pythons=pythons,
            rule=Rule(looks=(8,)), budget_s=0.001),  # over before the second round begins
        Watch(),
    )  # fmt: skip
    variables = [f.header.environment["variables"] for f in files]
    assert [v["OMP_DYNAMIC"] for v in variables] == ["TRUE", "FALSE"]
    rounds = max(r.repeat for r in files[0].records) + 1
    assert rounds == 1
    assert len(starts) == 2 * rounds  # no pair shares a server's memory with another
    assert files[1].header.pairing
    assert "python=" in files[1].header.pairing.differs


def test_an_agent_of_another_version_is_refused(
    job: Callable[..., driver.ABJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.messages, "PROTOCOL", 99)
    python = Path(sys.executable)
    with pytest.raises(InputError, match="speaks another protocol"):
        driver.run(job("latency_us=1", "latency_us=2", pythons=(python, python)), Watch())


def test_bad_input_found_late_leaves_no_records_behind(
    job: Callable[..., driver.ABJob], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """But those of an A/B that is gone on with stay."""

    def refuse(*_: object) -> None:
        raise InputError("images 'photos' have no labels")

    nobody = client.AgentClient([], tmp_path, tmp_path / "log")  # never started
    monkeypatch.setattr(driver, "prepare", refuse)
    asked = job("latency_us=1", "latency_us=2")
    with pytest.raises(InputError, match="no labels"):
        driver.run(asked, Watch(), nobody)
    assert not list((tmp_path / "ab").rglob("*.jsonl"))
    for side in asked.sides:
        Writer(tmp_path / "ab" / side.arm, replace(side.header, seed=asked.seed)).__exit__()
    with pytest.raises(InputError, match="no labels"):
        driver.run(replace(asked, resume=True), Watch(), nobody)
    assert len(list((tmp_path / "ab").rglob("*.jsonl"))) == 2


def test_no_arm_gives_memory_back_between_batches_by_chance(
    job: Callable[..., driver.ABJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")  # the user's own wins
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    for file in driver.run(job("latency_us=1", "latency_us=2"), Watch()):
        found = file.header.environment["variables"]
        assert found["MALLOC_MMAP_THRESHOLD_"] == "131072"
        assert found["MALLOC_TRIM_THRESHOLD_"] == str(2**40)


def test_skips_are_recorded_in_their_arm(job: Callable[..., driver.ABJob]) -> None:
    files = driver.run(job("backend=fake", "backend=fake-missing"), Watch())
    [row] = compare(*files)
    assert (row.verdict, row.code) == ("MISSING", "skipped")
    assert "a-machine-that-has-it" in files[1].records[0].remedy
    assert files[0].records == []


def test_both_arms_carry_the_roofline_which_is_measured_once(
    job: Callable[..., driver.ABJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []

    def reply(self: roofline.Ceilings, request: Request, wanted: type) -> Any:
        asked.append(request)
        if isinstance(request, Gauge):
            return Gauged(dict.fromkeys(request.types, 1000000000.0), 1e9, 0.0)
        return Counted(Work(flops=1e6, weights=1, activations=1, ends=1))

    monkeypatch.setattr(roofline.Ceilings, "_reply", reply)
    monkeypatch.setattr(roofline.Ceilings, "_due", lambda self, cell: True)
    files = driver.run(job("latency_us=300", "latency_us=300", budget_s=0.5), Watch())
    found = [record.ceiling for file in files for record in file.records]
    assert found
    assert all(ceiling == found[0] is not None for ceiling in found)
    assert len(asked) == 2


def test_an_ab_records_and_shows_which_answers_changed(job: Callable[..., driver.ABJob]) -> None:
    rule = gate.rule({}, ["agreement=0", "accuracy", "memory", "cold_start", "size"])
    loose = POLICY | {"min_top1_agreement": 0.1, "max_relative_error": 10.0}
    made = job("latency_us=200", "fail=wrong-slot", rule=rule, budget_s=1.0, policy=loose,
               batch_size="[4]")  # fmt: skip
    base, candidate = driver.run(made, Watch())
    for file in (base, candidate):
        first, *later = (r.parity.answers for r in file.records if r.parity)
        assert first
        assert len(first.given) == len(first.labels) > 1
        assert later == [None] * (len(file.records) - 1)
    changed = candidate.records[0].changed
    assert changed
    assert changed.pictures == len(changed.shown) > 0
    assert all(d.expected != d.answer for d in changed.shown)
    assert changed.shown[0].thumbnail
    assert not any(r.changed for r in (*base.records, *candidate.records[1:]))
    rows = {c.judged: c for c in compare(base, candidate)}
    assert [*rows] == ["speed", "accuracy", "agreement", "memory", "size", "cold_start"]
    assert rows["agreement"].changed == (changed.pictures, len(first.given))
    assert rows["agreement"].verdict == "REGRESSED"
    assert rows["size"].verdict == "EQUIVALENT"
    both = view(base, candidate)
    assert not told.unjudged(both)
    assert told.unjudged(replace(both, rule=Rule())) == (
        f"Not judged: 1 cell gave other answers, to up to {changed.pictures} pictures "
        "(--metric accuracy,agreement)."
    )
    [group, _] = wrong_answers.groups(summarise([base, candidate]))
    assert group.rival == "baseline"
    assert group.head.endswith(f": {units.count(changed.pictures, 'image')} changed")
    assert f"; baseline: {group.images[0].expected};" in wrong_answers.lines(group)[0]
