"""What the caches hold when a batch begins: axis ``cache`` of a suite."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench.suite.types import Cell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpubench.backends.base import Images, Session

_UNKNOWN = 256 << 20
"""Bytes of a last-level cache that nobody tells; more than most."""
_TIMES = 2
"""The pool of inputs, and what empties a cache, are so many times as large as it."""
_MOST = 4096
"""Batches in a pool."""


def preparing(session: Session, images: Sequence[Images], cell: Cell) -> Callable[[], None] | None:
    """What is done before each batch of ``cell``, off the clock; None: nothing.

    ``images``: different batches. In a pool larger than the last-level cache each has an array of
    its own, which a session on a CPU reads where it lies (`Session.attach`); on a GPU it is copied
    into the session's input.
    """
    if cell.cache == "warm":
        return None
    size = _bytes(cell.device)
    count = min(_MOST, max(len(images), math.ceil(_TIMES * size / images[0].nbytes)))
    pool = [images[i % len(images)].copy() for i in range(count)]
    session.attach(pool)
    turn, copy_in, sync = itertools.cycle(pool), session.copy_in, session.sync
    empty = _emptying(cell.device, _TIMES * size) if cell.cache == "cold" else sync

    def prepare() -> None:
        copy_in(next(turn))
        sync()
        empty()

    return prepare


def _bytes(device: str) -> int:
    """Of the last-level cache; of a GPU, L2."""
    if device == "cuda":
        import torch

        return int(torch.cuda.get_device_properties().L2_cache_size) or _UNKNOWN
    found = [_size(file) for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(found, default=_UNKNOWN)


def _size(file: Path) -> int:
    """Of '32768K'."""
    text = file.read_text().strip()
    unit = {"K": 10, "M": 20}.get(text[-1], 0)
    return int(text[:-1] if unit else text) << unit


def _emptying(device: str, size: int) -> Callable[[], None]:
    """Writes so many bytes that whatever a cache held has left it."""
    if device == "cuda":
        import torch

        filler = torch.zeros((size,), dtype=torch.uint8, device="cuda")

        def flush() -> None:
            filler.add_(1)
            torch.cuda.synchronize()

        return flush
    import numpy as np

    host = np.zeros(size, np.uint8)

    def overwrite() -> None:
        np.add(host, 1, out=host)

    return overwrite
