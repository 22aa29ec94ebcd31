from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from gpubench.machine import processes
from gpubench.machine.processes import delay_ns, stopped, watch_stops


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
