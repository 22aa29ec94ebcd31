"""The agents of an interleaved A/B, and how a pair of processes takes its turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from gpubench.records.record import Arm
from gpubench.run.agent.client import AgentClient
from gpubench.run.agent.messages import Begin, Done, End, Measure, Reply, Step, Waiting

ARMS: tuple[Arm, ...] = get_args(Arm)


class Crew:
    """The agents of both arms: one and the same where both use this interpreter."""

    def __init__(self, agents: Mapping[Arm, AgentClient], timeout_s: float) -> None:
        """``timeout_s``: of one step, such as a turn."""
        self.agents, self._timeout_s = dict(agents), timeout_s
        self.environments: dict[Arm, dict[str, Any]] = {}
        """Of the arms' interpreters; empty where it is this one."""
        self.broken: dict[Arm, dict[str, str]] = {arm: {} for arm in ARMS}
        """Modules that cannot be imported, and why."""

    @property
    def apart(self) -> bool:
        """Two interpreters: what one server process has in memory is part of its arm."""
        return self.agents["baseline"] is not self.agents["candidate"]

    def start(self) -> None:
        """Start, or start again."""
        own = list(dict.fromkeys(self.agents.values()))
        for agent in own:
            agent.stop()
            agent.launch()  # the second one's imports run beside the first one's
        replies = {agent: agent.start() for agent in own}
        for arm, agent in self.agents.items():
            self.broken[arm] = replies[agent].errors
            self.environments[arm] = replies[agent].environment

    def resident(self, requests: Mapping[Arm, Measure], order: str) -> dict[Arm, Reply]:
        """Both at once, turns in ``order`` ('ABBA'). A failure of one ends the other unheard."""
        replies = self._turns(requests, [ARMS["AB".index(letter)] for letter in order])
        for arm, agent in self.agents.items():
            if not isinstance(replies.get(arm), Done) and agent.running:
                agent.ask(End(arm))
        return replies

    def _turns(self, requests: Mapping[Arm, Measure], turns: list[Arm]) -> dict[Arm, Reply]:
        pids: dict[Arm, list[int]] = {arm: [] for arm in ARMS}
        replies: dict[Arm, Reply] = {}
        for arm in turns[:2]:
            reply = self.agents[arm].ask(Begin(arm, requests[arm]))
            if not isinstance(reply, Waiting):
                return {arm: reply}
            pids[arm] = reply.pids
        # each warms up, then the turns, then each has its answers checked
        for arm in (*turns[:2], *turns, *turns[:2]):
            others = pids[ARMS[1 - ARMS.index(arm)]]
            reply = self.agents[arm].ask(Step(arm, others, self._timeout_s))
            if isinstance(reply, Done):
                replies[arm] = reply
            elif not isinstance(reply, Waiting):
                return {arm: reply}
        return replies

    def in_sequence(self, requests: Mapping[Arm, Measure], order: str) -> dict[Arm, Reply]:
        """One after the other."""
        replies: dict[Arm, Reply] = {}
        for letter in order:
            arm = ARMS["AB".index(letter)]
            replies[arm] = self.agents[arm].ask(requests[arm])
            if not isinstance(replies[arm], Done):
                break
        return replies
