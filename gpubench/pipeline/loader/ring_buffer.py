"""Batches that are being filled or read: a bounded ring of slots in memory that forks share."""

from __future__ import annotations

import math
import mmap
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.workload.data.preprocess import Inputs, Spec


class Slot(Struct, frozen=True):
    """A full batch; its arrays are the ring's own, good until the slot is released."""

    images: Inputs
    """(batch, *spec.shape), C-contiguous, page-aligned; of a decoder on the device: (0, ...)."""
    indices: tuple[int, ...]
    """Positions in the data set, by row."""
    number: int
    """Of the batch, from 0."""
    encoded: list[bytes] = []
    """Encoded pictures by row, where a decoder on the device is to have them."""


class Ring:
    """``depth`` slots of (batch, *spec.shape) in one anonymous shared mapping.

    It has no name: it is gone with the last process and the last array that know it.
    """

    def __init__(self, depth: int, batch: int, spec: Spec, workers: int, encoded: bool) -> None:
        import numpy as np

        self.depth, self.batch = depth, batch
        shape, dtype = (0 if encoded else batch, *spec.shape), np.dtype(spec.dtype)
        count = math.prod(shape)
        self.stride = -(-count * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
        self.bytes = depth * self.stride
        memory = mmap.mmap(-1, self.bytes + 8 * (depth * batch + workers))
        self.slots: list[Inputs] = [
            np.frombuffer(memory, dtype, count, i * self.stride).reshape(shape)
            for i in range(depth)
        ]
        numbers = np.frombuffer(memory, np.int64, offset=self.bytes)
        self.indices: NDArray[np.int64] = numbers[: depth * batch].reshape(depth, batch)
        self.busy_with: NDArray[np.int64] = numbers[depth * batch :]
        """By worker: the position in the data set of the picture it has in hand."""
        self.encoded: list[list[bytes]] = [[b""] * batch for _ in range(depth if encoded else 0)]

    @property
    def address(self) -> int:
        """Where the first slot begins; ``bytes`` from there on are all slots."""
        return int(self.slots[0].ctypes.data)

    def slot(self, number: int) -> Slot:
        """What batch ``number`` is in."""
        at = number % self.depth
        indices = tuple(self.indices[at].tolist())
        return Slot(self.slots[at], indices, number, self.encoded[at] if self.encoded else [])
