"""A search on this machine, with real agents and workers, on the fake backend."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gpubench.errors import CalibrationError, ChangedError, InputError, RecordError
from gpubench.records.reader import EVIDENCE, read
from gpubench.records.record import RECORDS, Record
from gpubench.run import availability, driver, setup
from gpubench.run.ab import driver as ab_driver
from gpubench.run.agent.client import OnProgress
from gpubench.run.agent.messages import Failure, Prepare, Prepared, Reply, Request
from gpubench.run.tune import driver as tune_driver
from gpubench.run.tune import setup as tune_setup
from gpubench.run.tune import space, trials, verify
from gpubench.run.tune.driver import TuneJob
from gpubench.run.watcher import Silent
from gpubench.suite import file as suite_file
from gpubench.suite import grid
from gpubench.suite.goal import Goal, Limit, Metric
from gpubench.suite.types import Cell, Policy
from tests.conftest import POLICY
from tests.run.tune.benches import cells

RATE = Metric("throughput")
FAST = Goal(RATE)
LATENCIES = {"latency_us": (500.0, 2000.0)}
MakeJob = Callable[..., TuneJob]


def _with(default: Any, options: Any, *given: Any, **more: Any) -> Any:
    found = default(*given, **more)
    return replace(found, options=found.options | options)


class Watch(Silent):
    def __init__(self, stop: int = 0) -> None:
        self.stop, self.records, self.leads = stop, list[Record](), list[str]()

    def recorded(self, record: Record, arm: str = "") -> None:
        self.records.append(record)
        if len(self.records) == self.stop:
            raise KeyboardInterrupt

    def course(self, tried: str, leads: str) -> None:
        self.leads.append(leads)


@pytest.fixture
def make_job(
    fakes: None, tmp_path: Path, tiny_onnx: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> MakeJob:
    """Time goes on by itself, whatever the machine does beside."""
    monkeypatch.setattr(verify, "SAMPLE_S", 0.04)
    monkeypatch.setattr(trials, "monotonic", partial(next, itertools.count(0.0, 0.04)))
    monkeypatch.setattr(ab_driver, "monotonic", partial(next, itertools.count(0.0, 0.3)))
    whole = space.default

    def make(options: Any = LATENCIES, goal: Goal = FAST, resume: bool = False, budget: float = 3.0,
             baseline: str = "backend=fake,latency_us=2000", floors: Any = None, out: str = "out",
             **chosen: Any) -> TuneJob:  # fmt: skip
        found = partial(_with, whole, {"fake": options})
        monkeypatch.setattr(space, "default", found)
        words = {"model": str(tiny_onnx), "images": "synthetic", "device": "cpu",
                 "backend": ["fake"], "boundary": "transfer", "precision": ["fp32"],
                 "batch_size": [1, 4], "replicas": [1]} | chosen  # fmt: skip
        job = tune_setup.job(
            words, goal, floors or {}, budget_s=budget, seed=0,
            baseline=[baseline], cache_dir=cache_dir, output=tmp_path / out, resume=resume,
        )  # fmt: skip
        policy = replace(job.plan.suite.policy, **POLICY | {"repeats": 1, "max_repeats": 1})
        suite = replace(job.plan.suite, policy=policy)
        return replace(
            job, plan=replace(job.plan, suite=suite), header=replace(job.header, suite=suite)
        )

    return make


def fastest(cell: Cell) -> bool:
    return cell.options == {"latency_us": 500.0} and cell.batch_size == 4


def test_it_finds_proves_and_writes_the_best_although_interrupted_twice(
    make_job: MakeJob, tmp_path: Path
) -> None:
    class InProof(Watch):
        def recorded(self, record: Record, arm: str = "") -> None:
            super().recorded(record)
            if record.order and record.repeat == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_driver.run(make_job(budget=4.0), Watch(stop=3))
    kept = read(make_job().out).records
    assert len(kept) == 3

    searching = InProof()
    with pytest.raises(KeyboardInterrupt):
        tune_driver.run(make_job(resume=True, budget=4.0), searching)
    assert searching.leads[-1].startswith("leads: fake fp32 b4")
    records = read(make_job().out).records
    assert records[:3] == kept
    assert len({(r.cell.key, r.repeat) for r in records}) == len(records)
    pair = read(make_job().out / EVIDENCE / "baseline").records[0]

    job, watch = make_job(resume=True, budget=4.0), Watch()
    found = tune_driver.run(job, watch)
    assert found.file.records == records
    assert all(r.order for r in watch.records)  # nothing but the proof was left to do
    assert found.best is not None
    assert fastest(found.best)
    assert found.file.header.search == job.search
    assert {r.cell.key for r in records} <= {c.key for c in found.file.header.planned}
    assert found.evidence is not None
    before, after = found.evidence
    assert before.header.planned == [
        c for c in job.header.planned if c.batch_size == 4 and c.key in job.search.baseline
    ]
    assert after.header.planned == [found.best]
    assert before.records[0] == pair
    assert len(after.records) >= 2
    assert tune_driver.outcome(job) == found

    path = tmp_path / "best.toml"
    path.write_text(tune_driver.best_toml(job, found.best))
    suite = suite_file.load(str(path), availability.catalog())
    assert grid.expand(suite, "cpu", 99) == [found.best]
    assert suite.policy.repeats == Policy().repeats
    assert suite.policy.min_top1_agreement == 1.0


def test_what_breaks_in_the_proof_is_not_recommended(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = iter(["p99 latency 30 ms: limit 20 ms", ""])
    monkeypatch.setattr(verify, "fault", lambda *_, **__: next(faults))
    job = make_job({"latency_us": (500.0, 1000.0, 2000.0)}, batch_size=[4])
    found = tune_driver.run(job, Watch())
    assert found.best is not None
    assert not fastest(found.best)
    [dropped] = [r for r in found.file.records if r.kind == "limit"]
    assert fastest(dropped.cell)
    assert dropped.reason.endswith("p99 latency 30 ms: limit 20 ms")
    assert (job.out / f"{EVIDENCE}-1" / "candidate" / RECORDS).exists()
    assert found.evidence is not None
    assert found.evidence[1].header.planned == [found.best]
    spent = verify.spent_s(job.out)
    old = job.out / f"{EVIDENCE}-1" / "candidate" / RECORDS
    header, *records = old.read_bytes().splitlines(keepends=True)
    old.write_bytes(b"".join((header, b"damaged\n", *records)))
    assert 0 < verify.spent_s(job.out) < spent  # and it stops nothing


def test_what_breaks_is_recorded_and_the_search_goes_on(make_job: MakeJob) -> None:
    options = LATENCIES | {"fail": ("", "prepare", "wrong")}
    found = tune_driver.run(make_job(options, batch_size=[4], budget=6.0), Watch())
    assert found.best is not None
    assert fastest(found.best)
    kinds = {r.cell.options["fail"]: r.kind for r in found.file.records if r.status == "failed"}
    assert kinds.items() == {"prepare": "error", "wrong": "parity"}.items()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "resnet999"}, "--model"),
        ({"weights": "nothere.pt"}, "--weights"),
        ({"images": "nothere"}, "--images"),
        ({"boundary": "moon"}, '--boundary = "moon"'),
        ({"device": "abacus"}, '--device = "abacus"'),
        ({"backend": ["fake-missing"]}, "--backend fake-missing: fake: not on this machine"),
        ({"backend": ["nothere"]}, "--backend"),
        ({"batch_size": [0]}, "--batch-size"),
        ({"baseline": "backend=nothere"}, "--baseline backend=nothere"),
        ({"baseline": "backend=fake-missing"}, "not on this machine"),
        ({"baseline": "backend"}, "expected KEY=VALUE"),
    ],
)
def test_bad_words_are_told_before_anything_happens(
    make_job: MakeJob, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as error:
        make_job(**change)
    assert words in str(error.value)
    assert suite_file.find(setup.PLAIN).name not in str(error.value)


def test_labels_that_a_floor_needs_are_missed_before_anything_is_measured(
    make_job: MakeJob,
) -> None:
    job = make_job(floors={"min_accuracy": 0.5})
    with pytest.raises(InputError, match="label"):
        tune_driver.run(job, Watch())
    assert not (job.out / RECORDS).exists()


def test_a_network_that_does_not_answer_in_time_ends_the_search(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Failure("timeout", "no answer within 60 s")
    monkeypatch.setattr(trials._Hurried, "ask", lambda *_: late)
    job = make_job()
    with pytest.raises(InputError, match="no answer within 60 s; raise policy"):
        tune_driver.run(job, Watch())
    assert not (job.out / RECORDS).exists()


def test_only_the_same_search_goes_on(make_job: MakeJob) -> None:
    with pytest.raises(KeyboardInterrupt):
        tune_driver.run(make_job(), Watch(1))
    with pytest.raises(RecordError, match="another search"):
        tune_driver.run(make_job(resume=True, budget=9.0), Watch())
    with pytest.raises(RecordError, match="another search"):
        tune_driver.run(make_job(resume=True, batch_size=[4]), Watch())
    job = make_job(resume=True)
    with pytest.raises(RecordError, match="another machine"):
        tune_driver.run(replace(job, header=replace(job.header, fingerprint="0")), Watch())
    with pytest.raises(RecordError, match="holds a run already"):
        tune_driver.run(make_job(), Watch())


def test_a_run_is_no_search(make_job: MakeJob, write_suite: Any, cache_dir: Path) -> None:
    job = make_job(resume=True)
    session = setup.session(str(write_suite()), {}, cache_dir, job.out, False, ())
    driver.Writer(job.out, session.header).__exit__()
    with pytest.raises(RecordError, match="not a search"):
        tune_driver.checked(job)


class Slow:
    """An agent that answers what it is told to, and keeps what it was asked."""

    running = True

    def __init__(self, reply: Reply) -> None:
        self.reply, self.asked = reply, list[Request]()

    def ask(self, request: Request, progress: OnProgress | None = None) -> Reply:
        self.asked.append(request)
        return self.reply


def hurried(reply: Reply, left_s: float) -> tuple[Any, Slow]:
    agent = Slow(reply)
    return trials._Hurried(agent, lambda: left_s), agent  # type: ignore[arg-type]


def test_a_build_may_take_only_part_of_what_is_left() -> None:
    request = Prepare(cells(1)[0], (0,), 1200.0)
    made, agent = hurried(Prepared("x", {}), 40.0)
    assert made.ask(request) == Prepared("x", {})
    assert agent.asked == [replace(request, timeout_s=40.0)]
    made, _ = hurried(Failure("timeout", "no answer within 40 s"), 40.0)
    reply = made.ask(request)
    assert reply.reason == "not built within 40 s, what the budget left for one build"
    assert "raise --budget" in reply.remedy


def test_pictures_that_nobody_named_to_calibrate_on_end_no_search() -> None:
    request = Prepare(cells(1)[0], (0,), 1200.0)
    made, _ = hurried(Failure(CalibrationError.kind, "all black"), 40.0)
    assert made.ask(request) == Failure("error", "all black")
    named = replace(request, cell=replace(request.cell, calibration="folder"))
    assert made.ask(named) == Failure(CalibrationError.kind, "all black")


def test_a_search_that_goes_on_has_the_same_model_file(make_job: MakeJob) -> None:
    job = make_job()
    cell = job.plan.planned[0]
    earlier = Record(cell=cell, repeat=0, status="ok", contents={"model": "a"})
    changed = Slow(Prepared("", {}, {"model": "b"}))
    made = trials.AgentBench(job, changed, Silent(), 0.0, [earlier])  # type: ignore[arg-type]
    with pytest.raises(ChangedError, match="contents have changed"):
        made.start()


def test_what_must_show_a_percentile_is_measured_for_longer(make_job: MakeJob) -> None:
    def sampled(goal: Goal) -> list[float]:
        job = make_job(goal=goal)
        made = trials.AgentBench(job, Slow(Prepared("", {})), Silent(), 0.0)  # type: ignore[arg-type]
        return [made._policy(repeat).duration_s for repeat in (0, 1, 2)]

    plain = POLICY["duration_s"]
    assert sampled(FAST) == [plain] * 3
    assert sampled(Goal(RATE, (Limit(Metric("latency"), 1e6),))) == [plain] * 3
    assert sampled(Goal(RATE, (Limit(Metric("latency", 0.99), 1e6),))) == [
        plain, trials.TAIL_S, trials.TAIL_S,
    ]  # fmt: skip
