"""The agent's teams, in this process and without workers; which GPU and cores a replica gets."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from selectors import EVENT_READ
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from gpubench.machine.telemetry.telemetry import Telemetry
from gpubench.run.agent import agent, worker_group
from gpubench.run.agent.agent import placed
from gpubench.run.agent.messages import Begin, End, Failure, Measure, Request, Step, Waiting
from gpubench.run.agent.worker_group import Team
from gpubench.suite.types import Policy
from tests.machine.test_topology import local, machine
from tests.measure.virtual import make_cell


def team() -> Team:
    fork = multiprocessing.get_context("forkserver")
    return Team(fork, End(""), "", size=0)


def test_a_team_that_is_ended_early_is_no_longer_observed() -> None:
    """Else a thread would go on asking NVML beside all that is measured after it."""
    answers = agent.Agent(lambda _: None, closed=-1)
    broken = team()
    telemetry = Telemetry([], [0], broken.pids).__enter__()
    broken.telemetry = telemetry
    answers._teams["baseline"] = broken
    reply = answers.handle(msgspec.json.encode(End("baseline")))
    assert isinstance(reply, Waiting)
    assert not telemetry.running
    assert answers._teams == {}


def test_a_team_that_was_never_observed_ends_too() -> None:
    own = team()
    own.telemetry = Telemetry([], [0], own.pids)
    own.end()
    assert not own.telemetry.running
    assert own.telemetry.result()["seconds"] == 0


@pytest.mark.parametrize("paused", [False, True])
def test_a_pause_is_no_time_of_the_workers(paused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All were stopped for a minute, of a time-out of a second; then the answer comes."""
    clock, own, fork = [0.0], team(), multiprocessing.get_context("forkserver")
    ours, theirs = fork.Pipe()
    closed, open_end = os.pipe()

    class Minute:
        seconds = 0.0

        def wait(self, select: Any, left_s: float) -> tuple[Any, float]:
            if clock[0]:
                return select(0), 0.0
            clock[0] += 60
            theirs.send_bytes(msgspec.json.encode(Failure("error", "an answer")))
            return [], 60.0 if paused else 0.0

    own._deadline, own.pauses = 1.0, Minute()  # type: ignore[assignment]
    own._pipes.append(ours)
    own._selector.register(ours, EVENT_READ, 0)
    monkeypatch.setattr(worker_group, "monotonic", lambda: clock[0])
    found = own.advance(closed)
    assert isinstance(found, Failure)
    assert found.kind == ("error" if paused else "timeout")
    own.end()
    for end in (closed, open_end):
        os.close(end)
    theirs.close()


def test_replicas_that_share_a_gpu_and_rivals_are_resident_there() -> None:
    one = team()
    one.others = {4711, 4712}
    assert one.pids() == {4711, 4712}
    for replicas, per_device, rivals, residents in (
        (1, 1, 0, 1),
        (1, 1, 1, 2),
        (4, 2, 0, 2),
        (4, 2, 4, 4),
        (2, 1, 4, 3),  # a rival whose replicas share its GPUs
    ):
        one.others = set(range(rivals))
        cell = make_cell(device="cuda", replicas=replicas, replicas_per_device=per_device)
        request = Measure(cell, Policy(), "", "", [()] * replicas)
        assert agent._telemetry(request, one, None)._residents() == residents


class Stuck:
    """A process that never ends by itself."""

    def __init__(self, number: int, seen: list[tuple[str, int]], fail: bool) -> None:
        self.pid, self.exitcode = 10**9 + number, None
        self._note = lambda what: seen.append((what, number))
        self._fail = fail

    def start(self) -> None:
        if self._fail:
            raise OSError("too many open files")

    def join(self, seconds: float) -> None:
        if self.exitcode is None:
            time.sleep(seconds)

    def kill(self) -> None:
        self._note("kill")
        self.exitcode = -9  # type: ignore[assignment]

    def close(self) -> None:
        self._note("close")


@pytest.mark.parametrize("fails", [False, True])
def test_a_team_ends_as_a_whole_and_soon(fails: bool) -> None:
    seen: list[tuple[str, int]] = []
    count = iter(range(64))

    class Fork:
        Pipe = staticmethod(multiprocessing.Pipe)

        def Process(self, **_: Any) -> Stuck:  # noqa: N802
            number = next(count)
            return Stuck(number, seen, fails and number == 40)

    if fails:
        with pytest.raises(OSError, match="too many open files"):
            Team(Fork(), End(""), "", size=64)
    else:
        whole = Team(Fork(), End(""), "", size=64)
        begin = time.monotonic()
        whole.end()
        assert time.monotonic() - begin < 5, "not 0.2 s for each"
    started = range(40 if fails else 64)
    assert seen == [("kill", n) for n in started] + [("close", n) for n in started]


