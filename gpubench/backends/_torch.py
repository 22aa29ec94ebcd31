"""What the torch backends and ONNX Runtime on CUDA share: where a session's data lives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from gpubench.backends.base import Session
from gpubench.errors import Unavailable

if TYPE_CHECKING:
    import torch

    from gpubench.backends.base import Device, Images, Logits

    Ticket = tuple[torch.Tensor, torch.Tensor, torch.cuda.Event, torch.cuda.Event]
    """On the device, on the host, and the events that each is full."""

_NO_CUDA = "look at `nvidia-smi` and at CUDA_VISIBLE_DEVICES; torch must be a CUDA build"


def enter_device(stack: ExitStack, device: Device) -> torch.cuda.Stream | None:
    """Make ``device`` current until ``stack`` closes, with a stream of its own on CUDA.

    The legacy default stream would make every launch wait for all other streams. On CPU the pool
    gets the replica's threads. Raises Unavailable when torch cannot use the CUDA device.
    """
    import torch

    if device.threads:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(device.threads)
    if device.kind != "cuda":
        return None
    check_cuda(device.index)
    stack.enter_context(torch.cuda.device(device.index))
    stream = torch.cuda.Stream()
    stack.enter_context(torch.cuda.stream(stream))
    return stream


def check_cuda(index: int = 0) -> None:
    """Raises Unavailable when torch cannot use the CUDA device ``index``."""
    import torch

    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise Unavailable(f"torch {torch.__version__} cannot use CUDA device {index}", _NO_CUDA)


class Input:
    """A session's input tensor, and the pinned memory through which a CUDA device is fed."""

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        stream: torch.cuda.Stream | None,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        import torch

        self._from_numpy = torch.from_numpy
        self.stream = stream
        self.tensor = torch.zeros(shape, dtype=dtype, device="cuda" if stream else "cpu").to(
            memory_format=memory_format or torch.contiguous_format
        )
        """What `run` reads; on CUDA always the same."""
        self._own = self.tensor
        self._attached: dict[int, tuple[Images, torch.Tensor]] = {}
        """By the array's id, which is its own as long as it is held here."""
        if stream:
            # The type is converted on the way into pinned memory: half the bytes cross the bus.
            self._staging = torch.zeros(shape, dtype=dtype, pin_memory=True)
            self._copied = torch.cuda.Event()

    def attach(self, arrays: Sequence[Images]) -> bool:
        """See `Session.attach`. On a CPU only what the network takes as it is; on CUDA only what is
        page-locked, or the device could not read it by itself.
        """
        import torch

        with torch.inference_mode(False):  # a compiled network tells inference tensors apart
            tensors = [self._from_numpy(array) for array in arrays]
        if self.stream is None:
            own = self._own
            fit = own.is_contiguous() and all(
                t.dtype == own.dtype and t.is_contiguous() for t in tensors
            )
        else:
            fit = all(t.is_pinned() for t in tensors)
        if not fit or any(t.shape != self._own.shape for t in tensors):
            return False
        self._attached = {id(a): (a, t) for a, t in zip(arrays, tensors, strict=True)}
        if self.stream is not None:
            self._buffers = Buffers(self.tensor, self.stream, tensors[0].dtype)
        return True

    def copy_in(self, images: Images) -> None:
        if (held := self._attached.get(id(images))) is not None:
            if self.stream is None:
                self.tensor = held[1]
            else:
                self._buffers.copy_in(held[1])
            return
        if not self.convert(images):
            self.tensor = self._own
            self.tensor.copy_(self._from_numpy(images))
            return
        self.upload()

    def upload(self) -> None:
        """See `Session.upload`."""
        self.tensor.copy_(self._staging, non_blocking=True)
        self._copied.record(self.stream)

    def convert(self, images: Images) -> bool:
        """See `Session.convert`; of an attached array the device does it."""
        if self.stream is None or id(images) in self._attached:
            return False
        self._copied.synchronize()  # the copy before may still be reading the staging memory
        self._staging.copy_(self._from_numpy(images))
        return True

    def host_copy(self, images: Images) -> Images:
        """See `Session.host_copy`."""
        source = self._from_numpy(images)
        found: Images = (source.clone() if self.stream is None else source.pin_memory()).numpy()
        return found

    def sync(self) -> None:
        if self.stream is not None:
            self.stream.synchronize()


