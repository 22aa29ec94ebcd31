"""The workers of one task: forked, passed over barriers, heard, and ended with all they made."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from selectors import EVENT_READ, DefaultSelector
from time import monotonic, perf_counter_ns
from typing import Any

import msgspec
from msgspec.structs import replace

from gpubench.machine.postmortem import Inquest
from gpubench.machine.processes import descendants
from gpubench.machine.telemetry.pauses import Pauses
from gpubench.machine.telemetry.telemetry import Telemetry
from gpubench.run.agent import messages, worker
from gpubench.run.agent.shared_job import Dispatcher

BARRIER_DELAY_NS, WAKING_NS = 3_000_000, 250_000
"""How long before its start a common start is announced; and so much more for each worker."""
SAMPLES_NEXT = ("warm", "again")
"""Barriers after which a turn begins."""
EXIT_S, KILL_LIMIT_S = 0.2, 10.0
"""How long workers may take to exit by themselves, all together; and each when it is killed."""


class Team:
    """The workers of one task."""

    def __init__(
        self,
        fork: Any,
        request: messages.Request,
        cache_dir: str,
        size: int = 1,
        dispatcher: Dispatcher | None = None,
    ) -> None:
        """``dispatcher``: of a job that they share; it is closed with the team."""
        self.barrier = "start"
        """The last one reached."""
        self.p50_ns = self.batch_ns = self.sample_ns = 0.0
        self.start_s = 0.0
        """From the request until every worker had opened its session."""
        self.others: set[int] = set()
        """Processes of rivals, which are idle while this team has its turn."""
        self.telemetry = Telemetry([], [], self.pids)
        """Who observes it, once entered."""
        self.pauses = Pauses()
        self._begin = monotonic()
        self._timeout_s = messages.timeout_s(request)
        self._deadline = self._begin + self._timeout_s
        self._dispatcher = dispatcher
        self._answers: dict[int, messages.WorkerMessage] = {}
        self._inquest = Inquest()
        self._processes: list[BaseProcess] = []
        self._pids: set[int] = set()
        self._pipes: list[Connection] = []
        self._selector = DefaultSelector()
        try:
            for replica in range(size):
                self._start(fork, request, cache_dir, replica)
        except BaseException:  # out of processes or descriptors: those that started must not stay
            self.end()
            raise

    def _start(self, fork: Any, request: messages.Request, cache_dir: str, replica: int) -> None:
        queue = self._dispatcher and self._dispatcher.queue
        ours, theirs = fork.Pipe()
        self._pipes.append(ours)
        words = theirs, request, cache_dir, replica, queue
        process = fork.Process(target=worker.main, args=words, daemon=True)
        try:
            process.start()
        finally:
            theirs.close()
        self._processes.append(process)
        self._pids.add(process.pid)
        self._selector.register(ours, EVENT_READ, replica)

    def pids(self) -> set[int]:
        """Of its processes, with those that they have made, and of its rivals'."""
        return self._pids | descendants(self._pids) | self.others

    def answers(
        self, closed: int, emit: Callable[[messages.Reply], None]
    ) -> messages.Failure | list[messages.WorkerMessage]:
        """Every worker's answer in the order of replicas, or the first failure."""
        while (answers := self.advance(closed)) is None:
            emit(messages.Progress(self.barrier, self.p50_ns))
            self._release()
        return answers

    def advance(self, closed: int) -> messages.Failure | list[messages.WorkerMessage] | None:
        """Until all workers wait at a barrier (None), or all have answered, or one failed."""
        waiting: dict[int, messages.AtBarrier] = {}
        if closed not in self._selector.get_map():
            self._selector.register(closed, EVENT_READ, None)
        while len(self._answers) < len(self._pipes):
            left_s = self._deadline - monotonic()
            ready, late_s = self.pauses.wait(self._selector.select, left_s)
            self._deadline += late_s  # its workers could not go on either
            if not ready and monotonic() < self._deadline:
                continue
            if not ready:
                words = f"no answer within {self._timeout_s:g} s (after {self.barrier!r})"
                return messages.Failure("timeout", words)
            for key, _ in ready:
                if key.data is None:
                    raise SystemExit(0)
                message = self._receive(key.data)
                if isinstance(message, messages.Failure):
                    return message
                if isinstance(message, messages.AtBarrier):
                    waiting[key.data] = message
                else:
                    self._answers[key.data] = message
                    self._selector.unregister(key.fileobj)
            if len(waiting) == len(self._pipes):
                self._reached(list(waiting.values()))
                if self.barrier != messages.FINISHED:
                    return None
                waiting.clear()
                self._release()
        return [self._answers[replica] for replica in range(len(self._pipes))]

    def _reached(self, messages: list[messages.AtBarrier]) -> None:
        self.barrier = messages[0].name
        self.p50_ns = max(message.p50_ns for message in messages)
        self.batch_ns = max(message.batch_ns for message in messages)
        self.sample_ns = max(message.sample_ns for message in messages)
        if self.barrier == "opened":
            self.start_s = monotonic() - self._begin
        if self.barrier == "warm" and self._dispatcher:
            self._dispatcher.warm(messages)

    def _receive(self, replica: int) -> messages.WorkerMessage:
        try:
            text = self._pipes[replica].recv_bytes()
        except (EOFError, OSError):
            process = self._processes[replica]
            process.join(5)
            kind, why = self._inquest.verdict(process.exitcode)
            return messages.Failure(kind, f"replica {replica} died after {self.barrier!r}: {why}")
        return msgspec.json.decode(text, type=messages.WorkerMessage)

    def go(self, timeout_s: float, turns: int = 0) -> None:
        """Let it pass its barrier, with ``timeout_s`` for what comes. ``turns``: see `Step`."""
        self._timeout_s = timeout_s
        self._deadline = monotonic() + timeout_s
        self._release(turns)

    def _release(self, turns: int = 0) -> None:
        many = len(self._pipes)
        at = perf_counter_ns() + (BARRIER_DELAY_NS + WAKING_NS * many if many > 1 else 0)
        go = messages.Go(at)
        if self.barrier in SAMPLES_NEXT:
            go = self._dispatcher.hand_out(at) if self._dispatcher else go
            go = replace(go, turns=turns, others=sorted(self.others))
            self.telemetry.turn(go.at_ns)
        text = msgspec.json.encode(go)
        for pipe in self._pipes:
            try:
                pipe.send_bytes(text)
            except OSError:
                continue  # it died at the barrier: its end of file is read next

    def end(self) -> None:
        """No worker is left when this returns, and nothing observes them."""
        self.telemetry.__exit__()
        soon = monotonic() + EXIT_S
        for process in self._processes:
            process.join(max(0.0, soon - monotonic()))
        for process in self._processes:
            if process.pid:
                with suppress(OSError):  # its children, such as compilers, outlive it
                    os.killpg(process.pid, signal.SIGKILL)
            if process.exitcode is None:
                process.kill()
        for process in self._processes:
            process.join(KILL_LIMIT_S)  # one stuck in the kernel must not hold up the run
            with suppress(ValueError):  # that one
                process.close()  # its pipes; else they stay open until a garbage collection
        self._selector.close()
        for pipe in self._pipes:
            pipe.close()
        if self._dispatcher:
            self._dispatcher.close()
