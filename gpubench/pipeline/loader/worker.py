"""What one worker of a loader does, be it a thread or a process: claim, read, decode, fill in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
from msgspec import Struct

from gpubench.errors import InputError, told
from gpubench.machine.cores import pin
from gpubench.pipeline.decoders import base
from gpubench.workload.data.image_file import Unusable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.pipeline.loader.ring_buffer import Ring
    from gpubench.workload.data.dataset_index import Pictures
    from gpubench.workload.data.preprocess import Spec

TICKET = 8
"""Bytes that hand out a chunk: its number. A pipe gives so few whole, to one reader only."""
LONGEST = 300
"""Characters of an error that are passed on: a message must fit what a pipe takes at once."""


class Done(Struct, frozen=True, array_like=True, tag="d"):
    """A chunk is filled."""

    chunk: int
    encoded_bytes: int


class Skipped(Struct, frozen=True, array_like=True, tag="s"):
    """A picture is no use."""

    index: int
    reason: str


class Broken(Struct, frozen=True, array_like=True, tag="b"):
    """The worker has ended."""

    kind: str
    """'input', 'unavailable', or a kind of CellFailed."""
    text: str
    remedy: str = ""


Message = Done | Skipped | Broken


class LoaderJob(Struct, frozen=True):
    """What all workers share."""

    reference: Path
    decoder: str
    spec: Spec
    ring: Ring
    order: NDArray[np.int64]
    """Positions in the data set, in the order in which they are shown."""
    chunk: int
    """Images that are handed out at once; the last chunk of a batch may have fewer."""

    @property
    def chunks(self) -> int:
        return -(-self.ring.batch // self.chunk)

    def images(self, chunk: int) -> range:
        """Numbers, in the endless sequence, of a chunk's images."""
        number, part = divmod(chunk, self.chunks)
        rows = range(self.ring.batch)[part * self.chunk :][: self.chunk]
        return range(number * self.ring.batch + rows.start, number * self.ring.batch + rows.stop)


def dataset(reference: Path) -> Pictures:
    """The data set that a reference was drawn from, opened once more."""
    from gpubench.workload import reference as ref

    return ref.load(reference).dataset()


def work(
    job: LoaderJob,
    worker: int,
    core: tuple[int, ...],
    claims: int,
    results: int,
    stopped: Callable[[], bool],
) -> None:
    """Fill chunks until ``stopped``, or until the other side closes a pipe; never raises."""

    def send(message: Message) -> None:
        os.write(results, msgspec.json.encode(message) + b"\n")  # whole: see LONGEST

    try:
        pin(core)
        filler = Filler(job, worker, send)
        while not stopped() and (ticket := os.read(claims, TICKET)):
            chunk = int.from_bytes(ticket, "little")
            send(Done(chunk, sum(map(filler.fill, job.images(chunk)))))
    except BrokenPipeError:
        return  # the loader was closed
    except BaseException as error:  # noqa: BLE001  # whatever a decoder raises ends the cell
        if not stopped():
            with suppress(BrokenPipeError):  # another worker has ended the loader meanwhile
                send(Broken(*(words[:LONGEST] for words in told(error))))


class Filler:
    """Puts pictures where they belong in the ring."""

    def __init__(self, job: LoaderJob, worker: int, send: Callable[[Message], None]) -> None:
        self._job, self._worker, self._send = job, worker, send
        self._ring, self._order = job.ring, job.order
        self._data = dataset(job.reference)
        self._unusable: set[int] = set()
        if not job.ring.encoded:
            opened = base.get(job.decoder).open(job.spec)
            self._preprocess = cast("base.Preprocessor", opened)
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)  # of this thread: its core is the only one it has

    def fill(self, number: int) -> int:
        """Make image ``number`` of the endless sequence; the bytes it was encoded in.

        In the place of an unusable picture comes the next usable one of the order, so that what a
        row holds depends on the data set and the seed only, not on who was faster.
        """
        at, row = divmod(number, self._ring.batch)
        at %= self._ring.depth
        for step in range(len(self._order)):
            index = int(self._order[(number + step) % len(self._order)])
            if index in self._unusable:
                continue
            self._ring.busy_with[self._worker] = index
            try:
                size = self._put(index, at, row)
            except Unusable as error:
                self._unusable.add(index)
                self._send(Skipped(index, str(error)[:LONGEST]))
                continue
            self._ring.indices[at, row] = index
            return size
        raise InputError(f"no usable picture among {len(self._order)} of the data set")

    def _put(self, index: int, at: int, row: int) -> int:
        with base.told(self._job.decoder, self._data.name(index)):
            data = self._data.read(index)
            if self._ring.encoded:
                self._ring.encoded[at][row] = data
            else:
                pixels = self._preprocess.decode(data)
                self._preprocess.transform(pixels, self._ring.slots[at][row])
        return len(data)
