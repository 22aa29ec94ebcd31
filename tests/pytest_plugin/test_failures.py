"""Cells, agents and runs that end badly."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

from gpubench.machine.processes import descendants
from gpubench.records.reader import read
from tests.pytest_plugin.conftest import NAME, Pytest, WriteSuite, command, outcomes, write


def test_failures_are_told_and_the_others_go_on(
    write_suite: WriteSuite, run_pytest: Pytest, tmp_path: Path, scratch: Path
) -> None:
    options = '[axes.options.fake]\nfail = ["", "wrong", "sigkill", "open", "unsupported"]'
    write_suite(backend='["fake", "fake-missing"]', batch_size="[1]", axes=options)
    words = ("tiny.toml", "-v", "-rs", "--benchmark-json", "out.json")
    done = run_pytest(*words, COLUMNS="250", TMPDIR=str(scratch))
    name = f"tiny.toml::{NAME.format(1)}-fail="
    assert outcomes(done.stdout) == {
        name: "PASSED",
        f"{name}wrong": "FAILED",
        f"{name}sigkill": "FAILED",
        f"{name}open": "FAILED",
        f"{name}unsupported": "SKIPPED",
        "tiny.toml::fake-missing-fp32-b1-x1-latency": "SKIPPED",
    }
    assert done.returncode == 1
    for words in (
        "failed: parity (answers outside the tolerance",
        "top-1 agreement 0.000 (needed 1)",
        "failed: crash (a worker process died)",
        "SIGKILL",
        "told to fail in open",
        "unsupported: fake: told to support nothing",
        "unavailable: fake: not on this machine -> pip install a-machine-that-has-it",
    ):
        assert words in done.stdout, words
    assert "hand_over" not in done.stdout
    assert "Traceback" not in done.stdout
    assert [
        b["fullname"] for b in json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    ] == [name]
    [log] = {Path(text) for text in re.findall(r"log: (\S+)", done.stdout)}
    assert "RuntimeError: fake: told to fail in open" in log.read_text()


def test_a_required_backend_that_cannot_run_fails(
    write_suite: WriteSuite, run_pytest: Pytest, tmp_path: Path
) -> None:
    write_suite(backend='["fake-missing"]', batch_size="[1]")
    done = run_pytest("tiny.toml", "-v", "--gpubench-require", "fake-missing")
    assert done.returncode == 1
    assert "--require fake-missing: fake: not on this machine" in done.stdout
    assert "remedy: pip install a-machine-that-has-it" in done.stdout
    done = run_pytest("tiny.toml", "--gpubench-require", "fake,null")
    assert done.returncode == 4
    assert (
        "--gpubench-require 'fake': no test of it; there are tests of ['fake-missing']"
        in done.stderr
    )


def test_exit_first_ends_measuring(write_suite: WriteSuite, run_pytest: Pytest) -> None:
    options = '[axes.options.fake]\nfail = ["", "wrong"]'
    write_suite(policy={"repeats": 5, "max_repeats": 5}, axes=options)
    done = run_pytest("tiny.toml", "-v", "-x", "-rs", COLUMNS="250")
    found = outcomes(done.stdout)
    assert list(found.values()).count("FAILED") == 1
    assert list(found.values())[-1] == "FAILED"
    assert "PASSED" not in found.values()
    assert "measuring ended when fake fp32" in done.stdout
    assert "repeat 2" not in done.stdout


def test_an_agent_that_dies_fails_its_test_and_the_next_goes_on(
    write_suite: WriteSuite, run_pytest: Pytest, tmp_path: Path, scratch: Path
) -> None:
    write_suite()
    code = """
        import os, pathlib, signal
        from gpubench.pytest_plugin import suite_runs

        def kill(self, cell, progress):
            if cell.batch_size == 1:
                children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children")
                for pid in map(int, children.read_text().split()):
                    os.kill(pid, signal.SIGKILL)

        suite_runs.Watch.step = kill
    """
    write(tmp_path / "conftest.py", code)
    done = run_pytest("tiny.toml", "-v", TMPDIR=str(scratch))
    assert outcomes(done.stdout) == {
        f"tiny.toml::{NAME.format(1)}": "FAILED",
        f"tiny.toml::{NAME.format(4)}": "PASSED",
    }
    assert "the agent died" in done.stdout


def test_ctrl_c_leaves_no_process(
    write_suite: WriteSuite, run_pytest: Pytest, tmp_path: Path, cache_dir: Path
) -> None:
    write_suite(axes='[axes.options.fake]\nfail = "loop-run"')
    process = subprocess.Popen(
        command("tiny.toml", "--gpubench-records", "records", cache_dir=cache_dir),
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    said = ""
    while "repeat 1" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    family = descendants([process.pid])
    assert family
    process.send_signal(signal.SIGINT)
    said += process.communicate(timeout=30)[0]
    assert process.returncode == 2
    assert "KeyboardInterrupt" in said
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in family):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert read(tmp_path / "records" / "tiny").records == []
