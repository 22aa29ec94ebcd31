"""gpubench: benchmarks of image classification on GPUs that can be trusted.

PYTEST_DONT_REWRITE (the plug-in needs none of pytest's rewriting, and would be imported before it)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpubench.report.frames import read as read
    from gpubench.report.frames import tables as tables
    from gpubench.run.serving import load as load

__version__ = "0.1.0"


_PUBLIC = {"load": "run.serving", "read": "report.frames", "tables": "report.frames"}


def __getattr__(name: str) -> Any:
    """``load``, ``read`` and ``tables``, which import what they need only when asked for."""
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
