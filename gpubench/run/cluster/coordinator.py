"""Rank 0's side of several machines: who joined, and who is lost."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from time import monotonic, sleep
from typing import Any, NoReturn, Self

from msgspec.structs import replace

from gpubench import __version__
from gpubench.errors import InputError
from gpubench.machine import environment
from gpubench.run.agent.client import GRACE_S, OnProgress, limit_s
from gpubench.run.agent.messages import PROTOCOL, Failure, Reply, Request
from gpubench.run.cluster import channel as wire
from gpubench.run.cluster.channel import Tell
from gpubench.run.cluster.heartbeat import Pulse
from gpubench.run.cluster.transport import Store, StoreLost
from gpubench.run.inventory import Node

POLL_S = 1.0
"""A wait in the store lasts so long before it is looked whether there is still reason to wait."""
LEAST_S = 0.5
"""Of the time-out: five beats."""
LEAVE_S = 3.0
"""For the nodes to hear that the run is over."""
_NONCE = re.compile(r"[0-9a-f]{32}")


class Peer:
    """Another node. `ask` is for one thread; ``gone`` tells why it is lost once it is."""

    def __init__(self, node: Node, channel: wire.Channel) -> None:
        self.node, self.channel = node, channel
        self.gone: Future[str] = Future()
        self._asked = 0

    @property
    def lost(self) -> Failure | None:
        """What its cells have become, where it is lost."""
        if not self.gone.done():
            return None
        return Failure("node-lost", f"{self.node.name}: {self.gone.result()}")

    def ask(self, request: Request, progress: OnProgress | None = None) -> Reply:
        """Its answer; a Failure names it."""
        self._asked += 1
        try:
            return self._answer(request, progress)
        except StoreLost as error:
            return self.lost or Failure("node-lost", f"{self.node.name}: {error}")

    def _answer(self, request: Request, progress: OnProgress | None) -> Reply:
        end = monotonic() + limit_s(request) + GRACE_S
        self.channel.send(wire.Ask(self._asked, request))  # type: ignore[arg-type]
        while not self.gone.done() and monotonic() < end:
            message = self.channel.receive(POLL_S)
            if not isinstance(message, wire.Told | wire.Answer) or message.number != self._asked:
                continue  # of a request that was given up
            if isinstance(message, wire.Answer):
                reply = message.reply
                if isinstance(reply, Failure):
                    reply = replace(reply, reason=f"{self.node.name}: {reply.reason}")
                return reply
            if progress is not None:
                progress(message.progress)
        return self.lost or Failure("timeout", f"{self.node.name}: no answer")


class Cluster:
    """The nodes of a run. Enter it before anything that can fail: the exit tells the others."""

    def __init__(
        self,
        connect: Callable[[], Store],
        nnodes: int,
        key: bytes,
        timeout_s: float,
        join_limit_s: float,
        tell: Tell,
    ) -> None:
        """``connect``: the first call keeps the store, where it is ours to keep."""
        if timeout_s < LEAST_S:
            raise InputError(f"--node-timeout {timeout_s:g}s: expected {LEAST_S:g}s or more")
        self._connect, self._nnodes, self._key = connect, nnodes, key
        self._timeout_s, self._join_limit_s, self._tell = timeout_s, join_limit_s, tell
        self._run = secrets.token_hex(16)
        self._welcomed: dict[str, int] = {}
        self._refused = 0
        self._pulse: Pulse | None = None
        self.peers: dict[int, Peer] = {}
        self.nodes: list[Node] = []
        self.environments: list[environment.Environment] = []
        """By rank, as ``nodes``."""

    # ------------------------------------------------------------------------ joining

    def gather(self, suite: str, own: Node, here: environment.Environment) -> None:
        """Wait for every node. ``suite``: the digest that theirs must equal.

        Raises InputError where one has not joined in time, or does not fit.
        """
        self._store, self._beats = self._connect(), self._connect()
        self._pulse = Pulse(self._timeout_s, self._ended)
        self._pulse.start()
        joined: dict[int, environment.Environment] = {0: here}
        end = monotonic() + self._join_limit_s
        while len(joined) < self._nnodes:
            if monotonic() > end:
                raise InputError(self._absent(joined))
            data = self._store.pop("hello", min(POLL_S, self._join_limit_s))
            try:
                if data is not None and (found := self._knock(data, suite)):
                    joined[found[0]] = found[1]
            except wire.Refused as why:
                self._refused += 1
                if self._refused <= wire.MAX_TOLD:
                    self._tell(f"refused a message to node 0: {why}")
        self.nodes = [own, *(self.peers[rank].node for rank in sorted(self.peers))]
        self.environments = [joined[rank] for rank in sorted(joined)]

    def _absent(self, joined: Mapping[int, Any]) -> str:
        absent = [str(rank) for rank in range(self._nnodes) if rank not in joined]
        more = f"; {self._refused} message(s) were refused: see above" if self._refused else ""
        return (
            f"of {self._nnodes} nodes rank {', '.join(absent)} did not join within "
            f"{self._join_limit_s:g} s{more}; start every rank with the same command, "
            "--rdzv-endpoint and secret (--join-timeout gives them longer)"
        )

    def _knock(self, data: bytes, suite: str) -> tuple[int, environment.Environment] | None:
        """Rank and environment of a node that joined. Raises Refused; InputError for a misfit."""
        head, body = wire.unseal(self._key, data)
        message, rank = wire.decode(body), head.sender
        if not isinstance(message, wire.Hello | wire.Join) or head.to != 0 or head.more:
            raise wire.Refused(f"a {type(message).__name__} from {rank} to {head.to} joins nobody")
        if not _NONCE.fullmatch(message.nonce):
            raise wire.Refused(f"its nonce is {message.nonce[:40]!r}")
        known = self._welcomed.get(message.nonce)
        if isinstance(message, wire.Hello):
            if head.run or known is not None:
                raise wire.Refused(f"a replay of a greeting in node {rank}'s name")
            self._welcome(message, rank)
            return None
        if head.run != f"{self._run}/join" or known != rank or rank in self.peers:
            raise wire.Refused(f"a replay of a message with which node {rank} joins")
        channel = self._channel(self._run, message.nonce, rank, self._connect())
        if (message.version, message.protocol) != (__version__, PROTOCOL):
            words = (
                f"gpubench {message.version} (protocol {message.protocol}), on rank 0 "
                f"{__version__} ({PROTOCOL}); install the same everywhere"
            )
            self._misfit(channel, message.nonce, rank, words)
        if message.suite != suite:
            words = "started with another suite, other options or another model file than rank 0"
            self._misfit(channel, message.nonce, rank, words)
        node = Node(rank, str(message.environment.get("host")), message.cores, message.gpus,
                    message.lacks)  # fmt: skip
        self.peers[rank] = Peer(node, channel)
        channel.send(wire.Welcome(message.nonce, self._run, self._timeout_s))
        if self._pulse is not None:
            names = 0, rank, message.nonce
            beats = wire.beats(self._key, self._run, *names, self._beats, self._tell)
            self._pulse.listen(rank, beats)
        return rank, message.environment

    def _channel(self, run: str, nonce: str, rank: int, inbox: Store) -> wire.Channel:
        push, pop = partial(self._store.push, f"to/{nonce}"), partial(inbox.pop, f"from/{nonce}")
        return wire.Channel(self._key, run, 0, rank, push, pop, self._tell)

    def _welcome(self, hello: wire.Hello, rank: int) -> None:
        door = self._channel("", hello.nonce, rank, self._store)
        if rank in self.peers or not 0 < rank < self._nnodes:
            free = [n for n in range(1, self._nnodes) if n not in self.peers]
            words = f"--node-rank {rank} is taken, or not one of this run; free: {free}"
            door.send(wire.Refusal(hello.nonce, words))
            raise wire.Refused(words)
        self._welcomed[hello.nonce] = rank
        door.send(wire.Welcome(hello.nonce, self._run, self._timeout_s))

    def _misfit(self, channel: wire.Channel, nonce: str, rank: int, words: str) -> NoReturn:
        """End the run; not before that node has read why."""
        channel.send(wire.Refusal(nonce, words))
        end = monotonic() + LEAVE_S
        while self._store.holds(f"to/{nonce}") and monotonic() < end:
            sleep(0.05)
        raise InputError(f"node {rank}: {words}")

    # ------------------------------------------------------------------------ losing

    def _ended(self, rank: int, why: str, finished: bool) -> str:  # noqa: ARG002
        peer = self.peers[rank]
        peer.gone.set_result(why)
        if self._pulse is not None:  # else we left first
            self._tell(f"lost {peer.node.name}: {why}")
        return f"rank 0 gave this node up: {why}"

    def lost(self, rank: int) -> Failure | None:
        """What has become of cells that need node ``rank``, where it is lost."""
        return self.peers[rank].lost if rank in self.peers else None

    def differ(self, ranks: list[int]) -> bool:
        """Whether these nodes differ in what matters to a measurement."""
        return len({environment.fingerprint(self.environments[rank]) for rank in ranks}) > 1

    def finish(self) -> None:
        """The run has come to its end, and the others may go."""
        self._leave("rank 0 has finished", finished=True)

    def _leave(self, words: str, finished: bool) -> None:
        pulse, self._pulse = self._pulse, None
        if pulse is not None:
            pulse.leave(words, finished, LEAVE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        why = str(error) if isinstance(error, Exception) else "interrupted"
        self._leave(f"rank 0 stopped: {why}", finished=False)
