"""The agent's surroundings."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from gpubench.machine.processes import SCRATCH
from gpubench.run.agent import client
from gpubench.run.agent.client import AgentClient


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


@pytest.mark.parametrize("hangs", [False, True])
def test_an_agent_that_can_removes_its_directory_itself(
    hangs: bool, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that is killed while it ends its agent leaves nothing to be removed by it."""
    found: list[bool] = []
    end_session = client.end_session

    def watched(session: int, scratch: str) -> None:
        found.append(Path(scratch).exists())
        end_session(session, scratch)

    monkeypatch.setattr(client, "end_session", watched)
    agent = AgentClient([], cache_dir, tmp_path / "log")
    agent.start()
    scratch = Path(agent._scratch)
    assert scratch.exists()
    if hangs:
        monkeypatch.setattr(client, "STOP_S", 0.1)
        assert agent._process is not None
        os.kill(agent._process.pid, signal.SIGSTOP)
    assert agent.stop() == (-signal.SIGKILL if hangs else 0)
    assert found == [hangs]
    assert not scratch.exists()
