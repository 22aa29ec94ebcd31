"""One per node and interpreter: forks workers, passes them over barriers, enforces limits.

Started as a subprocess by `gpubench.run.client`. Requests and replies are JSON lines on a private
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

import msgspec
from msgspec.structs import replace

from gpubench.answers import over_replicas, worst_path
from gpubench.gpu import Gpu, visible_gpus
from gpubench.processes import die_with_parent
from gpubench.run import worker
from gpubench.run.messages import (
    Begin,
    Count,
    Done,
    End,
    Failure,
    Gauge,
    Measure,
    Outcome,
    Preload,
    Prepare,
    Progress,
    Reply,
    Request,
    Share,
    Shared,
    Step,
    Waiting,
    WorkerMessage,
)
from gpubench.run.path import asks_to_share
from gpubench.run.placement import placed
from gpubench.run.processes import (
    SCRATCH,
    end_session,
    is_tracker,
    session_members,
)
from gpubench.run.team import Team
from gpubench.run.telemetry import Telemetry, idle_watts
from gpubench.samples import window_ns

REFERENCE_TIMEOUT_S = 3600.0
GAUGE_TIMEOUT_S = 120.0
"""Of `Count` and `Gauge`, which take about a second, and torch's import if it was not preloaded."""
PRELOADED = ["gpubench.run.preload", "gpubench.run.worker", "gpubench.workload.reference"]
ENDING = (signal.SIGTERM, signal.SIGHUP)
"""What ends an agent: of its driver's death, or of a batch system that tells every process."""
GPU_LOST = "look at `dmesg | grep -i xid` and `nvidia-smi`; it needs a reset or a restart"


class Agent:
    """Answers one request after the other. ``closed`` becomes readable when the driver is gone."""

    def __init__(self, emit: Callable[[Reply], None], closed: int) -> None:
        self._emit = emit
        self._closed = closed
        self._cache_dir = ""
        self._fork = multiprocessing.get_context("forkserver")
        self._teams: dict[str, Team] = {}
        self._gpus: list[Gpu] | None = None
        self._shared: dict[str, Shared] = {}
        """By cell, so that all repeats and replicas share out their cores alike."""
        self._idle: dict[int, float | None] = {}
        """By the number of GPUs (0: of the CPU), what they draw before the first task there."""

    def handle(self, request: Request) -> Reply:
        """Do ``request``; Progress goes out by ``emit`` meanwhile."""
        if isinstance(request, Begin | Step | End):
            return self._turn(request)
        if isinstance(request, Measure):
            return self._measure(request)
        if isinstance(request, Count | Gauge):
            return self._once(self._aimed(request), GAUGE_TIMEOUT_S)  # type: ignore[return-value]
        timeout = request.timeout_s if isinstance(request, Prepare) else REFERENCE_TIMEOUT_S
        if isinstance(request, Preload):
            self._cache_dir = request.cache_dir
            os.environ["GPUBENCH_PRELOAD"] = ",".join(["numpy", *request.modules])
            self._fork.set_forkserver_preload(PRELOADED)
        return self._once(request, timeout)  # type: ignore[return-value]

    def _once(self, request: Request, timeout_s: float) -> WorkerMessage:
        """The answer of one worker."""
        team = self._team(request, timeout_s)
        try:
            found = team.answers(self._closed, self._emit)
            return found if isinstance(found, Failure) else found[0]
        finally:
            team.end()

    def _aimed(self, request: Count | Gauge) -> Count | Gauge:
        """At the first GPU, if at any."""
        if not isinstance(request, Gauge) or request.device != "cuda":
            return request
        uuids = [one.uuid for one in self._visible() if one.index == 0]
        return replace(request, uuid=uuids[0] if uuids else "")

    def _visible(self) -> list[Gpu]:
        if self._gpus is None:
            self._gpus = visible_gpus()
        return self._gpus

    def _placed(self, request: Measure) -> Measure | Failure:
        """With everything that only this machine's agent knows."""
        request = placed(request, self._visible() if request.cell.device == "cuda" else [])
        if not asks_to_share(request):
            return request
        key = request.cell.key
        if key not in self._shared:
            reply = self._once(Share(request), request.policy.timeout_s)
            if not isinstance(reply, Shared):
                return reply if isinstance(reply, Failure) else Failure("error", f"{reply}")
            self._shared[key] = reply
        return replace(request, shared=self._shared[key])

    def _team(self, request: Request, timeout_s: float, replicas: int = 1) -> Team:
        return Team(self._fork, request, self._cache_dir, replicas, timeout_s)

    def _measure(self, asked: Measure) -> Reply:
        request = self._placed(asked)
        if isinstance(request, Failure):
            return request
        idle = self._idle_watts(request)
        team = self._team(request, request.policy.timeout_s, len(request.cores))
        try:
            with _telemetry(request, team, idle) as telemetry:
                team.telemetry = telemetry
                found = team.answers(self._closed, self._emit)
            return _result(found, team, telemetry)
        finally:
            team.end()

    def _turn(self, request: Begin | Step | End) -> Reply:
        """Several teams live at once, here or on other nodes, and the driver gives the turns."""
        if isinstance(request, End):
            return self._end(request.team, Waiting("", []))
        if isinstance(request, Begin):
            self._end(request.team, Waiting("", []))
            measure = self._placed(request.measure)
            if isinstance(measure, Failure):
                return measure
            idle = self._idle_watts(measure)
            team = self._team(measure, measure.policy.timeout_s, len(measure.cores))
            self._teams[request.team] = team
            team.telemetry = _telemetry(measure, team, idle)
        else:
            if request.team not in self._teams:
                return Failure("error", f"no team {request.team!r} was begun")
            team = self._teams[request.team]
            team.others = set(request.others)
            if team.barrier == "warm" and team.telemetry:
                team.telemetry.__enter__()
            team.go(request.timeout_s)
            self._emit(Progress("released"))
        found = team.advance(self._closed)
        if team.telemetry and (found is not None or team.barrier == "measured"):
            team.telemetry.__exit__()  # before its rival ends
        if found is None:
            return Waiting(team.barrier, sorted(team.pids() - team.others))
        reply = self._end(request.team, Waiting("", []))  # first: its telemetry ends with it
        return _result(found, team, team.telemetry) if team.telemetry else reply

    def _idle_watts(self, request: Measure) -> float | None:
        gpus = _gpus(request)
        if len(gpus) not in self._idle:
            self._idle[len(gpus)] = idle_watts(gpus)
        return self._idle[len(gpus)]

    def _end(self, name: str, reply: Reply) -> Reply:
        team = self._teams.pop(name, None)
        if team is not None:
            team.end()
        return reply


