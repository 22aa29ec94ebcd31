"""Tests marked slow: left out in one line, and added by --runslow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TWO = """
import pytest

def test_fast(): pass

@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_slow(number): pass
"""


@pytest.mark.parametrize(
    ("words", "counts", "line"),
    [
        ([], "1 passed, 2 deselected", "Slow tests left out: 2 (--runslow adds them)"),
        (["--runslow"], "3 passed in", ""),
        (["-m", "slow", "--runslow"], "2 passed, 1 deselected", ""),
    ],
)
def test_slow_tests(tmp_path: Path, words: list[str], counts: str, line: str) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    (tmp_path / "test_two.py").write_text(TWO)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs"]
    done = subprocess.run(
        [*command, f"-opythonpath={ROOT}", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert counts in done.stdout
    assert [said for said in done.stdout.splitlines() if "low" in said] == [line] * bool(line)
