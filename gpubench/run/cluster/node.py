"""A node other than rank 0: joins, does what rank 0 asks, and ends with it."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Never

from msgspec.structs import replace

from gpubench import __version__, escape
from gpubench.backends.base import Backend
from gpubench.cache import Cache
from gpubench.errors import InputError
from gpubench.machine import environment
from gpubench.machine.cores import usable_cores
from gpubench.run import availability, inventory, record_builder
from gpubench.run.agent import messages
from gpubench.run.agent.client import AgentClient, Asked, OnProgress
from gpubench.run.availability import family
from gpubench.run.cluster import channel as wire
from gpubench.run.cluster.channel import Tell
from gpubench.run.cluster.coordinator import POLL_S
from gpubench.run.cluster.heartbeat import Pulse
from gpubench.run.cluster.node_group import TEAM
from gpubench.run.cluster.rendezvous import Membership
from gpubench.run.cluster.transport import Store, StoreLost, connector
from gpubench.run.inventory import Node
from gpubench.run.plan import Plan
from gpubench.run.prepare import not_importable
from gpubench.suite import grid
from gpubench.suite.types import Cell, Suite

if TYPE_CHECKING:
    from rich.console import Console

GOODBYE_S = 1.0


class Desk:
    """Does requests as this node understands them: nothing but names and numbers come from outside.

    A cell must be one of the node's own suite; artefacts, references, cores, modules, time-outs and
    numbers of turns are its own as well.
    """

    def __init__(
        self, node: Node, suite: Suite, backends: Mapping[str, Backend], agent: Asked, say: Tell
    ) -> None:
        self._node, self._suite, self._backends = node, suite, backends
        self._agent, self._say = agent, say
        self._cores = usable_cores()
        self._cells: dict[tuple[str, int], dict[str, Cell]] = {}
        self._broken: dict[str, str] = {}
        self._references: dict[str, str] = {}
        """By what the host gives."""
        self._artefacts: dict[str, str] = {}

    def start(self) -> None:
        """Start the agent and its imports."""
        self._broken = self._agent.start().errors

    def answer(self, request: messages.Request, progress: OnProgress) -> messages.Reply:
        """What became of it; what is refused is a Failure."""
        try:
            own = self._own(request)
        except wire.Refused as why:
            return messages.Failure("error", f"refused: {why}")
        if isinstance(own, messages.Failure):
            return own
        reply = self._agent.ask(own, progress)
        if isinstance(reply, messages.Prepared):
            if isinstance(own, messages.Prepare):
                self._artefacts[family(own.cell)] = reply.path
            elif isinstance(own, messages.BuildReference):
                self._references[own.input] = reply.path
            return messages.Prepared("", reply.ns, reply.contents)
        return reply

    def _own(self, request: messages.Request) -> messages.Request | messages.Failure:
        policy = self._suite.policy
        if isinstance(request, messages.BuildReference):
            self._say("images and reference answers")
            return messages.BuildReference(self._suite.workload, policy, request.input)
        if isinstance(request, messages.Prepare):
            cell = self._cell(request.cell)
            self._say(f"preparing {cell.label}")
            return self._lack(cell) or messages.Prepare(
                cell, self._places(cell)[0], policy.prepare_timeout_s
            )
        if isinstance(request, messages.Begin):
            return self._begin(request.measure)
        if isinstance(request, messages.Step):
            return messages.Step(TEAM, [], min(request.timeout_s, policy.timeout_s))
        if isinstance(request, messages.End):
            return messages.End(TEAM)
        raise wire.Refused(f"a {type(request).__name__} is nothing that a node does")

    def _begin(self, asked: messages.Measure) -> messages.Begin | messages.Failure:
        cell = self._cell(asked.cell)
        count, here = len(asked.cores), self._node.devices(cell) * cell.replicas_per_device
        if not 0 < count <= min(here, cell.replicas - asked.first) or asked.first < 0:
            raise wire.Refused(
                f"replicas {asked.first} to {asked.first + count - 1} of {cell.label}; this node "
                f"has room for {here}"
            )
        artefact = self._artefacts.get(family(cell))
        reference = self._references.get(cell.input)
        if artefact is None or reference is None:
            raise wire.Refused(f"{cell.label} was not prepared here")
        self._say(f"measuring {cell.label}: {count} of {cell.replicas} replicas")
        return messages.Begin(
            TEAM,
            messages.Measure(
                cell, self._suite.policy, artefact, reference, self._places(cell)[:count],
                node=self._node.rank, first=asked.first, repeat=asked.repeat,
            ),
        )  # fmt: skip

    def _cell(self, asked: Cell) -> Cell:
        """The same cell of this node's own suite. Only its ``cores`` may depend on the others."""
        where = (asked.device, asked.cores)
        if where not in self._cells:
            axes = self._suite.axes
            if axes.device not in ("auto", asked.device):
                raise wire.Refused(f"device {asked.device}; this node's suite has {axes.device}")
            if asked.cores < 0 or (
                axes.cores and asked.device == "cpu" and asked.cores != axes.cores
            ):
                raise wire.Refused(
                    f"{asked.cores} cores a device; this node's suite has {axes.cores}"
                )
            suite = replace(self._suite, axes=replace(axes, cores=max(1, asked.cores)))
            found = grid.expand(suite, asked.device, len(self._cores))
            self._cells[where] = {cell.key: cell for cell in found}
        cell = self._cells[where].get(asked.key)
        if cell is None:
            raise wire.Refused(f"{asked.label} is no cell of this node's suite")
        return cell

    def _lack(self, cell: Cell) -> messages.Failure | None:
        """Why its backend, or its decoder, cannot run here."""
        for part in availability.parts(cell):
            if lack := self._node.lacks.get(part):
                return messages.Failure("unavailable", lack.reason, lack.remedy)
        return not_importable(cell, self._backends, self._broken)

    def _places(self, cell: Cell) -> list[tuple[int, ...]]:
        return Plan(self._suite, [cell], [], self._cores).cores_of(cell)


