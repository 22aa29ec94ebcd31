"""A stand-in for torch on CUDA that is a race detector: streams, events, memory that is reused.

What is enqueued is done at once, in the host's order, which any order that the events allow must
come to the same as. Each stream, event and the host have a vector clock, and each piece of memory
knows who read and wrote it: an access that is not ordered behind the last one of another stream
(one of the two a write) raises `Race`. Memory that was let go goes to the stream that it was taken
on, as in PyTorch's allocator, which orders a later owner there and nowhere else.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

Clock = dict[int, int]


class Race(BaseException):  # which no decoder's or backend's own handling of errors hides
    """Two accesses to one piece of memory, and nothing says which comes first."""


def later(one: Clock, other: Clock) -> Clock:
    return {k: max(one.get(k, 0), other.get(k, 0)) for k in one.keys() | other.keys()}


class Stream:
    def __init__(self, gpu: Gpu, name: str) -> None:
        self.gpu, self.name, self.clock = gpu, name, dict(gpu.host)
        self.free: list[Memory] = []
        gpu.streams.append(self)
        self.cuda_stream = len(gpu.streams)

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

    def query(self) -> bool:
        return True


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.of = gpu, "nothing"
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or self.gpu.current
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


# ------------------------------------------------------------------------------ torch itself


class Watched(Gpu):
    """The same under torch itself: its own operators, on the CPU, with what they read and write.

    ``with watched.torch(monkeypatch):`` tensors on "cuda" are the host's in truth, and known by
    their addresses. A copy to the host is waited for, as CUDA does, and one from it that nobody
    said was not to be.
    """

    def __init__(self, missing: int | None = None) -> None:
        super().__init__()
        self._of_begun = missing
        self._place = ""
        self._known: dict[int, _Known] = {}
        self._pinned: set[int] = set()
        self._graph: Graph | None = None
        self.waits: list[str] = []
        """Operators that the host waited for: copies between the two."""

    @contextmanager
    def torch(self, monkeypatch: Any) -> Iterator[None]:
        import torch

        def event(**_: object) -> Event:
            return Event(self)

        for name, fake in {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "get_device_name": lambda: "Watched",
            "device": lambda _: nullcontext(),
            "Stream": self.cuda.Stream,
            "Event": event,
            "stream": self.on,
            "set_stream": lambda stream: setattr(self, "current", stream),
            "current_stream": self.cuda.current_stream,
            "CUDAGraph": Graph,
            "graph": self._capture,
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 0)
        used = lambda tensor, stream: self.known(tensor).used.append(stream)  # noqa: E731
        monkeypatch.setattr(torch.Tensor, "record_stream", used)
        with _functions(self), _operators(self):
            yield

    @contextmanager
    def _capture(self, graph: Graph, *, stream: Stream, **_: object) -> Iterator[None]:
        """What is captured is computed as well, which CUDA does not."""
        with self.on(stream):
            self._graph = graph
            yield
            self._graph = None

    def begin(self) -> None:
        """Waits count from here on, and may be ``missing``."""
        self.edges.clear()
        self._missing = self._of_begun

    def by_handle(self, handle: int) -> Stream:
        return next(stream for stream in self.streams if stream.cuda_stream == handle)

    def lock(self, array: Any) -> None:
        """Page-lock it."""
        self._pinned.add(array.ctypes.data)

    def host_writes(self, array: Any, values: Any) -> None:
        known = self._known.get(array.ctypes.data)
        self.access(self, self.host, [], [known.memory] if known else [])
        array[...] = values

    def memory(self, address: int) -> Memory:
        return self._known[address].memory

    def view(self, address: int) -> Any:
        """What lies there, as a library sees it."""
        import numpy as np

        shape = self._known[address].shape
        raw = (ctypes.c_float * math.prod(shape)).from_address(address)
        return np.ctypeslib.as_array(raw).reshape(shape)

    # what the modes call

    def sweep(self) -> None:
        """Memory that torch has let go goes back to its stream."""
        for address, known in [*self._known.items()]:
            if known.reference.expired():
                del self._known[address]
                self._pinned.discard(address)
                if known.stream:
                    clocks = [later(s.clock, self.host) for s in known.used]
                    known.memory.busy = clocks
                    known.stream.free.append(known.memory)

    def known(self, tensor: Any, *, device: bool = False) -> _Known | None:
        """Of a tensor's storage; of one that is new, on the ``device`` or not, from now on."""
        from torch.multiprocessing.reductions import StorageWeakRef

        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if not address:
            return None
        if address not in self._known:
            stream = self.current if device else None
            self._known[address] = _Known(
                StorageWeakRef(storage), self.take(stream), stream, tuple(tensor.shape), []
            )
        return self._known[address]

    def called(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """By Python: devices are turned into the CPU, and remembered."""
        import torch

        name = getattr(function, "__name__", "")
        if function == torch.Tensor.device.__get__:
            known = self.known(args[0])
            return torch.device("cuda" if known and known.stream else "cpu")
        if name == "is_pinned":
            return args[0].data_ptr() in self._pinned
        if name == "pin_memory":
            copy = args[0].clone()
            self._pinned.add(copy.data_ptr())
            return copy
        if name in ("cpu", "cuda"):
            return args[0].to(name, copy=True)
        if name in ("device", "_parse_to"):
            return function(*args, **kwargs)
        places = [each for each in (*args, kwargs.get("device")) if _is_device(each)]
        cpu = torch.device("cpu")
        args = tuple(cpu if _is_device(each) else each for each in args)
        if "device" in kwargs:
            kwargs["device"] = cpu
        locked = kwargs.pop("pin_memory", False)
        if name == "to" and places:
            known = self.known(args[0])
            if known and bool(known.stream) == (str(places[0]) == "cpu"):
                kwargs["copy"] = True  # it is elsewhere
        before, self._place = self._place, str(places[0]).partition(":")[0] if places else ""
        try:
            found = function(*args, **kwargs)
        finally:
            self._place = before
        if locked:
            self._pinned.add(found.data_ptr())
        return found

    def done(self, operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """By the dispatcher: what it reads and writes is known by its schema."""
        import torch
        from torch.utils._pytree import tree_leaves

        self.sweep()
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        name = operator._schema.name
        if name == "aten::lift_fresh" and self._place == "cuda":  # of Python's numbers
            self.current.work([], [k.memory for t in given if (k := self.known(t, device=True))])
            self._wait(name)
            return operator(*args, **kwargs)
        inputs = [known for t in given if (known := self.known(t))]
        schema = operator._schema.arguments
        written = [s.alias_info is not None and s.alias_info.is_write for s in schema]
        targets = [a for a, is_target in zip(args, written, strict=False) if is_target]
        writes = [k for t in targets if isinstance(t, torch.Tensor) and (k := self.known(t))]
        device = self._place == "cuda" or any(known.stream for known in inputs)
        found = operator(*args, **kwargs)
        results = [t for t in tree_leaves(found) if isinstance(t, torch.Tensor)]
        seen = {id(known) for known in inputs}
        own = device and self._place != "cpu"
        new = [k for t in results if (k := self.known(t, device=own)) and id(k) not in seen]
        if not (writes or new or not results) or name.startswith("aten::empty"):
            return found  # a view, or what nothing has written yet
        touched = [k.memory for k in [*writes, *new]]
        reads = [k.memory for k in inputs if k not in writes]
        if not device:
            self.access(self, self.host, reads, touched)
            return found
        self.current.work(reads, touched)
        if self._graph is not None:
            self._graph.steps.append((operator, args, kwargs, results))
        crosses = len({bool(k.stream) for k in [*inputs, *new]}) > 1 or not results
        later_on = kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True)
        if crosses and not later_on:
            self._wait(name)
        return found

    def _wait(self, name: str) -> None:
        self.waits.append(name)
        self.host = later(self.host, self.current.clock)


class Graph:
    """Of operators, whose results are where they were when they were captured."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def replay(self) -> None:
        for operator, args, kwargs, results in self.steps:
            again = operator(*args, **kwargs)
            for to, of in zip(results, [again], strict=True):
                to.copy_(of)


class _Known(NamedTuple):
    reference: Any
    memory: Memory
    stream: Stream | None
    """That it was taken on; None: the host's."""
    shape: tuple[int, ...]
    used: list[Stream]


def _is_device(value: object) -> bool:
    import torch

    text = value if isinstance(value, str) else ""
    return isinstance(value, torch.device) or text.partition(":")[0] in ("cuda", "cpu")


def _functions(gpu: Watched) -> Any:
    from torch.overrides import TorchFunctionMode

    class Functions(TorchFunctionMode):
        def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            return gpu.called(function, args, dict(kwargs or {}))

    return Functions()


def _operators(gpu: Watched) -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, operator: Any, _: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            return gpu.done(operator, args, dict(kwargs or {}))

    return Operators()
