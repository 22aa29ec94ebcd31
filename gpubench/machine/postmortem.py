"""Why a process died, by evidence: the kernel's counters, and what it said last."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gpubench.errors import says_no_memory
from gpubench.machine.cores import read
from gpubench.machine.processes import signal_name

TAIL = 1 << 16
"""Bytes of the log that are looked at."""
_ABORT = re.compile(r"terminate called.*(?:\n\s*what\(\):.*)?|Fatal Python error: .*")
_PLACE = re.compile(r'File "(?:.*/)?([^/"]+)", line (\d+) in (\S+)')


class Inquest:
    """To be made before a process starts; says afterwards what it died of."""

    def __init__(self, root: Path = Path("/"), log: Path = Path("/proc/self/fd/2")) -> None:
        """``log``: what the process writes its last words to."""
        self._root, self._log = root, log
        self._kills = oom_kills(root)
        self._said = self._length()

    def verdict(self, code: int | None) -> tuple[str, str]:
        """('crash' or 'out-of-memory', why) for an exit code as Python has it: -9 is SIGKILL."""
        how = signal_name(code) or f"exit code {code}"
        kills = oom_kills(self._root)
        if code == -signal.SIGKILL and kills > self._kills:
            return "out-of-memory", f"{how} by the kernel's out-of-memory killer"
        words = self._last_words()
        kind = "out-of-memory" if says_no_memory(words) else "crash"
        return kind, f"{how} {words}".rstrip()

    def _last_words(self) -> str:
        """What the C++ runtime or Python's fault handler wrote, in one line."""
        if not self._log.is_file():  # a pipe would have to be waited for
            return ""
        try:
            with self._log.open("rb") as log:
                log.seek(max(self._said, self._length() - TAIL))
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        abort = _ABORT.search(text)
        if abort is None:
            return ""
        said, place = " ".join(abort[0].split())[:300], _PLACE.search(text, abort.end())
        return f"in {place[3]} ({place[1]}:{place[2]}) ({said})" if place else f"({said})"

    def _length(self) -> int:
        with suppress(OSError):
            return self._log.stat().st_size
        return 0


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes the out-of-memory killer has ended: of this cgroup, else of the machine.

    The kernel counts before it kills, so a rise explains a SIGKILL for certain.
    """
    for counter in _counters(root):
        with suppress(OSError, ValueError):
            words = [line.split() for line in counter.read_text().splitlines()]
            found = {name: int(value) for name, value in words if name == "oom_kill"}
            if found:
                return found["oom_kill"]
    return 0


def _counters(root: Path) -> Iterator[Path]:
    """Where the counter may be: cgroup v2, v1, and as a container sees its own; the machine's."""
    mounts = root / "sys/fs/cgroup"
    for line in (read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        for own in (path.lstrip("/"), ""):
            if not controllers:
                yield mounts / own / "memory.events"
                yield mounts / "unified" / own / "memory.events"
            elif "memory" in controllers.split(","):
                yield mounts / "memory" / own / "memory.oom_control"
    yield root / "proc/vmstat"
