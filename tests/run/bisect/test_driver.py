"""A bisection from the first comparison to its result; only in the last test are its A/Bs real."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import asdict, replace

from gpubench.analysis.compare.sequential_test import Shift
from gpubench.cli.main import cli
from gpubench.errors import InputError, RecordError
from gpubench.machine import software
from gpubench.records.record import ARTEFACT_BYTES, Record, RecordFile
from gpubench.records.writer import Writer
from gpubench.run.ab import interpreters
from gpubench.run.ab.driver import ABJob
from gpubench.run.bisect import driver, setup
from gpubench.run.bisect.driver import BisectJob, Outcome
from gpubench.run.bisect.row import Arm, Row, Version
from gpubench.run.watcher import Watcher
from gpubench.suite.types import Rule
from tests.report import make_pairs
from tests.run.ab.test_driver import Watch
from tests.run.ab.test_interpreters import git
from tests.run.ab.test_revisions import Project, project

assert project
LAST = 8


class Made(Row):
    """v0 ... v8; some cannot be built."""

    def __init__(self, unbuilt: Mapping[int, str] = {}) -> None:
        super().__init__("version", [Version(f"v{n}", f"v{n} (a line)") for n in range(LAST + 1)])
        self.unbuilt = unbuilt

    def arm(self, place: int) -> Arm:
        if place in self.unbuilt:
            raise InputError(self.unbuilt[place])
        return Arm(None, None)

    def words(self, first: int, second: int) -> list[str]:
        return ["--baseline-ref", f"v{first}", "--candidate-ref", f"v{second}"]


class Machine:
    """In place of `gpubench.run.ab.driver.run`: `cost` says what a version and batch size cost."""

    def __init__(self) -> None:
        self.cost: Callable[[int, int], float] = lambda version, batch: float(version >= 5) * 0.1
        self.broken: set[int] = set()
        """Versions that fail while they are measured."""
        self.bytes: Callable[[int], int] = lambda version: 1000
        """Of what the backend made of the model."""
        self.interrupt = 0
        """The run that is interrupted."""
        self.runs: list[tuple[str, int]] = []

    def __call__(self, job: ABJob, watcher: Watcher) -> tuple[RecordFile, RecordFile]:
        self.runs.append((job.out.name, job.pairs))
        if len(self.runs) == self.interrupt:
            raise KeyboardInterrupt
        first, second = (int(n[1:]) for n in job.out.name.removesuffix("-proof").split(".."))
        cells = list(zip(*(side.header.planned for side in job.sides), strict=True))
        costs = [self.cost(second, c.batch_size) - self.cost(first, c.batch_size) for _, c in cells]
        effect = {n: math.expm1(cost) for n, cost in enumerate(costs)}
        broken = [first in self.broken, second in self.broken]

        def change(record: Record, arm: str) -> Record | None:
            at = ("baseline", "candidate").index(arm)
            if broken[1 - at] and not broken[at]:
                return None
            bytes_ = self.bytes((first, second)[at])
            record = replace(record, facts=record.facts | {ARTEFACT_BYTES: bytes_})
            failed = replace(record, status="failed", kind="crash", reason="signal 11", replicas=[])
            return failed if broken[at] else record

        pairs = 1 if any(broken) else job.pairs or None
        files = make_pairs.arms(cells, pairs, effect, rule=job.rule, seed=len(job.out.name),
                                change=change)  # fmt: skip
        for file, side in zip(files, job.sides, strict=True):
            shutil.rmtree(job.out / side.arm, ignore_errors=True)
            with Writer(job.out / side.arm, file.header) as writer:
                for record in file.records:
                    writer.append(record)
        return files


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(driver.driver, "run", found)
    monkeypatch.setattr(software, "libraries", dict)  # it takes longer than all the rest
    return found


@pytest.fixture
def job(write_suite: Callable[..., Path], tmp_path: Path) -> Callable[..., BisectJob]:
    def make(row: Row | None = None, batches: str = "[1]", **given: Any) -> BisectJob:
        values = {"chosen": {}, "cell": "", "rule": Rule(), "budget_s": 60.0} | given
        return BisectJob(
            row=row or Made(), suite=str(write_suite(batch_size=batches)), out=tmp_path / "bisect",
            cache_dir=tmp_path / "cache", **values,
        )  # fmt: skip

    return make


def said(outcome: Outcome) -> list[tuple[int, int, str]]:
    return [(s.first, s.second, s.what) for s in outcome.outlook.stretches]


def test_it_compares_what_is_wanted_until_it_is_known(
    machine: Machine, job: Callable[..., BisectJob]
) -> None:
    watch = Watch()
    outcome = driver.run(job(), watch)
    assert said(outcome) == [(4, 5, "step")]
    assert machine.runs[0] == ("v0..v8", 0), "an A/B by its own rule"
    assert all(pairs for _, pairs in machine.runs[1:])
    assert "v4..v5-proof" in {name for name, _ in machine.runs}
    assert outcome.pairs == sum(
        len((job().out / name / "candidate/records.jsonl").read_text().splitlines()) - 1
        for name in {name for name, _ in machine.runs}
    )
    assert outcome.built < LAST
    assert "8 versions to choose from, v0 (a line) .. v8 (a line)" in watch.lines[0]


def test_what_cannot_be_built_or_run_is_stepped_around(
    machine: Machine, job: Callable[..., BisectJob]
) -> None:
    machine.broken = {5}
    watch = Watch()
    outcome = driver.run(job(Made({4: "uv sync failed: no wheel\nand more"})), watch)
    assert said(outcome) == [(3, 6, "step")]
    assert outcome.skipped == {4: "uv sync failed: no wheel\nand more", 5: "failed: signal 11"}
    assert "skipped: v4 (a line): uv sync failed: no wheel" in watch.lines


@pytest.mark.parametrize("place", [0, LAST])
def test_good_and_bad_must_be_measured(
    machine: Machine, job: Callable[..., BisectJob], place: int
) -> None:
    with pytest.raises(InputError, match=f"v{place} .* cannot be measured: no wheel"):
        driver.run(job(Made({place: "no wheel"})), Watch())
    machine.broken = {place}
    with pytest.raises(InputError, match=f"v{place} .* cannot be measured: failed: signal 11"):
        driver.run(job(), Watch())


def test_it_goes_on_where_it_was_interrupted(
    machine: Machine, job: Callable[..., BisectJob]
) -> None:
    whole = driver.run(job(), Watch())
    runs = machine.runs
    for at in (2, len(runs) - 1):
        shutil.rmtree(job().out)
        machine.runs, machine.interrupt = [], at
        with pytest.raises(KeyboardInterrupt):
            driver.run(job(), Watch())
        with pytest.raises(RecordError, match="holds a bisection already; --resume goes on"):
            driver.run(job(), Watch())
        outcome = driver.run(job(resume=True), Watch())
        assert machine.runs == [*runs[:at], *runs[at - 1 :]]
        assert said(outcome) == said(whole)
    other = job(resume=True, rule=Rule(delta=0.03))
    with pytest.raises(RecordError, match=r"holds another bisection \(rule differ"):
        driver.run(other, Watch())


def test_the_budget_ends_it_with_what_is_left(
    machine: Machine, job: Callable[..., BisectJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(driver, "monotonic", lambda: float(next(clock)))
    outcome = driver.run(job(budget_s=100.0), Watch())
    assert said(outcome) == [(0, 8, "undecided")]
    assert outcome.outlook.wanted
    low, high = outcome.outlook.suspects
    assert low < 5 <= high
    assert driver.run(job(resume=True, budget_s=1e6), Watch()).outlook.wanted is None


def test_of_several_cells_the_one_that_differs_most_clearly(
    machine: Machine, job: Callable[..., BisectJob]
) -> None:
    steps = {1: (9, 0.0), 2: (3, 0.3), 4: (6, 0.1)}
    machine.cost = lambda version, batch: (version >= steps[batch][0]) * steps[batch][1]
    outcome = driver.run(job(batches="[1, 2, 4]"), Watch())
    assert outcome.cell == "fake fp32 b2 x1 latency"
    assert said(outcome) == [(2, 3, "step")]
    assert [r.label for r in outcome.differ] == [f"fake fp32 b{n} x1 latency" for n in (2, 4)]


def test_ends_that_do_not_differ_end_it(machine: Machine, job: Callable[..., BisectJob]) -> None:
    machine.cost = lambda version, batch: 0.0
    outcome = driver.run(job(batches="[1, 2]"), Watch())
    assert not outcome.differ
    assert machine.runs == [("v0..v8", 0)]


def test_what_has_no_noise_takes_one_pair_a_version(
    machine: Machine, job: Callable[..., BisectJob]
) -> None:
    machine.cost = lambda version, batch: 0.0
    machine.bytes = lambda version: 1000 + 200 * (version >= 3) + 100 * (version >= 7)
    outcome = driver.run(job(metric="size", rule=Rule(delta=0.01)), Watch())
    assert said(outcome) == [(2, 3, "step"), (6, 7, "step")]
    assert {pairs for _, pairs in machine.runs} == {1}
    assert outcome.pairs == len(machine.runs)
    assert outcome.outlook.stretches[0].effect == Shift(math.log(1.2), None, None, 1)


# ------------------------------------------------------------------------------ the command


@pytest.fixture
def bisect(
    machine: Machine, write_suite: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Result]:  # fmt: skip
    monkeypatch.setattr(setup, "Commits", lambda good, bad, root: Made())

    def run(*words: str) -> Result:
        suite, out = str(write_suite(batch_size="[1, 4]")), str(tmp_path / "out")
        given = ["bisect", suite, "--good", "a", "--bad", "b", "-o", out, *words]
        given += ["--cache-dir", str(tmp_path / "cache")]
        monkeypatch.setattr("sys.argv", ["gpubench", *given])
        return CliRunner().invoke(cli, given, catch_exceptions=False)

    return run


def test_what_is_told_in_the_end(bisect: Callable[..., Result], machine: Machine) -> None:
    machine.cost = lambda version, batch: 0.1 * (batch == 4) * (version >= 5)
    found = bisect()
    assert found.exit_code == 0
    for told in (
        "fake fp32 b4 x1 latency:", "v5 (a line): 10.", "wrong is at most 1 %", "of 9 versions",
        "--baseline-ref v4 --candidate-ref v5 --batch-size 4 --delta 2%",
    ):  # fmt: skip
        assert told in found.output, told


def test_for_programs(bisect: Callable[..., Result]) -> None:
    found = bisect("--json")
    facts = json.loads(found.output)
    (step,) = facts["found"]
    assert (step["what"], step["after"], step["candidates"]) == ("step", "v4", ["v5"])
    assert step["interval"][0] < step["effect"] < step["interval"][1]
    assert facts["exit_code"] == found.exit_code == 0


def test_exit_codes(bisect: Callable[..., Result], machine: Machine, tmp_path: Path) -> None:
    machine.cost = lambda version, batch: 0.0
    alike = bisect()
    assert alike.exit_code == 1
    assert "good and bad do not differ: nothing to bisect" in alike.output
    shutil.rmtree(tmp_path / "out")
    machine.cost, machine.runs, machine.interrupt = (
        lambda version, batch: 0.3 * (version > 4),
        [],
        3,
    )
    stopped = bisect()
    assert stopped.exit_code == 130
    assert f"--resume -o {tmp_path / 'out'}" in stopped.output
    assert bisect("--resume").exit_code == 0
    shutil.rmtree(tmp_path / "out")
    late = bisect("--budget", "0.001s")
    assert late.exit_code == 3
    assert "Not finished: gpubench bisect" in late.output
    with pytest.raises(
        InputError,
        match=r"suite .*tiny\.toml has no such cell here.*gpubench plan .*tiny\.toml --keys",
    ):
        bisect("--cell", "nothing")


def test_a_margin_of_nothing_is_a_margin(
    bisect: Callable[..., Result], machine: Machine, tmp_path: Path
) -> None:
    machine.cost = lambda version, batch: 0.0
    machine.bytes = lambda version: 1000 + (version >= 5)
    assert bisect("--batch-size", "1", "--metric", "size").exit_code == 1
    shutil.rmtree(tmp_path / "out")
    strict = bisect("--batch-size", "1", "--metric", "size=0", "--resume")
    assert "--resume: nothing is stored there yet" in strict.output
    assert (strict.exit_code, "v5 (a line): 0.1 % larger" in strict.output) == (0, True)
    assert "--metric size=0%\n" in strict.output, "by the same margin"


def test_a_metric_is_one_that_can_be_measured_again(bisect: Callable[..., Result]) -> None:
    for metric, told in (
        ("preparation", "--metric 'preparation': one that can be measured again"),
        ("beauty", "--metric 'beauty': expected one of speed"),
        ("memory", "--metric memory: follows one cell, and the suite has 2: name it with --cell"),
    ):
        with pytest.raises(InputError, match=told):
            bisect("--metric", metric)


# ------------------------------------------------------------------------------ for real


@pytest.mark.slow
def test_the_slow_commit_is_found(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real agents and workers; the fake backend is busy for as long as the model's file says."""

    def made(option: str, reference: str, root: Path) -> interpreters.Made:
        return interpreters.Made(**asdict(project.revision(reference)), python=project.python)

    monkeypatch.setattr(interpreters, "of_reference", made)
    for n in range(4):
        if n == 2:
            project.model(busy_us=1500)
        project.write("code.py", str(n))
        project.commit(f"c{n}")
    job = setup.bisection(
        "suites/gate.toml", {}, ("base", "HEAD"), None, Rule(looks=(4, 7, 9, 13)), 900.0,
        project.cache, tmp_path / "bisect", False,
    )  # fmt: skip
    outcome = driver.run(job, Watch())
    assert [s.what for s in outcome.outlook.stretches] == ["step"]
    (step,) = outcome.outlook.stretches
    assert job.row.versions[step.second].name == git(project.top, "rev-parse", "c2")[:12]
    assert step.effect
    assert math.exp(step.effect.value) > 2
    assert git(project.top, "status", "--porcelain") == ""
    assert git(project.top, "worktree", "list").count("\n") == 0
