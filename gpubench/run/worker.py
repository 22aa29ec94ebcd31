"""One process, one replica, one task. Forked by the agent's server; ends when its task does."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING

import msgspec

from gpubench import __version__, environment
from gpubench.backends import base
from gpubench.errors import CellFailed, GpubenchError, InputError, Unavailable
from gpubench.measure import protocol
from gpubench.measure.loop import quiet_collector
from gpubench.record import IMAGES_SKIPPED, Parity
from gpubench.run.messages import (
    BAD_INPUT,
    PROTOCOL,
    AtBarrier,
    BuildReference,
    Failure,
    Go,
    Measure,
    Outcome,
    Preload,
    Preloaded,
    Prepare,
    Prepared,
    Request,
    WorkerMessage,
)
from gpubench.samples import Samples
from gpubench.suite import Policy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.workload.cache import Cache
    from gpubench.workload.reference import Reference

Barrier = Callable[..., int]
"""Called with a name (and a live p50): waits for all replicas; the clock at the common start."""

PR_SET_PDEATHSIG = 1
NOT_SERVED = ("weights", "reference")
"""Cache entries that belong to the benchmark; serving the network would not make them."""
AWAKE_S = 0.02
"""Iterations for so long end the wait for a turn: caches and clocks have cooled meanwhile."""
IDLE_LIMIT = 0.03
"""Of a core; the last millisecond before a barrier is waited for actively."""
NO_MEMORY = ("out of memory", "failed to allocate memory", "cannot allocate", "alloc_failed")


def main(connection: Connection, request: bytes, cache_dir: str, replica: int) -> None:
    """Do ``request`` and send the answer; never raises."""
    die_with_parent()
    os.setpgid(0, 0)  # so that the agent can end this process with all its children
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123  # a library that reads gets EOF

    def send(message: WorkerMessage) -> None:
        # A backend's facts may hold a library's own version type: its text will do.
        connection.send_bytes(msgspec.json.encode(message, enc_hook=str))

    def barrier(name: str, p50_ns: float = 0.0) -> int:
        send(AtBarrier(name, p50_ns))
        at = msgspec.json.decode(connection.recv_bytes(), type=Go).at_ns
        time.sleep(max(0, at - perf_counter_ns() - 1_000_000) / 1e9)
        while perf_counter_ns() < at:  # the last millisecond: a sleep would wake too late
            pass
        return at

    try:
        send(_answer(msgspec.json.decode(request, type=Request), cache_dir, replica, barrier))
    except Exception as error:  # noqa: BLE001  # anything a backend raises is this task's result
        send(failure(error))
    connection.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a runtime's exit handlers must not hang or crash a finished task


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, so that none is ever left behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def failure(error: BaseException) -> Failure:
    """What an exception means for the cell."""
    if isinstance(error, Unavailable):
        return Failure("unavailable", error.reason, error.remedy)
    if isinstance(error, CellFailed):
        return Failure(error.kind, error.reason)
    if isinstance(error, GpubenchError):
        return Failure(BAD_INPUT if isinstance(error, InputError) else "error", str(error))
    words = f"{type(error).__name__}: {error}".strip()
    if isinstance(error, MemoryError) or any(text in words.lower() for text in NO_MEMORY):
        return Failure("out-of-memory", words[:2000])
    traceback.print_exception(error)  # to the agent's log
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Failure("error", f"{words[:2000]} ({Path(last.filename).name}:{last.lineno})")


def _answer(request: Request, cache_dir: str, replica: int, barrier: Barrier) -> WorkerMessage:
    if isinstance(request, Preload):
        from gpubench.run import preload

        here = environment.collect([]) if request.environment else {}
        return Preloaded(preload.ERRORS, preload.SECONDS, PROTOCOL, __version__, here)
    if isinstance(request, Measure):
        return _measure(request, replica, barrier)
    from gpubench.workload.cache import Cache

    cache = Cache(Path(cache_dir))
    if isinstance(request, BuildReference):
        from gpubench.workload import reference

        path = reference.build(request.workload, request.policy, cache)
    elif isinstance(request, Prepare):
        path = _prepare(request, cache)
    else:
        raise TypeError(f"no task for a worker: {type(request).__name__}")
    ns: dict[str, int] = {}
    for entry in {entry.path: entry for entry in cache.log}.values():
        if entry.kind in NOT_SERVED and isinstance(request, Prepare):
            continue
        ns[entry.kind] = ns.get(entry.kind, 0) + round(entry.seconds * 1e9)
    return Prepared(str(path), ns)


def _prepare(request: Prepare, cache: Cache) -> Path:
    from gpubench.workload import models

    _pin(request.cores)
    cell = request.cell
    backend = base.get(cell.backend)
    return backend.prepare(cell, models.resolve(cell.workload, cache), cache)


def _pin(cores: tuple[int, ...]) -> None:
    if cores:
        os.sched_setaffinity(0, cores)


def _measure(request: Measure, replica: int, barrier: Barrier) -> Outcome:
    from gpubench.workload import reference as ref

    cell, policy = request.cell, request.policy
    _pin(request.cores[replica])
    backend = base.get(cell.backend)
    device = base.Device(cell.device, replica, request.cores[replica])
    reference = ref.load(Path(request.reference))
    slots = ref.batches(cell.batch_size, len(reference.images), policy.parity_images)
    images = _images(reference, slots[0])

    begin = perf_counter_ns()
    with backend.open(cell, Path(request.artefact), device) as session:
        opened = perf_counter_ns()
        session.copy_in(images)
        session.sync()
        before_first = perf_counter_ns()
        session.run()
        session.sync()
        first = perf_counter_ns() - before_first
        barrier("opened")
        sampler = protocol.warm_up(session, images, cell, policy, bundle=request.bundle)
        counters: Callable[[], dict[str, int]] = getattr(session, "counters", dict)
        turns: list[tuple[int, protocol.Measured]] = []
        idle = Idle()
        with quiet_collector():
            start = barrier("warm", median(sampler.warmup))
            before = counters()
            for turn in range(request.turns):
                if turn:
                    with idle:
                        start = barrier("again")
                    sampler.warmup.clear()  # recorded with the turn before
                if cell.replicas > 1 or request.turns > 1:
                    protocol.once_more(sampler, AWAKE_S if request.turns > 1 else 0)
                turns.append((start, protocol.measure(sampler, policy)))
            after = counters()
        if request.turns > 1:
            with idle:
                barrier("measured")
        parity = _check(session, backend, reference, slots, cell.precision, policy)
        facts = dict(session.facts)
    if reference.skipped:
        facts[IMAGES_SKIPPED] = reference.skipped

    flags = [flag for _, measured in turns for flag in measured.flags]
    if after.get("recompilations", 0) > before.get("recompilations", 0):
        flags.append("RECOMPILED")
    if request.turns > 1:
        facts["idle_cpu_share"] = idle.share
        flags += ["BUSY-WHILE-IDLE"] if idle.share > IDLE_LIMIT else []
    samples = [
        Samples(
            replica=replica,
            device=str(device),
            durations_ns=measured.durations,
            iterations=measured.iterations,
            warmup_durations_ns=measured.warmup,
            truncated=measured.truncated,
            start_ns=measured.start - start,
            end_ns=measured.end - start,
            open_ns=opened - begin,
            first_inference_ns=first,
            stop_reason=measured.stop,
            peak_host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )
        for start, measured in turns
    ]
    again = samples[1] if samples[1:] else None
    return Outcome(samples[0], parity, facts, list(dict.fromkeys(flags)), again)


class Idle:
    """The CPU time that this process, all threads, uses while it waits for its next turn."""

    def __init__(self) -> None:
        self._cpu = self._wall = 0

    def __enter__(self) -> None:
        self._cpu -= time.process_time_ns()
        self._wall -= perf_counter_ns()

    def __exit__(self, *_: object) -> None:
        self._cpu += time.process_time_ns()
        self._wall += perf_counter_ns()

    @property
    def share(self) -> float:
        """Of one core; 0.01 is 1 %."""
        return self._cpu / self._wall if self._wall else 0.0


def _images(reference: Reference, indices: NDArray[np.intp]) -> base.Images:
    import numpy as np

    return np.ascontiguousarray(reference.images[indices], dtype=np.float32)


def _check(
    session: base.Session,
    backend: base.Backend,
    reference: Reference,
    slots: list[NDArray[np.intp]],
    precision: str,
    policy: Policy,
) -> Parity | None:
    """Compare the session's answers with the reference's, on the session that was timed."""
    from gpubench.workload import reference as ref

    if not getattr(backend, "computes", True):
        return None
    outputs = []
    for indices in slots:
        session.copy_in(_images(reference, indices))
        session.run()
        session.sync()
        outputs.append(session.copy_out())
    return ref.check(reference, slots, outputs, precision, policy)
