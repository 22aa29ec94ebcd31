"""What the torch backends and ONNX Runtime on CUDA share: where a session's data lives."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from gpubench.errors import Unavailable

if TYPE_CHECKING:
    import torch

    from gpubench.backends.base import Device, Images, Logits

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
    if not torch.cuda.is_available() or device.index >= torch.cuda.device_count():
        raise Unavailable(
            f"torch {torch.__version__} cannot use CUDA device {device.index}", _NO_CUDA
        )
    stack.enter_context(torch.cuda.device(device.index))
    stream = torch.cuda.Stream()
    stack.enter_context(torch.cuda.stream(stream))
    return stream


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
        self._stream = stream
        self.tensor = torch.zeros(shape, dtype=dtype, device="cuda" if stream else "cpu").to(
            memory_format=memory_format or torch.contiguous_format
        )
        if stream:
            # The type is converted on the way into pinned memory: half the bytes cross the bus.
            self._staging = torch.zeros(shape, dtype=dtype, pin_memory=True)
            self._copied = torch.cuda.Event()

    def copy_in(self, images: Images) -> None:
        """Enqueue the copy of ``images`` (the shape given above, float32) into ``tensor``."""
        source = self._from_numpy(images)
        if self._stream is None:
            self.tensor.copy_(source)
            return
        self._copied.synchronize()  # the copy before may still be reading the staging memory
        self._staging.copy_(source)
        self.tensor.copy_(self._staging, non_blocking=True)
        self._copied.record(self._stream)

    def sync(self) -> None:
        """Return when all work enqueued on the session's stream has finished."""
        if self._stream is not None:
            self._stream.synchronize()


def logits_of(tensor: torch.Tensor) -> Logits:
    """A fresh host array, float32, of what a device tensor holds when the stream gets there."""
    import torch

    array: Logits = tensor.to("cpu", torch.float32, copy=True).numpy()
    return array
