"""The loader: full batches in order, as fast as its workers make them, and never far ahead."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Self

from msgspec.structs import replace

from gpubench.errors import CellFailed, InputError
from gpubench.pipeline.decoders import base
from gpubench.pipeline.loader import worker
from gpubench.pipeline.loader.ring_buffer import Ring, Slot
from gpubench.pipeline.loader.workers import Kind, Pool

if TYPE_CHECKING:
    from gpubench.workload.data.preprocess import Inputs, Spec

TRIAL_S = 0.3
"""``auto``: how long each kind of worker is tried, after each worker's first picture or so."""
TRIAL_WARMUP_S = 0.1
CLEARLY = 1.1
"""Threads are chosen from so many times the rate of processes on. Where both are about as fast, the
trial is too short to tell, and repeats would differ by chance; and threads will share the
interpreter with the session, which the trial does not have."""
PORTABLE = 1
"""cudaHostRegisterPortable: page-locked for every device."""
AHEAD = 3
"""Slots beside those that the workers fill: one being read, one being copied, one full."""
PARTS = 4
"""Chunks of a batch for each worker: handing one out costs 10 microseconds, and a batch may be
ready later by a chunk's time."""
MOST_CHUNKS = 4096
"""In all slots: so many numbers and messages fit into pipes, whose ends then never wait."""


def unsupported(kind: str, decoder: base.Decoder) -> str | None:
    """Why this kind of worker cannot serve ``decoder``, or None."""
    if decoder.on_device and kind == "processes":
        return f"loader = 'processes': {decoder.name} decodes on the GPU, threads only read for it"
    return None


def better(rates: Mapping[str, float]) -> Kind:
    """Of both kinds' images/s: threads where they are clearly faster."""
    return "threads" if rates["threads"] > CLEARLY * rates["processes"] else "processes"


