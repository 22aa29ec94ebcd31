"""One replica: a session and the batches that it is asked for, here or in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from gpubench.backends import base
from gpubench.errors import CellFailed
from gpubench.run.serving import compatibility
from gpubench.suite.types import Cell
from gpubench.workload.data.preprocess import Spec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.workload.data.preprocess import Inputs


class Setup(Struct, frozen=True, kw_only=True):
    """All that a replica needs to know."""

    cell: Cell
    artefact: str
    spec: Spec
    outputs: int
    replica: int
    cores: tuple[int, ...]
    """To be pinned to; ()."""
    timeout_s: float
    """The longest that a batch may take."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a batch."""
        return (self.cell.batch_size, *self.spec.shape)


class Local:
    """A session in the calling thread, which is pinned: thread pools inherit that.

    Used, and closed, by the thread that opened it only.
    """

    def __init__(self, setup: Setup, *, own_process: bool = False) -> None:
        import numpy as np

        if setup.cores:
            os.sched_setaffinity(0, setup.cores)  # of this thread
        cell = setup.cell
        device = compatibility.device(cell, setup.replica, setup.cores, own_process=own_process)
        backend = base.get(cell.backend)
        self._session = base.open_session(backend, cell, Path(setup.artefact), device)
        self._session.__enter__()
        self.facts = self._session.facts
        self._expected = (cell.batch_size, setup.outputs)
        self._padded = np.zeros(setup.shape, setup.spec.dtype)
        try:
            self.run(self._padded)  # what is done at first only is done by now
        except BaseException:
            self.close()
            raise

    def run(self, rows: Inputs) -> NDArray[np.float32]:
        """(n, *spec.shape) -> logits (n, outputs); a batch that is not full gets zeros."""
        count, session = len(rows), self._session
        if count < len(self._padded):
            self._padded[:count] = rows
            self._padded[count:] = 0
            rows = self._padded
        session.copy_in(rows)
        session.run()
        session.sync()
        logits = session.copy_out()
        if logits.shape != self._expected:
            raise CellFailed("error", f"logits are {logits.shape}, not {self._expected}")
        return logits[:count]

    def attach(self, rows: Inputs) -> None:
        """`run` is going to be given this very array: it may be read without a copy."""
        self._session.attach([rows])

    def close(self) -> None:
        """Leave the session; in the thread that opened it, whose settings it restores."""
        self._session.__exit__(None, None, None)


class Failed(Struct, frozen=True, tag=True):
    """An exception on its way to whoever asked; ``kind`` as in `gpubench.errors.CellFailed`."""

    kind: str
    reason: str
    remedy: str = ""


class Opened(Struct, frozen=True, tag=True):
    """A replica is ready."""

    facts: dict[str, object]


ENCODER = msgspec.json.Encoder(enc_hook=str)
"""A backend's facts may hold a library's own types: their text will do."""
