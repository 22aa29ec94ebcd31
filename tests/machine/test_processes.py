"""Signals that end a command, commands that end with it, and processes that were stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gpubench.machine import processes
from gpubench.machine.processes import Ending, delay_ns, run_tied, stopped, watch_stops


@contextmanager
def waiting(watched: bool) -> Iterator[int]:
    """A process that waits to be killed."""
    ready, tell = os.pipe()
    pid = os.fork()
    if not pid:
        if watched:
            watch_stops()
        os.write(tell, b"!")
        while True:
            signal.pause()
    os.read(ready, 1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(tell)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    os.kill(pid, signal.SIGCONT)
    os.waitpid(pid, os.WCONTINUED)


def test_a_process_that_was_stopped_is_told_afterwards() -> None:
    with waiting(watched=True) as one, waiting(watched=True) as other:
        assert not stopped({one, other})
        stop(one)
        assert stopped({one, other})
        assert not stopped({other})


def test_without_a_watch_nothing_is_told_nor_of_who_has_gone() -> None:
    with waiting(watched=False) as pid:
        stop(pid)
        assert not stopped({pid, 2**30})
    assert delay_ns({2**30}) == 0
    assert delay_ns({os.getpid()}) > 0, "it has waited for a core for at least a moment"
    assert not processes.stopped(())


def test_a_rest_is_waited_for_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a virtual clock: a thread spins for 40 ms, or for ever; one has no core until 80 ms."""
    at = [0.0]
    monkeypatch.setattr(processes.time, "sleep", lambda s: at.__setitem__(0, at[0] + s))
    monkeypatch.setattr(processes, "monotonic", lambda: at[0])
    spins = {1: 0.0, 2: 0.04, 3: 1e9, 4: 0.0}
    used = lambda pids: sum(round(1e9 * min(at[0], spins[pid])) for pid in pids)  # noqa: E731
    monkeypatch.setattr(processes, "cpu_ns", used)
    monkeypatch.setattr(processes, "runnable", lambda pids: 4 in pids and at[0] < 0.08)
    for pids, rests, waited in (([], True, 0), ([1], True, 0.001), ([1, 2], True, 0.041),
                                ([2, 3], False, 0.15), ([1, 4], True, 0.08)):  # fmt: skip
        at[0] = 0.0
        assert processes.await_idle(pids, 0.15) == rests
        assert at[0] == pytest.approx(waited, abs=0.0011)


def test_who_waits_for_something_is_not_runnable() -> None:
    with waiting(watched=False) as pid:
        for _ in range(1000):
            if not processes.runnable({pid, 2**30}):
                break
            time.sleep(0.001)
        assert not processes.runnable({pid, 2**30})
    assert processes.runnable({os.getpid()})


FIRST = """
import os, signal
from gpubench.machine.processes import Ending

with Ending() as ending:
    try:
        try:
            os.kill(os.getpid(), signal.SIGHUP)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            print("cleaned")
    except KeyboardInterrupt:
        print("interrupted")
print(ending.number == signal.SIGHUP)
print(signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGHUP) == signal.SIG_DFL)
"""
OTHERS = """
import os, signal
from gpubench.machine.processes import Ending

mine = []
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
signal.signal(signal.SIGTERM, lambda number, _: mine.append(number))
with Ending() as ending:
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
print(ending.number == 0, mine == [signal.SIGTERM])
print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)
"""


def said(code: str) -> list[str]:
    """By a process of its own: what it is sent is not for the tests' own."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.split()


def test_the_first_signal_interrupts_and_no_other_disturbs_the_cleaning_up() -> None:
    assert said(FIRST) == ["cleaned", "interrupted", "True", "True"]


def test_what_is_ignored_or_somebody_elses_stays_so() -> None:
    assert said(OTHERS) == ["True", "True", "True"]


def test_another_thread_sets_no_handler() -> None:
    def enter() -> None:
        with Ending():
            found.append(signal.getsignal(signal.SIGTERM))

    found: list[object] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def test_a_command_reads_writes_and_has_a_limit() -> None:
    done = run_tied(["sh", "-c", "cat; echo no >&2; exit 3"], os.environ, "text", 60)
    assert (done.stdout, done.stderr, done.returncode) == ("text", "no\n", 3)
    with pytest.raises(subprocess.TimeoutExpired):  # its child holds the pipes, and ends with it
        run_tied(["sh", "-c", "sleep 60 & wait"], os.environ, "", 0.05)
