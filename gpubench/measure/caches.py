"""What the caches hold when a batch begins: axis ``cache`` of a suite."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from gpubench.measure.roofline_peaks import caches
from gpubench.suite.types import Cell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpubench.backends.base import Images, Session

_UNKNOWN = 256 << 20
"""Bytes of caches that nobody tells; more than most."""
_TIMES = 2
"""The pool of inputs, and what empties a cache, are so many times as large."""
_MOST = 4096
"""Batches in a pool."""


def preparing(session: Session, images: Sequence[Images], cell: Cell) -> Callable[[], None] | None:
    """What is done before each batch of ``cell``, off the clock; None: nothing.

    ``images``: different batches. In a pool larger than the caches each has an array of
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
    """Of the caches of the cores that this process may use; of a GPU, L2."""
    if device == "cuda":
        import torch

        return int(torch.cuda.get_device_properties().L2_cache_size) or _UNKNOWN
    return int(caches(sorted(os.sched_getaffinity(0)))) or _UNKNOWN


def _emptying(device: str, size: int) -> Callable[[], object]:
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
    return partial(np.add, host, np.uint8(1), host)
