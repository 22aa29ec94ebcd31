"""Imported once by the server that workers are forked from: it imports what workers need.

A module that cannot be imported must not end the server, so its error is kept for a worker to tell.
"""

import os
from importlib import import_module
from time import perf_counter

VARIABLE = "GPUBENCH_PRELOAD"
"""Environment variable with the modules' names, separated by commas."""

ERRORS: dict[str, str] = {}
_begin = perf_counter()
for _module in filter(None, os.environ.get(VARIABLE, "").split(",")):
    try:
        import_module(_module)
    except Exception as error:  # noqa: BLE001  # a broken installation may raise anything
        ERRORS[_module] = f"{type(error).__name__}: {error}"[:500]
SECONDS = perf_counter() - _begin
