"""The driver, real agents and real worker processes, on the fake backend."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gpubench.errors import GpubenchError, InputError
from gpubench.machine.processes import session_members
from gpubench.records.reader import read
from gpubench.records.record import Record, RecordFile
from gpubench.records.samples import window_ns
from gpubench.run import driver, setup
from gpubench.run.agent import client, messages
from gpubench.run.agent.client import AgentClient
from gpubench.run.watcher import Silent
from gpubench.suite.types import Cell

WriteSuite = Callable[..., Path]


class Watch(Silent):
    def __init__(self) -> None:
        self.records: list[Record] = []
        self.steps: list[str] = []
        self.lines: list[str] = []
        self.at_step: Callable[[Cell, messages.Progress], None] = lambda *_: None

    def said(self, text: str) -> None:
        self.lines.append(text)

    def step(self, cell: Cell, progress: messages.Progress) -> None:
        self.steps.append(progress.step)
        self.at_step(cell, progress)

    def recorded(self, record: Record, arm: str = "") -> None:
        self.records.append(record)


def go(
    suite: Path,
    out: Path,
    cache_dir: Path,
    watch: Watch | None = None,
    resume: bool = False,
    require: tuple[str, ...] = (),
    **chosen: Any,
) -> RecordFile:
    session = setup.session(str(suite), chosen, cache_dir, out, resume, require)
    return driver.run(session, watch or Watch())


@pytest.fixture
def run(tmp_path: Path, cache_dir: Path, write_suite: WriteSuite) -> Callable[..., RecordFile]:
    def start(watch: Watch | None = None, fail: str = "", **changes: Any) -> RecordFile:
        if fail:
            changes["axes"] = f'[axes.options.fake]\nfail = "{fail}"'
        return go(write_suite(**changes), tmp_path / "run", cache_dir, watch)

    return start


def test_every_cell_and_repeat_is_measured_and_checked(run: Callable[..., RecordFile]) -> None:
    watch = Watch()
    file = run(watch, scenario='["latency", "throughput"]', boundary='["compute", "transfer"]')
    assert len(file.records) == 2 * 2 * 2 * 2
    assert {(r.cell.key, r.repeat) for r in file.records} == {
        (cell.key, repeat) for cell in file.header.planned for repeat in (0, 1)
    }
    for record in file.records:
        assert record.status == "ok", record.reason
        assert record.parity is not None
        assert record.parity.passed
        assert record.parity.relative_error is not None
        assert record.parity.relative_error < 1e-4
        assert record.parity.images >= 32
        assert (record.images_per_s() or 0) > 0
        assert record.replicas[0].first_inference_ns > 0
        assert len(record.replicas[0].warmup_durations_ns) >= 10
        assert "SPEED-ONLY" in record.flags
    assert watch.steps == ["opened", "warm"] * 16


def test_fresh_process_for_every_task(run: Callable[..., RecordFile]) -> None:
    file = run(batch_size="[1]", policy={"parity_images": 4})
    assert len({record.facts["pid"] for record in file.records}) == 2


def test_replicas_run_in_one_window_on_their_own_cores(run: Callable[..., RecordFile]) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two cores are needed")
    file = run(
        batch_size="[1]",
        replicas="[1, 2]",
        axes="[axes.options.fake]\nlatency_us = 200.0",
        policy={"duration_s": 0.5},
    )
    for record in file.records:
        assert record.status == "ok", record.reason
        assert len(record.replicas) == record.cell.replicas
        devices = [samples.device for samples in record.replicas]
        assert len(set(devices)) == len(devices)
        assert window_ns(record.replicas) is not None
        assert len(record.replica_rates()) == record.cell.replicas
    ratio = {r.cell.replicas: r.images_per_s() for r in file.records}
    assert ratio[2] != ratio[1]


BROKEN = [
    ("prepare", "error", "told to fail in prepare"),
    ("open", "error", "told to fail in open"),
    ("copy_in", "error", "told to fail in copy_in"),
    ("run", "error", "told to fail in run"),
    ("sync", "error", "told to fail in sync"),
    ("copy_out", "error", "told to fail in copy_out"),
    ("fallback", "fallback", "something else would run"),
    ("oom", "out-of-memory", "told to run out of memory"),
    ("sigkill", "crash", "SIGKILL"),
    ("sigsegv", "crash", "SIGSEGV"),
    ("wrong", "parity", "top-1 agreement"),
    ("wrong-slot", "parity", "worst at batch slot"),
    ("not-finite", "parity", "answers that are not finite (NaN or infinite), unlike the reference"),
]
_broken: list[RecordFile] = []


@pytest.fixture
def broken_and_honest(run: Callable[..., RecordFile]) -> RecordFile:
    """One run with a cell for every way to break, and an honest one; shared."""
    if not _broken:
        fails = ", ".join(f'"{fail}"' for fail in (*(row[0] for row in BROKEN), ""))
        _broken.append(run(axes=f"[axes.options.fake]\nfail = [{fails}]", batch_size="[2]"))
    return _broken[0]


@pytest.mark.parametrize(("fail", "kind", "words"), BROKEN)
def test_a_broken_backend_is_a_failed_record_and_the_run_goes_on(
    broken_and_honest: RecordFile, fail: str, kind: str, words: str
) -> None:
    """The honest cell of the same run is measured all the same."""
    file = broken_and_honest
    broken = [r for r in file.records if r.cell.options["fail"] == fail]
    honest = [r for r in file.records if not r.cell.options["fail"]]
    assert [(r.status, r.kind) for r in broken] == [("failed", kind)]
    assert words in broken[0].reason
    assert [r.status for r in honest] == ["ok", "ok"]


def test_a_parity_failure_keeps_its_timing(run: Callable[..., RecordFile]) -> None:
    [record] = run(fail="wrong-slot", batch_size="[3]").records
    assert record.parity is not None
    assert record.parity.worst_slot == 2
    assert record.value() is not None


@pytest.mark.parametrize("fail", ["hang-open", "loop-run"])
def test_a_hang_ends_at_the_time_out(run: Callable[..., RecordFile], fail: str) -> None:
    begin = time.monotonic()
    [record] = run(fail=fail, batch_size="[1]", policy={"timeout_s": 1.5}).records
    assert (record.status, record.kind) == ("failed", "timeout")
    assert "1.5 s" in record.reason
    assert time.monotonic() - begin < 30


def test_skips_are_records_with_reason_and_remedy(run: Callable[..., RecordFile]) -> None:
    file = run(backend='["fake", "fake-missing"]', batch_size="[1]", replicas="[1, 99]")
    told = {(r.cell.backend, r.cell.replicas, r.status) for r in file.records}
    assert told == {
        ("fake", 1, "ok"),
        ("fake", 99, "unavailable"),
        ("fake-missing", 1, "unavailable"),
        ("fake-missing", 99, "unavailable"),
    }
    missing = next(r for r in file.records if r.cell.backend == "fake-missing")
    assert missing.remedy == "pip install a-machine-that-has-it"


def test_what_turns_out_missing_while_preparing_is_a_skip(run: Callable[..., RecordFile]) -> None:
    [record] = run(fail="unavailable-prepare", batch_size="[1]").records
    assert (record.status, record.remedy) == ("unavailable", "buy one")


def test_require_turns_a_skip_into_a_failure(
    tmp_path: Path, cache_dir: Path, write_suite: WriteSuite
) -> None:
    suite = write_suite(backend='["fake-missing"]', batch_size="[1]")
    file = go(suite, tmp_path / "run", cache_dir, require=("fake-missing",))
    assert [(r.status, r.kind) for r in file.records] == [("failed", "required")]
    with pytest.raises(InputError, match="'nonsense'"):
        go(suite, tmp_path / "other", cache_dir, require=("nonsense",))


def test_compiling_at_the_open_or_while_sampling_is_flagged(
    run: Callable[..., RecordFile],
) -> None:
    [record, _] = run(fail="recompile", batch_size="[1]").records
    assert {"RECOMPILED", "COMPILED-AT-OPEN"} <= {*record.flags}


def test_second_stage_runs_until_the_interval_is_narrow_or_the_budget_ends(
    run: Callable[..., RecordFile], tmp_path: Path
) -> None:
    narrow = {"target_half_width": 1e-6, "max_repeats": 4}
    assert len(run(batch_size="[1]", policy=narrow).records) == 4
    (tmp_path / "run").rename(tmp_path / "first")
    assert len(run(batch_size="[1]", policy=narrow | {"budget_s": 0.001}).records) == 2
    (tmp_path / "run").rename(tmp_path / "second")
    wide = narrow | {"target_half_width": 0.9999, "repeats": 3, "max_repeats": 9}
    assert len(run(batch_size="[1]", policy=wide).records) < 9


def test_resume_measures_what_is_missing_and_nothing_twice(
    tmp_path: Path, cache_dir: Path, write_suite: WriteSuite
) -> None:
    suite, out = write_suite(), tmp_path / "run"
    whole = go(suite, out, cache_dir)
    lines = (out / "records.jsonl").read_bytes().splitlines(keepends=True)
    (out / "records.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:-30])
    watch = Watch()
    file = go(suite, out, cache_dir, watch, resume=True)
    assert len(watch.records) == 2
    assert {(r.cell.key, r.repeat) for r in file.records} == {
        (r.cell.key, r.repeat) for r in whole.records
    }
    again = Watch()
    one = file.records[0].cell.key
    go(suite, out, cache_dir, again, resume=True)
    go(suite, out, cache_dir, again, resume=True, cell=(one,))
    assert again.records == []
    assert [line.partition(";")[0].partition(": ")[2] for line in watch.lines + again.lines] == [
        "2 cells to measure, 0 measured before, 0 skipped",
        "0 cells to measure, 2 measured before, 0 skipped",
        "0 cells to measure, 1 measured before, 0 skipped",
    ]


def test_resume_goes_on_with_the_second_stage(
    tmp_path: Path, cache_dir: Path, write_suite: WriteSuite
) -> None:
    more = {"target_half_width": 1e-6, "max_repeats": 5}
    suite, out = write_suite(batch_size="[1]", policy=more), tmp_path / "run"
    go(suite, out, cache_dir)
    lines = (out / "records.jsonl").read_bytes().splitlines(keepends=True)
    (out / "records.jsonl").write_bytes(b"".join(lines[:4]))  # the pilot of two and one more
    file = go(suite, out, cache_dir, resume=True)
    assert [r.repeat for r in file.records] == [0, 1, 2, 3, 4]


def test_resume_refuses_another_suite(
    tmp_path: Path, cache_dir: Path, write_suite: WriteSuite
) -> None:
    go(write_suite(), tmp_path / "run", cache_dir)
    with pytest.raises(InputError, match="other contents"):
        go(write_suite(batch_size="[7]"), tmp_path / "run", cache_dir, resume=True)


def test_resume_refuses_other_conditions_and_says_what_differs(
    tmp_path: Path, cache_dir: Path, write_suite: WriteSuite
) -> None:
    suite = write_suite(batch_size="[1]", backend='["fake-missing"]')
    go(suite, tmp_path / "run", cache_dir)
    again = setup.session(str(suite), {}, cache_dir, tmp_path / "run", True)
    there = again.header.environment
    other = there | {"libraries": there["libraries"] | {"numpy": "0.1"}}
    header = replace(again.header, environment=other, fingerprint="another")
    with pytest.raises(InputError, match=r"another machine .*libraries\.numpy: .* -> 0\.1.*start"):
        driver.run(replace(again, header=header), Watch())


def test_resume_refuses_a_model_file_that_holds_another_network(
    tmp_path: Path, cache_dir: Path, write_suite: WriteSuite, tiny_onnx: Path
) -> None:
    import onnx

    suite, out, file = write_suite(batch_size="[1]"), tmp_path / "run", tmp_path / "mine.onnx"
    file.write_bytes(tiny_onnx.read_bytes())
    whole = go(suite, out, cache_dir, model=str(file))
    assert {r.contents["model"] for r in whole.records} == {whole.records[0].contents["model"]}
    lines = (out / "records.jsonl").read_bytes().splitlines(keepends=True)
    (out / "records.jsonl").write_bytes(b"".join(lines[:2]))
    model = onnx.load(file)
    model.producer_name = "another training"
    onnx.save(model, file)
    for _ in range(2):  # nor does trying it make it so
        with pytest.raises(InputError, match=r"mine\.onnx.*contents have changed"):
            go(suite, out, cache_dir, resume=True, model=str(file))
        assert (out / "records.jsonl").read_bytes() == b"".join(lines[:2])
    file.write_bytes(tiny_onnx.read_bytes())
    assert len(go(suite, out, cache_dir, resume=True, model=str(file)).records) == 2


def test_the_agent_killed_costs_one_cell(run: Callable[..., RecordFile]) -> None:
    watch = Watch()
    killed: list[int] = []

    def kill(cell: Cell, progress: messages.Progress) -> None:
        if cell.batch_size == 1 and not killed:
            killed.append(1)
            [agent] = [p for p in _children() if "gpubench.run.agent" in _command(p)]
            os.kill(agent, signal.SIGKILL)

    watch.at_step = kill
    file = run(watch)
    status = {(r.cell.batch_size, r.status, r.kind) for r in file.records}
    assert status == {(1, "failed", "crash"), (4, "ok", "")}


def _children() -> list[int]:
    path = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    return [int(pid) for pid in path.read_text().split()]


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")


def test_nothing_is_left_behind(tmp_path: Path, cache_dir: Path) -> None:
    agent = AgentClient([], cache_dir, tmp_path / "log")
    agent.start()
    assert agent._process is not None
    session = agent._process.pid
    assert len(session_members(session)) >= 2  # the agent, and the server it forks from
    agent.stop()
    assert session_members(session) == []


def test_a_broken_module_makes_its_backend_unavailable(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpubench_broken_module.py").write_text("raise OSError('libnothing.so: no')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with AgentClient(["gpubench_broken_module", "json"], cache_dir, tmp_path / "log") as agent:
        errors = agent.start().errors
    assert errors == {"gpubench_broken_module": "OSError: libnothing.so: no"}


@pytest.mark.parametrize(
    ("body", "words"),
    [("import os; os._exit(3)", "exit code 3"), ("raise SystemExit", "SystemExit")],
)
def test_a_module_that_crashes_costs_its_own_backend_only(
    body: str, words: str, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpubench_crashing_module.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with AgentClient(["json", "gpubench_crashing_module"], cache_dir, tmp_path / "log") as agent:
        errors = agent.start().errors
    assert list(errors) == ["gpubench_crashing_module"]
    assert words in errors["gpubench_crashing_module"]


def test_a_hanging_agent_is_given_up(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpubench_hanging_module.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(client, "START_LIMIT_S", 4.0)
    monkeypatch.setattr(client, "IMPORT_LIMIT_S", 1.0)
    with AgentClient(["gpubench_hanging_module"], cache_dir, tmp_path / "log") as agent:
        errors = agent.start().errors
    assert "not done after 1 s" in errors["gpubench_hanging_module"]


def test_a_killed_worker_takes_its_children_and_its_files_along(
    run: Callable[..., RecordFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own := tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    run(fail="hang-open", batch_size="[1]", policy={"timeout_s": 1.0})
    assert list(own.iterdir()) == []


def test_chatter_on_stdout_is_no_answer(run: Callable[..., RecordFile], tmp_path: Path) -> None:
    """A worker's crash trace goes to the agent's log, and the protocol survives."""
    run(fail="run", batch_size="[1]")
    assert "told to fail in run" in (tmp_path / "run" / "agent.log").read_text()


def test_disk_full_keeps_what_is_there(
    run: Callable[..., RecordFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    watch = Watch()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def full(record: Record) -> None:
        watch.records.append(record)
        size = (tmp_path / "run" / "records.jsonl").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, old[1]))

    monkeypatch.setattr(watch, "recorded", full)
    try:
        with pytest.raises(GpubenchError, match="--resume"):
            run(watch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(read(tmp_path / "run").records) == 1