def _gpus(request: Measure) -> list[int]:
    return list(range(request.devices)) if request.cell.device == "cuda" else []


def _telemetry(request: Measure, team: Team, idle: float | None = None) -> Telemetry:
    cores = sorted({core for own in request.cores for core in own}) if all(request.cores) else []

    def residents() -> int:
        """Our processes on one GPU: replicas that share it, and a rival's."""
        return request.cell.replicas_per_device - (-len(team.others) // request.devices)

    return Telemetry(
        _gpus(request),
        cores,
        team.pids,
        residents=residents,
        rivals=lambda: team.others,
        idle_watts=idle,
    )


def _result(found: Failure | list[WorkerMessage], team: Team, telemetry: Telemetry) -> Reply:
    """What telemetry saw explains a failure, and outweighs a result."""
    if telemetry.lost:
        more = f"; the worker: {found.reason}" if isinstance(found, Failure) else ""
        return Failure("gpu-lost", telemetry.lost + more, GPU_LOST)
    return found if isinstance(found, Failure) else _done(found, team, telemetry)


def _done(found: list[WorkerMessage], team: Team, telemetry: Telemetry) -> Done:
    outcomes = [answer for answer in found if isinstance(answer, Outcome)]
    parities = [outcome.parity for outcome in outcomes if outcome.parity is not None]
    turns = ([o.samples for o in outcomes], [o.again for o in outcomes if o.again])
    energy = telemetry.energy([window_ns(turn) for turn in turns])
    return Done(
        outcomes,
        over_replicas(parities) if parities else None,
        telemetry.result() | {"start_s": team.start_s} | ({"energy": energy} if energy else {}),
        telemetry.flags(),
        telemetry.invalid,
        worst_path(outcome.path for outcome in outcomes),
    )


def main(requests_fd: int, replies_fd: int) -> None:
    """Serve until the driver closes its end, or dies; nothing is left then."""
    try:
        try:
            for number in ENDING:
                signal.signal(number, _leave)
            die_with_parent(signal.SIGTERM)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _serve(requests_fd, os.fdopen(replies_fd, "wb", buffering=0))
        finally:
            _end_once()
    finally:
        scratch, me = os.environ[SCRATCH], os.getpid()
        # the resource tracker ends when we have: it unlinks shared memory that workers left
        try:
            end_session(me, scratch, {me, *filter(is_tracker, session_members(me))})
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
    def emit(reply: Reply) -> None:
        replies.write(msgspec.json.encode(reply) + b"\n")

    agent = Agent(emit, requests_fd)
    pending = b""
    while True:
        line, newline, rest = pending.partition(b"\n")
        if newline:
            pending = rest
            try:
                reply = agent.handle(msgspec.json.decode(line, type=Request))
            except Exception as error:  # noqa: BLE001  # the driver must get an answer
                reply = worker.failure(error)
            emit(reply)
            continue
        chunk = os.read(requests_fd, 1 << 20)
        if not chunk:
            return
        pending += chunk
