"""Batches that are being filled or read: a bounded ring of slots in memory that forks share."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Slot(Struct, frozen=True):
    """A full batch; its arrays are the ring's own, good until the slot is released."""

    images: NDArray[np.float32]
    """(batch, 3, H, W), C-contiguous, page-aligned; of a decoder on the device: (0, 3, H, W)."""
    indices: tuple[int, ...]
    """Positions in the data set, by row."""
    number: int
    """Of the batch, from 0."""
    encoded: list[bytes] = []
    """Encoded pictures by row, where a decoder on the device is to have them."""


class Ring:
    """``depth`` slots of (batch, 3, crop, crop) float32 in one anonymous shared mapping.

    It has no name: it is gone with the last process and the last array that know it.
    """

    def __init__(self, depth: int, batch: int, crop: int, workers: int, encoded: bool) -> None:
        import numpy as np

        self.depth, self.batch, self.crop = depth, batch, crop
        shape = (0 if encoded else batch, 3, crop, crop)
        count = shape[0] * 3 * crop * crop
        self.stride = -(-count * 4 // mmap.PAGESIZE) * mmap.PAGESIZE
        self.bytes = depth * self.stride
        memory = mmap.mmap(-1, self.bytes + 8 * (depth * batch + workers))
        self.slots: list[NDArray[np.float32]] = [
            np.frombuffer(memory, np.float32, count, i * self.stride).reshape(shape)
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
