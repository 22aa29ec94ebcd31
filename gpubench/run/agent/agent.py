"""One per node and interpreter: forks workers, passes them over barriers, enforces limits.

Started as a subprocess by `run.agent.client`. Requests and replies are JSON lines on a private
pair of pipes, so nothing a library prints can be taken for an answer. Workers are forked from a
server that has imported the heavy modules once and has not touched a GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from io import RawIOBase
from time import monotonic

import msgspec
from msgspec.structs import replace

from gpubench.machine import processes
from gpubench.machine.gpu import Gpu, visible_gpus
from gpubench.machine.telemetry.telemetry import Telemetry, idle_watts
from gpubench.pipeline import core_split
from gpubench.pipeline.core_split import StageTimes
from gpubench.records.record import merged
from gpubench.records.samples import window_ns
from gpubench.run.agent import messages, worker
from gpubench.run.agent.placement import placed
from gpubench.run.agent.shared_job import Dispatcher
from gpubench.run.agent.worker_group import SAMPLES_NEXT, Team

IDLE_LIMIT_S = 0.3
"""How long a turn waits for its rival's threads to fall asleep: ONNX Runtime's spin for 0.03 s,
Intel's OpenMP's for 0.2 s (KMP_BLOCKTIME), and longer where others keep them from their cores."""
PRELOADED = [
    "gpubench.run.agent.forkserver_preload",
    "gpubench.run.agent.worker",
    "gpubench.workload.reference",
]
ENDING = (signal.SIGTERM, signal.SIGHUP)
"""What ends an agent: of its driver's death, or of a batch system that tells every process."""
GPU_LOST = "look at `dmesg | grep -i xid` and `nvidia-smi`; it needs a reset or a restart"


class Agent:
    """Answers one request after the other. ``closed`` becomes readable when the driver is gone."""

    def __init__(self, emit: Callable[[messages.Reply], None], closed: int) -> None:
        self._emit = emit
        self._closed = closed
        self._cache_dir = ""
        self._fork = multiprocessing.get_context("forkserver")
        self._teams: dict[str, Team] = {}
        self._gpus: list[Gpu] | None = None
        self._stage_times: dict[str, StageTimes] = {}
        """By cell, so that all repeats and replicas share out their cores alike."""
        self._idle: dict[int, float | None] = {}
        """By the number of GPUs (0: of the CPU), what they draw before the first task there."""

    def handle(self, line: bytes) -> messages.Reply:
        """Do the request that ``line`` is; Progress goes out by ``emit`` meanwhile."""
        request: messages.Request = msgspec.json.decode(line, type=messages.Request)
        if isinstance(request, messages.Begin | messages.Step | messages.End):
            return self._turn(request)
        if isinstance(request, messages.Measure):
            return self._measure(request)
        if isinstance(request, messages.Gauge) and request.device == "cuda":  # the first GPU
            uuid = next((one.uuid for one in self._visible() if one.index == 0), "")
            request = replace(request, uuid=uuid)
        if isinstance(request, messages.Preload):
            self._cache_dir = request.cache_dir
            os.environ["GPUBENCH_PRELOAD"] = ",".join(["numpy", *request.modules])
            self._fork.set_forkserver_preload(PRELOADED)
        return self._once(request)  # type: ignore[return-value]

    def _once(self, request: messages.Request) -> messages.WorkerMessage:
        """The answer of one worker."""
        team = Team(self._fork, request, self._cache_dir)
        try:
            found = team.answers(self._closed, self._emit)
            return found if isinstance(found, messages.Failure) else found[0]
        finally:
            team.end()

    def _visible(self) -> list[Gpu]:
        if self._gpus is None:
            self._gpus = visible_gpus()
        return self._gpus

    def _placed(self, request: messages.Measure) -> messages.Measure | messages.Failure:
        """With everything that only this machine's agent knows."""
        request = placed(request, self._visible() if request.cell.device == "cuda" else [])
        if not core_split.is_open(request.cell, len(request.cores[0])):
            return request
        key = request.cell.key
        if key not in self._stage_times:
            reply = self._once(messages.SplitCores(request))
            if isinstance(reply, messages.Failure):
                return reply
            self._stage_times[key] = reply  # type: ignore[assignment]
        return replace(request, times=self._stage_times[key])

    def _begun(self, asked: messages.Measure) -> Team | messages.Failure:
        request = self._placed(asked)
        if isinstance(request, messages.Failure):
            return request
        idle = self._idle_watts(request)
        job = None if request.cell.dispatch == "independent" else Dispatcher(request)
        team = Team(self._fork, request, self._cache_dir, len(request.cores), job)
        team.telemetry = _telemetry(request, team, idle)
        return team

    def _measure(self, asked: messages.Measure) -> messages.Reply:
        team = self._begun(asked)
        if isinstance(team, messages.Failure):
            return team
        try:
            with team.telemetry:
                found = team.answers(self._closed, self._emit)
            return _result(found, team)
        finally:
            team.end()

    def _turn(self, request: messages.Begin | messages.Step | messages.End) -> messages.Reply:
        """Several teams live at once, here or on other nodes, and the driver gives the turns."""
        if not isinstance(request, messages.Step):
            self._end(request.team)
            if isinstance(request, messages.End):
                return messages.Waiting("", [])
            found = self._begun(request.measure)
            if isinstance(found, messages.Failure):
                return found
            team = self._teams[request.team] = found
        elif request.team not in self._teams:
            return messages.Failure("error", f"no team {request.team!r} was begun")
        else:
            team = self._teams[request.team]
            team.others = set(request.others)
            if team.barrier == "warm":
                team.telemetry.__enter__()
            if team.barrier in SAMPLES_NEXT:
                processes.await_idle(team.others, IDLE_LIMIT_S)
            team.go(request.timeout_s, request.turns)
            self._emit(messages.Progress("released"))
        answers = team.advance(self._closed)
        if answers is not None or team.barrier == "measured":
            team.telemetry.__exit__()  # before its rival ends
        if answers is None:
            own, begin = team.pids() - team.others, monotonic()
            if team.others and team.barrier == "warm":
                processes.await_idle(own, IDLE_LIMIT_S)
            return messages.Waiting(team.barrier, sorted(own), team.batch_ns, team.sample_ns,
                                    monotonic() - begin)  # fmt: skip
        self._end(request.team)
        return _result(answers, team)

    def _idle_watts(self, request: messages.Measure) -> float | None:
        gpus = _gpus(request)
        if len(gpus) not in self._idle:
            self._idle[len(gpus)] = idle_watts(gpus)
        return self._idle[len(gpus)]

    def _end(self, name: str) -> None:
        if name in self._teams:
            self._teams.pop(name).end()


