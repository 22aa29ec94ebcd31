"""The agents of an interleaved A/B, and how a pair of processes takes its turns."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, get_args

from msgspec.structs import replace

from gpubench.measure.protocol import least_of_turn
from gpubench.records.record import Arm
from gpubench.run.agent.client import AgentClient
from gpubench.run.agent.measure_task import RIVALS_CPU
from gpubench.run.agent.messages import Begin, Done, End, Measure, Reply, Step, Waiting
from gpubench.suite.types import MIN_BLOCKS

ARMS: tuple[Arm, ...] = get_args(Arm)
TURNS, FEW_TURNS = 12, 2
"""Of each arm, at most; and where each costs much: a pipeline that must settle, a job whose end
replicas wait for."""
LEAST_TURN_S = 0.02
IDLE_LIMIT = 0.01
"""Of the time of the cores in use, that an idle arm may take while its rival samples."""


def sequence(turns: int, first: str, blocks: random.Random) -> str:
    """The order in which two arms take so many turns each (1, or an even number): 'ABBABAAB'.

    ABBA and BAAB follow one another, by ``blocks`` in random order, as often one as the other. So
    what changes linearly over four turns cancels, and what is periodic seldom fits. With the other
    ``first`` every A is a B: if that is drawn at random, identical arms are as likely to be one way
    round as the other, whatever the machine does, and a pair's difference is as likely d as -d.
    """
    quads = ["ABBA", "BAAB"] * (turns // 4) + ["ABBA"] * (turns // 2 % 2)
    blocks.shuffle(quads)
    order = "".join(quads) or "AB"
    return order if first == "A" else order.translate(str.maketrans("AB", "BA"))


def _in_order(first: str) -> tuple[Arm, ...]:
    return ARMS if first == "A" else ARMS[::-1]


def most_turns(measure: Measure) -> int:
    """Of each arm, however short its samples are."""
    cell = measure.cell
    few = cell.dispatch != "independent" or cell.boundary == "pipeline"
    return FEW_TURNS if few else max(FEW_TURNS, min(TURNS, measure.policy.max_samples // 2 * 2))


def turns(measure: Measure, warm: Waiting) -> int:
    """How many turns share the sampling time of a process that has warmed up.

    As many as there may be, as long as each lasts for `LEAST_TURN_S`, holds enough samples, and
    twice what it costs: a batch to warm up again, and the wait until its threads sleep.
    """
    most = most_turns(measure)
    least_ns = max(2 * warm.batch_ns, least_of_turn(measure.cell, most) * warm.sample_ns)
    seconds = max(measure.policy.duration_s, MIN_BLOCKS * warm.sample_ns / 1e9)
    fit = int(seconds / max(LEAST_TURN_S, least_ns / 1e9, 2 * warm.rest_s))
    return max(FEW_TURNS, min(most, fit // 2 * 2))


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

    def resident(
        self, requests: Mapping[Arm, Measure], first: str, blocks: random.Random
    ) -> tuple[dict[Arm, Reply], str]:
        """Both at once, and the `sequence` of their turns.

        A failure of one ends the other unheard.
        """
        replies, order = self._turns(requests, first, blocks)
        for arm, agent in self.agents.items():
            if not isinstance(replies.get(arm), Done) and agent.running:
                agent.ask(End(arm))
        return told_apart(replies), order

    def _turns(
        self, requests: Mapping[Arm, Measure], first: str, blocks: random.Random
    ) -> tuple[dict[Arm, Reply], str]:
        both = _in_order(first)
        pids: dict[Arm, list[int]] = {arm: [] for arm in ARMS}

        def step(arm: Arm, count: int = 0) -> Reply:
            others = pids[ARMS[1 - ARMS.index(arm)]]
            reply = self.agents[arm].ask(Step(arm, others, self._timeout_s, count))
            if isinstance(reply, Waiting):
                pids[arm] = reply.pids
            return reply

        for arm in both:
            reply = self.agents[arm].ask(Begin(arm, requests[arm]))
            if not isinstance(reply, Waiting):
                return {arm: reply}, ""
            pids[arm] = reply.pids
        count = TURNS
        for arm in both:  # each warms up
            reply = step(arm)
            if not isinstance(reply, Waiting):
                return {arm: reply}, ""
            count = min(count, turns(requests[arm], reply))
        order = sequence(count, first, blocks)
        for letter in order:
            arm = ARMS["AB".index(letter)]
            reply = step(arm, count)
            if not isinstance(reply, Waiting):
                return {arm: reply}, order
        replies: dict[Arm, Reply] = {}
        for arm in both:  # each has its answers checked
            replies[arm] = step(arm)
            if not isinstance(replies[arm], Done):
                return {arm: replies[arm]}, order
        return replies, order

    def in_sequence(self, requests: Mapping[Arm, Measure], first: str) -> dict[Arm, Reply]:
        """One after the other."""
        replies: dict[Arm, Reply] = {}
        for arm in _in_order(first):
            replies[arm] = self.agents[arm].ask(requests[arm])
            if not isinstance(replies[arm], Done):
                break
        return replies


def told_apart(replies: Mapping[Arm, Reply]) -> dict[Arm, Reply]:
    """What each arm has seen of the other while that was idle, told of the other."""
    found = dict(replies)
    for one, other in (ARMS, ARMS[::-1]):
        seen, told = replies.get(one), found.get(other)
        if isinstance(seen, Done) and isinstance(told, Done):
            share = seen.record.facts.get(RIVALS_CPU, 0.0)
            facts = {k: v for k, v in told.record.facts.items() if k != RIVALS_CPU}
            flags = told.record.flags + ["BUSY-WHILE-IDLE"] * (share > IDLE_LIMIT)
            record = replace(told.record, facts=facts | {"idle_cpu_share": share}, flags=flags)
            found[other] = Done(record, told.invalid)
    return found
