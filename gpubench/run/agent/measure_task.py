"""One replica's share of one task: open, warm up, sample, check."""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING

from msgspec.structs import replace

from gpubench.backends import base
from gpubench.cache import MANIFEST
from gpubench.errors import Unavailable
from gpubench.machine import gpu
from gpubench.machine.cores import Cores, cpu_ranges, pin
from gpubench.machine.processes import cpu_ns, descendants, instruments, stopped
from gpubench.measure import protocol
from gpubench.measure.caches import preparing
from gpubench.measure.device_time import device_time, phase
from gpubench.measure.in_flight import Transfers
from gpubench.measure.loop import quiet_collector
from gpubench.measure.stages import alone
from gpubench.pipeline import core_split
from gpubench.pipeline.assembly import ReplicaPipeline
from gpubench.records import validation
from gpubench.records.parity import Parity
from gpubench.records.record import ARTEFACT_BYTES, COPIED_IN, SOAKED, Record
from gpubench.records.samples import Samples
from gpubench.run.agent.messages import FINISHED, Done, Go, Measure
from gpubench.run.agent.shared_job import Queue, awake_s, claims
from gpubench.suite.types import Cell, Policy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.workload.reference import Reference

Barrier = Callable[..., Go]
"""Called with a name (and what `AtBarrier` tells): waits for all replicas."""
RIVALS_CPU = "rivals_cpu_share"
"""In a worker's facts: CPU time of idle rivals while it sampled, as a share of its cores'."""
START_MPS = "`nvidia-cuda-mps-control -d` starts one, `echo quit | nvidia-cuda-mps-control` ends it"
ARRAYS = 3
"""Different batches that are copied in, in turn, where copies overlap."""
WITHHELD_LIMIT = 0.05
"""Of its cores' time, or on a GPU of the host thread's."""


def _device(request: Measure, replica: int) -> base.Device:
    """Where the replica runs; this process is pinned, and sees its own GPU only."""
    cell, cores = request.cell, request.cores[replica]
    pin(cores)
    if cell.device != "cuda":
        return base.Device(cell.device, 0, cores)
    number = replica // cell.replicas_per_device
    uuid = request.uuids[number] if number < len(request.uuids) else ""
    _share(cell)
    return base.Device(cell.device, 0 if _show(uuid) else number, uuid=uuid, number=number)


def _share(cell: Cell) -> None:
    """Before CUDA is touched. Raises Unavailable where there is no MPS, and it was asked for."""
    if cell.sharing == "time-slicing":  # where there is no daemon, CUDA goes on without
        os.environ["CUDA_MPS_PIPE_DIRECTORY"] = str(Path(tempfile.gettempdir(), "no-mps"))
    if cell.sharing == "mps" and gpu.mps() is None:
        raise Unavailable("sharing = 'mps': no MPS daemon serves this machine", START_MPS)


def _show(uuid: str) -> bool:
    """Let this process, which has not touched CUDA, see the GPU or MIG slice ``uuid`` alone.

    So it is device 0 in all of them: what is compiled for a device holds its number. False where
    the driver did not say which one it is.
    """
    if uuid:
        os.environ["CUDA_VISIBLE_DEVICES"] = uuid
    return bool(uuid)


