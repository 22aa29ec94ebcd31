"""Processes as Linux sees them: what one owes to its parent, and that none of a run is left."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Self

PR_SET_PDEATHSIG = 1
SCRATCH = "GPUBENCH_SCRATCH"
"""Environment variable with the run's temporary directory: all that an agent starts inherits it."""
END_LIMIT_S = 2.0
LOOK_S = 0.001
_ENDING = tuple(s for s in signal.Signals if s.name in ("SIGTERM", "SIGHUP"))


def die_with_parent(by: int = 9) -> None:
    """Ask Linux to kill this process when its parent dies, so that none is ever left behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)


class Ending:
    """Within it SIGTERM and SIGHUP end the main thread as Ctrl-C does, by a KeyboardInterrupt, so
    that whatever cleans up after Ctrl-C does after them; also as process 1 of a container.

    Only the first of them counts. What is ignored (`nohup`), or somebody else's, stays so.
    """

    number = 0
    """The signal that came."""

    def __enter__(self) -> Self:
        here = threading.current_thread() is threading.main_thread()  # no other may set handlers
        self._mine = [n for n in _ENDING if here and signal.getsignal(n) == signal.SIG_DFL]
        for number in self._mine:
            signal.signal(number, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._mine:
            signal.signal(number, signal.SIG_DFL)

    def _end(self, number: int, _: object) -> None:
        if not self.number:
            self.number = number
            raise KeyboardInterrupt


def run_tied(
    command: Sequence[str], environ: Mapping[str, str], read: str, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of a command that reads ``read``, of which nothing outlives us.

    Raises what Popen does, and TimeoutExpired.
    """
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="surrogateescape",  # of names that are not UTF-8
        env=environ, process_group=0, preexec_fn=die_with_parent,  # one thread
    ) as process:  # fmt: skip
        try:
            output, errors = process.communicate(read, timeout_s)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # it is not reaped yet, so the group is its own
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def signal_name(code: int | None) -> str | None:
    """What ended a process, by its exit code as Python has it: 'SIGKILL' of -9.

    None where no signal did, or one without a name: a real-time signal.
    """
    return {-one.value: one.name for one in signal.Signals}.get(code or 0)


def instruments() -> list[str]:
    """What slows all Python code in this process down: tracers, profilers, modes for debugging."""
    found = {
        "sys.settrace": sys.gettrace() or threading.gettrace(),
        "sys.setprofile": sys.getprofile() or threading.getprofile(),
        "tracemalloc": tracemalloc.is_tracing(),
        "Python development mode": sys.flags.dev_mode,
        "PYTHONMALLOC": "debug" in os.environ.get("PYTHONMALLOC", ""),
        "gc.set_debug": gc.get_debug(),
        "a debug build of Python": hasattr(sys, "gettotalrefcount"),
    }
    if sys.version_info >= (3, 12):
        tools = filter(None, map(sys.monitoring.get_tool, range(6)))
        found |= {f"sys.monitoring: {tool}": True for tool in tools}
        found["sys.activate_stack_trampoline"] = sys.is_stack_trampoline_active()
    return [name for name, holds in found.items() if holds]


def descendants(pids: Collection[int]) -> set[int]:
    """PIDs of living processes that these have started, and those that they have, and so on."""
    found: set[int] = set()
    left = list(pids)
    while left:
        for task in _threads([left.pop()]):
            with suppress(OSError):
                new = {int(word) for word in (task / "children").read_text().split()} - found
                found |= new
                left += new
    return found


def cpu_ns(pids: Collection[int]) -> int:
    """CPU time that these processes have used, all threads; nothing of those that have ended."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += time.clock_gettime_ns(~pid << 3 | 2)  # man 3 clock_getcpuclockid
    return total


def await_idle(pids: Collection[int], limit_s: float) -> bool:
    """Return when these use no CPU, or after ``limit_s``; whether they have come to rest.

    One that others keep from its core uses none for a while, and yet would.
    """
    end, before = monotonic() + limit_s, cpu_ns(pids)
    while pids:
        time.sleep(LOOK_S)
        now = cpu_ns(pids)
        if now == before and not runnable(pids):
            break
        if monotonic() >= end:
            return False
        before = now
    return True


def runnable(pids: Collection[int]) -> bool:
    """Whether a thread of these has a core, or waits for one."""
    for task in _threads(pids):
        with suppress(OSError):
            if (task / "stat").read_text().rpartition(")")[2].split()[0] == "R":
                return True
    return False


def delay_ns(pids: Collection[int]) -> int:
    """How long threads of these processes have been ready to run without having a core, added up.

    Of the living only, and nothing where the kernel does not count it.
    """
    found = 0
    for task in _threads(pids):
        with suppress(OSError):
            found += int((task / "schedstat").read_text().split()[1])
    return found


def _threads(pids: Collection[int]) -> Iterator[Path]:
    """Those of these processes that are there, as the kernel shows them."""
    for pid in pids:
        with suppress(OSError):
            yield from Path(f"/proc/{pid}/task").iterdir()


def watch_stops() -> None:
    """From now on `stopped` holds for this process, and those that it makes, once they were."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCONT})  # threads to come inherit it


def stopped(pids: Collection[int]) -> bool:
    """Whether one of these, which `watch_stops`, has been stopped by a signal, and continued.

    Continuing takes SIGCONT, which goes on where it is blocked, but stays pending.
    """
    bit = 1 << signal.SIGCONT - 1
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            rows = [line.split() for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
            if any(int(mask, 16) & bit for _, mask in rows):
                return True
    return False


def session_members(session: int) -> list[int]:
    """PIDs of the processes in a Unix session, zombies left out."""
    each = ((pid, text.rpartition(b")")[2].split()) for pid, text in _everywhere("stat"))
    return [pid for pid, words in each if int(words[3]) == session and words[0] != b"Z"]


def end_session(session: int, scratch: str, keep: Collection[int] = ()) -> None:
    """Kill an agent's session, and whoever has left it (``setsid``) but has its ``scratch``.

    Python's resource tracker is waited for: it unlinks the shared memory that killed processes
    have left, once all of them are gone. What hangs in the kernel is not waited for.
    """
    begin = monotonic()
    while left := {*session_members(session), *_marked(scratch)} - {*keep}:
        waited = monotonic() - begin
        for pid in left:
            if waited > END_LIMIT_S or not is_tracker(pid):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        if waited > END_LIMIT_S:
            return
        time.sleep(0.01)  # then all are listed again: one may have forked meanwhile


def is_tracker(pid: int) -> bool:
    """Whether this is multiprocessing's resource tracker."""
    with suppress(OSError):
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _marked(scratch: str) -> list[int]:
    wanted = f"{SCRATCH}={scratch}".encode()
    return [pid for pid, text in _everywhere("environ") if wanted in text.split(b"\0")]


def naming(words: str) -> set[int]:
    """PIDs of the processes whose command has ``words`` in it."""
    return {pid for pid, text in _everywhere("cmdline") if os.fsencode(words) in text}


def _everywhere(name: str) -> Iterator[tuple[int, bytes]]:
    """PID, and what the kernel says in the file ``name``, of each process that may be looked at."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                yield int(entry.name), (entry / name).read_bytes()


def address_limit() -> int | None:
    """Bytes of addresses that a process may reserve (``ulimit -v``); None: as many as there are."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit
