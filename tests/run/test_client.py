"""The agent's surroundings."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from gpubench.run.client import AgentClient
from gpubench.run.processes import SCRATCH


def test_a_long_temporary_directory_is_no_place_for_sockets(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with AgentClient([], cache_dir, tmp_path / "log") as agent:
        assert agent.start().errors == {}
        assert agent._process is not None
        environ = Path(f"/proc/{agent._process.pid}/environ").read_bytes().decode().split("\0")
        [scratch] = [e.partition("=")[2] for e in environ if e.startswith(f"{SCRATCH}=")]
        assert Path(scratch).stat().st_mode & 0o777 == 0o700
    assert not Path(scratch).exists()
    assert not list(deep.iterdir())
    assert "TMPDIR" in os.environ
