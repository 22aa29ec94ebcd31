"""One process, one replica, one task. Forked by the agent's server; ends when its task does."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec.structs import replace

from gpubench import __version__, environment
from gpubench.answers import Parity
from gpubench.backends import base
from gpubench.cores import cpu_ranges
from gpubench.errors import (
    CalibrationError,
    CellFailed,
    GpubenchError,
    InputError,
    Unavailable,
)
from gpubench.measure import protocol
from gpubench.measure.loop import quiet_collector
from gpubench.processes import cpu_ns, descendants, die_with_parent
from gpubench.record import IMAGES_SKIPPED
from gpubench.run.dispatch import Queue, awake_s, claims
from gpubench.run.messages import (
    BAD_CALIBRATION,
    BAD_INPUT,
    FINISHED,
    PROTOCOL,
    AtBarrier,
    Begin,
    BuildReference,
    Count,
    Counted,
    Failure,
    Gauge,
    Gauged,
    Go,
    Measure,
    Outcome,
    Preload,
    Preloaded,
    Prepare,
    Prepared,
    Request,
    Share,
    WorkerMessage,
)
from gpubench.run.path import Route
from gpubench.run.postmortem import says_no_memory
from gpubench.samples import Samples
from gpubench.suite import Policy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.workload.reference import Reference

Barrier = Callable[..., Go]
"""Called with a name (and what `AtBarrier` tells): waits for all replicas."""

NOT_SERVED = ("weights", "reference", "images")
"""Cache entries that belong to the benchmark; serving the network would not make them."""
IDLE_LIMIT = 0.03
"""Of a core; a runtime's threads may do some housekeeping."""
OOM_SCORE = 500
"""Where memory ends, the kernel is to end a worker and not the driver, which holds the results."""


class Task(NamedTuple):
    """What workers are forked for."""

    line: bytes
    """The request as the driver wrote it."""
    cache_dir: str
    filled: dict[str, Any]
    """Fields of it that only this machine's agent knows."""

    @property
    def request(self) -> Request:
        """With these fields; of a `Begin` what is to be measured."""
        found: Request = msgspec.json.decode(self.line, type=Request)
        found = found.measure if isinstance(found, Begin) else found
        return replace(found, **self.filled)


def main(connection: Connection, task: Task, replica: int, queue: Queue | None) -> None:
    """Do ``task`` and send the answer; never raises. ``queue``: of a job's units."""
    die_with_parent()
    os.setpgid(0, 0)  # so that the agent can end this process with all its children
    faulthandler.enable()  # where native code crashed: see postmortem
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123  # a library that reads gets EOF

    def send(message: WorkerMessage) -> None:
        # A backend's facts may hold a library's own version type: its text will do.
        connection.send_bytes(msgspec.json.encode(message, enc_hook=str))

    def barrier(name: str, p50_ns: float = 0.0, batch_ns: float = 0.0) -> Go:
        send(AtBarrier(name, p50_ns, batch_ns))
        return msgspec.json.decode(connection.recv_bytes(), type=Go)

    try:
        send(_answer(task.request, task.cache_dir, replica, barrier, queue))
    except Exception as error:  # noqa: BLE001  # anything a backend raises is this task's result
        send(failure(error))
    connection.close()
    with suppress(OSError):  # the log's disk may be full
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # a runtime's exit handlers must not hang or crash a finished task