def _measure(request: Measure, replica: int, barrier: Barrier, queue: Queue | None) -> Done:
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
            reference.check_dataset()
            split = core_split.split(cell, request.cores, replica, request.times)
            route = stack.enter_context(
                ReplicaPipeline(cell, reference, split, number=request.first + replica,
                                seed=policy.seed, index=device.index, times=request.times)
            )  # fmt: skip
            own = replace(device, cores=route.session_cores)
            pin(own.cores)  # a runtime's threads inherit it
        begin = perf_counter_ns()
        with phase(cell, "open"):
            session = base.open_session(backend, cell, Path(request.artefact), own)
            stack.enter_context(session)
        opened = perf_counter_ns()
        path, transfers = route.lead_to(session) if route else None, None
        if session.in_flight and (cell.boundary, cell.scenario) == ("transfer", "throughput"):
            some = [_images(reference, indices) for indices in slots[:ARRAYS]]
            path = transfers = Transfers(session, some, attach=cell.device == "cuda")
        session.copy_in(images)
        session.sync()
        before_first = perf_counter_ns()
        with phase(cell, "first"):
            session.run()
            session.sync()
        first = perf_counter_ns() - before_first
        barrier("opened")
        blank = Samples(
            replica=request.first + replica, node=request.node, device=str(device),
            durations_ns=[], open_ns=opened - begin, first_inference_ns=first,
        )  # fmt: skip
        with phase(cell, "warm-up"):
            before = preparing(session, [_images(reference, indices) for indices in slots], cell)
            sampler = protocol.warm_up(
                session, images, cell, policy, pipeline=path, blank=blank, before=before
            )
        turns: list[Samples] = []
        rivals_ns = 0
        with quiet_collector():
            protocol.pause(sampler)
            sample_ns = sampler.batch_ns * sampler.iterations
            go = barrier("warm", median(sampler.warmup), sampler.batch_ns, sample_ns)
            counted = session.counters()
            request = replace(request, turns=go.turns or request.turns)
            while True:
                with phase(cell, "sample"):
                    turn, beside_ns = _sample(request, replica, sampler, go, queue)
                turns.append(turn)
                rivals_ns += beside_ns
                if go.iterations:
                    barrier(FINISHED)
                if len(turns) == request.turns and cell.boundary == "transfer":
                    with phase(cell, "stages"):
                        stages = transfers.stages(0, 0) if transfers else alone(session, images)
                    turns[0] = replace(turns[0], stages_ns=stages)
                protocol.pause(sampler)
                if len(turns) == request.turns:
                    break
                go = barrier("again")
                sampler.warmup.clear()  # recorded with the turn before
            after = session.counters()
        if request.turns > 1:
            if not go.iterations:
                sampler.flags.extend(protocol.joined(turns, policy.target_half_width))
            barrier("measured")
        if route and path:  # after all turns: as far apart as they are meant to be, a drift cancels
            with quiet_collector(), phase(cell, "stages"):
                stages = path.stages(sum(turns[-1].batches), policy.block_s)
                turns[0] = replace(turns[0], stages_ns=stages)
        copies = cell.boundary != "compute"
        with quiet_collector(), phase(cell, "device time"):
            own_time = device_time(session, images, copies=copies)
        with phase(cell, "check"):
            parity = _check(session, backend, reference, slots, cell.precision, policy)
        if parity and request.repeat:
            parity = replace(parity, answers=None)
        facts, checked = dict(session.facts), None
        if cell.device == "cuda" and cell.replicas_per_device > 1:
            facts["sharing"] = gpu.mps() or "time slicing"
        if own_time:
            facts["device_time_ns"] = own_time
        if transfers:
            facts["transfers"] = transfers.facts
            if parity is not None:
                transfers.check()
        if route and path:
            if parity is not None:
                path.resume()
                checked = route.check(session, slots, policy)
            facts["pipeline"] = route.facts
        frozen = stopped({os.getpid(), *descendants([os.getpid()])})
    facts |= reference.facts
    facts[ARTEFACT_BYTES] = _size(Path(request.artefact))

    flags = sampler.flags
    if after.get("recompilations", 0) > counted.get("recompilations", 0):
        flags.append("RECOMPILED")
    if after.get("compiled_at_open"):
        flags.append("COMPILED-AT-OPEN")
    if request.turns > 1:
        sampled_ns = sum(turn.end_ns - turn.start_ns for turn in turns)
        facts[RIVALS_CPU] = rivals_ns / max(1, sampled_ns * _in_use(request))
    if slowed := instruments():
        facts["instruments"] = slowed
        flags.append("INSTRUMENTED")
    if any(_withheld(turn, cell, request.cores[replica]) > WITHHELD_LIMIT for turn in turns):
        flags.append("CPU-WITHHELD")
    if frozen:
        flags.append("FROZEN")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    turns = [replace(turn, peak_host_bytes=peak) for turn in turns]
    facts[COPIED_IN] = images.nbytes
    if policy.soak_s:
        facts[SOAKED] = f"begun after {policy.soak_s:g} s under load"
    facts["pinned"] = [cpu_ranges(request.cores[replica])]
    return Done(Record(
        cell=cell, repeat=request.repeat, status="ok", replicas=turns[:1], again=turns[1:],
        parity=parity, pipeline=checked, facts=validation.facts(facts),
        flags=list(dict.fromkeys(flags)),
    ))  # fmt: skip


