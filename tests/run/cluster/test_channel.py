"""The seal, and channels that refuse what does not carry it."""

from __future__ import annotations

from collections import deque

import msgspec
import pytest

from gpubench.run.agent.messages import Failure, Progress
from gpubench.run.cluster import channel

KEY = b"sixteen letters at least"


class Line:
    """Both ends of a channel, and what travels on it."""

    def __init__(self, key: bytes = KEY, run: str = "run") -> None:
        self.wire: deque[bytes] = deque()
        self.told: list[str] = []
        ends = self.wire.append, lambda _: self.wire.popleft() if self.wire else None
        self.one = channel.Channel(key, run, 0, 1, *ends, self.told.append)
        self.other = channel.Channel(key, run, 1, 0, *ends, self.told.append)


def answer(number: int = 1, words: str = "no") -> channel.Answer:
    return channel.Answer(number, Failure("error", words))


def test_messages_arrive_in_order_and_once() -> None:
    line = Line()
    line.one.send(answer(1))
    line.one.send(channel.Told(2, Progress("warm")))
    assert line.other.receive(0) == answer(1)
    assert line.other.receive(0) == channel.Told(2, Progress("warm"))
    assert line.other.receive(0) is None
    assert line.told == []


def test_a_large_message_travels_in_pieces() -> None:
    line = Line()
    large = answer(words="x" * (3 * channel.MAX_BODY))
    line.one.send(large)
    assert len(line.wire) == 4
    assert max(map(len, line.wire)) < 2 << 20
    assert line.other.receive(0) == large


def test_without_a_secret_the_seal_is_checked_all_the_same() -> None:
    line = Line(key=b"")
    line.one.send(answer())
    line.wire[0] = line.wire[0][:-1] + b" "
    assert line.other.receive(0) is None
    assert "HMAC" in line.told[0]


@pytest.mark.parametrize("at", [0, 63, 64, 70, -1])
def test_one_changed_byte_is_refused(at: int) -> None:
    line = Line()
    line.one.send(answer())
    changed = bytearray(line.wire[0])
    changed[at] ^= 1
    line.wire[0] = bytes(changed)
    assert line.other.receive(0) is None
    assert line.told == [
        "refused a message to node 1 in node 0's name: its HMAC does not match: another secret, "
        "or a forgery"
    ]


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (channel.Head("other", 0, 1, 0), "it is of run 'other'"),
        (channel.Head("run", 2, 1, 0), "from 2 to 1"),
        (channel.Head("run", 0, 2, 0), "from 0 to 2"),
        (channel.Head("run", 1, 0, 0), "from 1 to 0"),
        (channel.Head("run", 0, 1, -1), "a replay"),
    ],
)
def test_a_sealed_message_for_somebody_else_is_refused(head: channel.Head, words: str) -> None:
    line = Line()
    line.wire.append(channel.seal(KEY, head, msgspec.json.encode(answer())))
    assert line.other.receive(0) is None
    assert words in line.told[0]


def test_replays_are_refused_and_the_next_message_is_read() -> None:
    line = Line()
    line.one.send(answer(1))
    [first] = line.wire
    assert line.other.receive(0) == answer(1)
    line.wire += [first, first]
    line.one.send(answer(2))
    assert line.other.receive(0) == answer(2)
    assert [words.rpartition(": ")[2] for words in line.told] == ["number 0 after 0"] * 2


def test_a_piece_that_is_missing_costs_one_message() -> None:
    line = Line()
    line.one.send(answer(words="x" * (2 * channel.MAX_BODY)))
    del line.wire[1]
    line.one.send(answer(2))
    assert line.other.receive(0) == answer(2)
    assert "1 piece(s) before it are missing" in line.told[0]


def test_what_has_no_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_MESSAGE", 1000)
    line = Line()
    for seq in range(4):
        line.wire.append(channel.seal(KEY, channel.Head("run", 0, 1, seq, more=True), b"x" * 300))
    assert line.other.receive(0) is None
    assert "longer than 1,000 bytes" in line.told[0]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"\xff", b"[" * 100_000, b'{"type":"Exec","code":"1"}', b'{"type":"Answer"}',
        b'{"type":"Answer","number":"1","reply":{"type":"Failure","kind":"","reason":""}}',
        b'{"type":"Ask","number":1,"request":{"type":"Preload","modules":["os"],"cache_dir":""}}',
    ],
)  # fmt: skip
def test_a_sealed_body_that_is_no_message_is_refused(body: bytes) -> None:
    line = Line()
    line.wire.append(channel.seal(KEY, channel.Head("run", 0, 1, 0), body))
    assert line.other.receive(0) is None
    assert "it is no message" in line.told[0]


def test_a_sealed_head_that_is_none_is_refused() -> None:
    with pytest.raises(channel.Refused, match="head"):
        channel.unseal(KEY, channel.seal(KEY, msgspec.json.decode(b"[]"), b""))  # type: ignore[arg-type]


def test_refusals_are_told_so_many_times_only() -> None:
    line = Line()
    for _ in range(3 * channel.MAX_JUNK):
        line.wire.append(b"junk")
    assert line.other.receive(0) is None
    assert len(line.wire) == 2 * channel.MAX_JUNK
    assert len(line.told) == channel.MAX_TOLD
