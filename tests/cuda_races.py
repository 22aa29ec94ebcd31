"""A stand-in for torch on CUDA that is a race detector: streams, events, memory that is reused.

What is enqueued is done at once, in the host's order, which any order that the events allow must
come to the same as. Each stream, event and the host have a vector clock, and each piece of memory
knows who read and wrote it: an access that is not ordered behind the last one of another stream
(one of the two a write) raises `Race`. Memory that was let go goes to the stream that it was taken
on, as in PyTorch's allocator, which orders a later owner there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

Clock = dict[int, int]


class Race(Exception):
    """Two accesses to one piece of memory, and nothing says which comes first."""


def later(one: Clock, other: Clock) -> Clock:
    return {k: max(one.get(k, 0), other.get(k, 0)) for k in one.keys() | other.keys()}


class Stream:
    def __init__(self, gpu: Gpu, name: str) -> None:
        self.gpu, self.name, self.clock = gpu, name, dict(gpu.host)
        self.free: list[Memory] = []
        gpu.streams.append(self)

    def work(self, reads: list[Memory], writes: list[Memory]) -> Clock:
        """Enqueue a piece of work; the clock at which it is done."""
        self.clock = later(self.clock, self.gpu.host)
        self.clock[id(self)] = self.clock.get(id(self), 0) + 1
        self.gpu.access(self, self.clock, reads, writes)
        return dict(self.clock)

    def wait_event(self, event: Event) -> None:
        if self.gpu.edge(f"{self.name} waits for {event.of}"):
            self.clock = later(self.clock, event.clock)

    def wait_stream(self, other: Stream) -> None:
        event = Event(self.gpu)
        event.record(other)
        self.wait_event(event)

    def synchronize(self) -> None:
        if self.gpu.edge(f"the host waits for {self.name}"):
            self.gpu.host = later(self.gpu.host, self.clock)


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.of = gpu, "nothing"
        self.clock: Clock = {}

    def record(self, stream: Stream) -> None:
        self.of, self.clock = stream.name, dict(later(stream.clock, self.gpu.host))

    def synchronize(self) -> None:
        if self.gpu.edge(f"the host waits for an event of {self.of}"):
            self.gpu.host = later(self.gpu.host, self.clock)


class Memory:
    def __init__(self) -> None:
        self.written: tuple[object, Clock] | None = None
        self.read: dict[object, Clock] = {}
        self.busy: list[Clock] = []
        """Of `Tensor.record_stream`: until the host knows of these it is not given away."""


class Tensor:
    """A batch: one value, of one type; of the host where ``stream`` is None."""

    shape, dtype, device = (4,), "float32", "cuda"

    def __init__(self, gpu: Gpu, value: int = -1, *, host: bool = False) -> None:
        self.gpu, self.value, self.host = gpu, value, host
        self._of = None if host else gpu.current
        self.memory, self._used = gpu.take(self._of), []  # type: ignore[var-annotated]

    def __del__(self) -> None:
        if self._of is not None:
            self.memory.busy = [later(s.clock, self.gpu.host) for s in self._used]
            self._of.free.append(self.memory)

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Tensor:
        self.gpu.current.work([source.memory], [self.memory])
        self.value = source.value
        return self

    def record_stream(self, stream: Stream) -> None:
        self._used.append(stream)

    def write(self, value: int) -> None:
        """By the host."""
        self.gpu.access(self.gpu, self.gpu.host, [], [self.memory])
        self.value = value

    def numpy(self) -> int:
        """As the host reads it."""
        self.gpu.access(self.gpu, self.gpu.host, [self.memory], [])
        return self.value


class Gpu:
    """In torch's place. ``missing``: the number of the wait that is left out; None: of none."""

    float32 = "float32"

    def __init__(self, missing: int | None = None) -> None:
        self.host: Clock = {}
        self.streams: list[Stream] = []
        self.edges: list[str] = []
        self._missing = missing
        self.current = Stream(self, "network")
        self.cuda = SimpleNamespace(
            Stream=lambda *_: Stream(self, f"stream {len(self.streams)}"),
            Event=lambda: Event(self),
            stream=self.on,
            current_stream=lambda *_: self.current,
        )

    def edge(self, what: str) -> bool:
        """Whether the next wait is one."""
        self.edges.append(what)
        return len(self.edges) - 1 != self._missing

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def take(self, stream: Stream | None) -> Memory:
        """As the allocator does: of what ``stream`` has let go first, used by others or not."""
        for memory in stream.free if stream else []:
            if all(later(self.host, clock) == self.host for clock in memory.busy):
                stream.free.remove(memory)  # type: ignore[union-attr]
                return memory
        return Memory()

    def access(self, who: object, at: Clock, reads: list[Memory], writes: list[Memory]) -> None:
        for memory in [*reads, *writes]:
            before = [memory.written] if memory.written else []
            if memory in writes:
                before += memory.read.items()
            for other, clock in before:
                if other is not who and later(at, clock) != at:
                    raise Race(f"{_name(who)} and {_name(other)}")
        for memory in reads:
            memory.read[who] = dict(at)
        for memory in writes:
            memory.written, memory.read = (who, dict(at)), {}

    def zeros(self, *_: object, pin_memory: bool = False, **__: object) -> Tensor:
        found = Tensor(self, host=pin_memory)
        if not pin_memory:
            self.current.work([], [found.memory])
        return found

    def empty(self, *_: object, pin_memory: bool = False, **__: object) -> Tensor:
        return Tensor(self, host=pin_memory)


def _name(who: object) -> str:
    return who.name if isinstance(who, Stream) else "the host"