def _sample(
    request: Measure, replica: int, sampler: protocol.Sampler, go: Go, queue: Queue | None
) -> tuple[Samples, int]:
    """Wait for the common start, then sample: for a time, or for as long as a job lasts.

    And the CPU time, ns, that idle rivals used meanwhile.
    """
    room = len(os.sched_getaffinity(0)) >= request.cores.count(request.cores[replica])
    claim = None
    if go.iterations:  # a job's time runs from the common start, and is no time to warm up
        protocol.once_more(sampler, awake_s(request))
        sampler, claim = replace(sampler, iterations=go.iterations), claims(go, queue)
    late_ns = wait_until(go.at_ns, spin=room)
    if claim is None and (request.cell.replicas > 1 or request.turns > 1 or sampler.pipeline):
        protocol.once_more(sampler, awake_s(request))
    own, turns = request.cores[replica], request.turns
    shared = request.cores.count(own) > max(1, len(own))
    if turns > 1:
        sampler = replace(sampler, at_least=protocol.least_of_turn(request.cell, turns))
    before = cpu_ns(go.others)
    found = protocol.measure(
        sampler, protocol.of_turn(request.policy, turns), at_ns=go.at_ns, late_ns=late_ns,
        claim=claim, cores=0 if shared else _cores(request.cell, own), whole=turns == 1,
    )  # fmt: skip
    return found, cpu_ns(go.others) - before


def _size(artefact: Path) -> int:
    """Bytes of a file, or of all in a folder; of an entry of the cache, all but its manifest."""
    entry = artefact.parent if (artefact.parent / MANIFEST).is_file() else artefact
    files = entry.rglob("*") if entry.is_dir() else [entry]
    return sum(file.stat().st_size for file in files if file.is_file() and file.name != MANIFEST)


def _cores(cell: Cell, own: Cores) -> int:
    """That it can keep busy."""
    return 1 if cell.device == "cuda" else len(own) or len(os.sched_getaffinity(0))


def _in_use(request: Measure) -> int:
    """Cores that all replicas keep busy; on a GPU one of each."""
    own = {core for cores in request.cores for core in cores}
    if request.cell.device == "cuda":
        return len(request.cores)
    return len(own) or len(os.sched_getaffinity(0))


def _withheld(x: Samples, cell: Cell, own: Cores) -> float:
    """Share of the time in which it sampled."""
    return x.withheld_ns / max(1, (x.end_ns - x.start_ns) * _cores(cell, own))


def wait_until(at_ns: int, *, spin: bool) -> int:
    """Return when the clock reads ``at_ns``; how many ns later that was.

    A sleep wakes too late, so with ``spin`` the last millisecond is waited for actively. Not where
    replicas share a core: they would keep one another from being there in time.
    """
    time.sleep(max(0, at_ns - perf_counter_ns() - spin * 1_000_000) / 1e9)
    while (now := perf_counter_ns()) < at_ns:
        pass
    return now - at_ns


def _images(reference: Reference, indices: NDArray[np.intp]) -> base.Images:
    import numpy as np

    return np.ascontiguousarray(reference.images[indices])


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
