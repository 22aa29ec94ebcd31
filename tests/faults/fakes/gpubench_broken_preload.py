"""Imported by the agent's fork server; kills the agent once where a test says so."""

import os
import signal
from pathlib import Path

_once = os.environ.get("GPUBENCH_TEST_KILL_ONCE")
if _once and not Path(_once).exists():
    Path(_once).touch()
    os.kill(os.getsid(0), signal.SIGKILL)