def _gpus(request: messages.Measure) -> list[int]:
    return list(range(request.devices)) if request.cell.device == "cuda" else []


def _telemetry(request: messages.Measure, team: Team, idle: float | None) -> Telemetry:
    cores = sorted({core for own in request.cores for core in own}) if all(request.cores) else []

    def residents() -> int:
        """Our processes on one GPU: replicas that share it, and a rival's."""
        return request.cell.replicas_per_device - (-len(team.others) // request.devices)

    return Telemetry(_gpus(request), cores, team.pids, residents=residents,
                     rivals=lambda: team.others, idle_watts=idle)  # fmt: skip


def _result(found: messages.Failure | list[messages.WorkerMessage], team: Team) -> messages.Reply:
    """What telemetry saw explains a failure, and outweighs a result."""
    telemetry = team.telemetry
    if telemetry.lost:
        more = f"; the worker: {found.reason}" if isinstance(found, messages.Failure) else ""
        return messages.Failure("gpu-lost", telemetry.lost + more, GPU_LOST)
    if isinstance(found, messages.Failure):
        return found
    record = merged([answer.record for answer in found if isinstance(answer, messages.Done)])
    record = replace(record, telemetry=telemetry.result() | {"start_s": team.start_s})
    if energy := telemetry.energy([window_ns(visit) for visit in record.visits]):
        record = replace(record, telemetry=record.telemetry | {"energy": energy})
    flags = record.flags + telemetry.flags()
    if frozen_s := team.pauses.seconds:
        record = replace(record, telemetry=record.telemetry | {"frozen_s": frozen_s})
        flags.append("FROZEN")
    invalid = telemetry.invalid or "FROZEN" in flags  # a worker may have seen what we did not
    return messages.Done(replace(record, flags=flags), invalid)


def main(requests_fd: int, replies_fd: int) -> None:
    """Serve until the driver closes its end, or dies; nothing is left then."""
    try:
        try:
            for number in ENDING:
                signal.signal(number, _leave)
            processes.die_with_parent(signal.SIGTERM)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _serve(requests_fd, os.fdopen(replies_fd, "wb", buffering=0))
        finally:
            _end_once()
    finally:
        scratch, me = os.environ[processes.SCRATCH], os.getpid()
        # the resource tracker ends when we have: it unlinks shared memory that workers left
        try:
            trackers = filter(processes.is_tracker, processes.session_members(me))
            processes.end_session(me, scratch, {me, *trackers})
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            os._exit(0)


def _leave(*_: object) -> None:
    _end_once()
    raise SystemExit


def _end_once() -> None:
    """The driver's death is told by its pipe and by a signal: neither may disturb the other."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def _serve(requests_fd: int, replies: RawIOBase) -> None:
    def emit(reply: messages.Reply) -> None:
        replies.write(msgspec.json.encode(reply) + b"\n")

    agent = Agent(emit, requests_fd)
    pending = b""
    while True:
        line, newline, rest = pending.partition(b"\n")
        if newline:
            pending = rest
            try:
                reply = agent.handle(line)
            except Exception as error:  # noqa: BLE001  # the driver must get an answer
                reply = worker.failure(error)
            emit(reply)
            continue
        chunk = os.read(requests_fd, 1 << 20)
        if not chunk:
            return
        pending += chunk
