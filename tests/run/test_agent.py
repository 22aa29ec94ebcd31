"""The agent's teams, in this process and without workers."""

from __future__ import annotations

import multiprocessing

import pytest

from gpubench.run import agent
from gpubench.run.messages import End, Preload, Step, Waiting
from gpubench.run.telemetry import Telemetry


def team() -> agent._Team:
    fork = multiprocessing.get_context("forkserver")
    return agent._Team(fork, Preload([], ""), "", size=0, timeout_s=1)


def test_a_team_that_is_ended_early_is_no_longer_observed() -> None:
    """Else a thread would go on asking NVML beside all that is measured after it."""
    answers = agent.Agent(lambda _: None, closed=-1)
    answers._teams["baseline"] = broken = team()
    broken.telemetry = Telemetry([], [0], broken.pids).__enter__()
    reply = answers.handle(End("baseline"))
    assert isinstance(reply, Waiting)
    assert not broken.telemetry.running
    assert answers._teams == {}


def test_a_team_that_was_never_observed_ends_too() -> None:
    begun = team()
    begun.telemetry = Telemetry([], [0], begun.pids)
    begun.end()
    assert not begun.telemetry.running
    assert begun.telemetry.result()["seconds"] == 0


def test_a_rival_counts_as_resident() -> None:
    one = team()
    assert one.resident() == 1
    one.others = {4711, 4712}
    assert one.resident() == 2
    assert one.pids() == {4711, 4712}


def test_a_team_of_one_turn_is_observed_until_its_answers_have_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one of several nodes runs it: there is no barrier after its samples."""
    answers = agent.Agent(lambda _: None, closed=-1)
    answers._teams["cell"] = own = team()
    own.telemetry = Telemetry([], [0], own.pids)
    own.barrier = "warm"
    observed: list[bool] = []
    monkeypatch.setattr(
        agent, "_done", lambda _, telemetry: (observed.append(telemetry.running), End(""))[1]
    )
    monkeypatch.setattr(own, "advance", lambda _: [])
    answers.handle(Step("cell", [], 1))
    assert observed == [False]
    assert own.telemetry.result()["seconds"] > 0
