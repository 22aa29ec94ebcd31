"""One per node and interpreter: forks workers, passes them over barriers, enforces limits.

Started as a subprocess by `gpubench.run.client`. Requests and replies are JSON lines on a private
pair of pipes, so nothing a library prints can be taken for an answer. Workers are forked from a
server that has imported the heavy modules once and has not touched a GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from time import monotonic, perf_counter_ns
from typing import Any

import msgspec

from gpubench.run import worker
from gpubench.run.messages import (
    AtBarrier,
    Done,
    Failure,
    Go,
    Measure,
    Outcome,
    Preload,
    Prepare,
    Progress,
    Reply,
    Request,
    WorkerMessage,
)
from gpubench.run.telemetry import Telemetry
from gpubench.workload import reference

BARRIER_DELAY_NS = 3_000_000
"""How long before its start a common start is announced."""
REFERENCE_TIMEOUT_S = 3600.0
KILL_LIMIT_S = 10.0


class Agent:
    """Answers one request after the other. ``closed`` becomes readable when the driver is gone."""

    def __init__(self, emit: Callable[[Reply], None], closed: int) -> None:
        self._emit = emit
        self._closed = closed
        self._cache_dir = ""
        self._fork = multiprocessing.get_context("forkserver")

    def handle(self, request: Request) -> Reply:
        """Do ``request``; Progress goes out by ``emit`` meanwhile."""
        if isinstance(request, Preload):
            self._cache_dir = request.cache_dir
            os.environ["GPUBENCH_PRELOAD"] = ",".join(["numpy", *request.modules])
            self._fork.set_forkserver_preload(["gpubench.run.preload", "gpubench.run.worker"])
            timeout, replicas = REFERENCE_TIMEOUT_S, 1
        elif isinstance(request, Measure):
            timeout, replicas = request.policy.timeout_s, request.cell.replicas
        else:
            timeout = request.timeout_s if isinstance(request, Prepare) else REFERENCE_TIMEOUT_S
            replicas = 1
        team = _Team(self._fork, request, self._cache_dir, replicas)
        try:
            if not isinstance(request, Measure):
                answers = team.answers(timeout, self._closed, self._emit)
                return answers if isinstance(answers, Failure) else answers[0]  # type: ignore[return-value]
            return self._measure(request, team)
        finally:
            team.end()

    def _measure(self, request: Measure, team: _Team) -> Reply:
        gpus = list(range(request.cell.replicas)) if request.cell.device == "cuda" else []
        cores = sorted(core for own in request.cores for core in own)
        with Telemetry(gpus, cores, team.pids) as telemetry:
            answers = team.answers(request.policy.timeout_s, self._closed, self._emit)
        if isinstance(answers, Failure):
            return answers
        outcomes = [answer for answer in answers if isinstance(answer, Outcome)]
        parities = [outcome.parity for outcome in outcomes if outcome.parity is not None]
        return Done(
            outcomes,
            reference.merge(parities) if parities else None,
            telemetry.result(),
            telemetry.flags(),
            telemetry.invalid,
        )


class _Team:
    """The workers of one task."""

    def __init__(self, fork: Any, request: Request, cache_dir: str, size: int) -> None:
        text = msgspec.json.encode(request)
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        for replica in range(size):
            ours, theirs = fork.Pipe()
            process = fork.Process(
                target=worker.main, args=(theirs, text, cache_dir, replica), daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def pids(self) -> set[int]:
        return {process.pid for process in self._processes if process.pid}

    def answers(
        self, timeout_s: float, closed: int, emit: Callable[[Reply], None]
    ) -> Failure | list[WorkerMessage]:
        """Every worker's answer in the order of replicas, or the first failure."""
        deadline = monotonic() + timeout_s
        answers: dict[int, WorkerMessage] = {}
        waiting: dict[int, AtBarrier] = {}
        step = "start"
        while len(answers) < len(self._pipes):
            open_pipes = [p for i, p in enumerate(self._pipes) if i not in answers]
            ready = wait([*open_pipes, closed], max(0.0, deadline - monotonic()))
            if not ready:
                return Failure("timeout", f"no answer within {timeout_s:g} s (after {step!r})")
            if closed in ready:
                raise SystemExit(0)
            for pipe in ready:
                replica = self._pipes.index(pipe)  # type: ignore[arg-type]
                message = self._receive(replica, step)
                if isinstance(message, Failure):
                    return message
                if isinstance(message, AtBarrier):
                    waiting[replica] = message
                else:
                    answers[replica] = message
            if len(waiting) == len(self._pipes):
                step = waiting[0].name
                emit(Progress(step, max(message.p50_ns for message in waiting.values())))
                self._go()
                waiting.clear()
        return [answers[replica] for replica in range(len(self._pipes))]

    def _receive(self, replica: int, step: str) -> WorkerMessage:
        try:
            text = self._pipes[replica].recv_bytes()
        except (EOFError, OSError):
            return self._death(replica, step)
        return msgspec.json.decode(text, type=WorkerMessage)  # type: ignore[no-any-return]

    def _death(self, replica: int, step: str) -> Failure:
        process = self._processes[replica]
        process.join(5)
        code = process.exitcode
        how = f"exit code {code}"
        if code is not None and code < 0:
            how = signal.Signals(-code).name
        hint = " (the kernel's out-of-memory killer?)" if code == -signal.SIGKILL else ""
        return Failure("crash", f"replica {replica} died after {step!r}: {how}{hint}")

    def _go(self) -> None:
        text = msgspec.json.encode(Go(perf_counter_ns() + BARRIER_DELAY_NS))
        for pipe in self._pipes:
            try:
                pipe.send_bytes(text)
            except OSError:
                continue  # it died at the barrier: its end of file is read next

    def end(self) -> None:
        """No worker is left when this returns."""
        for process in self._processes:
            if process.exitcode is None:
                process.join(0.2)
            if process.pid and process.exitcode is None:
                with suppress(ProcessLookupError):  # its children, such as compilers, too
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.join(KILL_LIMIT_S)  # one stuck in the kernel must not hold up the run
        for pipe in self._pipes:
            pipe.close()


def main(requests_fd: int, replies_fd: int) -> None:
    """Serve until the driver closes its end."""
    worker.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(replies_fd, "wb", buffering=0)

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