class Loader:
    """A context manager; one batch at a time is asked for, several may be held."""

    def __init__(
        self,
        reference: Path,
        decoder: str,
        spec: Spec,
        batch: int,
        *,
        kind: Literal["auto"] | Kind,
        cores: tuple[int, ...],
        depth: int = 0,
        more: int = 0,
        pin: bool = False,
        seed: int = 0,
    ) -> None:
        """Of the data set that ``reference`` was drawn from; with a worker on each of ``cores``.

        Make it first of all, in the main thread: before a session, or anything else, has started
        threads, which forked processes would lack while their locks stay held. ``cores`` (): as
        many workers as this process has cores, not pinned. ``depth``: slots, 0: AHEAD and two
        images for each worker, and ``more``: what is held besides. ``pin``: the slots are
        page-locked when ``slots`` or the first batch is asked for; with the session's CUDA device
        current then, no other device gets a context. ``auto``: tries both kinds and keeps the
        better (see `better`). Raises InputError for a data set without a usable picture, CellFailed
        for what a worker raises.
        """
        import numpy as np

        chosen = base.get(decoder)
        if reason := unsupported(kind, chosen):
            raise CellFailed("error", reason)
        workers = len(cores) or len(os.sched_getaffinity(0))
        depth = depth or AHEAD + -(-2 * workers // batch) + more
        self._data = worker.dataset(reference)
        if not len(self._data):
            raise InputError("no usable picture: the data set is empty")
        ring = Ring(depth, batch, spec, workers, chosen.on_device)
        order = np.random.default_rng(seed).permutation(len(self._data))
        chunk = max(batch // (PARTS * workers), -(-depth * batch // MOST_CHUNKS), 1)
        self._job = worker.LoaderJob(reference, decoder, spec, ring, order, chunk)
        self._cores, self._workers = cores, workers
        self._pin, self._pinned = pin and ring.bytes > 0, False
        self._next = 0
        self._held: set[int] = set()
        self._error: Exception | None = None
        self._rates: dict[str, float] = {}
        self._stack = ExitStack()
        try:
            if chosen.on_device:
                kind = "threads"
            self._pool = self._better() if kind == "auto" else self._start(kind)
            for number in range(depth):
                self._pool.give(number)
        except BaseException:
            self.close()
            raise

    def _start(self, kind: Kind) -> Pool:
        pool = Pool(kind, self._job, self._cores, self._workers, self._data.name)
        self._stack.callback(pool.close)
        return pool

    def _better(self) -> Pool:
        """Of the better kind; processes are forked before there are threads."""
        pools = [self._start("processes")]
        self._rates["processes"] = self._rate(pools[0])
        pools.append(self._start("threads"))
        self._rates["threads"] = self._rate(pools[1])
        kept, other = pools if better(self._rates) == "processes" else reversed(pools)
        other.close()
        return kept

    def _rate(self, pool: Pool) -> float:
        """Images/s of a pool that nobody keeps waiting."""
        depth, batch, begin = self._job.ring.depth, self._job.ring.batch, perf_counter()
        given, start, end = 0, begin, float("inf")
        before = 0
        while (now := perf_counter()) < end:
            while given < pool.images // batch + depth:
                pool.give(given)
                given += 1
            pool.listen()
            warm = pool.images >= self._workers and now - begin >= TRIAL_WARMUP_S
            if end == float("inf") and warm:
                before, start = pool.images, perf_counter()
                end = start + TRIAL_S
        rate = (pool.images - before) / (now - start)
        pool.recall()
        return rate

    def next(self) -> Slot:
        """The next batch, when it is full. Raises what a worker raised, or that one has died."""
        if self._error is not None:
            raise self._error
        if self._next - self._job.ring.depth in self._held:
            raise ValueError(f"all {self._job.ring.depth} slots are held: release one first")
        self._page_lock()
        try:
            self._pool.wait(self._next)
        except Exception as error:
            self._error = error
            raise
        self._held.add(self._next)
        self._next += 1
        return self._job.ring.slot(self._next - 1)

    def release(self, slot: Slot) -> None:
        """Let the slot be filled again: nobody reads it any more, nor a run that was enqueued."""
        if self._error is not None:
            return
        self._held.remove(slot.number)
        self._pool.give(slot.number + self._job.ring.depth)

    def rewind(self, batches: int, held: Sequence[Slot]) -> list[Slot]:
        """Go back by about as many batches, while all slots are ``held``; these, to be released.

        By whole rounds of slots, so that each batch comes in the slot that it came in.
        """
        depth = self._job.ring.depth
        back = min(batches + depth, self._next) // depth * depth
        self._next -= back
        self._held = {number - back for number in self._held}
        return [replace(slot, number=slot.number - back) for slot in held]

    def pictures(self, skip: int, batches: int) -> list[int]:
        """Positions in the data set of so many of the batches to come, after ``skip`` of them."""
        order, batch = self._job.order, self._job.ring.batch
        numbers = range((self._next + skip) * batch, (self._next + skip + batches) * batch)
        return [int(order[number % len(order)]) for number in numbers]

    def _page_lock(self) -> None:
        """Let the GPU read the slots by itself, until the loader is closed."""
        if not self._pin or self._pinned:
            return
        import torch

        runtime, ring = torch.cuda.cudart(), self._job.ring
        torch.cuda.check_error(runtime.cudaHostRegister(ring.address, ring.bytes, PORTABLE))
        self._stack.callback(runtime.cudaHostUnregister, ring.address)
        self._pinned = True

    @property
    def slots(self) -> list[Inputs]:
        """The arrays that batches come in, in the order in which they first do."""
        self._page_lock()
        return self._job.ring.slots

    @property
    def facts(self) -> dict[str, Any]:
        """What loads, and what it has met so far; ``images_per_s``: of both kinds, if tried."""
        pool = self._pool
        return {
            "kind": pool.kind,
            "images_per_s": dict(self._rates),
            "workers": self._workers,
            "cores": list(self._cores),
            "depth": self._job.ring.depth,
            "slot_bytes": self._job.ring.slots[0].nbytes,
            "pinned": self._pinned,
            "chunk": self._job.chunk,
            "pictures": len(self._data),
            "mean_encoded_bytes": round(pool.encoded_bytes / pool.images) if pool.images else None,
            "skipped": dict(Counter(pool.unusable.values()).most_common()),
        }

    def close(self) -> None:
        """End all workers and let the memory go, in whatever state; more than once does no harm."""
        self._error = self._error or ValueError("the loader is closed")
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
