"""gpubench: benchmarks of image classification on GPUs that can be trusted.

PYTEST_DONT_REWRITE (the plug-in needs none of pytest's rewriting, and would be imported before it)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpubench.report.frames import read as read
    from gpubench.report.frames import tables as tables
    from gpubench.run.api import Interrupted as Interrupted
    from gpubench.run.api import Suite as Suite
    from gpubench.run.api import ab as ab
    from gpubench.run.api import bisect as bisect
    from gpubench.run.api import deploy as deploy
    from gpubench.run.api import fleet as fleet
    from gpubench.run.api import inspect as inspect
    from gpubench.run.api import plan as plan
    from gpubench.run.api import run as run
    from gpubench.run.api import selftest as selftest
    from gpubench.run.api import tune as tune
    from gpubench.run.bisect.result import Bisection as Bisection
    from gpubench.run.cluster.ray_cluster import Cluster as Cluster
    from gpubench.run.doctor import doctor as doctor
    from gpubench.run.results import Comparison as Comparison
    from gpubench.run.results import Fleet as Fleet
    from gpubench.run.results import History as History
    from gpubench.run.results import Plan as Plan
    from gpubench.run.results import Run as Run
    from gpubench.run.results import Search as Search
    from gpubench.run.results import compare as compare
    from gpubench.run.results import export as export
    from gpubench.run.results import history as history
    from gpubench.run.results import open as open  # noqa: A004
    from gpubench.run.serving import load as load

__version__ = "0.1.0"


_PUBLIC = {"load": "run.serving", "read": "report.frames", "tables": "report.frames"}
_PUBLIC |= {"Bisection": "run.bisect.result", "Cluster": "run.cluster.ray_cluster"}
_PUBLIC |= {"doctor": "run.doctor"}
_PUBLIC |= dict.fromkeys(
    ("Interrupted", "Suite", "ab", "bisect", "deploy", "fleet", "inspect", "plan", "selftest",
     "tune"), "run.api",
)  # fmt: skip
_PUBLIC |= dict.fromkeys(
    ("Comparison", "Fleet", "History", "Plan", "Run", "Search", "compare", "export", "history",
     "open"), "run.results",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """What is public, which imports what it needs only when asked for."""
    if name == "run":  # a package that can be called, so that it is both
        return import_module(f"{__name__}.run")
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, "run"})
