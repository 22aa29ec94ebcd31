"""A catalogue of backends that do not exist, and spaces of them."""

from __future__ import annotations

from functools import cache
from typing import Any

from gpubench.backends import base
from gpubench.run.tune import space
from gpubench.run.tune.space import Space
from gpubench.suite.goal import Goal, Metric
from gpubench.suite.types import Catalog, Cell, Option, Workload

FAST = Goal(Metric("throughput"))
QUICK = Goal(Metric("latency", 0.99))
RESNET = Workload(model="resnet50")

OPTIONS = (
    Option(name="tile", kind="int", default=8, minimum=1, help="", search=(8, 16)),
    Option(name="fuse", kind="bool", default=True, help="", search=(True, False)),
    Option(
        name="depth", kind="float", default=1.0, help="", search=(1, 2), when={"fuse": (True,)}
    ),
    Option(name="graph", kind="bool", default=False, help="", search=(False, True),
           when={"device": ("cuda",)}),
    Option(name="method", kind="str", default="a", choices=("a", "b"), help="",
           search=("a", "b"), when={"precision": ("int8",)}),
    Option(name="free", kind="str", default="", help=""),
)  # fmt: skip
CATALOG = Catalog(backends={"tiled": OPTIONS, "torch-eager": (), "null": ()}, models=("resnet50",))


def make(catalog: Catalog = CATALOG, **given: Any) -> Space:
    said: dict[str, Any] = {"device": "cpu", "cores": 2, "gpus": 0, "goal": FAST} | given
    return space.default(catalog, RESNET, **said)


def anything(_: Cell) -> None:
    return None


backend_of = cache(base.get)


def supported(cell: Cell) -> str | None:
    return backend_of(cell.backend).unsupported(cell)
