"""Sessions that take batches in turn, each on its own stream."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace as Bag
from typing import Any

import pytest

from gpubench.backends import _streams, base
from tests.backends import tiny


class Cuda:
    """The current stream; work is noted with the stream that it went to."""

    def __init__(self) -> None:
        self.current, self.done = "", []

    @contextmanager
    def stream(self, name: str) -> Iterator[None]:
        before, self.current = self.current, name
        yield
        self.current = before

    def set_stream(self, name: str) -> None:
        self.current = name

    def session(self, shared: Any) -> Any:
        number = 0 if shared is None else shared.made + 1
        made = Bag(made=number, facts={"a": 1}, _input=Bag(stream=f"stream {number}"))
        if shared is not None:
            shared.made += 1
        for what in ("copy_in", "run", "sync", "copy_out", "close"):
            setattr(
                made, what, lambda *_, what=what: self.done.append((what, number, self.current))
            )
        return made


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    found = Cuda()
    monkeypatch.setitem(sys.modules, "torch", Bag(cuda=found))  # type: ignore[arg-type]
    return found


def test_each_batch_goes_to_the_next_and_all_have_the_images(cuda: Cuda) -> None:
    streams = _streams.several(2, cuda.session)
    assert streams.facts == {"a": 1, "streams": 2}
    streams.copy_in("images")
    for _ in range(3):
        streams.run()
    streams.sync()
    streams.copy_out()
    streams.close()
    assert [work for work in cuda.done if work[0] != "sync"] == [
        ("copy_in", 0, "stream 0"), ("copy_in", 1, "stream 1"),
        ("run", 0, "stream 0"), ("run", 1, "stream 1"), ("run", 0, "stream 0"),
        ("copy_out", 0, "stream 0"),
        ("close", 1, "stream 0"), ("close", 0, "stream 0"),
    ]  # fmt: skip
    assert [number for what, number, _ in cuda.done if what == "sync"] == [0, 1]


def test_one_is_as_it_was_and_what_was_opened_is_closed(cuda: Cuda) -> None:
    alone = _streams.several(1, cuda.session)
    assert not isinstance(alone, _streams.Streams)

    def second_fails(shared: Any) -> Any:
        if shared is not None:
            raise MemoryError
        return cuda.session(shared)

    with pytest.raises(MemoryError):
        _streams.several(3, second_fails)
    assert [what for what, *_ in cuda.done] == ["close"]


@pytest.mark.parametrize("name", ["tensorrt", "onnxruntime"])
def test_where_they_would_do_nothing_it_is_said(name: str) -> None:
    backend, options = base.get(name), {"streams": 2}
    used = {"device": "cuda", "scenario": "throughput", "precision": "fp16", "options": options}
    assert backend.unsupported(tiny.cell(name, **used)) is None
    for other in ({"scenario": "latency"}, {"boundary": "transfer"}):
        assert "in turn" in str(backend.unsupported(tiny.cell(name, **used | other)))
    assert backend.unsupported(tiny.cell(name, device="cpu", options=options))
