"""The queue and its threads, on engines that do as they are told."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

import numpy as np
import pytest

from gpubench.run.serving import replica_pool
from gpubench.run.serving.replica import Died
from gpubench.run.serving.replica_pool import Closed, Pool


class Engine:
    """Adds one; waits for ``gate``; every thread that touches it is noted."""

    def __init__(self, log: list[str], gate: threading.Event | None = None) -> None:
        self._log, self._gate = log, gate
        self.facts = {"thread": threading.get_ident()}
        log.append("open")

    def run(self, rows: Any) -> Any:
        assert threading.get_ident() == self.facts["thread"]
        if self._gate:
            assert self._gate.wait(30)
        if rows[0] == 13:
            raise ValueError("thirteen")
        if rows[0] == 17:
            raise TimeoutError("seventeen")
        if rows[0] == 99:
            raise Died("replica 7 died: of it")
        return rows + 1

    def close(self) -> None:
        assert threading.get_ident() == self.facts["thread"]
        self._log.append("close")


def broken() -> Engine:
    raise RuntimeError("told to fail in open")


def test_what_fails_to_open_is_raised_and_the_others_are_closed() -> None:
    log: list[str] = []
    with pytest.raises(RuntimeError, match="told to fail in open"):
        Pool([partial(Engine, log), broken, partial(Engine, log)], 30)
    assert sorted(log) == ["close", "close", "open", "open"]


def test_what_never_opens_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_pool, "OPEN_S", 0.01)
    monkeypatch.setattr(replica_pool, "LATE_S", 0.01)
    log: list[str] = []
    gate = threading.Event()

    def stuck() -> Engine:
        assert gate.wait(30)
        return Engine(log)

    before = threading.active_count()
    with pytest.raises(Died, match=r"a replica was not ready within 0\.02 s, and is given up"):
        Pool([stuck], 0.01)
    gate.set()
    while threading.active_count() > before:
        time.sleep(0.001)
    assert log == ["open", "close"], "what opens later is closed"


def ask(pool: Pool, *values: int) -> list[Any]:
    return [pool.submit(np.array([value], np.float32)) for value in values]


def test_an_error_is_that_batchs_only() -> None:
    pool = Pool([partial(Engine, [])], 30)
    first, second, third = ask(pool, 1, 13, 2)
    assert (first.result(30)[0], third.result(30)[0]) == (2, 3)
    assert isinstance(second.exception(30), ValueError)
    pool.close()


def test_closing_answers_what_was_asked_for() -> None:
    log: list[str] = []
    gate = threading.Event()
    pool = Pool([partial(Engine, log, gate)] * 2, 30)
    asked = ask(pool, *range(6))
    closing = threading.Thread(target=pool.close)
    closing.start()
    gate.set()
    closing.join(30)
    assert [answer.result(30)[0] for answer in asked] == [1, 2, 3, 4, 5, 6]
    assert log == ["open", "open", "close", "close"]
    with pytest.raises(Closed, match="was closed"):
        pool.submit(np.zeros(1, np.float32))


def test_a_replica_that_is_stuck_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller, those that wait, and whoever closes are told; nothing waits for ever."""
    monkeypatch.setattr(replica_pool, "LATE_S", 0.02)
    log: list[str] = []
    gate = threading.Event()
    pool = Pool([partial(Engine, log, gate)], 0.02)
    stuck, waiting = ask(pool, 1, 2)
    with pytest.raises(Died, match=r"timeout_s = 0.02; 0 of 1 replicas are left"):
        pool.wait(stuck)
    with pytest.raises(Closed, match="all replicas have died"):
        pool.wait(waiting)
    with pytest.raises(Closed, match="all replicas have died"):
        ask(pool, 3)
    pool.close()
    assert log == ["open"]
    gate.set()  # what is stuck comes back: its thread ends
    pool._threads[0].join(30)
    assert log == ["open", "close"]


def test_waiting_in_the_queue_is_no_being_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_pool, "LATE_S", 0.001)
    gate = threading.Event()
    pool = Pool([partial(Engine, [], gate)], 0.001)
    monkeypatch.setattr(pool, "_since", {})  # it has only just been taken
    first, second = ask(pool, 1, 2)
    threading.Timer(0.05, gate.set).start()
    assert pool.wait(second)[0] == 3
    assert first.done()
    pool.close()


def test_an_engines_own_timeout_is_an_error_like_others() -> None:
    pool = Pool([partial(Engine, [])], 30)
    [answer] = ask(pool, 17)
    with pytest.raises(TimeoutError, match="seventeen"):
        pool.wait(answer)
    pool.close()


def test_the_last_replica_that_dies_fails_all_that_wait() -> None:
    log: list[str] = []
    gate = threading.Event()
    pool = Pool([partial(Engine, log, gate)], 30)
    asked = ask(pool, 99, 1, 2)
    gate.set()
    found = [answer.exception(30) for answer in asked]
    assert str(found[0]) == "replica 7 died: of it; 0 of 1 replicas are left"
    assert all(isinstance(error, Closed) for error in found[1:])
    with pytest.raises(Closed, match=r"all replicas have died .the last: replica 7"):
        pool.submit(np.zeros(1, np.float32))
    pool.close()
    assert log == ["open", "close"]
