"""Imported once by the server that workers are forked from: it imports what workers need.

GPUBENCH_PRELOAD holds the modules' names, separated by commas. One that cannot be imported must not
end the server, so its error is kept for a worker to tell.
The server ends with its agent: by itself it would live as long as its last worker, and that one, in
an endless loop, as long as the server.
"""

import ctypes
import gc
import os
import signal
from importlib import import_module
from time import perf_counter

from gpubench.machine.software import no_telemetry

PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

no_telemetry()
ERRORS: dict[str, str] = {}
_begin = perf_counter()
for _module in filter(None, os.environ.get("GPUBENCH_PRELOAD", "").split(",")):
    try:
        import_module(_module)
    except Exception as error:  # noqa: BLE001  # a broken installation may raise anything
        ERRORS[_module] = f"{type(error).__name__}: {error}"[:500]
SECONDS = perf_counter() - _begin
gc.freeze()  # else each worker's collection before it samples goes through all that was imported
