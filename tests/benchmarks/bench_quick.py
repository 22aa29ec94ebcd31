"""How long a newcomer waits for the quick suite: with an empty cache, then with a warm one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

CODE = "from gpubench.cli.main import main; main()"


@pytest.mark.timeout(900)
def test_quick(figure: Callable[[str, float, float], None], tmp_path: Path) -> None:
    took = {}
    for state in ("empty", "warm"):
        out = str(tmp_path / state)
        words = ["run", "quick", "--device", "cpu", "-q", "-o", out, "--cache-dir"]
        begin = time.monotonic()
        subprocess.run([sys.executable, "-c", CODE, *words, str(tmp_path / "cache")], check=True)
        took[state] = time.monotonic() - begin
    figure("seconds with an empty cache", took["empty"], 240)
    figure("seconds with a warm cache", took["warm"], 100)
