"""The whole interface between gpubench and whatever computes.

A backend never times, loops, warms up, retries or falls back: `gpubench.measure.loop` owns time,
identically for every backend. Adding one is one module and one entry point (group
``gpubench.backends``), for built-ins and third parties alike; CONTRIBUTING shows a complete one.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from msgspec import Struct

from gpubench import cache, plugins
from gpubench.machine.software import no_telemetry
from gpubench.suite.types import Cell, Option

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from gpubench.cache import Cache
    from gpubench.workload.models.base import Model

    Images = NDArray[np.float32 | np.float16 | np.uint8]
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
    number: int | None = None
    """On CUDA, which of the machine's GPUs that may be used it is; None: ``index``. A worker sees
    its own alone, as index 0."""

    @property
    def threads(self) -> int:
        """Threads for the backend's pool; 0: leave the library's default."""
        return len(self.cores)

    def __str__(self) -> str:
        if self.kind != "cuda":
            return f"cpu:{','.join(map(str, self.cores))}"
        number = self.index if self.number is None else self.number
        return f"cuda:{self.uuid if self.uuid.startswith('MIG-') else number}"


@runtime_checkable
class Session(Protocol):
    """One network, ready on one device, for one batch size.

    A class of its own will do that has what comes first; the rest has defaults, which who inherits
    from this gets with it, and who does not by `complete`.
    """

    facts: Facts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def copy_in(self, images: Images, /) -> None:
        """Host array (batch, *Model.input_shape), C-contiguous -> the session's own input buffer.

        In the network's own layout, and of ``Model.spec.dtype``: what the cell's ``input`` says; of
        a network that takes bytes itself, uint8.
        """

    def run(self) -> None:
        """Enqueue one batch; may return before it is done."""

    def sync(self) -> None:
        """Return when all enqueued work has finished; allowed before the first ``run``."""

    def copy_out(self) -> Logits:
        """A fresh host array (batch, classes) float32 with the last batch's logits."""

    # ------------------------------------------------------------------------ with defaults

    in_flight: int = 0
    """Batches whose answers may be outstanding (see `enqueue_out`) while the next one is run, so
    that this many are computed, or copied, at the same time. On CUDA copies in (of arrays that are
    attached), work and copies out overlap, each on a stream of its own."""
    device_input: torch.Tensor | None = None
    """What `run` reads, where that is always the same tensor on a CUDA device: a decoder there
    writes into it, on the session's stream, in place of `copy_in`."""

    def close(self) -> None:
        """Release what the session holds; more than once does no harm."""
        return

    def host_copy(self, images: Images, /) -> Images:
        """A copy in memory that the device reads by itself (page-locked), if there is such."""
        return images.copy()

    def convert(self, images: Images, /) -> bool:  # noqa: ARG002
        """The host's part of `copy_in`, alone: the network's type, in page-locked memory.

        False: it has none that could be told apart.
        """
        return False

    def upload(self) -> None:
        """The rest of `copy_in`, of what was converted last."""
        return

    def attach(self, arrays: Sequence[Images], /) -> bool:  # noqa: ARG002
        """Be ready for `copy_in` of these very arrays (of the session's shape).

        From now on that may be without a copy by the host: the session reads the array later, so
        it stays as it is until the runs that follow have finished. False: all is copied, as before.
        """
        return False

    def enqueue_out(self) -> Any:
        """`copy_out` in two halves. The first: the answers of the last run are wanted. A ticket."""
        return None

    def collect(self, ticket: Any, /) -> Logits:  # noqa: ARG002
        """The second: wait for them. Tickets are collected in their order, each once."""
        self.sync()
        return self.copy_out()

    def mark(self) -> Any:
        """Have the device note when it gets here; None where it has no clock that can be read."""
        return None

    def between_ns(self, first: Any, second: Any, /) -> int:  # noqa: ARG002
        """The device's time from one `mark` to a later one, both of which it has passed."""
        return 0

    def counters(self) -> dict[str, int]:
        """Read before and after sampling: a rise of ``recompilations`` flags the record. So does
        ``compiled_at_open``: what had to be compiled there, although `Backend.prepare` is for that.
        """
        return {}


