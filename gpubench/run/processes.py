"""The processes of a run, as Unix sees them: who belongs to it, and that none is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from time import monotonic

SCRATCH = "GPUBENCH_SCRATCH"
"""Environment variable with the run's temporary directory: all that an agent starts inherits it."""
END_LIMIT_S = 2.0


def session_members(session: int) -> list[int]:
    """PIDs of the processes in a Unix session, zombies left out."""
    members = []
    for pid in _all_pids():
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[3] == str(session) and fields[0] != "Z":
                members.append(pid)
    return members


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
    wanted, found = f"{SCRATCH}={scratch}".encode(), []
    for pid in _all_pids():
        with suppress(OSError):
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
