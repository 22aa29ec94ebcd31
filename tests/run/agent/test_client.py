"""The agent's surroundings."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpubench.machine.processes import SCRATCH
from gpubench.run.agent import client, messages
from gpubench.run.agent.client import AgentClient
from gpubench.suite.types import Policy
from tests.measure.virtual import make_cell


@pytest.fixture(params=[client.LONGEST_TEMPDIR, client.LONGEST_TEMPDIR + 1])
def temp(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary directory, whose path has so many bytes."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t" * (request.param - 13)) as place:
        assert len(place) == request.param
        monkeypatch.setattr(tempfile, "tempdir", place)
        yield Path(place)


def test_a_long_temporary_directory_is_no_place_for_sockets(
    temp: Path, tmp_path: Path, cache_dir: Path
) -> None:
    with AgentClient([], cache_dir, tmp_path / "log") as agent:
        assert agent.start().errors == {}
        assert agent._process is not None
        environ = Path(f"/proc/{agent._process.pid}/environ").read_bytes().decode().split("\0")
        [scratch] = [e.partition("=")[2] for e in environ if e.startswith(f"{SCRATCH}=")]
        assert Path(scratch).stat().st_mode & 0o777 == 0o700
        fits = len(str(temp)) <= client.LONGEST_TEMPDIR
        assert Path(scratch).parent == (temp if fits else temp.parent)
        if fits:
            only_what_no_agent_holds_is_swept(temp, Path(scratch))
    assert not Path(scratch).exists()


def only_what_no_agent_holds_is_swept(temp: Path, held: Path) -> None:
    """Killed with its driver, an agent leaves its directory; another version's may be alive."""
    left, young, older = (
        temp / f"gpubench-{x}" for x in ("agent-1", "agent-2", "0123456789abcdef")
    )
    for place in (left, young, older):
        place.mkdir()
        (place / "file").touch()
    for place in (left, older, held):
        os.utime(place, (0, 0))
    client.sweep(str(temp))
    assert sorted(temp.iterdir()) == sorted([young, older, held])


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


def test_an_agent_is_given_up_after_all_of_its_own_time_outs() -> None:
    policy = Policy(timeout_s=7, prepare_timeout_s=11)
    cell, loaded = make_cell(), make_cell(boundary="pipeline")
    plain, split = (messages.Measure(c, policy, "", "", [()]) for c in (cell, loaded))
    own_s = [
        (messages.Prepare(cell, (), 5), 5),
        (messages.Inspect(cell.workload, 6), 6),
        (messages.BuildReference(cell.workload, policy), 11),
        (plain, 7),
        (messages.Begin("", plain), 7),
        (messages.Step("", [], 3), 3),
        (messages.Count(cell.workload), messages.GAUGE_TIMEOUT_S),
        (split, 2 * 7),  # its cores are split first
        (messages.Begin("", split), 2 * 7),
        (messages.Preload(["a"], ""), messages.START_TIMEOUT_S),
    ]
    for request, seconds in own_s:
        assert client.limit_s(request) >= seconds + client.GRACE_S
