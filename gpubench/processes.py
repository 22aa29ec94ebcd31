"""What a process owes to the one that started it."""

from __future__ import annotations

import ctypes
import signal

PR_SET_PDEATHSIG = 1


def die_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """Ask Linux to kill this process when its parent dies, so that none is ever left behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