class Buffers:
    """Two buffers on the device, filled by a stream of their own while the network runs.

    From page-locked memory a batch crosses the bus as it is, ``dtype``; on the device it is copied
    (and converted) to where the network reads, which takes next to no time.
    """

    def __init__(self, target: torch.Tensor, stream: torch.cuda.Stream, dtype: torch.dtype) -> None:
        import torch

        self._target, self._stream = target, stream
        self._on = torch.cuda.stream
        self._copying = torch.cuda.Stream()
        self._pairs = [
            (
                torch.zeros(target.shape, dtype=dtype, device=target.device),
                torch.cuda.Event(),
                torch.cuda.Event(),
            )
            for _ in range(2)
        ]
        stream.synchronize()  # the zeros are written there
        self._turn = 0

    def copy_in(self, source: torch.Tensor) -> None:
        """Enqueue the copy of a page-locked batch into the target."""
        buffer, full, free = self._pairs[self._turn]
        self._turn ^= 1
        self._copying.wait_event(free)  # what was in it has reached the target
        with self._on(self._copying):
            buffer.copy_(source, non_blocking=True)
        full.record(self._copying)
        self._stream.wait_event(full)
        self._target.copy_(buffer)
        free.record(self._stream)


class Answers:
    """Logits on their way to page-locked memory, by a stream of their own, while the next batch is
    computed.

    What the next run may write over is put aside on the device first, which takes next to no time.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        import torch

        self._stream, self._on, self._make = stream, torch.cuda.stream, torch.empty
        self._event = torch.cuda.Event
        self._fetching = torch.cuda.Stream()
        self._free: list[Ticket] = []

    def enqueue(self, logits: torch.Tensor) -> Ticket:
        """Behind all that was enqueued before; the ticket is good for one `collect`."""
        ticket = self._free.pop() if self._free else self._ticket(logits)
        aside, host, full, done = ticket
        aside.copy_(logits)
        full.record(self._stream)
        self._fetching.wait_event(full)
        with self._on(self._fetching):
            host.copy_(aside, non_blocking=True)
        done.record(self._fetching)
        return ticket

    def collect(self, ticket: Ticket) -> Logits:
        _, host, _, done = ticket
        done.synchronize()
        answers = logits_of(host)
        self._free.append(ticket)  # whoever takes it may write to both: all was read
        return answers

    def _ticket(self, logits: torch.Tensor) -> Ticket:
        shape, dtype = logits.shape, logits.dtype
        return (
            self._make(shape, dtype=dtype, device=logits.device),
            self._make(shape, dtype=dtype, pin_memory=True),
            self._event(),
            self._event(),
        )


class TensorSession(Session):
    """A session whose input and logits are torch's tensors; `run` writes to ``_logits``."""

    _logits: torch.Tensor

    def __init__(self, images: Input) -> None:
        self._input = images
        self.attach: Callable[[Sequence[Images]], bool] = images.attach
        self.copy_in: Callable[[Images], None] = images.copy_in
        self.convert: Callable[[Images], bool] = images.convert
        self.upload: Callable[[], None] = images.upload
        self.host_copy: Callable[[Images], Images] = images.host_copy
        self.sync: Callable[[], None] = images.sync
        self._answers: Answers | None = None
        if images.stream is not None:
            self.in_flight, self.device_input = 1, images.tensor
            self._answers = Answers(images.stream)

    def copy_out(self) -> Logits:
        return logits_of(self._logits)

    def mark(self) -> torch.cuda.Event | None:
        if self._input.stream is None:
            return None
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(self._input.stream)
        return event

    def between_ns(self, first: torch.cuda.Event, second: torch.cuda.Event, /) -> int:
        return round(float(first.elapsed_time(second)) * 1e6)

    def enqueue_out(self) -> Ticket | None:
        return self._answers.enqueue(self._logits) if self._answers else None

    def collect(self, ticket: Ticket | None, /) -> Logits:
        if ticket is None or self._answers is None:
            return super().collect(ticket)
        return self._answers.collect(ticket)


def logits_of(tensor: torch.Tensor) -> Logits:
    """A fresh host array, float32, of what a device tensor holds when the stream gets there."""
    import torch

    array: Logits = tensor.to("cpu", torch.float32, copy=True).numpy()
    return array
