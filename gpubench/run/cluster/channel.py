"""What nodes say to each other, and the seal on it.

A message travels as ``<HMAC-SHA256, 64 hex digits><head>\\n<body>``: the head says run, sender,
receiver and sequence number, the body is a piece of the message's JSON, and the HMAC covers both.
Nothing is decoded before it is verified, and then only as one of the types below; nothing is ever
unpickled. RFC 2104; compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any

import msgspec
from msgspec import Struct

from gpubench.run.agent import messages
from gpubench.run.availability import Lack
from gpubench.run.cluster.transport import Store

MAX_BODY = 1 << 20
"""Bytes of one piece; the store takes values up to 8 MiB."""
MAX_MESSAGE = 128 << 20
MAX_JUNK = 100
"""Messages that are refused in one go before the reader looks around."""
MAX_TOLD = 20
"""Refusals that one channel tells about; more are counted only."""
_MAC = 64

Tell = Callable[[str], None]
"""Shows words to a person."""

_MAX_HEAD = 512


class Hello(Struct, frozen=True, tag=True):
    """A node knocks. ``nonce`` names the queue that it listens to, and proves the answer fresh."""

    nonce: str


class Welcome(Struct, frozen=True, tag=True):
    """Rank 0 answers: the run's id, fresh as well, is part of every later seal."""

    nonce: str
    run: str
    timeout_s: float


class Refusal(Struct, frozen=True, tag=True):
    """Rank 0 will not have this node."""

    nonce: str
    reason: str


class Join(Struct, frozen=True, tag=True):
    """What a node is, and can do. The first three fields are read of any version."""

    nonce: str
    version: str
    protocol: int
    suite: str = ""
    """Digest of its suite and options: all nodes must have been started alike."""
    environment: dict[str, Any] = {}
    cores: int = 0
    gpus: int = 0
    lacks: dict[str, Lack] = {}


class Beat(Struct, frozen=True, tag=True):
    """A node lives, or says why it leaves."""

    left: str = ""
    finished: bool = False


class Ask(Struct, frozen=True, tag=True):
    """Rank 0 wants this done."""

    number: int
    request: (
        messages.BuildReference | messages.Prepare | messages.Begin | messages.Step | messages.End
    )


class Told(Struct, frozen=True, tag=True):
    """A step of request ``number`` was reached."""

    number: int
    progress: messages.Progress


class Answer(Struct, frozen=True, tag=True):
    """The answer to request ``number``."""

    number: int
    reply: messages.Failure | messages.Prepared | messages.Waiting | messages.Done


Message = Hello | Welcome | Refusal | Join | Beat | Ask | Told | Answer


class Head(Struct, frozen=True):
    """From whom to whom, and which of their messages."""

    run: str
    sender: int
    to: int
    seq: int
    more: bool = False
    """The message goes on in the next one."""


class Refused(Exception):
    """Not to be believed, or not to be done; the words say why, and hold nothing of the secret."""


_head = msgspec.json.Decoder(Head)
_message: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def seal(key: bytes, head: Head, body: bytes) -> bytes:
    """What travels."""
    said = msgspec.json.encode(head) + b"\n" + body
    return hmac.new(key, said, hashlib.sha256).hexdigest().encode() + said


def unseal(key: bytes, data: bytes) -> tuple[Head, bytes]:
    """Head and body of what travelled. Raises Refused."""
    if len(data) > _MAC + _MAX_HEAD + MAX_BODY:
        raise Refused(f"too large: {len(data):,} bytes")
    mac, said = data[:_MAC], data[_MAC:]
    if not hmac.compare_digest(mac, hmac.new(key, said, hashlib.sha256).hexdigest().encode()):
        raise Refused("its HMAC does not match: another secret, or a forgery")
    head, _, body = said.partition(b"\n")
    try:
        return _head.decode(head), body
    except (ValueError, RecursionError) as error:
        raise Refused(f"its head cannot be read: {error}") from error


def decode(body: bytes) -> Message:
    """A whole message. Raises Refused."""
    try:
        return _message.decode(body)
    except (ValueError, RecursionError) as error:
        raise Refused(f"it is no message: {error}") from error


class Channel:
    """Two nodes' messages to each other, each read once and in order.

    ``push`` adds to the other's queue, ``pop`` takes from the own one (None after so many seconds
    without anything). Whatever is refused is told by ``tell``, and the next one is read.
    """

    def __init__(
        self,
        key: bytes,
        run: str,
        own: int,
        other: int,
        push: Callable[[bytes], None],
        pop: Callable[[float], bytes | None],
        tell: Tell,
    ) -> None:
        self._key, self._run, self._own, self._other = key, run, own, other
        self._push, self._pop, self._tell = push, pop, tell
        self._lock = Lock()
        self._sent = 0
        self._read = -1
        self._part = bytearray()
        self._refused = 0

    def send(self, message: Message) -> None:
        """Hand it to the store, in pieces where it is large."""
        body = msgspec.json.encode(message)
        with self._lock:
            for at in range(0, len(body), MAX_BODY):
                more = at + MAX_BODY < len(body)
                head = Head(self._run, self._own, self._other, self._sent, more)
                self._sent += 1
                self._push(seal(self._key, head, body[at : at + MAX_BODY]))

    def receive(self, timeout_s: float) -> Message | None:
        """The next message that can be believed; None when there was none for so long."""
        for _ in range(MAX_JUNK):
            if (data := self._pop(timeout_s)) is None:
                break
            try:
                if message := self._accept(data):
                    return message
            except Refused as why:
                self._part.clear()
                self._refused += 1
                if self._refused <= MAX_TOLD:
                    self._tell(
                        f"refused a message to node {self._own} in node {self._other}'s name: {why}"
                    )
        return None

    def _accept(self, data: bytes) -> Message | None:
        head, body = unseal(self._key, data)
        if (head.run, head.sender, head.to) != (self._run, self._other, self._own):
            raise Refused(f"it is of run {head.run!r}, from {head.sender} to {head.to}")
        if head.seq <= self._read:
            raise Refused(f"a replay: number {head.seq} after {self._read}")
        gap, self._read = head.seq - self._read - 1, head.seq
        if gap and self._part:
            raise Refused(f"{gap} piece(s) before it are missing")
        self._part += body
        if len(self._part) > MAX_MESSAGE:
            raise Refused(f"longer than {MAX_MESSAGE:,} bytes")
        if head.more:
            return None
        whole = bytes(self._part)
        self._part.clear()
        return decode(whole)


def beats(
    key: bytes, run: str, own: int, other: int, nonce: str, store: Store, tell: Tell
) -> Channel:
    """Between rank 0 and the node that ``nonce`` names, for `gpubench.run.cluster.heartbeat`."""
    out, back = ("to", "from") if own == 0 else ("from", "to")
    push, pop = (
        partial(store.push, f"beat-{out}/{nonce}"),
        partial(store.pop, f"beat-{back}/{nonce}"),
    )
    return Channel(key, f"{run}/beat", own, other, push, pop, tell)