def failure(error: BaseException) -> Failure:
    """What an exception means for the cell."""
    if isinstance(error, Unavailable):
        return Failure("unavailable", _text(error.reason), _text(error.remedy))
    if isinstance(error, CellFailed):
        return Failure(error.kind, _text(error.reason))
    if isinstance(error, CalibrationError):
        return Failure(BAD_CALIBRATION, _text(error))
    if isinstance(error, GpubenchError):
        return Failure(BAD_INPUT if isinstance(error, InputError) else "error", _text(error))
    words = _text(f"{type(error).__name__}: {_text(error)}".strip())
    if isinstance(error, MemoryError) or says_no_memory(words):
        return Failure("out-of-memory", words[:2000])
    with suppress(OSError):  # the log's disk may be full
        traceback.print_exception(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Failure("error", f"{words[:2000]} ({Path(last.filename).name}:{last.lineno})")


def _text(words: object) -> str:
    """As text that can be sent, whatever a backend's exception makes of itself."""
    try:
        return str(words).encode(errors="replace").decode()
    except Exception as error:  # noqa: BLE001  # its __str__ is foreign code too
        return f"({type(error).__name__} in its __str__)"


def _answer(
    request: Request, cache_dir: str, replica: int, barrier: Barrier, queue: Queue | None
) -> WorkerMessage:
    if isinstance(request, Preload):
        from gpubench.run import preload

        here = environment.collect([]) if request.environment else {}
        return Preloaded(preload.ERRORS, preload.SECONDS, PROTOCOL, __version__, here)
    if isinstance(request, Measure):
        return _measure(request, replica, barrier, queue)
    if isinstance(request, Share):
        from gpubench.run import sharing

        return sharing.find_out(request.measure, _device(request.measure, 0))
    if isinstance(request, Gauge):
        return _gauge(request)
    from gpubench.workload import models
    from gpubench.workload.cache import Cache

    cache = Cache(Path(cache_dir))
    if isinstance(request, Count):
        from gpubench.workload import work

        return Counted(work.of(models.resolve(request.workload, cache), cache))
    if isinstance(request, BuildReference):
        from gpubench.workload import reference

        path = reference.build(request.workload, request.policy, cache)
    elif isinstance(request, Prepare):
        _pin(request.cores)
        cell = request.cell
        network = models.resolve(cell.workload, cache)
        path = base.get(cell.backend).prepare(cell, network, cache)
    else:
        raise TypeError(f"no task for a worker: {type(request).__name__}")
    ns: dict[str, int] = {}
    for entry in {entry.path: entry for entry in cache.log}.values():
        if entry.kind in NOT_SERVED and isinstance(request, Prepare):
            continue
        ns[entry.kind] = ns.get(entry.kind, 0) + round(entry.seconds * 1e9)
    return Prepared(str(path), ns)


def _gauge(request: Gauge) -> Gauged:
    from gpubench.measure import peaks

    if request.device == "cuda":
        _show(request.uuid)
        return Gauged(*peaks.cuda(request.types, request.memory))
    return Gauged(*peaks.cpu(request.cores, request.types, request.memory))


def _pin(cores: tuple[int, ...]) -> None:
    if cores:
        os.sched_setaffinity(0, cores)


def _device(request: Measure, replica: int) -> base.Device:
    """Where the replica runs; this process is pinned, and sees its own slice of a GPU only."""
    cell, cores = request.cell, request.cores[replica]
    _pin(cores)
    if cell.device != "cuda":
        return base.Device(cell.device, 0, cores)
    index = replica // cell.replicas_per_device
    uuid = request.uuids[index] if index < len(request.uuids) else ""
    return base.Device(cell.device, 0 if _show(uuid) else index, uuid=uuid)


def _show(uuid: str) -> bool:
    """Let this process see the MIG slice ``uuid``, if it is one, and nothing else.

    CUDA shows a process one slice at most, and does so by its name: the first of all, unless the
    environment says which.
    """
    if uuid.startswith("MIG-"):
        os.environ["CUDA_VISIBLE_DEVICES"] = uuid
    return uuid.startswith("MIG-")


def _measure(request: Measure, replica: int, barrier: Barrier, queue: Queue | None) -> Outcome:
    from gpubench.workload import reference as ref

    cell, policy = request.cell, request.policy
    device = _device(request, replica)
    backend = base.get(cell.backend)
    reference = ref.load(Path(request.reference))
    slots = ref.batches(cell.batch_size, len(reference.images), ref.asked(policy, request.repeat))
    images = _images(reference, slots[0])

    with ExitStack() as stack:
        route, own = None, device
        if cell.boundary == "pipeline":
            route = stack.enter_context(Route(request, replica, reference, device.index))
            own = replace(device, cores=route.session_cores)
            _pin(own.cores)  # a runtime's threads inherit it
        begin = perf_counter_ns()
        session = base.open_session(backend, cell, Path(request.artefact), own)
        stack.enter_context(session)
        opened = perf_counter_ns()
        path = route.lead_to(session) if route else None
        session.copy_in(images)
        session.sync()
        before_first = perf_counter_ns()
        session.run()
        session.sync()
        first = perf_counter_ns() - before_first
        barrier("opened")
        blank = Samples(
            replica=request.first + replica, node=request.node, device=str(device),
            durations_ns=[], open_ns=opened - begin, first_inference_ns=first,
        )  # fmt: skip
        sampler = protocol.warm_up(session, images, cell, policy, path=path, blank=blank)
        turns: list[Samples] = []
        idle = Idle()
        with quiet_collector():
            protocol.pause(sampler)
            go = barrier("warm", median(sampler.warmup), sampler.batch_ns)
            before = session.counters()
            for turn in range(request.turns):
                if turn:
                    with idle:
                        go = barrier("again")
                    sampler.warmup.clear()  # recorded with the turn before
                found = _sample(request, replica, sampler, go, queue)
                if go.iterations:
                    barrier(FINISHED)
                stages = protocol.stages(session, images) if cell.boundary == "transfer" else {}
                protocol.pause(sampler)
                turns.append(replace(found, stages_ns=stages))
            after = session.counters()
        if request.turns > 1:
            with idle:
                barrier("measured")
        if path:  # after all turns: as far apart as they are meant to be, a drift cancels
            with quiet_collector():
                turns[0] = replace(turns[0], stages_ns=path.stages(policy.block_s))
        parity = _check(session, backend, reference, slots, cell.precision, policy)
        facts, checked = dict(session.facts), None
        if route and path:
            if parity is not None:
                path.resume()
                checked = route.check(session, slots, policy)
            facts["path"] = route.facts
    if reference.skipped:
        facts[IMAGES_SKIPPED] = reference.skipped

    flags = sampler.flags
    if after.get("recompilations", 0) > before.get("recompilations", 0):
        flags.append("RECOMPILED")
    if request.turns > 1:
        facts["idle_cpu_share"] = idle.share
        flags += ["BUSY-WHILE-IDLE"] if idle.share > IDLE_LIMIT else []
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    turns = [replace(turn, peak_host_bytes=peak) for turn in turns]
    pinned = cpu_ranges(request.cores[replica])
    return Outcome(turns, parity, facts, list(dict.fromkeys(flags)), pinned, checked)


def _sample(
    request: Measure, replica: int, sampler: protocol.Sampler, go: Go, queue: Queue | None
) -> Samples:
    """Wait for the common start, then sample: for a time, or for as long as a job lasts."""
    room = len(os.sched_getaffinity(0)) >= request.cores.count(request.cores[replica])
    claim = None
    if go.iterations:  # a job's time runs from the common start, and is no time to warm up
        protocol.once_more(sampler, awake_s(request))
        sampler, claim = replace(sampler, iterations=go.iterations), claims(go, queue)
    late_ns = wait_until(go.at_ns, spin=room)
    if claim is None and (request.cell.replicas > 1 or request.turns > 1 or sampler.path):
        protocol.once_more(sampler, awake_s(request))
    return protocol.measure(sampler, request.policy, at_ns=go.at_ns, late_ns=late_ns, claim=claim)


def wait_until(at_ns: int, *, spin: bool) -> int:
    """Return when the clock reads ``at_ns``; how many ns later that was.

    A sleep wakes too late, so with ``spin`` the last millisecond is waited for actively. Not where
    replicas share a core: they would keep one another from being there in time.
    """
    time.sleep(max(0, at_ns - perf_counter_ns() - spin * 1_000_000) / 1e9)
    while (now := perf_counter_ns()) < at_ns:
        pass
    return now - at_ns


class Idle:
    """The CPU time that this process, all threads, uses while it waits for its next turn.

    And those that it has started: a loader's, which must be stopped then.
    """

    def __init__(self) -> None:
        self._cpu = self._wall = 0

    def __enter__(self) -> None:
        self._pids = {os.getpid(), *descendants([os.getpid()])}
        self._cpu -= cpu_ns(self._pids)
        self._wall -= perf_counter_ns()

    def __exit__(self, *_: object) -> None:
        self._cpu += cpu_ns(self._pids)
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
    from gpubench.workload import parity

    if not backend.computes:
        return None
    outputs = []
    for indices in slots:
        session.copy_in(_images(reference, indices))
        session.run()
        session.sync()
        outputs.append(session.copy_out())
    return parity.check(reference, slots, outputs, precision, policy)