def test_a_team_of_one_turn_is_observed_until_its_answers_have_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one of several nodes runs it: there is no barrier after its samples."""
    answers = agent.Agent(lambda _: None, closed=-1)
    own = team()
    telemetry = Telemetry([], [0], own.pids)
    own.telemetry = telemetry
    answers._teams["cell"] = own
    own.barrier = "warm"
    observed: list[bool] = []
    monkeypatch.setattr(
        agent, "_result", lambda _, one: (observed.append(one.telemetry.running), End(""))[1]
    )
    monkeypatch.setattr(own, "advance", lambda _: [])
    answers.handle(msgspec.json.encode(Step("cell", [], 1)))
    assert observed == [False]
    assert telemetry.result()["seconds"] > 0


def test_workers_get_the_request_with_what_only_the_agent_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And of a begun team, what it is to measure."""
    monkeypatch.setattr(agent, "visible_gpus", lambda: machine()[1])
    monkeypatch.setattr(agent, "idle_watts", lambda _: None)
    asked: list[Request] = []

    def started(_: object, request: Request, *__: object) -> Team:
        asked.append(request)
        raise OSError("out of processes")

    monkeypatch.setattr(agent, "Team", started)
    measure = Measure(make_cell(device="cuda", replicas=2), Policy(), "a", "r", [(), ()])
    for request in (measure, Begin("cell", measure)):
        with pytest.raises(OSError, match="out of processes"):
            agent.Agent(lambda _: None, closed=-1).handle(msgspec.json.encode(request))
        found = pickle.loads(pickle.dumps(asked[-1]))  # as it is passed to a process  # noqa: S301
        assert found.uuids == ["GPU-a", "GPU-b"]
        assert replace(found, uuids=[], cores=measure.cores) == measure


def test_workers_inherit_imports_that_no_collection_goes_through() -> None:
    """Torch's are 500,000 objects: 0.2 s, before each worker samples."""
    words = "import gc, gpubench.run.agent.forkserver_preload; print(gc.get_freeze_count())"
    found = subprocess.run([sys.executable, "-c", words], capture_output=True, check=True)
    assert int(found.stdout) > 1000


def test_a_turn_begins_when_the_rival_has_come_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    rested: list[tuple[str, set[int]]] = []
    answers, own = agent.Agent(lambda _: None, closed=-1), team()
    answers._teams["baseline"] = own
    monkeypatch.setattr(own, "advance", lambda _: None)
    monkeypatch.setattr(
        agent.processes, "await_idle", lambda pids, _: rested.append((own.barrier, set(pids)))
    )
    for own.barrier in ("opened", "warm", "again", "measured"):
        step = Step("baseline", [7], timeout_s=1, turns=12)
        assert isinstance(answers.handle(msgspec.json.encode(step)), Waiting)
    assert rested == [("warm", {7}), ("warm", set()), ("again", {7})]  # its own: to say how long
    own.end()


# ---------------------------------------------------------- which GPU, and which cores


def request(**changes: Any) -> Measure:
    cell = make_cell(**{"device": "cuda", "cores": 0} | changes)
    return Measure(cell, Policy(), "", "", [()] * cell.replicas)


def test_replicas_are_pinned_next_to_their_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    _, gpus = machine()
    root = local(tmp_path, **{"0a": "0-3,64-67", "0b": "4-7,68-71"})
    made = placed(request(replicas=4, replicas_per_device=2), gpus, root)
    assert made.uuids == ["GPU-a", "GPU-b"]
    assert made.cores == [(0, 1, 2, 3)] * 2 + [(4, 5, 6, 7)] * 2
    assert placed(request(), gpus, root).uuids == ["GPU-a"]


@pytest.mark.parametrize("text", ["0-7", "64-71", "", None])
def test_nothing_is_pinned_where_that_would_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    _, gpus = machine()
    root = tmp_path if text is None else local(tmp_path, **{"0a": text})
    assert placed(request(), gpus, root).cores == [()]


def test_a_gpu_that_is_not_there_any_more_is_left_to_the_backend(tmp_path: Path) -> None:
    made = placed(request(replicas=2), [], tmp_path)
    assert (made.uuids, made.cores) == (["", ""], [(), ()])


def test_a_gpu_whose_neighbour_fell_off_keeps_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    _, gpus = machine()
    root = local(tmp_path, **{"0a": "0-3", "0b": "4-7"})
    made = placed(request(replicas=2), gpus[1:], root)
    assert (made.uuids, made.cores) == (["", "GPU-b"], [(), (4, 5, 6, 7)])


def test_on_cpu_the_plan_decides(tmp_path: Path) -> None:
    plain = Measure(make_cell(), Policy(), "", "", [(1,)])
    assert placed(plain, [], tmp_path) is plain
