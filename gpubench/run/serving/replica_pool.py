"""Threads that own one replica each, and a queue of batches that whoever is free takes from."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING

from gpubench.errors import GpubenchError
from gpubench.run.serving.replica import OPEN_S, Died, Local, Remote

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.workload.data.preprocess import Inputs

    Answer = Future[NDArray[np.float32]]
    _Job = tuple[Inputs, Answer]


Engine = Local | Remote


class Closed(GpubenchError):
    """It was closed, or all its replicas have died."""


LATE_S = 5.0
"""Grace of a batch whose time is over: this process may have been stopped, and goes on by now. One
of a process of its own is given up before that, by `Remote`."""


class Pool:
    """Opens its engines, each in a thread of its own; raises what the first that failed raised."""

    def __init__(self, engines: Sequence[Callable[[], Engine]], timeout_s: float) -> None:
        """``timeout_s``: of one batch."""
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.RLock()  # a collector may run anywhere, and close us
        self._over = ""
        """Why no more batches are taken."""
        self._pid, self._timeout_s = os.getpid(), timeout_s
        self._since: dict[Answer, float] = {}
        """When each batch in hand was taken."""
        self._alive = len(engines)
        opened: list[Future[dict[str, object]]] = [Future() for _ in engines]
        self._threads = [
            threading.Thread(
                target=self._work, args=(make, opened[place]), name=f"gpubench-replica-{place}",
                daemon=True,
            )
            for place, make in enumerate(engines)
        ]  # fmt: skip
        for thread in self._threads:
            thread.start()
        try:
            limit_s = max(OPEN_S, timeout_s) + LATE_S
            failed = [error for one in opened if (error := one.exception(limit_s))]
        except TimeoutError:
            self._end("loading took too long")
            raise Died(f"a replica was not ready within {limit_s:g} s, and is given up") from None
        except BaseException:  # Ctrl-C: whoever has opened by then closes at once
            self._end("loading was interrupted")
            raise
        if failed:
            self.close()
            raise failed[0]
        self.facts = [one.result() for one in opened]
        """Of each replica."""

    def submit(self, rows: Inputs) -> Answer:
        """Enqueue a batch, full or not, which stays as it is until its logits are there."""
        if os.getpid() != self._pid:
            raise Closed("a fork has no replicas: load the classifier in the process that uses it")
        with self._lock:
            if self._over:
                raise Closed(self._over)
            answer: Answer = Future()
            self._jobs.put((rows, answer))
        return answer

    def wait(self, answer: Answer) -> NDArray[np.float32]:
        """The logits of a batch that was enqueued. Raises Died when it takes too long."""
        while True:
            for limit in (self._timeout_s, LATE_S):
                try:
                    return answer.result(limit)
                except TimeoutError:
                    if answer.done():  # the engine's own
                        raise
            taken = self._since.get(answer)
            if taken is not None and monotonic() - taken > self._timeout_s:
                late = f"the replica has not answered within timeout_s = {self._timeout_s:g}"
                self._lost(Died(late), answer)

    def close(self) -> None:
        """Finish what was asked for, then end every replica. May be called more than once.

        A replica that is stuck is left behind, in a thread that does not keep the interpreter.
        """
        if os.getpid() != self._pid:
            return
        self._end("the classifier was closed")
        for thread in self._threads:
            if thread is not threading.current_thread():  # a collector may run anywhere
                thread.join(self._timeout_s + LATE_S)

    def _end(self, why: str) -> None:
        with self._lock:
            self._over = self._over or why
            for _ in self._threads:
                self._jobs.put(None)

    def _work(self, make: Callable[[], Engine], opened: Future[dict[str, object]]) -> None:
        try:
            engine = make()
        except BaseException as error:  # noqa: BLE001  # raised by __init__
            opened.set_exception(error)
            return
        opened.set_result(engine.facts)
        try:
            self._serve(engine)
        finally:
            engine.close()

    def _serve(self, engine: Engine) -> None:
        """Until there is nothing more to do, or the replica has died."""
        while (job := self._jobs.get()) is not None:
            rows, answer = job
            self._since[answer] = monotonic()
            try:
                found = engine.run(rows)
                with suppress(InvalidStateError):  # it was given up
                    answer.set_result(found)
                del found
            except Died as error:
                self._lost(error, answer)
                return
            except BaseException as error:  # noqa: BLE001  # the caller's
                with suppress(InvalidStateError):
                    answer.set_exception(error)
            finally:
                del self._since[answer]
            del job, rows, answer  # not kept while waiting for the next one

    def _lost(self, error: Died, answer: Answer) -> None:
        """The batch in hand fails; with the last replica all do."""
        with self._lock:
            if answer.done():
                return
            self._alive -= 1
            left = f"{self._alive} of {len(self._threads)} replicas are left"
            answer.set_exception(Died(f"{error}; {left}"))
            if self._alive:
                return
            self._over = self._over or f"all replicas have died (the last: {error}); load it again"
            while True:
                try:
                    waiting = self._jobs.get_nowait()
                except Empty:
                    return
                if waiting is not None:
                    waiting[1].set_exception(Closed(self._over))
