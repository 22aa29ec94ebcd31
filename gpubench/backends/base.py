"""The whole interface between gpubench and whatever computes.

A backend never times, loops, warms up, retries or falls back: `gpubench.measure.loop` owns time,
identically for every backend. Adding one is one module and one entry point (group
``gpubench.backends``), for built-ins and third parties alike; CONTRIBUTING shows a complete one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from msgspec import Struct

from gpubench import plugins
from gpubench.suite import Cell, Option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.workload.cache import Cache
    from gpubench.workload.modelbase import Model

    Images = NDArray[np.float32]
    Logits = NDArray[np.float32]

Facts = dict[str, Any]
"""JSON-able proof of what runs: versions, providers, precision, digests."""


class Device(Struct, frozen=True):
    """Where one replica runs."""

    kind: str
    """'cpu' or 'cuda'."""
    index: int = 0
    """CUDA device index as this process sees it; 0 on CPU."""
    cores: tuple[int, ...] = ()
    """On CPU, the cores this replica is pinned to; its thread pools have this many threads."""
    uuid: str = ""
    """On CUDA, the driver's name of it: 'GPU-...', or 'MIG-...' of a slice."""

    @property
    def threads(self) -> int:
        """Threads for the backend's pool; 0: leave the library's default."""
        return len(self.cores)

    def __str__(self) -> str:
        if self.kind != "cuda":
            return f"cpu:{','.join(map(str, self.cores))}"
        return f"cuda:{self.uuid if self.uuid.startswith('MIG-') else self.index}"


class Session(Protocol):
    """One network, ready on one device, for one batch size.

    It may have more, which those who use it look for:

    ``attach(arrays) -> bool``: from now on `copy_in` of one of these very arrays (float32, of the
    session's shape) may be without a copy by the host: the session reads it later, so it stays as
    it is until the runs that follow have finished. False: all is copied, as before.

    ``enqueue_out() -> ticket`` and ``collect(ticket) -> logits``: `copy_out` in two halves. The
    first says that the answers of the last run are wanted, the second waits for them. Tickets are
    collected in their order; up to ``in_flight: int`` (1, where it is missing) may be open while
    the next batch is run, so that this many are computed, or copied, at the same time.
    """

    facts: Facts

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    def copy_in(self, images: Images) -> None:
        """Host array (batch, 3, H, W) float32, C-contiguous -> the session's own input buffer."""

    def run(self) -> None:
        """Enqueue one batch; may return before it is done."""

    def sync(self) -> None:
        """Return when all enqueued work has finished; allowed before the first ``run``."""

    def copy_out(self) -> Logits:
        """A fresh host array (batch, classes) float32 with the last batch's logits."""


class Backend(Protocol):
    """A way to compute. Modules import their runtime inside these methods only.

    It may have more:

    ``in_flight(cell, cores) -> int``: the most that `Session` will say on so many
    cores. A loader has room for that.

    ``export(artefact, folder) -> path`` copies all that `open` needs of an
    artefact into ``folder``, which may then be moved, and returns what `open` takes there. Without
    it `gpubench deploy` copies the artefact's entry of the cache as it is.
    """

    name: str
    summary: str
    """One line for ``gpubench list backends``."""
    options: tuple[Option, ...]
    preload: tuple[str, ...]
    """Modules worth importing before workers are forked; importing them must not touch CUDA."""

    def probe(self) -> Facts:
        """Cheap facts (versions) without importing the runtime; raises `Unavailable`."""

    def unsupported(self, cell: Cell) -> str | None:
        """Why this cell cannot be done, or None. Pure, cheap, imports nothing heavy."""

    def prepare(self, cell: Cell, model: Model, cache: Cache) -> Path:
        """Make (or find in the cache) what ``open`` needs; may be slow. Returns its path."""

    def open(self, cell: Cell, artefact: Path, device: Device) -> Session:
        """A session on ``device``; raises `CellFailed` when it would not run as the cell says."""


GROUP = "gpubench.backends"


def names() -> list[str]:
    """Names of all registered backends, built-ins and third parties, sorted; imports nothing."""
    return plugins.names(GROUP)


def get(name: str) -> Backend:
    """The registered backend called ``name``. Raises InputError when there is none."""
    backend: Backend = plugins.get(GROUP, name)
    return backend
