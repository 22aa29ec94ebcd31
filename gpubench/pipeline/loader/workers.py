"""The workers of a loader and the two pipes between them and it.

Down one pipe go numbers of chunks to fill; whoever is free takes the next. Up the other come
messages. A worker that finds no number waits in the kernel (that is the back-pressure), and one
that finds the pipe closed ends, so that nothing outlives the loader's process.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import msgspec

from gpubench.errors import CellFailed, raised
from gpubench.machine.processes import die_with_parent, signal_name
from gpubench.pipeline.loader.worker import TICKET, Broken, Done, LoaderJob, Message, Skipped, work

Kind = Literal["threads", "processes"]
LOOK_S = 0.2
"""How often processes are looked after while they are waited for."""
JOIN_S = 5.0
"""How long a thread may take for the picture it has in hand when the loader is closed."""
_MESSAGES = msgspec.json.Decoder(Message)


class Pool:
    """Workers that fill the chunks they are given, one on each of ``cores``."""

    def __init__(
        self,
        kind: Kind,
        job: LoaderJob,
        cores: tuple[int, ...],
        workers: int,
        name: Callable[[int], str],
    ) -> None:
        self.kind, self._job, self._name = kind, job, name
        self._given = self._finished = 0
        self.images = self.encoded_bytes = 0
        """Put into the ring so far."""
        self.unusable: dict[int, str] = {}
        """Position in the data set -> reason."""
        self._done: Counter[int] = Counter()
        """By batch: chunks that are filled."""
        self._rest = b""
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._children: dict[int, int] = {}
        """By worker: its process."""
        self._fds: list[int] = []
        try:
            self._claims, self._hand_out = self._pipe()
            self._results, self._report = self._pipe()
            for worker in range(workers):
                core = (cores[worker],) if cores else ()
                self._fork(worker, core) if kind == "processes" else self._start(worker, core)
        except BaseException:
            self.close()
            raise

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self._fds += ends
        return ends

    def _start(self, worker: int, core: tuple[int, ...]) -> None:
        ends = (self._claims, self._report, self._stopped.is_set)
        arguments = (self._job, worker, core, *ends)
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _fork(self, worker: int, core: tuple[int, ...]) -> None:
        parent = os.getpid()
        with warnings.catch_warnings():
            # Of threads that the child will lack. numpy's are prepared for it; others are not
            # there yet: see `open`.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            self._children[worker] = pid
            return
        try:
            die_with_parent()
            if os.getppid() == parent:
                gc.freeze()  # else a collection would make every inherited page the child's own
                os.close(self._hand_out)
                os.close(self._results)
                work(self._job, worker, core, self._claims, self._report, self._stopped.is_set)
        finally:
            os._exit(0)

    def give(self, batch: int) -> None:
        """Have batch number ``batch`` filled."""
        chunks = self._job.chunks
        numbers = range(batch * chunks, (batch + 1) * chunks)
        os.write(self._hand_out, b"".join(n.to_bytes(TICKET, "little") for n in numbers))
        self._given += chunks

    def recall(self) -> None:
        """Take back what nobody has begun, and wait for the rest."""
        # Opened once more: not to block must be our own wish, not that of all who share the pipe.
        again = os.open(f"/proc/self/fd/{self._claims}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(BlockingIOError), os.fdopen(again, "rb", buffering=0) as claims:
            while claims.read(TICKET):
                self._given -= 1
        while self._finished < self._given:
            self.listen()
        self._done.clear()

    def wait(self, batch: int) -> None:
        """Return when the batch is filled. Raises what a worker raised, or that one has died."""
        while self._done[batch] < self._job.chunks:
            self.listen()
        del self._done[batch]

    def listen(self) -> None:
        """Take in messages; waits for one, for LOOK_S at most."""
        poll = select.poll()
        poll.register(self._results, select.POLLIN)
        if not poll.poll(LOOK_S * 1000):
            self._look_after_children()
            return
        *lines, self._rest = (self._rest + os.read(self._results, 1 << 16)).split(b"\n")
        for line in lines:
            self._hear(_MESSAGES.decode(line))

    def _hear(self, message: Message) -> None:
        if isinstance(message, Done):
            self._done[message.chunk // self._job.chunks] += 1
            self._finished += 1
            self.images += len(self._job.images(message.chunk))
            self.encoded_bytes += message.encoded_bytes
        elif isinstance(message, Skipped):
            self.unusable[message.index] = message.reason
        elif isinstance(message, Broken):
            reasons = Counter(self.unusable.values()).most_common()
            skipped = ", ".join(f"{n} {reason}" for reason, n in reasons)
            more = f" ({skipped})" if skipped and message.kind == "input" else ""
            raise raised(message.kind, message.text + more, message.remedy)

    def _look_after_children(self) -> None:
        for worker, pid in self._children.items():
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self._children[worker]
                name = self._name(int(self._job.ring.busy_with[worker]))
                code = os.waitstatus_to_exitcode(status)
                by = signal_name(code)
                how = f"was killed by {by}" if by else f"ended with exit code {code}"
                raise CellFailed("crash", f"a loading process {how}; it had {name!r} in hand")

    def close(self) -> None:
        """End the workers, whatever they are doing; more than once does no harm."""
        self._stopped.set()
        for pid in self._children.values():
            os.kill(pid, signal.SIGKILL)
        for pid in self._children.values():
            os.waitpid(pid, 0)
        self._children.clear()
        fds, self._fds = self._fds, []
        ours, theirs = fds[1:3], fds[:1] + fds[3:]
        for fd in ours:  # now threads neither get work nor can report any
            os.close(fd)
        until = time.monotonic() + JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            for fd in theirs:  # of a thread that hangs, the number must not mean another file
                os.close(fd)
        self._threads.clear()
