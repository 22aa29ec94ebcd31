"""A node other than rank 0: joins, does what rank 0 asks, and ends with it."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Never

from gpubench import __version__, environment
from gpubench.errors import InputError
from gpubench.run import needs, pool, setup, wire
from gpubench.run.client import AgentClient
from gpubench.run.cluster import POLL_S
from gpubench.run.desk import Desk
from gpubench.run.launch import Membership
from gpubench.run.messages import PROTOCOL
from gpubench.run.pulse import Pulse
from gpubench.run.store import Store, StoreLost, connector
from gpubench.run.wire import Tell
from gpubench.suite import Suite
from gpubench.workload.cache import Cache

if TYPE_CHECKING:
    from rich.console import Console

GOODBYE_S = 1.0


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

    def join(
        self, suite: str, own: pool.Node, here: environment.Environment, limit_s: float
    ) -> None:
        """Become a node of the run. Raises InputError where rank 0 does not answer, or refuses."""
        self._out, self._in, beats = self._connect(), self._connect(), self._connect()
        end = monotonic() + limit_s
        door = self._channel("", "hello")
        door.send(wire.Hello(self._nonce))
        run = self._welcome(door, end).run
        self._channel(f"{run}/join", "hello").send(
            wire.Join(
                *(self._nonce, __version__, PROTOCOL, suite, here),
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
        return wire.Channel(
            self._key, run, self._member.rank, 0,
            lambda data: self._out.push(queue, data),
            lambda timeout_s: self._in.pop(f"to/{self._nonce}", timeout_s),
            self._tell,
        )  # fmt: skip

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
        screen.print(f"{name}: {words}", markup=False, soft_wrap=True)

    def tell(words: str) -> None:
        print(f"{name}: {words}", file=sys.stderr, flush=True)

    name = f"node {member.rank} of {member.nnodes}"
    log = (output or setup.directory(suite.name)) / f"node{member.rank}.log"
    backends = setup.backends_of(suite)
    own = pool.here(member.rank, backends, needs.decoders_of(suite))
    station = Station(member, connector(member, join_limit_s), key, say, tell, _leave)
    used = [(n, b.preload) for n, b in backends.items()]
    used += [(needs.named(n), needs.decoder(n).preload) for n in needs.decoders_of(suite)]
    modules = {m: None for name, found in used if name not in own.lacks for m in found}
    with AgentClient(list(modules), Cache(cache_dir).root, log) as agent:
        try:
            here = environment.collect(setup.command())
            station.join(pool.digest(suite), own, here, join_limit_s)
            log.parent.mkdir(parents=True, exist_ok=True)
            say(f"joined {member.endpoint}; the log of its agent is {log}")
            station.work(agent, Desk(member.rank, suite, backends, agent, say))
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
