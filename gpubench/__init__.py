"""gpubench: benchmarks of image classification on GPUs that can be trusted.

PYTEST_DONT_REWRITE (the plug-in needs none of pytest's rewriting, and would be imported before it)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpubench.serving import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``gpubench.load``, which imports what it needs only when it is asked for."""
    if name == "load":
        return import_module("gpubench.serving").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