@runtime_checkable
class Backend(Protocol):
    """A way to compute. Modules import their runtime inside these methods only.

    What has no default is what a class needs that does not inherit from this, as for `Session`.
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

    # ------------------------------------------------------------------------ with defaults

    computes: bool = True
    """False: its answers mean nothing, so none is checked, and there is nothing to deploy."""
    reads_onnx: bool = False
    """True: `prepare` asks for the network as ONNX, so what writes that has to be there."""
    casts_onnx: bool = False
    """True: a file in fp32 is also computed in other precisions, by the runtime itself."""
    roofline: bool = True
    """False: no ceiling is measured for its cells."""

    def probe_to_open(self) -> Facts:
        """As `probe`, where nothing is prepared: without what only that needs."""
        return self.probe()

    def in_flight(self, cell: Cell, cores: int) -> int:  # noqa: ARG002
        """The most that its `Session.in_flight` will be on so many cores, or 1. A loader has room
        for that."""
        return 1

    def export(self, artefact: Path, folder: Path) -> Path:
        """Copy all that `open` needs of an artefact into ``folder``, which may then be moved.

        Returns what `open` takes there. By default the artefact's entry of the cache as it is.
        """
        entry = artefact.parent if artefact.is_file() else artefact
        if (entry / cache.MANIFEST).is_file():
            return cache.copy_entry(entry, folder) / artefact.relative_to(entry)
        folder.mkdir(mode=0o755)
        if artefact.is_file():
            return Path(shutil.copy(artefact, folder))
        return Path(shutil.copytree(artefact, folder / artefact.name))


# ------------------------------------------------------------------------------ filling in


class _CompleteBackend(Backend):
    """A backend of a third party, with the defaults for what it has not."""

    def __init__(self, own: Any) -> None:
        _bind(self, own, Backend)


class _CompleteSession(Session):
    """A session of a third party likewise. Its methods are bound: a call costs what it cost."""

    def __init__(self, own: Any) -> None:
        self._own = self._used = own
        self._take(own)

    def _take(self, own: Any) -> None:
        has = _bind(self, own, Session)
        if ("collect" in has) != ("in_flight" in has):
            self.in_flight = int("collect" in has)  # where it is not said, one batch

    @property
    def facts(self) -> Facts:  # type: ignore[override]
        """As they are when they are asked for: what really ran may show only then."""
        found: Facts = self._used.facts
        return found

    def __enter__(self) -> Self:
        self._used = self._own.__enter__()
        self._take(self._used)  # what it has set by now, too
        return self

    def __exit__(self, *reason: object) -> None:
        self._own.__exit__(*reason)


def _bind(to: object, own: Any, contract: type) -> list[str]:
    """The only place that looks at what a third party's object has; the names of it."""
    stated = dict.fromkeys([*contract.__annotations__, *vars(contract)])
    has = [name for name in stated if not name.startswith("_") and hasattr(own, name)]
    vars(to).update({name: getattr(own, name) for name in has if name != "facts"})
    return has


def alike(arrays: Sequence[Images], own: Images) -> bool:
    """Whether a session can read each of ``arrays`` in the place of its ``own`` input."""
    return all(
        a.shape == own.shape and a.dtype == own.dtype and a.flags.c_contiguous for a in arrays
    )


def complete(session: Any) -> Session:
    """``session``, with the defaults of `Session` for what it lacks."""
    return session if isinstance(session, Session) else _CompleteSession(session)  # type: ignore[abstract]


def open_session(backend: Backend, cell: Cell, artefact: Path, device: Device) -> Session:
    """What `Backend.open` returns, complete."""
    return complete(backend.open(cell, artefact, device))


GROUP = "gpubench.backends"


def names() -> list[str]:
    """Names of all registered backends, built-ins and third parties, sorted; imports nothing."""
    return plugins.names(GROUP)


def get(name: str) -> Backend:
    """The registered backend called ``name``, complete. Raises InputError when there is none."""
    no_telemetry()  # no process imports a runtime before it has asked for a backend
    found = plugins.get(GROUP, name)
    return found if isinstance(found, Backend) else _CompleteBackend(found)  # type: ignore[abstract]
