"""The agent and the driver killed, whenever it may be."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from gpubench.machine.processes import cpu_ns, descendants
from gpubench.records.record import RECORDS
from tests.conftest import GPUBENCH
from tests.faults.conftest import Cli, wait_for

MakeCli = Callable[..., Cli]


@pytest.mark.parametrize(
    "at",
    [
        pytest.param("prepare", marks=pytest.mark.slow),
        "open",
        pytest.param("run", marks=pytest.mark.slow),
    ],
)
def test_the_agent_killed_costs_its_cell_only(cli: MakeCli, at: str) -> None:
    run = cli(at=[at, ""], how="kill-agent")
    assert run().returncode == 1
    broken = [r for r in run.records() if r.cell.options["at"]]
    assert [(r.status, r.kind) for r in broken] == [("failed", "crash")]
    assert "the agent died: SIGKILL" in broken[0].reason
    assert [r.status for r in run.records() if not r.cell.options["at"]] == ["ok", "ok"]


def test_a_worker_killed_leaves_no_loading_process(cli: MakeCli) -> None:
    """What is left would be found at the end: see `nothing_left`."""
    run = cli(at="run", how=["kill", "kill-agent", "nothing"], boundary='["pipeline"]',
              scenario='["throughput"]', loader='["processes"]', decoder='["fake-exact"]',
              policy={"repeats": 1, "max_repeats": 1})  # fmt: skip
    assert run().returncode == 1
    found = {r.cell.options["how"]: (r.status, r.kind) for r in run.records()}
    assert found["kill"] == found["kill-agent"] == ("failed", "crash")
    assert found["nothing"] == ("ok", "")


@pytest.mark.slow
def test_the_agent_killed_before_its_first_answer_is_started_again(
    cli: MakeCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUBENCH_TEST_KILL_ONCE", str(tmp_path / "killed"))
    run = cli()
    done = run()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    assert [r.status for r in run.records()] == ["ok", "ok"]


@pytest.mark.slow
def test_the_driver_killed_at_any_moment_loses_nothing_and_repeats_nothing(cli: MakeCli) -> None:
    """Killed and resumed until a resume comes to its end; the seed is printed."""
    seed = time.time_ns() % 1_000_000
    print(f"seed {seed}")
    moments, killed = random.Random(seed), 0
    run = cli(backend='["broken", "fake-missing"]', batch_size="[1, 2]",
              policy={"repeats": 6, "max_repeats": 6})  # fmt: skip
    before: list[bytes] = []
    while True:
        begun = _whole(run)
        process = run.start(*["--resume"] if begun else [])
        time.sleep(moments.uniform(0.0, 3.0) if killed < 6 else 0)
        if killed < 6 and process.poll() is None:
            process.kill()
            killed += 1
        said, errors = process.communicate(timeout=120)
        lines = _whole(run)
        assert lines[: len(before)] == before, "a finished record is gone"
        before = lines
        if process.returncode >= 0:
            assert process.returncode == 0, said + errors
            break
    measured = Counter((r.cell.key, r.repeat) for r in run.records() if r.status == "ok")
    assert len(measured) == 12
    lines = [line for line in _whole(run)[1:] if b'"status":"ok"' in line]
    assert len(lines) == 12, "a task was measured twice"


@pytest.mark.slow
def test_driver_and_agent_killed_at_once_leave_no_worker_behind(
    cli: MakeCli, tmp_path: Path
) -> None:
    """Only their temporary directory is left: nobody is there to remove it."""
    run = cli(at="run", how="loop")
    process = run.start()
    worker = wait_for("a worker", lambda: [p for p in descendants([process.pid]) if _busy(p)])
    for pid in (process.pid, *_children(process.pid)):
        os.kill(pid, signal.SIGKILL)
    wait_for("the end of all", lambda: not any(map(_busy, worker)))
    process.communicate()
    for path in Path(tempfile.gettempdir()).iterdir():
        shutil.rmtree(path)


def _busy(pid: int) -> bool:
    """Whether it is the worker in its endless loop: nothing else computes for so long."""
    with suppress(OSError):  # of a zombie there is no command any more
        return cpu_ns([pid]) > 3e9 and Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    return False


def _whole(run: Cli) -> list[bytes]:
    """The file's complete lines."""
    path = run.out / RECORDS
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)]
)
def test_a_signal_to_the_whole_job_leaves_nothing(cli: MakeCli, number: signal.Signals) -> None:
    """As a batch system ends a job: driver, agent and workers are told at the same moment."""
    run = cli(policy={"repeats": 100, "max_repeats": 100})
    process = run.start(start_new_session=True)
    wait_for("a record", lambda: len(_whole(run)) > 1)
    for pid in _family(process.pid):
        os.kill(pid, number)
    process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert len(run.records()) >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "number"),
    [("deploy", signal.SIGTERM), ("selftest", signal.SIGHUP), ("pytest", signal.SIGTERM)],
)
def test_a_signal_to_one_process_leaves_no_folder_of_it(
    cli: MakeCli, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    """As `kill`, a closed terminal, or `docker stop` end it; the fixture looks for what is left."""
    run = cli(at="open", how="loop")
    words = {
        "deploy": [*GPUBENCH, "deploy", run.suite, "-o", tmp_path / "out"],
        "selftest": [*GPUBENCH, "selftest", run.suite],
        "pytest": [sys.executable, "-m", "pytest", run.suite, "-p", "no:cacheprovider"],
    }[command]
    option = "--gpubench-cache-dir" if command == "pytest" else "--cache-dir"
    process = subprocess.Popen([*map(str, words), option, str(run.cache_dir)], cwd=tmp_path)
    temporary = Path(tempfile.gettempdir())
    wait_for("a folder of its own", lambda: list(temporary.glob("gpubench-[dsp]*")))
    wait_for("a worker", lambda: [p for p in descendants([process.pid]) if _busy(p)])
    process.send_signal(number)
    assert process.wait(60) == (2 if command == "pytest" else 128 + number)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_makes_an_environment_ends_with_whoever_asked(
    tmp_path: Path, number: signal.Signals
) -> None:
    code = (
        "import os; from gpubench.machine.processes import Ending, run_tied\n"
        "with Ending(): run_tied(['sleep', '3600'], os.environ, '', 3600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    wait_for("its child", lambda: _named(process.pid, b"sleep"))
    process.send_signal(number)
    process.wait(30)


def _named(parent: int, name: bytes) -> list[int]:
    return [p for p in _children(parent) if Path(f"/proc/{p}/comm").read_bytes().strip() == name]


def test_a_hanging_import_ends_with_whoever_tries_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `gpubench doctor` tries every runtime; the fixture looks for what is left."""
    hanging = "import pathlib, time\npathlib.Path('hangs').touch()\ntime.sleep(3600)\n"
    (tmp_path / "gpubench_hanging_module.py").write_text(hanging)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = (
        "from gpubench.machine.import_check import try_imports; "
        "try_imports(['gpubench_hanging_module'], 600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    wait_for("the import", (tmp_path / "hangs").exists)
    process.kill()
    process.wait()


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        found += _children(parent)
    return found


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [int(word) for word in words.split()]
    return []


def test_two_runs_into_one_directory(cli: MakeCli) -> None:
    run = cli()
    rivals = [run.start() for _ in range(3)]
    said = [(rival.communicate(timeout=120)[1], rival.returncode) for rival in rivals]
    assert sorted(code for _, code in said) == [0, 2, 2], said
    for errors, code in said:
        if code:
            assert "another gpubench is writing to it" in errors or "holds a run already" in errors
    assert Counter(r.repeat for r in run.records()) == {0: 1, 1: 1}


@pytest.mark.slow
def test_two_resumes_of_one_run(cli: MakeCli) -> None:
    run = cli(policy={"repeats": 4, "max_repeats": 4})
    assert run().returncode == 0
    path = run.out / RECORDS
    path.write_bytes(b"\n".join(_whole(run)[:3]) + b"\n")
    rivals = [run.start("--resume") for _ in range(2)]
    codes = sorted(rival.wait(120) for rival in rivals)
    for rival in rivals:
        rival.communicate()
    assert codes in ([0, 0], [0, 2])
    assert len(_whole(run)) == 5, "a repeat was measured twice"


@pytest.mark.slow
def test_two_runs_share_a_cache(cli: MakeCli, tmp_path: Path) -> None:
    """Both want the same artefact at the same time: it is made once."""
    both = [cli(cache=tmp_path / "cache") for _ in range(2)]
    for index, run in enumerate(both):
        run.out = tmp_path / f"run{index}"
    rivals = [run.start() for run in both]
    for run, rival in zip(both, rivals, strict=True):
        _, errors = rival.communicate(timeout=120)
        assert rival.returncode == 0, errors
        assert [r.status for r in run.records()] == ["ok", "ok"]
    assert (tmp_path / "made").read_text() == "made\n"
