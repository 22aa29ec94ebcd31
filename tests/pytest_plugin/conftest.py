"""A pytest run of its own, with the plug-in, in the test's directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent

import pytest

WriteSuite = Callable[..., Path]
Pytest = Callable[..., subprocess.CompletedProcess[str]]
NAME = "fake-fp32-b{}-x1-latency"
FAST = """
    import pytest

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_generate_machine_info():
        return {}  # asking the CPU who it is takes seconds
"""


def command(*words: object, cache_dir: Path) -> list[str]:
    start = [sys.executable, "-m", "pytest", "-p", "gpubench.pytest_plugin", "-W", "error"]
    options = ["--strict-markers", "-p", "no:cacheprovider", f"--gpubench-cache-dir={cache_dir}"]
    options += ["-p", "fast_benchmark"]
    return [*start, *(str(word) for word in (*options, *words))]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory with a short name: agents keep their sockets in it."""
    with TemporaryDirectory(prefix="gb-") as directory:
        yield Path(directory)


@pytest.fixture
def run_pytest(tmp_path: Path, cache_dir: Path) -> Pytest:
    write(tmp_path / "fast_benchmark.py", FAST)
    write(tmp_path / "pytest.ini", "[pytest]\n")  # node ids are relative to it

    def start(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*words, cache_dir=cache_dir),
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | environment,
            timeout=120,
            check=False,
        )

    return start


def write(path: Path, text: str) -> Path:
    path.write_text(dedent(text))
    return path


def outcomes(said: str) -> dict[str, str]:
    """Node id -> outcome, of pytest -v."""
    found = re.findall(r"^(\S+::\S+) (PASSED|FAILED|SKIPPED|ERROR)", said, re.MULTILINE)
    return dict(found)