class Station:
    """One node's run, from knocking to the end."""

    def __init__(
        self,
        member: Membership,
        connect: Callable[[], Store],
        key: bytes,
        say: Tell,
        tell: Tell,
        leave: Callable[[int], None],
    ) -> None:
        """``leave``: ends the process at once, whatever hangs in it."""
        self._member, self._key = member, key
        self._connect, self._say, self._tell, self._leave = connect, say, tell, leave
        self._nonce = secrets.token_hex(16)
        self._agent: AgentClient | None = None
        self._pulse: Pulse | None = None
        self.over = False
        """Rank 0 is gone, and the process about to end."""

    def join(self, suite: str, own: Node, here: environment.Environment, limit_s: float) -> None:
        """Become a node of the run. Raises InputError where rank 0 does not answer, or refuses."""
        self._out, self._in, beats = self._connect(), self._connect(), self._connect()
        end = monotonic() + limit_s
        door = self._channel("", "hello")
        door.send(wire.Hello(self._nonce))
        run = self._welcome(door, end).run
        self._channel(f"{run}/join", "hello").send(
            wire.Join(
                *(self._nonce, __version__, messages.PROTOCOL, suite, here),
                *(own.cores, own.gpus, own.lacks),
            )
        )
        self._link = self._channel(run, f"from/{self._nonce}")
        pulse = Pulse(self._welcome(self._link, end).timeout_s, self._ended)
        names = self._member.rank, 0, self._nonce
        pulse.listen(0, wire.beats(self._key, run, *names, beats, self._tell))
        pulse.start()
        self._pulse = pulse

    def _welcome(self, channel: wire.Channel, end: float) -> wire.Welcome:
        while True:
            message = channel.receive(POLL_S)
            if isinstance(message, wire.Refusal) and message.nonce == self._nonce:
                raise InputError(f"rank 0 refuses this node: {message.reason}")
            if isinstance(message, wire.Welcome) and message.nonce == self._nonce:
                return message
            if monotonic() > end:
                raise InputError(
                    f"{self._member.endpoint}: rank 0 did not answer in time; does it have the "
                    "same secret? It says which messages it refuses"
                )

    def _channel(self, run: str, queue: str) -> wire.Channel:
        push, pop = partial(self._out.push, queue), partial(self._in.pop, f"to/{self._nonce}")
        return wire.Channel(self._key, run, self._member.rank, 0, push, pop, self._tell)

    def work(self, agent: AgentClient, desk: Desk) -> Never:
        """Do what rank 0 asks until it leaves, which ends the process.

        Raises StoreLost when it vanished.
        """
        self._agent = agent
        desk.start()
        while True:
            message = self._link.receive(POLL_S)
            if isinstance(message, wire.Ask):
                self._do(message, desk)

    def _do(self, asked: wire.Ask, desk: Desk) -> None:
        reply = desk.answer(
            asked.request, lambda step: self._link.send(wire.Told(asked.number, step))
        )
        self._link.send(wire.Answer(asked.number, reply))  # type: ignore[arg-type]

    def _ended(self, rank: int, why: str, finished: bool) -> str:  # noqa: ARG002
        """Rank 0 is gone. The main thread may hang in the store, or wait for the agent."""
        self.over = True
        (self._say if finished else self._tell)(why)
        if self._agent is not None:
            self._agent.stop()
        self.close(why)
        self._leave(0 if finished else 1)
        return why

    def close(self, why: str) -> None:
        """Tell rank 0 that this node leaves, so that it need not wait for the silence."""
        if self._pulse is not None:
            self._pulse.leave(why, False, GOODBYE_S)


def run(
    member: Membership,
    key: bytes,
    suite: Suite,
    cache_dir: Path | None,
    output: Path | None,
    join_limit_s: float,
    screen: Console,
) -> int:
    """Be node ``member.rank``; returns the exit code, unless rank 0's end ends the process."""

    def say(words: str) -> None:
        screen.print(f"{name}: {words}", soft_wrap=True)

    def tell(words: str) -> None:
        escape.tell(f"{name}: {words}")

    name = f"node {member.rank} of {member.nnodes}"
    log = (output or record_builder.directory(suite.name)) / f"node{member.rank}.log"
    own, backends = inventory.here(member.rank, suite), availability.backends_of(suite)
    station = Station(member, connector(member, join_limit_s), key, say, tell, _leave)
    used = availability.used(*availability.named_by(suite)).items()
    modules = {m: None for name, part in used if name not in own.lacks for m in part.preload}
    with AgentClient(list(modules), Cache(cache_dir).root, log) as agent:
        try:
            here = environment.collect(record_builder.command())
            station.join(inventory.digest(suite), own, here, join_limit_s)
            log.parent.mkdir(parents=True, exist_ok=True)
            say(f"joined {member.endpoint}; the log of its agent is {log}")
            station.work(agent, Desk(own, suite, backends, agent, say))
        except BaseException as error:
            if station.over:  # this is what the end looks like from here
                sleep(2 * GOODBYE_S)
                return 1
            interrupted = isinstance(error, KeyboardInterrupt)
            words = "interrupted" if interrupted else str(error) or repr(error)
            station.close(words)
            if not interrupted and not isinstance(error, StoreLost):
                raise
            tell(words)
            return 130 if interrupted else 1


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
